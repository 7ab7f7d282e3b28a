"""``VerifiedBundle + Site --plan--> [Step] --run--> Report``, readable from top to bottom.

Before the first change everything is refused that can be: an old bundle, a cluster that doesn't
answer or can't run it, values that a chart doesn't know, an image that the bundle lacks.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from installer.bundle.delta import refuse_gaps
from installer.deploy import databases
from installer.deploy.acceptance import Acceptance
from installer.deploy.check import RunningImages
from installer.deploy.context import looking, working
from installer.deploy.harbor import HarborParts
from installer.deploy.host_bundle import HostBundleInHarbor
from installer.deploy.nodes import TellNodes
from installer.deploy.plan import Report, execute, look, unmeasured
from installer.deploy.preflight.examination import examine
from installer.deploy.push import PushBundle
from installer.deploy.scanner import DatabasesAreReadable
from installer.deploy.seed import ServeBundle
from installer.deploy.upgrade import UpgradableRelease
from installer.errors import Corrupt, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from installer.bundle.archive import VerifiedBundle
    from installer.deploy.cluster import ClusterInfo
    from installer.deploy.context import Context
    from installer.deploy.plan import Meter, Observer, Planned, Step
    from installer.deploy.preflight.verdict import Check
    from installer.deploy.request import Request
    from installer.site.model import Release
    from installer.site.state import State

_VERIFIED = "verified.json"
_VERIFIED_DATABASES = "verified-databases.json"
_SHOWN = 10


class _Verified(msgspec.Struct, frozen=True):
    """Files in which every byte was found good: which ones, and whose signature they are under."""

    bundle: str
    files: tuple[tuple[int, ...], ...] = ()


class VerifyContent:
    """Hash everything that the bundle carries, once for each file that is brought."""

    name = "verify"
    sentence = "Check every byte of the bundle"

    def __init__(self, bundle: VerifiedBundle, state: State, meter: Meter = unmeasured) -> None:
        self._bundle = bundle
        self._state = state
        self._meter = meter
        self._file = _VERIFIED_DATABASES if bundle.manifest.only_databases else _VERIFIED

    def _mark(self) -> _Verified:
        stamps = [bundle.stamp() for bundle in (self._bundle, *self._bundle.bases)]
        return _Verified(str(self._bundle.digest), tuple(one for stamp in stamps for one in stamp))

    def check(self) -> bool:
        """Whether this very file was checked before; what is used later is hashed again."""
        return self._state.read(self._file, _Verified) == self._mark()

    def apply(self) -> str:
        """Hash it on all cores; raises Corrupt that names what differs."""
        threads = max(2, len(os.sched_getaffinity(0)))
        with self._meter("verifying", self._bundle.content_size) as advance:
            differing = self._bundle.verify_members(threads=threads, progress=advance)
        if differing:
            parts = [f"part {told}" for told in self._bundle.file.differing_parts()]
            listed = "\n  ".join([*parts, *(error.message for error in differing[:_SHOWN])])
            raise Corrupt(
                f"{len(differing)} members of the bundle differ:\n  {listed}",
                hint="copy the bundle again; nothing was installed",
            )
        self._state.write(self._file, self._mark())
        return ""


def plan(request: Request) -> list[Planned]:
    """Say what would be done and what is done already; changes nothing, not even the state.

    Raises what a run would refuse before its first change.
    """
    _refuse_early(request)
    if request.bundle.manifest.only_databases:
        databases.check_site(request)
        return look(_steps_of_databases(request))
    with looking(request.bundle, request.site, request.state) as context:
        cluster = _preflight(request, context)
        return look(steps_of(request, context, cluster))


def run(request: Request, observer: Observer) -> Report:
    """Bring the site to what the bundle and site.yaml say; raises an AirgapError."""
    _refuse_early(request)
    state, manifest = request.state, request.bundle.manifest
    if manifest.only_databases:
        databases.check_site(request)
        with state.held():
            return _execute(request, _steps_of_databases(request), observer, event="databases")
    with looking(request.bundle, request.site, state) as context:
        cluster = _preflight(request, context)
    with state.held():
        steps = steps_of(request, working(request.bundle, request.site, state), cluster)
        return _execute(request, steps, observer)


def _execute(
    request: Request, steps: Sequence[Step], observer: Observer, *, event: str = "run"
) -> Report:
    """Execute steps, of which the first verifies; the state is held."""
    _check_history(request)
    state, digest, manifest = request.state, str(request.bundle.digest), request.bundle.manifest
    verify, *others = steps
    what = f"{manifest.name} serial {manifest.serial} of channel {manifest.channel}"
    state.journal.append(event, bundle=digest, text=what)
    report = Report()
    execute([verify], state.journal, digest, observer, report)
    # Not earlier: a damaged bundle must not lock the site out of the good one before it.
    now = datetime.now(UTC)
    state.accept(request.bundle, request.site.name, now, downgrade=request.downgrade)
    if not manifest.only_databases:
        databases.remember_names(state, manifest)
    return execute(others, state.journal, digest, observer, report)


def _steps_of_databases(request: Request) -> list[Step]:
    verify = VerifyContent(request.bundle, request.state, request.meter)
    seed, *scanners = databases.steps_of(request)
    return [verify, seed, *_readable(request), *scanners, *hosting(request)]


def _refuse_early(request: Request) -> None:
    """Refuse an old bundle and a delta that lacks something: its programs are not even copied."""
    _check_history(request)
    if request.bundle.manifest.only_databases:
        refuse_gaps(request.bundle)
    else:
        seed_of(request).refuse_gaps()


def _check_history(request: Request) -> None:
    request.state.check_history(
        request.bundle.manifest,
        channel=request.site.channel,
        allow_downgrade=bool(request.downgrade),
    )


def preflight(request: Request, *, pull: bool = False) -> tuple[Check, ...]:
    """Look at all that a run needs and say how it is; only ``pull`` makes something, for a while.

    Raises for a bundle that may not be used here, whose programs are then not executed.
    """
    _refuse_early(request)
    with looking(request.bundle, request.site, request.state) as context:
        return examine(context, partial(_release, context), seed_of(request), pull=pull).checks


def _preflight(request: Request, context: Context) -> ClusterInfo:
    found = examine(context, partial(_release, context), seed_of(request))
    for check in found.checks:
        if check.state == "warning":
            request.warn(check)
    return found.required()


def _release(
    context: Context, release: Release, cluster: ClusterInfo
) -> tuple[UpgradableRelease, HarborParts | None]:
    installed = UpgradableRelease(context, cluster, release)
    harbor = release.harbor
    if harbor is None:
        return installed, None
    parts = HarborParts(context, release, harbor, installed, cluster)
    installed.reach(lambda: harbor.ca or parts.certificate.ca_file())
    return installed, parts


def _releases(
    context: Context, cluster: ClusterInfo
) -> list[tuple[UpgradableRelease, HarborParts | None]]:
    return [_release(context, release, cluster) for release in context.site.releases]


def seed_of(request: Request) -> ServeBundle | PushBundle:
    """The way in which nodes get the bundle's images at this site."""
    bundle, site = request.bundle, request.site
    if site.seed.serve is not None:
        how = {"command": request.command, "key": request.key}
        return ServeBundle(site, site.seed.serve, request.state, bundle, **how)
    if site.seed.push is not None:
        return PushBundle(site.seed.push, bundle, request.meter)
    raise InvalidInput("site.yaml: seed: neither serve nor push")


