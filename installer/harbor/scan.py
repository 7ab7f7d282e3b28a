"""Scans as Harbor does them: started, waited for, and read.

A failed scan is easy to miss: its report is 200 and empty, as before any scan, and everything calls
itself healthy. Only the overview of the artifact says ``Error``, and the scan's log why. And after
a second start the overview may still be that of the first scan.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec

from installer.errors import AcceptanceFailed
from installer.harbor.api import HarborRefused, segment

if TYPE_CHECKING:
    from collections.abc import Callable

    from installer.harbor.api import HarborClient

SEVERITIES = ("unknown", "negligible", "low", "medium", "high", "critical")
"""As Harbor orders them, the least first."""
_PAUSE = 1.0
_LOG_LINES = 5
_HINT = (
    "has the scanner a vulnerability database? `installer status` says so; "
    "a bundle of trivy-databases.yaml brings a new one"
)


class Vulnerability(msgspec.Struct, frozen=True):
    """One finding, as Harbor's report has it."""

    id: str
    package: str
    version: str
    severity: str
    fix_version: str = ""
    description: str = ""
    links: list[str] | None = None

    @property
    def rank(self) -> int:
        """Place of the severity in ``SEVERITIES``; one that isn't there counts as unknown."""
        found = self.severity.lower()
        return SEVERITIES.index(found) if found in SEVERITIES else 0


class Scanner(msgspec.Struct, frozen=True):
    """Who scanned."""

    name: str = ""
    vendor: str = ""
    version: str = ""


class Report(msgspec.Struct, frozen=True):
    """A report (``application/vnd.security.vulnerability.report; version=1.1``)."""

    generated_at: str = ""
    severity: str = ""
    scanner: Scanner = Scanner()
    vulnerabilities: list[Vulnerability] | None = None

    @property
    def worst_first(self) -> tuple[Vulnerability, ...]:
        """The findings, the worst first, then by package and id."""
        found = self.vulnerabilities or ()
        return tuple(sorted(found, key=lambda one: (-one.rank, one.package, one.id)))

    def at_least(self, severity: str) -> tuple[Vulnerability, ...]:
        """The findings of this severity (one of ``SEVERITIES``) or a worse one."""
        lowest = SEVERITIES.index(severity)
        return tuple(one for one in self.worst_first if one.rank >= lowest)

    def counts(self) -> dict[str, int]:
        """How many there are of each severity that occurs, the worst first."""
        ranks = [one.rank for one in self.worst_first]
        return {SEVERITIES[rank]: ranks.count(rank) for rank in dict.fromkeys(ranks)}


class Overview(msgspec.Struct, frozen=True):
    """How the latest scan of an artifact is going."""

    scan_status: str = ""
    report_id: str = ""
    start_time: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of it."""
        return self.scan_status in ("Success", "Error", "Stopped")


NEVER = Overview()
"""Of an artifact that was never scanned."""


class Artifact(msgspec.Struct, frozen=True):
    """As much of an artifact as is needed here."""

    digest: str
    type: str = ""
    scan_overview: dict[str, Overview] | None = None

    @property
    def overview(self) -> Overview:
        """That of the latest scan; an empty one before any."""
        return next(iter((self.scan_overview or {}).values()), NEVER)


def artifact_path(repository: str, version: str) -> str:
    """Where Harbor's API has an artifact; ``version`` is a tag or a digest."""
    project, _, name = repository.partition("/")
    return f"/projects/{segment(project)}/repositories/{segment(name)}/artifacts/{version}"


def find_artifact(client: HarborClient, repository: str, version: str) -> Artifact:
    """Ask for an artifact with the overview of its latest scan; raises what the client does."""
    query = {"with_scan_overview": True}
    return client.get(artifact_path(repository, version), query, type=Artifact)


def read_report(client: HarborClient, repository: str, digest: str) -> Report | None:
    """The report of the latest scan that succeeded, None if there is none."""
    path = f"{artifact_path(repository, digest)}/additions/vulnerabilities"
    reports = client.get(path, type=dict[str, Report])
    return next(iter(reports.values()), None)


def scan(
    client: HarborClient,
    repository: str,
    digest: str,
    *,
    patience: float = 900.0,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    watch: Callable[[str], None] = lambda _: None,
) -> Report:
    """Scan an image and wait for the report; ``watch`` hears each new state of the scan.

    A scan that runs already is waited for. Raises AcceptanceFailed when it ends in an error, with
    the last words of its log, or is not over after ``patience`` seconds; HarborRefused for what
    can't be scanned.
    """
    path = artifact_path(repository, digest)
    before = find_artifact(client, repository, digest).overview
    try:
        client.post(f"{path}/scan", {"scan_type": "vulnerability"})
    except HarborRefused as error:
        if error.status != HTTPStatus.CONFLICT:
            raise
        before = NEVER  # somebody else's is as good
    return wait_for_report(
        client, repository, digest, before, patience=patience, pause=pause, clock=clock, watch=watch
    )


def wait_for_report(
    client: HarborClient,
    repository: str,
    digest: str,
    before: Overview = NEVER,
    *,
    patience: float = 900.0,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    watch: Callable[[str], None] = lambda _: None,
) -> Report:
    """Wait until a scan after ``before`` is over, as scan-on-push starts one; see ``scan``."""
    end, told = clock() + patience, ""
    where = f"{repository}@{digest}"
    while True:
        now = find_artifact(client, repository, digest).overview
        if now.scan_status != told:
            watch(told := now.scan_status)
        same = (now.report_id, now.start_time) == (before.report_id, before.start_time)
        if now.is_over and not (same and before.is_over):
            break
        if clock() >= end:
            raise AcceptanceFailed(
                f"{where}: the scan is not over after {patience:.0f} s, but "
                f"{now.scan_status or 'not begun'}",
                hint="do harbor-jobservice and harbor-trivy run? see their logs",
            )
        pause(_PAUSE)
    report = read_report(client, repository, digest) if now.scan_status == "Success" else None
    if report is None:
        log = _last_words(client, repository, digest, now.report_id)
        raise AcceptanceFailed(f"{where}: the scan ended: {now.scan_status}{log}", hint=_HINT)
    return report


def _last_words(client: HarborClient, repository: str, digest: str, report: str) -> str:
    if not report:
        return ""
    try:
        text = client.text(f"{artifact_path(repository, digest)}/scan/{report}/log")
    except HarborRefused:
        return ""
    lines = [line.strip() for line in text.splitlines() if "ERROR" in line or "FATAL" in line]
    return "".join(f"\n  {line[:400]}" for line in lines[-_LOG_LINES:])
