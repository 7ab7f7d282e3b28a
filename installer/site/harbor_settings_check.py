"""What the types of ``harbor.settings`` can't say: sizes, schedules, names, what needs each other.

Harbor takes much in silence that then does nothing, or answers with its internal server error: so
it is checked here, where a person can be told the line. Pure.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from installer.errors import InvalidInput
from installer.site.section import split_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from installer.site.harbor_settings import (
        AuditLog,
        CveAllowlist,
        HarborSettings,
        Keep,
        Label,
        Login,
        Project,
        Replication,
        RobotAccount,
        Rule,
        Scanner,
        System,
    )

    Path = tuple[str | int, ...]
    Problem = tuple[Path, str, str]
    """Key path below ``settings``, what is wrong there, and what to do."""

UNLIMITED = "unlimited"
NO_SCHEDULE = "none"
CRONS = {"hourly": "0 0 * * * *", "daily": "0 0 0 * * *", "weekly": "0 0 0 * * 0"}
"""What Harbor's pages mean by these words."""
_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*\Z")
"""Of a project and of a robot."""
_ACCESS = re.compile(r"[a-z-]+:[a-z-]+\Z")
_QUANTITY = re.compile(r"(\d{1,18})(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?B?\Z")
_POWERS = {"k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_MOST_BYTES = 1 << 62
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}\Z")
_FIELDS = 6
_WORKERS = range(1, 6)
_COLOUR = re.compile(r"#[0-9A-Fa-f]{6}\Z")


def quota_bytes(text: str) -> int:
    """Bytes of ``50Gi``, -1 for ``unlimited``; raises InvalidInput."""
    if text == UNLIMITED:
        return -1
    if match := _QUANTITY.match(text):
        unit = match[2] or ""
        base = 1024 if unit.endswith("i") else 1000
        size = int(match[1])
        for _ in range(_POWERS.get(unit[:1], 0)):
            size *= base
        if 0 < size < _MOST_BYTES:
            return size
    raise InvalidInput(
        f"not a size: {text[:40]!r}", hint=f"for example 50Gi or 2Ti, or {UNLIMITED}"
    )


def cron_of(schedule: str) -> str:
    """Harbor's six fields of a schedule, "" for ``none``; raises InvalidInput."""
    if schedule == NO_SCHEDULE:
        return ""
    if schedule in CRONS:
        return CRONS[schedule]
    fields = schedule.split()
    if len(fields) == _FIELDS - 1:
        raise InvalidInput(
            f"Harbor's cron has six fields, seconds first: {schedule[:60]!r}",
            hint=f"write '0 {schedule[:60]}'",
        )
    if len(fields) != _FIELDS or fields[0] != "0":
        raise InvalidInput(
            f"not a schedule: {schedule[:60]!r}",
            hint=f"one of {', '.join(CRONS)}, {NO_SCHEDULE}, or six fields that begin with 0: "
            "'0 30 2 * * *' is half past two",
        )
    return " ".join(fields)


def day_seconds(day: str) -> int | None:
    """Seconds since 1970 at which a day begins (UTC), None for ""; raises InvalidInput."""
    if not day:
        return None
    try:
        begin = datetime.fromisoformat(day if _DAY.match(day) else "")
    except ValueError:
        raise InvalidInput(f"not a day: {day[:40]!r}", hint="for example 2027-12-31") from None
    return int(begin.replace(tzinfo=UTC).timestamp())


def problems(settings: HarborSettings) -> Iterator[Problem]:
    """All of them."""
    yield from _whole(settings)
    endpoints = [endpoint.name for endpoint in settings.registries]
    yield from _unique(("registries",), endpoints)
    for index, endpoint in enumerate(settings.registries):
        if bool(endpoint.username) != bool(endpoint.password_file):
            yield ("registries", index), "username and passwordFile belong together", ""
        yield from _url(("registries", index, "url"), endpoint.url)
    yield from _unique(("projects",), [project.name for project in settings.projects])
    for index, project in enumerate(settings.projects):
        yield from _below(("projects", index), _project(project, endpoints))
    yield from _robots(settings.robots)
    for index, robot in enumerate(settings.robots):
        if not robot.access:
            yield ("robots", index, "access"), "it may do nothing", "give it an action"
        for number, access in enumerate(robot.access):
            yield from _actions(("robots", index, "access", number), access.actions)
    yield from _unique(("replications",), [one.name for one in settings.replications])
    for index, one in enumerate(settings.replications):
        yield from _below(("replications", index), _replication(one, endpoints))


