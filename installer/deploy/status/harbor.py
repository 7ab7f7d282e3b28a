"""Harbor as people reach it: its health, certificate, database, settings and scanner."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from installer.deploy.cluster import ClusterInfo
from installer.deploy.database import PrepareDatabase
from installer.deploy.harbor import HarborParts
from installer.deploy.harbor_access import access_to
from installer.deploy.postgresql import Refusal, session, where_is
from installer.deploy.release import HelmRelease
from installer.deploy.scanner import has_trivy
from installer.deploy.settings import ApplySettings
from installer.deploy.status.certificate import certificate_line
from installer.deploy.status.line import RUN_AGAIN, WORDS, Line, Part, State, days, few, first_line
from installer.errors import AirgapError
from installer.harbor.health import ask
from installer.harbor.vulnerability_data import scanner_data

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from installer.deploy.certificates import HarborCertificate
    from installer.deploy.context import Context
    from installer.harbor.vulnerability_data import ScannerData
    from installer.site.harbor import Harbor, VulnerabilityData
    from installer.site.model import Release

_HTTPS = 443
_EXTERNAL = "database:external"
"""Harbor calls its own connection to it a component with the name database."""


def harbor_parts(context: Context, release: Release, now: datetime) -> Iterator[Part]:
    """What is asked of the Harbor of a release; nothing if it is something else."""
    site, harbor, group = context.site, release.harbor, f"harbor {release.key}"
    if harbor is None:
        return
    where = planned_parts(context, release, harbor, ClusterInfo("", ()), now).certificate
    yield Part(group, "health", partial(_health, group, harbor, where))
    if harbor.external_url.startswith("https:"):
        yield Part(group, "certificate", partial(_certificate, group, harbor, where, now))
    if harbor.settings is not None:
        step = ApplySettings(site, release, harbor, context.state)
        yield Part(group, "settings", partial(settings_lines, group, step))
    if harbor.database is not None:
        yield Part(group, _EXTERNAL, partial(_database, group, context, release))


def planned_parts(
    context: Context, release: Release, harbor: Harbor, cluster: ClusterInfo, now: datetime
) -> HarborParts:
    """What a run would bring for a Harbor, as far as it can be said without one."""
    installed = HelmRelease(context, cluster, release)
    return HarborParts(context, release, harbor, installed, cluster, lambda: now)


def _health(group: str, harbor: Harbor, where: HarborCertificate) -> Iterator[Line]:
    url = harbor.external_url.rstrip("/")
    health = ask(url, harbor.ca or where.ca_file())
    if health.healthy:
        yield Line(group, "health", "ok", f"{url} says healthy")
    else:
        hint = "" if health.components else "is it reachable from this machine, and trusted?"
        yield Line(group, "health", "failed", health.problem, hint)
    for part in health.components:
        if part.healthy:
            yield Line(group, part.name, "ok", part.status)
        else:
            text = f"{part.status} {part.error}".strip()
            yield Line(group, part.name, "failed", text[:WORDS], "`kubectl logs` of it says more")


def _certificate(
    group: str, harbor: Harbor, where: HarborCertificate, now: datetime
) -> Iterator[Line]:
    parts, given = urlsplit(harbor.external_url), harbor.certificate
    ca = harbor.ca or where.ca_file()
    own = given is not None and given.provided is None and not given.secret
    yield certificate_line(group, parts.hostname or "", parts.port or _HTTPS, ca, now, renewed=own)


def _database(group: str, context: Context, release: Release) -> Iterator[Line]:
    database = release.harbor.database if release.harbor else None
    if database is None:
        return
    planned = HelmRelease(context, ClusterInfo("", ()), release)
    step = PrepareDatabase(
        database, release.key, planned.database_password, planned.make_database_password
    )
    where = where_is(database)
    if not step.check():
        step.preflight()  # says why
        text = f"{where}: role {database.username} can't work in {database.name} yet"
        yield Line(group, _EXTERNAL, "failed", text, RUN_AGAIN)
        return
    password = planned.database_password() or ""
    try:
        with session(database, database.username, password, database.name) as connection:
            ((version,),) = connection.run("SHOW server_version")
    except Refusal as refusal:
        yield Line(group, _EXTERNAL, "failed", refusal.message, refusal.hint)
        return
    text = f"{where}: role {database.username} can work in {database.name}, version {version}"
    yield Line(group, _EXTERNAL, "ok", text)


def settings_lines(group: str, step: ApplySettings) -> Iterator[Line]:
    """Whether what is set inside of Harbor is what site.yaml says."""
    try:
        changes = step.compare().changes
    except AirgapError as error:
        text = f"they can't be compared: {first_line(error.message)}"
        yield Line(group, "settings", "warning", text, error.hint)
        return
    if changes:
        text = f"they differ from site.yaml: {few([change.what for change in changes])}"
        yield Line(group, "settings", "warning", text, "`installer harbor diff` shows what differs")
    else:
        yield Line(group, "settings", "ok", "they are what site.yaml says")


def trivy_lines(context: Context, now: datetime) -> Iterator[Line]:
    """How old the databases are that the Harbors scan with."""
    scanning = [
        (release, release.harbor)
        for release in context.site.releases
        if release.harbor is not None and has_trivy(context, release)
    ]
    if scanning and not context.bundle.manifest.databases:
        hint = "Harbor can't scan without one: add it to `databases` of the bundle's spec"
        yield Line("trivy", "trivy-db", "warning", "the bundle has no vulnerability database", hint)
    for release, harbor in scanning:
        try:
            with access_to(context.site, context.state, release.key).client(pauses=()) as client:
                data = scanner_data(client)
        except AirgapError as error:
            text = f"the scanner can't be asked: {first_line(error.message)}"
            yield Line("trivy", release.key, "warning", text, error.hint)
        else:
            yield database_age(release.key, data, harbor.vulnerability_data, now)


def database_age(key: str, data: ScannerData, limits: VulnerabilityData, now: datetime) -> Line:
    """How old the database is that the scanner of release ``key`` works with."""
    if data.updated_at is None:
        text = f"{data.scanner} says of no vulnerability database: every scan fails"
        return Line("trivy", key, "failed", text, "`installer run` with a bundle that has one")
    age = now - data.updated_at
    text = f"{data.scanner}'s database is {days(age)} old, of {data.updated_at:%Y-%m-%d}"
    if age <= timedelta(days=limits.warn_days):
        return Line("trivy", key, "ok", text)
    state: State = "warning" if age <= timedelta(days=limits.fail_days) else "failed"
    hint = "newer vulnerabilities are not found: run a newer bundle of trivy-databases.yaml"
    return Line("trivy", key, state, text, hint)
