"""The audit log: where it goes, what it leaves out, and when its old entries are deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from installer.errors import PreflightFailed
from installer.harbor.api import HarborRefused, Version
from installer.harbor.settings.change import Change, Line, Remark
from installer.harbor.settings.configuration import Option, configuration_changes
from installer.harbor.settings.schedules import other_schedule, schedule_changes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from installer.harbor.settings.change import Apply
    from installer.harbor.settings.target import Target
    from installer.site.harbor_settings import Purge

_EVENTS_SINCE = Version(2, 13)
"""Kinds of events in the audit log; before there were three operations."""
_OPERATIONS = ("create", "delete", "pull")


def audit_log(target: Target) -> Iterator[Change | Remark]:
    """Section ``auditLog``: forwarding, what is logged, and when old entries are deleted."""
    audit = target.settings.audit_log
    purge = audit.purge if audit else None
    if audit is not None:
        options = []
        if audit.forward_to is not None:
            options.append(
                Option("auditLog.forwardTo", "audit_log_forward_endpoint", audit.forward_to)
            )
        if audit.keep_in_database is not None:
            skip = not audit.keep_in_database
            options.append(Option("auditLog.keepInDatabase", "skip_audit_log_database", skip))
        if audit.disabled_events is not None:
            _check_events(target, audit.disabled_events, "auditLog.disabledEvents")
            text = ",".join(audit.disabled_events)
            options.append(
                Option("auditLog.disabledEvents", "disabled_audit_log_event_types", text)
            )
        told, body = configuration_changes(target.configuration(), options, target.version)
        if told:
            # Said in the words of site.yaml, which asks the other way round.
            turned = {"yes": "no", "no": "yes"}
            told = tuple(
                Line(line.key, turned.get(line.before, line.before), turned[line.after])
                if line.key == "auditLog.keepInDatabase"
                else line
                for line in told
            )
            yield Change("audit log", told, _put_audit(target, body))
    if purge is not None:
        yield from schedule_changes(
            target, "purge of the audit log", "/system/purgeaudit/schedule", purge.schedule,
            _purge_parameters(target, purge),
        )  # fmt: skip
    else:
        yield from other_schedule(target, "purge of the audit log", "/system/purgeaudit/schedule")


def _put_audit(target: Target, body: dict[str, Any]) -> Apply:
    keys = ("audit_log_forward_endpoint", "skip_audit_log_database")
    before = {key: target.value(key) for key in keys}
    after = {key: body.get(key, before[key]) for key in keys} | body

    def apply() -> str:
        try:
            # Both together: one alone may be refused because of the other.
            target.client.put("/configurations", after)
        except HarborRefused as error:
            # Harbor keeps an endpoint that does not answer, in spite of its 400.
            target.client.put("/configurations", before)
            raise error.with_hint(
                "nothing was changed; a syslog server has to listen there on TCP, where Harbor's "
                "core pods reach it"
            ) from error
        return ""

    return apply


def _check_events(target: Target, events: tuple[str, ...], where: str) -> None:
    """Harbor takes any word in silence: refuse one that it doesn't list."""
    if target.version < _EVENTS_SINCE:
        known = list(_OPERATIONS)
    else:
        events_known = target.client.get("/auditlog-exts/events", type=list[dict[str, str]])
        known = [one["event_type"] for one in events_known]
    if strange := [event for event in events if event not in known]:
        raise PreflightFailed(
            f"{where}: Harbor {target.version} has no event {', '.join(strange)}",
            hint=f"it has {', '.join(known)}",
        )


def _purge_parameters(target: Target, purge: Purge) -> dict[str, Any]:
    _check_events(target, purge.events, "auditLog.purge.events")
    key = "include_event_types" if target.version >= _EVENTS_SINCE else "include_operations"
    return {
        "audit_retention_hour": purge.keep_hours,
        key: ",".join(purge.events),
        "dry_run": False,
    }