def _whole(settings: HarborSettings) -> Iterator[Problem]:
    """What holds for all of Harbor."""
    if settings.system:
        yield from _below(("system",), _system(settings.system))
    if settings.audit_log:
        yield from _below(("auditLog",), _audit_log(settings.audit_log))
    if settings.login:
        yield from _below(("login",), _login(settings.login))
    yield from _unique(("scanners",), [scanner.name for scanner in settings.scanners])
    for index, scanner in enumerate(settings.scanners):
        yield from _below(("scanners", index), _scanner(scanner))
    yield from _allowlist(settings.cve_allowlist)
    if (collection := settings.garbage_collection) is not None:
        yield from _form(("garbageCollection", "schedule"), cron_of, collection.schedule)
        if collection.workers not in _WORKERS:
            yield ("garbageCollection", "workers"), "Harbor takes 1 to 5", ""
    if settings.scan_all:
        yield from _form(("scanAll", "schedule"), cron_of, settings.scan_all.schedule)
    yield from _labels(settings.labels)


def _below(path: Path, found: Iterable[Problem]) -> Iterator[Problem]:
    for inner, message, hint in found:
        yield (*path, *inner), message, hint


def _form(path: Path, read: Callable[[str], object], text: str) -> Iterator[Problem]:
    """A text that has a form, by what reads it."""
    try:
        read(text)
    except InvalidInput as error:
        yield path, error.message, error.hint


def _system(system: System) -> Iterator[Problem]:
    if system.project_quota:
        yield from _form(("projectQuota",), quota_bytes, system.project_quota)
    for key, number in (
        ("robotDays", system.robot_days),
        ("tokenMinutes", system.token_minutes),
        ("sessionMinutes", system.session_minutes),
    ):
        if number is not None and number <= 0:
            yield (key,), "it must be above 0", ""


def _audit_log(audit: AuditLog) -> Iterator[Problem]:
    if audit.forward_to:
        yield from _form(("forwardTo",), split_address, audit.forward_to)
    if audit.keep_in_database is False and audit.forward_to == "":
        hint = "an audit log that is neither kept nor forwarded is none"
        yield ("keepInDatabase",), "nothing is forwarded", hint
    if audit.purge is not None:
        yield from _form(("purge", "schedule"), cron_of, audit.purge.schedule)
        if not audit.purge.events:
            yield ("purge", "events"), "none is given", "for example [pull_artifact]"
        if audit.purge.keep_hours <= 0:
            yield ("purge", "keepHours"), "it must be above 0", ""


def _login(login: Login) -> Iterator[Problem]:
    ways = [way for way in (login.oidc, login.ldap, login.database) if way is not None]
    if len(ways) != 1:
        yield (), "give exactly one of oidc, ldap, database", ""
    if login.ldap and bool(login.ldap.search_dn) != bool(login.ldap.search_password_file):
        yield ("ldap",), "searchDN and searchPasswordFile belong together", ""
    if login.oidc and not login.oidc.endpoint.startswith("https://"):
        yield ("oidc", "endpoint"), "not an https URL", "Harbor takes no other"


def _scanner(scanner: Scanner) -> Iterator[Problem]:
    if bool(scanner.authorization) != bool(scanner.credential_file):
        yield (), "authorization and credentialFile belong together", ""
    yield from _url(("url",), scanner.url)


def _replication(one: Replication, endpoints: list[str]) -> Iterator[Problem]:
    if bool(one.to) == bool(one.from_):
        yield (), "give exactly one of to and from", "the name of an endpoint of registries"
    elif (one.to or one.from_) not in endpoints:
        key = "to" if one.to else "from"
        yield (key,), f"no such endpoint: {one.to or one.from_!r}", _known(endpoints)
    if one.trigger == "event" and one.from_:
        hint = "manual or a schedule: this Harbor does not hear what happens there"
        yield ("trigger",), "only what this Harbor sends follows events", hint
    elif one.trigger == NO_SCHEDULE:
        yield ("trigger",), "not a trigger: 'none'", "write manual"
    elif one.trigger not in ("manual", "event"):
        yield from _form(("trigger",), cron_of, one.trigger)
    if one.filters.tags and one.filters.except_tags:
        yield ("filters",), "give tags or exceptTags, not both", ""
    if one.flatten < -1:
        yield ("flatten",), "0 for none, -1 for all, or a number of parts", ""


def _known(endpoints: list[str]) -> str:
    return f"registries has {', '.join(endpoints) or 'none'}"


