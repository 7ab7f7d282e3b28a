"""Back to what a Harbor was before its last upgrade: release and database, from the snapshot.

The bundle that is given is the one of then: its registry serves the images of then first. Then who
writes to the database is stopped, the database is put back in one transaction, and Helm deploys the
chart and values of then. From the first change on a note in the state says how far it came, so that
a run after a power cut goes on; until it is done ``installer run`` refuses.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from installer.deploy.cluster import ClusterInfo
from installer.deploy.context import looking, working
from installer.deploy.deployment import seed_of, steps_of
from installer.deploy.dump import login_of, programs, statements
from installer.deploy.plan import Report, execute, look
from installer.deploy.read_only import LiftReadOnly
from installer.deploy.snapshot import UNDO, Snapshot, Snapshots, Undoing, check_dump, now
from installer.deploy.upgrade import UpgradableRelease, database_image
from installer.errors import DeploymentFailed, InvalidInput, PreflightFailed
from installer.site.settings_memory import SettingsMemory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from installer.deploy.context import Context
    from installer.deploy.plan import Observer, Planned, Step
    from installer.deploy.request import Request
    from installer.site.model import Release
    from installer.site.state import State

REASON = "undo"
WRITERS = ("core", "jobservice", "exporter")
"""Components of Harbor's that have connections to its database."""
_PATIENCE = 240.0
_PAUSE = 2.0


@dataclass(frozen=True)
class Return:
    """What is undone: which release, and the snapshot that it returns to."""

    release: Release
    snapshot: Snapshot

    @property
    def sentence(self) -> str:
        """For people, before they say yes."""
        snapshot = self.snapshot
        return (
            f"{self.release.key} returns from {snapshot.target} to {snapshot.chart}, with its "
            f"database of {snapshot.time}: what was pushed or changed since is lost"
        )


def find(request: Request, key: str = "") -> Return | None:
    """Find the upgrade that is undone; None when the release is what the bundle has already.

    ``key`` (NAMESPACE/NAME) is only needed where the site has several Harbors. Raises InvalidInput
    and PreflightFailed when there is none, or the bundle is not the one of then.
    """
    request.state.check_history(
        request.bundle.manifest, channel=request.site.channel, allow_downgrade=True
    )
    seed_of(request).refuse_gaps()
    begun = request.state.read(UNDO, Undoing)
    harbors = {r.key: r for r in request.site.releases if r.harbor is not None}
    if begun is not None and key in ("", begun.key):
        key = begun.key
    if key not in harbors and (key or len(harbors) != 1):
        raise InvalidInput(
            f"--release: {key!r} is no Harbor of site.yaml"
            if key
            else "site.yaml has several Harbors, or none",
            hint=f"--release with one of: {', '.join(harbors) or 'none'}",
        )
    release = harbors[key] if key else next(iter(harbors.values()))
    if begun is not None and begun.key != release.key:
        raise PreflightFailed(
            f"release {begun.key}: its undo has begun and is not finished", hint="finish that first"
        )
    snapshots = Snapshots(request.state, release.key)
    with looking(request.bundle, request.site, request.state) as context:
        wanted = UpgradableRelease(context, ClusterInfo("", ()), release)
        open_ones = [one for one in snapshots.all() if one.began and not one.undone]
        last = snapshots.read(begun.revision) if begun else next(reversed(open_ones), None)
        chart = f"{wanted.chart.name}-{wanted.chart.version}"
        if last is None or chart != last.chart:
            base = wanted.revisions.base()
            if begun is None and base is not None and base.chart == chart:
                return None
        if last is None:
            raise PreflightFailed(
                f"release {release.key}: no upgrade was begun from here that could be undone",
                hint=f"snapshots are in {snapshots.folder}",
            )
        if chart != last.chart or last.chart_sha256 not in ("", wanted.chart.sha256):
            raise InvalidInput(
                f"the bundle has {chart}, but before its last upgrade {release.key} was "
                f"{last.chart}" + (", of another digest" if chart == last.chart else ""),
                hint="give the bundle that it was installed from then",
            )
    return Return(release, last)


