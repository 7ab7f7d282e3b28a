"""``VerifiedBundle + Site --plan--> [Step] --run--> Report``, readable from top to bottom.

Before the first change everything is refused that can be: an old bundle, a cluster that doesn't
answer or can't run it, values that a chart doesn't know, an image that the bundle lacks.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from installer.deploy.check import HarborIsHealthy, RunningImages
from installer.deploy.context import looking, working
from installer.deploy.nodes import TellNodes
from installer.deploy.plan import execute, look, unmeasured
from installer.deploy.preflight import examine
from installer.deploy.push import PushBundle
from installer.deploy.release import HelmRelease
from installer.deploy.seed import ServeBundle
from installer.errors import Corrupt, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from installer.bundle.archive import VerifiedBundle
    from installer.deploy.context import Context
    from installer.deploy.plan import Meter, Observer, Planned, Report, Step
    from installer.deploy.preflight import ClusterInfo
    from installer.site.model import Site
    from installer.site.state import State

_VERIFIED = "verified.json"
_SHOWN = 10


@dataclass(frozen=True)
class Request:
    """What a run is asked for.

    ``key`` is the PEM of the public key that the bundle was verified with, ``command`` starts the
    installer itself, for the seed registry in the background. ``downgrade`` is the reason for
    which an older bundle may be used, or empty. ``meter`` shows the progress of long steps.
    """

    bundle: VerifiedBundle
    site: Site
    state: State
    key: bytes
    command: tuple[str, ...]
    downgrade: str = ""
    meter: Meter = unmeasured


class _Verified(msgspec.Struct, frozen=True):
    """A file in which every byte was found good: which one, and whose signature it is under."""

    bundle: str
    file: tuple[int, int, int, int]


class VerifyContent:
    """Hash everything that the bundle carries, once for each file that is brought."""

    name = "verify"
    sentence = "Check every byte of the bundle"

    def __init__(self, bundle: VerifiedBundle, state: State, meter: Meter = unmeasured) -> None:
        self._bundle = bundle
        self._state = state
        self._meter = meter

    def _mark(self) -> _Verified:
        status = os.fstat(self._bundle.descriptor)
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        return _Verified(str(self._bundle.digest), identity)

    def check(self) -> bool:
        """Whether this very file was checked before; what is used later is hashed again."""
        return self._state.read(_VERIFIED, _Verified) == self._mark()

    def apply(self) -> str:
        """Hash it on all cores; raises Corrupt that names what differs."""
        threads = max(2, len(os.sched_getaffinity(0)))
        total = sum(member.size for member in self._bundle.manifest.members)
        with self._meter("verifying", total) as advance:
            differing = self._bundle.verify_members(threads=threads, progress=advance)
        if differing:
            listed = "\n  ".join(error.message for error in differing[:_SHOWN])
            raise Corrupt(
                f"{len(differing)} members of the bundle differ:\n  {listed}",
                hint="copy the bundle again; nothing was installed",
            )
        self._state.write(_VERIFIED, self._mark())
        return ""


def plan(request: Request) -> list[Planned]:
    """Say what would be done and what is done already; changes nothing, not even the state.

    Raises what a run would refuse before its first change.
    """
    _check_history(request)
    with looking(request.bundle, request.site, request.state) as context:
        cluster = _preflight(context)
        return look(_steps(request, context, cluster))


def run(request: Request, observer: Observer) -> Report:
    """Bring the site to what the bundle and site.yaml say; raises an AirgapError."""
    _check_history(request)
    with looking(request.bundle, request.site, request.state) as context:
        cluster = _preflight(context)
    state, digest = request.state, str(request.bundle.digest)
    with state.held():
        _check_history(request)
        manifest = request.bundle.manifest
        steps = _steps(request, working(request.bundle, request.site, state), cluster)
        what = f"{manifest.name} serial {manifest.serial} of channel {manifest.channel}"
        state.journal.append("run", bundle=digest, text=what)
        if manifest.serial < state.serials.highest.get(manifest.channel, 0):
            state.journal.append("downgrade", bundle=digest, text=request.downgrade)
        state.record(manifest)
        return execute(steps, state.journal, digest, observer)


def _check_history(request: Request) -> None:
    request.state.check_history(
        request.bundle.manifest,
        channel=request.site.channel,
        allow_downgrade=bool(request.downgrade),
    )


def _preflight(context: Context) -> ClusterInfo:
    site = context.site
    _check_files(site)
    cluster = examine(context.kubectl, context.bundle.manifest)
    for release in site.releases:
        HelmRelease(context, cluster, release).preflight()
    return cluster


def _check_files(site: Site) -> None:
    named = {"cluster.kubeconfig": site.cluster.kubeconfig}
    if site.seed.push is not None:
        named["seed.push.ca"] = site.seed.push.ca
        named["seed.push.passwordFile"] = site.seed.push.password_file
    for release in site.releases:
        if release.harbor is not None:
            named[f"{release.key}: harbor.ca"] = release.harbor.ca
    for key, path in named.items():
        if path and not Path(path).is_file():
            raise InvalidInput(f"{key}: {path}: there is no such file", hint="see site.yaml")


def _steps(request: Request, context: Context, cluster: ClusterInfo) -> Sequence[Step]:
    bundle, site, state = request.bundle, request.site, request.state
    seed: ServeBundle | PushBundle
    if site.seed.serve is not None:
        seed = ServeBundle(
            site, site.seed.serve, state, bundle, command=request.command, key=request.key
        )
    elif site.seed.push is not None:
        seed = PushBundle(site.seed.push, bundle, request.meter)
    else:
        raise InvalidInput("site.yaml: seed: neither serve nor push")
    namespaces = {release.release_namespace: release for release in site.releases}
    return [
        VerifyContent(bundle, state, request.meter),
        context.toolbox,
        seed,
        TellNodes(site, state, seed.ca),
        *(HelmRelease(context, cluster, release) for release in site.releases),
        *(RunningImages(release, bundle, context.kubectl) for release in namespaces.values()),
        *(
            HarborIsHealthy(release, release.harbor)
            for release in site.releases
            if release.harbor is not None
        ),
    ]