def _project(project: Project, endpoints: list[str]) -> Iterator[Problem]:
    if not _NAME.match(project.name):
        hint = "lower-case letters and digits, with single . _ - between them"
        yield ("name",), f"not a name of a project: {project.name[:80]!r}", hint
    if project.quota:
        yield from _form(("quota",), quota_bytes, project.quota)
    yield from _allowlist(project.cve_allowlist)
    if project.cve_allowlist is not None and project.system_cve_allowlist:
        yield ("systemCveAllowlist",), "the project has a cveAllowlist of its own", "take one"
    if project.proxy_cache and project.proxy_cache.registry not in endpoints:
        name = project.proxy_cache.registry
        yield ("proxyCache", "registry"), f"no such endpoint: {name!r}", _known(endpoints)
    yield from _robots(project.robots)
    for index, robot in enumerate(project.robots):
        yield from _actions(("robots", index), robot.actions)
    yield from _rules(project)
    for index, member in enumerate(project.members):
        if bool(member.user) == bool(member.group or member.group_dn):
            yield ("members", index), "give exactly one of user and group", ""
    yield from _labels(project.labels)
    yield from _unique(("webhooks",), [hook.name for hook in project.webhooks])
    for index, hook in enumerate(project.webhooks):
        yield from _url(("webhooks", index, "address"), hook.address)
        if not hook.events:
            yield ("webhooks", index, "events"), "none is given", "for example [PUSH_ARTIFACT]"


def _rules(project: Project) -> Iterator[Problem]:
    for index, rule in enumerate(project.immutable_tags):
        yield from _below(("immutableTags", index), _rule(rule))
    if project.retention is None:
        return
    yield from _form(("retention", "schedule"), cron_of, project.retention.schedule)
    if not project.retention.keep:
        yield ("retention", "keep"), "nothing would be kept", "Harbor would delete every tag"
    for index, keep in enumerate(project.retention.keep):
        yield from _below(("retention", "keep", index), chain(_rule(keep), _keep(keep)))


def _rule(rule: Rule) -> Iterator[Problem]:
    if rule.repositories and rule.except_repositories:
        yield (), "give repositories or exceptRepositories, not both", ""
    if rule.tags and rule.except_tags:
        yield (), "give tags or exceptTags, not both", ""


def _keep(keep: Keep) -> Iterator[Problem]:
    numbers = (
        keep.latest_pushed,
        keep.latest_pulled,
        keep.pushed_within_days,
        keep.pulled_within_days,
    )
    if sum(map(bool, (*numbers, keep.always))) != 1 or min(numbers) < 0:
        hint = "latestPushed, latestPulled, pushedWithinDays, pulledWithinDays or always"
        yield (), "give exactly one number of what is kept, above 0", hint


def _robots(robots: Iterable[RobotAccount]) -> Iterator[Problem]:
    robots = tuple(robots)
    yield from _unique(("robots",), [robot.name for robot in robots])
    for index, robot in enumerate(robots):
        if not _NAME.match(robot.name):
            hint = "lower-case letters and digits, with single . _ - between them, and no prefix"
            yield ("robots", index, "name"), f"not a name of a robot: {robot.name[:80]!r}", hint
        if robot.days < 0:
            yield ("robots", index, "days"), "days, or 0 for one that never expires", ""


def _actions(path: Path, actions: tuple[str, ...]) -> Iterator[Problem]:
    if not actions:
        yield (*path, "actions"), "it may do nothing", "for example [repository:pull]"
    for action in actions:
        if not _ACCESS.match(action):
            hint = "resource:action, for example repository:pull"
            yield (*path, "actions"), f"not an action: {action[:60]!r}", hint


def _labels(labels: tuple[Label, ...]) -> Iterator[Problem]:
    yield from _unique(("labels",), [label.name for label in labels])
    for index, label in enumerate(labels):
        if not _COLOUR.match(label.color):
            yield ("labels", index, "color"), f"not a colour: {label.color[:20]!r}", "as '#00ab9a'"


def _allowlist(allowlist: CveAllowlist | None) -> Iterator[Problem]:
    if allowlist is None:
        return
    yield from _form(("cveAllowlist", "expires"), day_seconds, allowlist.expires)
    ids = allowlist.ids
    # Harbor answers a doubled one with its internal server error.
    for name in sorted({name for name in ids if ids.count(name) > 1}):
        yield ("cveAllowlist", "ids"), f"{name} is there twice", ""
    for name in ids:
        if not name or " " in name:
            hint = "as CVE-2026-1000"
            yield ("cveAllowlist", "ids"), f"not the id of a vulnerability: {name[:60]!r}", hint


def _unique(path: Path, names: list[str]) -> Iterator[Problem]:
    for index, name in enumerate(names):
        if name in names[:index]:
            yield (*path, index, "name"), f"{name!r} is there twice", ""


def _url(path: Path, url: str) -> Iterator[Problem]:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
        good = good and not (parts.username or parts.password)
    except ValueError:
        good = False
    if not good:
        # Harbor would take one without a scheme for http, in silence.
        yield path, "not a URL that begins with https:// or http://", "without a login in it"