class StopWriters:
    """Scale down what writes to the database, and wait until it is gone."""

    def __init__(self, context: Context, release: Release, undo: _Undo) -> None:
        self._context = context
        self._namespace = release.release_namespace
        self._name = release.release_name
        self._undo = undo
        self.name = f"stop:{release.key}"
        self.sentence = f"Stop what writes to the database of {release.key}: {', '.join(WRITERS)}"

    def check(self) -> bool:
        """Whether the database is restored already, and what comes back may write to it."""
        return self._undo.restored()

    def apply(self) -> str:
        """Scale to nothing; raises DeploymentFailed if they don't end."""
        self._undo.begin()
        kubectl = self._context.kubectl
        selector = f"--selector=release={self._name},component in ({','.join(WRITERS)})"
        there = kubectl.run(
            "get", "deployments", f"--namespace={self._namespace}", selector, "--output=name"
        ).split()
        if there:
            kubectl.run("scale", *there, f"--namespace={self._namespace}", "--replicas=0")
        end = time.monotonic() + _PATIENCE
        while left := self._pods():
            if time.monotonic() >= end:
                raise DeploymentFailed(
                    f"still there after {_PATIENCE:.0f} s: {', '.join(left)}",
                    hint="look at them with kubectl; then run the same command again",
                )
            time.sleep(_PAUSE)
        return ""

    def _pods(self) -> list[str]:
        """Pods that may write; one that is being deleted does so until it has ended."""
        selector = f"--selector=release={self._name},component in ({','.join(WRITERS)})"
        found = self._context.kubectl.get(
            "get", "pods", f"--namespace={self._namespace}", selector
        ).get("items", [])
        return [
            pod["metadata"]["name"]
            for pod in found
            if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")
        ]


class RestoreDatabase:
    """Put the database back as it was when it was dumped."""

    def __init__(self, context: Context, back: Return, undo: _Undo) -> None:
        self._context = context
        self._back = back
        self._undo = undo
        self._snapshots = Snapshots(context.state, back.release.key)
        self.name = f"restore:{back.release.key}"
        self.sentence = f"Restore the database of {back.release.key} of {back.snapshot.time}"

    def check(self) -> bool:
        """Whether it has been done."""
        return self._undo.restored()

    def apply(self) -> str:
        """Do it, whole or not at all; raises DeploymentFailed, Corrupt."""
        release, snapshot = self._back.release, self._back.snapshot
        database = release.harbor.database if release.harbor else None
        kubectl, namespace = self._context.kubectl, release.release_namespace
        path = self._snapshots.dump(snapshot)
        check_dump(path, snapshot.dump_sha256)
        login = login_of(snapshot.values, database.ca if database else "", kubectl, namespace)
        image = database_image(self._context) if login.host else ""
        with programs(kubectl, namespace, release.release_name, login, image) as there:
            version = there.version()
            if not login.host and version != snapshot.postgresql:
                # The image of then would not take the files of now, and begin with an empty one.
                raise DeploymentFailed(
                    f"the upgrade took the internal PostgreSQL from {snapshot.postgresql} to "
                    f"{version}, whose files the one of then can't read; the database is as it was",
                    hint=f"the dump is {path}: it has to be restored by hand, into an empty volume",
                )
            there.restore(statements(path, snapshot.dump_sha256))
        self._undo.set_restored()
        return str(login)


class BringBack:
    """Let Helm deploy the chart and the values of then."""

    def __init__(self, back: Return, undo: _Undo, wanted: UpgradableRelease) -> None:
        self._back = back
        self._undo = undo
        self._wanted = wanted
        self.name = f"back:{back.release.key}"
        self.sentence = f"Deploy {back.release.key} as {back.snapshot.chart} again"

    def check(self) -> bool:
        """Whether it is deployed so, by a revision that came after the database was restored."""
        begun = self._undo.begun()
        if (
            begun is None
            or not begun.restored
            or not self._wanted.is_at(self._back.snapshot.values)
        ):
            return False
        base = self._wanted.revisions.base()
        return base is not None and base.number > begun.start

    def apply(self) -> str:
        """Do it and wait until it is ready; raises DeploymentFailed."""
        self._wanted.bring_back(self._back.snapshot.values)
        return ""


