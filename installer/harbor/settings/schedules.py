"""When Harbor does by itself what has to be done again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from installer.harbor.settings.change import Change, Line, Remark, lines, unmanaged
from installer.harbor.settings.configuration import listed
from installer.site.harbor_settings_check import cron_of
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from installer.harbor.settings.target import Target


_KEYS = {
    "delete_untagged": "deleteUntagged",
    "audit_retention_hour": "keepHours",
    "include_event_types": "events",
    "include_operations": "events",
}
"""What site.yaml calls the parameters of Harbor's."""


def schedules(target: Target) -> Iterator[Change | Remark]:
    """Garbage collection and the scan of everything."""
    collection, scan = target.settings.garbage_collection, target.settings.scan_all
    path = "/system/gc/schedule"
    if collection is not None:
        parameters = {
            "delete_untagged": collection.delete_untagged,
            "dry_run": False,
            "workers": collection.workers,
        }
        yield from schedule_changes(
            target, "garbage collection", path, collection.schedule, parameters
        )
    else:
        yield from other_schedule(target, "garbage collection", path)
    path = "/system/scanAll/schedule"
    if scan is not None:
        yield from schedule_changes(target, "scan of everything", path, scan.schedule, {})
    else:
        yield from other_schedule(target, "scan of everything", path)


def schedule_lines(
    found: Mapping[str, Any] | None, cron: str, parameters: Mapping[str, Any]
) -> tuple[Line, ...]:
    """What differs from a schedule of Harbor's, which says None where there is none.

    Its parameters are JSON in a text, from which what is false or 0 may be missing.
    """
    schedule = (found or {}).get("schedule") or {}
    before = str(schedule.get("cron") or "")
    pairs: list[tuple[str, Any, Any]] = [("schedule", before, cron)]
    if cron:
        given = decode_json((found or {}).get("job_parameters") or "{}", dict[str, Any])
        for key, value in parameters.items():
            had = given.get(key, type(value)())
            if isinstance(value, str):
                had, value = sorted(listed(had)), sorted(listed(value))  # noqa: PLW2901
            pairs.append((_KEYS.get(key, key), had, value))
    return lines(pairs)


def schedule_changes(
    target: Target, what: str, path: str, schedule: str, parameters: dict[str, Any]
) -> Iterator[Change]:
    """The change of a schedule at an address of Harbor's, if it is not so."""
    cron = cron_of(schedule)
    told = schedule_lines(target.client.get(path), cron, parameters)
    if not told:
        return
    names = {"hourly": "Hourly", "daily": "Daily", "weekly": "Weekly"}
    type_ = names.get(schedule, "Custom") if cron else "None"
    body: dict[str, Any] = {"schedule": {"type": type_, "cron": cron}}
    if parameters:
        body["parameters"] = parameters

    def apply() -> str:
        target.client.put(path, body)
        return ""

    yield Change(what, told, apply)


def other_schedule(target: Target, what: str, path: str) -> Iterator[Remark]:
    """That there is a schedule which the file doesn't know."""
    found = target.client.get(path)
    if found and (cron := (found.get("schedule") or {}).get("cron")):
        yield unmanaged(f"schedule {cron!r} of the {what}")