def steps_of(request: Request, context: Context, cluster: ClusterInfo) -> Sequence[Step]:
    """All steps of a run, in order; ``installer undo`` takes those that it needs as well."""
    bundle, site, state = request.bundle, request.site, request.state
    seed = seed_of(request)
    releases = _releases(context, cluster)
    harbors = [harbor for _, harbor in releases if harbor is not None]
    namespaces = {release.namespace: None for release, _ in releases}
    trusted = [harbor.trusted_host for harbor in harbors if harbor.trusted_host]
    steps: list[Step] = [
        VerifyContent(bundle, state, request.meter),
        context.toolbox,
        seed,
        *(harbor.certificate for harbor in harbors if harbor.trusted_host),
        TellNodes(site, state, seed.ca, harbors=trusted),
    ]
    for release, harbor in releases:
        steps += [*(harbor.before() if harbor else ()), *release.before(), release]
        steps += release.after()
    for namespace in namespaces:
        there = [release for release, _ in releases if release.namespace == namespace]
        steps.append(RunningImages(namespace, bundle, context.kubectl, there))
    for harbor in harbors:
        steps += harbor.after()
    steps += [*_readable(request), *hosting(request)]
    if any(release.harbor and release.harbor.acceptance for release in site.releases):
        steps.append(Acceptance(context))
    return steps


def _readable(request: Request) -> list[Step]:
    """The check that Trivy gets its databases from a registry that asks others for a login."""
    push, carried = request.site.seed.push, request.bundle.manifest.databases
    if push is None or not push.username or not carried:
        return []
    return [DatabasesAreReadable(push, carried)]


def hosting(request: Request) -> list[Step]:
    """Copies of the bundle's content in projects of the site's Harbors, where that is asked for."""
    site, state, bundle = request.site, request.state, request.bundle
    return [
        HostBundleInHarbor(site, state, release, release.harbor.host_bundle, bundle, request.meter)
        for release in site.releases
        if release.harbor is not None and release.harbor.host_bundle is not None
    ]