class _Undo:
    """The note of how far it came."""

    def __init__(self, state: State, back: Return, wanted: UpgradableRelease) -> None:
        self._state = state
        self._back = back
        self._wanted = wanted

    def begun(self) -> Undoing | None:
        return self._state.read(UNDO, Undoing)

    def restored(self) -> bool:
        begun = self.begun()
        return begun is not None and begun.restored

    def begin(self) -> None:
        """Before the first change. The dump says read-only, so that it will be."""
        if self._back.snapshot.read_only or self._wanted.read_only.since():
            self._wanted.read_only.note()
        if self.begun() is None:
            history = self._wanted.revisions.history()
            start = history[-1].number if history else 0
            key, revision = self._back.release.key, self._back.snapshot.revision
            self._state.write(UNDO, Undoing(key, revision, start))

    def set_restored(self) -> None:
        begun = self.begun()
        if begun is not None:
            # What was sent to Harbor since the dump is not in it.
            SettingsMemory(self._state, self._back.release.key).forget_secrets()
            self._state.write(UNDO, msgspec.structs.replace(begun, restored=True))

    def finish(self) -> None:
        snapshots = Snapshots(self._state, self._back.release.key)
        snapshots.write(msgspec.structs.replace(self._back.snapshot, undone=now()))
        self._state.path(UNDO).unlink(missing_ok=True)


def plan(request: Request, back: Return) -> list[Planned]:
    """Say what would be done; raises what ``run`` would refuse before its first change."""
    with looking(request.bundle, request.site, request.state) as context:
        cluster = _cluster(context)
        _preflight(context, back, cluster)
        steps, _ = _steps(request, context, back, cluster)
        return look(steps)


def run(request: Request, back: Return, observer: Observer) -> Report:
    """Return to the snapshot; raises an AirgapError. Running it again goes on."""
    with looking(request.bundle, request.site, request.state) as context:
        cluster = _cluster(context)
        _preflight(context, back, cluster)
    state, digest = request.state, str(request.bundle.digest)
    with state.held():
        context = working(request.bundle, request.site, state)
        (verify, *others), undo = _steps(request, context, back, cluster)
        state.journal.append("run", bundle=digest, text=f"undo: {back.sentence}")
        report = Report()
        execute([verify], state.journal, digest, observer, report)
        state.accept(request.bundle, request.site.name, datetime.now(UTC), downgrade=REASON)
        execute(others, state.journal, digest, observer, report)
        undo.finish()
        return report


def _cluster(context: Context) -> ClusterInfo:
    try:
        version = context.kubectl.get("version")["serverVersion"]["gitVersion"]
        return ClusterInfo(version, tuple(context.kubectl.run("api-versions").split()))
    except (DeploymentFailed, KeyError) as error:
        raise PreflightFailed(
            f"the cluster can't be reached: {error}", hint="nothing was changed"
        ) from error


def _preflight(context: Context, back: Return, cluster: ClusterInfo) -> None:
    """Refuse before the first change what would stop it in the middle."""
    snapshots = Snapshots(context.state, back.release.key)
    check_dump(snapshots.dump(back.snapshot), back.snapshot.dump_sha256)
    wanted = UpgradableRelease(context, cluster, back.release)
    wanted.check_values(back.snapshot.values)
    if (back.snapshot.values.get("database") or {}).get("type") == "external":
        database_image(context)


def _steps(
    request: Request, context: Context, back: Return, cluster: ClusterInfo
) -> tuple[Sequence[Step], _Undo]:
    key, namespace = back.release.key, back.release.release_namespace
    usual = {step.name: step for step in steps_of(request, context, cluster)}
    wanted = usual[f"release:{key}"]
    if not isinstance(wanted, UpgradableRelease):
        raise TypeError(key)
    undo = _Undo(request.state, back, wanted)
    lift = LiftReadOnly(
        key, wanted.read_only, lambda: back.snapshot.read_only and not undo.restored()
    )
    before = ("verify", "tools", "seed", "nodes", f"internal-tls:{key}", f"companion:{key}")
    steps: list[Step] = [
        *(usual[name] for name in before if name in usual),
        StopWriters(context, back.release, undo),
        RestoreDatabase(context, back, undo),
        BringBack(back, undo, wanted),
        lift,
        *(usual[name] for name in (f"images:{namespace}", f"health:{key}") if name in usual),
    ]
    return steps, undo
