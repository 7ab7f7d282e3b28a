"""From one Harbor to the next: what changes is shown, what was is kept, and nothing is deleted.

An upgrade moves the tables of Harbor's database, and there is no way back for those. So before it
Harbor is set read-only and its database dumped, and both are undone or used by steps that look for
themselves: a run that was killed leaves notes from which the next one goes on. When the upgrade
fails, the error says in which state things are and how to return.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from installer.deploy.dump import login_of, programs
from installer.deploy.harbor_access import admin_passwords
from installer.deploy.read_only import LiftReadOnly, ReadOnly
from installer.deploy.release import HelmRelease
from installer.deploy.revisions import Revisions
from installer.deploy.snapshot import UNDO, Snapshot, Snapshots, Undoing, now
from installer.errors import AirgapError, PreflightFailed
from installer.harbor.api import HarborClient
from installer.helm.difference import (
    changed_images,
    changed_objects,
    changed_values,
    check_jump,
    summary,
    version_of,
)
from installer.redaction import secret_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from installer.deploy.cluster import ClusterInfo
    from installer.deploy.context import Context
    from installer.deploy.installed import ChartIdentity
    from installer.deploy.plan import Step
    from installer.deploy.revisions import Revision
    from installer.site.model import Release
    from installer.site.state import State

DATABASE_IMAGE = "goharbor/harbor-db"
_SHORT = 30.0
_SHOWN = 30


class TakeSnapshot:
    """Keep what a Harbor is, before its chart changes."""

    def __init__(
        self,
        context: Context,
        release: Release,
        target: ChartIdentity,
        read_only: ReadOnly,
    ) -> None:
        self._context = context
        self._release = release
        self._target = target
        self._read_only = read_only
        self._revisions = Revisions(context, release.release_namespace, release.release_name)
        self._snapshots = Snapshots(context.state, release.key)
        self.name = f"snapshot:{release.key}"
        self.sentence = f"Set {release.key} read-only; keep its values and a dump of its database"

    def base(self) -> Revision | None:
        """What there is to keep: the deployed revision if its chart will change."""
        base = self._revisions.base()
        if base is None:
            return None
        same = base.chart == f"{self._target.name}-{self._target.version}"
        if same and self._revisions.chart_sha256() in ("", self._target.sha256):
            return None
        return base

    def preflight(self) -> None:
        """Refuse an upgrade whose snapshot could not be taken; raises PreflightFailed."""
        if self.check():
            return
        base = self.base()
        if base is not None and self._values(base).get("database", {}).get("type") == "external":
            self._image()
        self._read_only.preflight()

    def check(self) -> bool:
        """Whether there is nothing to keep, or it is kept and nothing was written since."""
        base = self.base()
        if base is None:
            return True
        found = self._snapshots.read(base.number)
        if found is None:
            return False
        # Once an upgrade has begun, the database may not be any more what belongs to the revision.
        return bool(found.began or (self._read_only.since() and found.is_for(self._target)))

    def apply(self) -> str:
        """Take it; raises DeploymentFailed, and Harbor may be written to again then."""
        base = self.base()
        if base is None:
            return ""
        release = self._release
        values = self._values(base)
        ca = release.harbor.database.ca if release.harbor and release.harbor.database else ""
        namespace, kubectl = release.release_namespace, self._context.kubectl
        login = login_of(values, ca, kubectl, namespace)
        image = self._image() if login.host else ""
        with programs(kubectl, namespace, release.release_name, login, image) as there:
            note = self._read_only.set()
            try:
                made = self._snapshots.make(self._snapshot(base, values), there)
            except BaseException:  # also when it is interrupted
                with suppress(AirgapError):
                    self._read_only.lift(_SHORT)
                raise
        self._snapshots.prune()
        path = self._snapshots.dump(made)
        size = path.stat().st_size
        return "; ".join(filter(None, [note, f"{login}: {size} bytes in {path}"]))

    def begin(self) -> Snapshot | None:
        """Note that the upgrade begins; gives the snapshot if it had not begun before."""
        base = self.base()
        found = self._snapshots.read(base.number) if base else None
        if found is None or found.began:
            return None
        self._snapshots.write(msgspec.structs.replace(found, began=now()))
        return found

    def failed(self, begun: Snapshot | None) -> tuple[str, str]:
        """What to say of the state that a failed upgrade left, and what can be done about it."""
        history = self._revisions.history()
        base = self._revisions.base()
        found = self._snapshots.read(base.number) if base else None
        if base is None or found is None:
            return "", ""
        if begun is not None and history[-1].number == base.number:
            # Helm refused before it did anything: the next run looks at the database again.
            self._snapshots.write(begun)
            return f"{self._release.key} is as it was: {base.chart}, revision {base.number}", ""
        last = history[-1]
        state = (
            f"{self._release.key} is {last.status} at {last.chart}, revision {last.number}; before "
            f"it was {found.chart}, whose values and database of {found.time} are in "
            f"{self._snapshots.dump(found).parent}; nothing was deleted"
        )
        return state, f"`installer undo` with the bundle of {found.chart} returns to it"

    def _values(self, base: Revision) -> dict[str, Any]:
        release = self._release
        return self._context.helm.get_values(
            release.release_name, release.release_namespace, revision=base.number
        )

    def _snapshot(self, base: Revision, values: dict[str, Any]) -> Snapshot:
        target = self._target
        return Snapshot(
            time=now(),
            revision=base.number,
            chart=base.chart,
            app_version=base.app_version,
            target=f"{target.name}-{target.version}",
            values=values,
            dump_sha256="",
            postgresql=0,
            chart_sha256=self._revisions.chart_sha256(),
            target_sha256=target.sha256,
            read_only=bool(self._read_only.since()),
        )

    def _image(self) -> str:
        return database_image(self._context)


class UpgradableRelease(HelmRelease):
    """A release that shows what an upgrade changes and, if it is a Harbor, keeps what was."""

    def __init__(self, context: Context, cluster: ClusterInfo, release: Release) -> None:
        super().__init__(context, cluster, release)
        self._ca: Callable[[], str] = str
        self.revisions = Revisions(context, release.release_namespace, release.release_name)
        self.read_only = ReadOnly(context.state, release.key, self._client, self._is_running)
        self._snapshot = TakeSnapshot(context, release, self._identity, self.read_only)

    def reach(self, ca: Callable[[], str]) -> None:
        """``ca`` gives the path of what Harbor's URL is checked with, "" for the system's."""
        self._ca = ca

    def before(self) -> list[Step]:
        """What comes right before it."""
        return [self._snapshot] if self._release.harbor else []

    def after(self) -> list[Step]:
        """What comes right after it."""
        if not self._release.harbor:
            return []
        ahead = self._snapshot
        return [LiftReadOnly(self._release.key, self.read_only, lambda: not ahead.check())]

    def preflight(self) -> None:
        """Refuse what HelmRelease does, and an upgrade that Harbor can't make."""
        if self._release.harbor is not None:
            check_no_undo(self._context.state)
            base = self.revisions.base()
            if base is not None:
                self._check_jump(base)
        super().preflight()
        if self._release.harbor is not None and self._kept() is not None:
            self._snapshot.preflight()

    def _check_jump(self, base: Revision) -> None:
        key, new = self._release.key, self._entry.app_version
        check_jump(key, base.app_version, new)
        wanted = version_of(new)
        for revision in self.revisions.history():
            tried = version_of(revision.app_version)
            # An upgrade that failed may have moved the database.
            if revision.number > base.number and tried and wanted and tried > wanted:
                check_jump(key, revision.app_version, new)

    def details(self) -> list[str]:
        """What an upgrade changes, a line each; nothing where nothing is deployed."""
        base = self.revisions.base()
        if base is None:
            return []
        release, helm = self._release, self._context.helm
        lines = []
        chart = f"{self._entry.name}-{self._entry.version}"
        if base.chart != chart:
            versions = f"{base.app_version} → {self._entry.app_version}"
            lines.append(f"chart: {base.chart} → {chart} (application {versions})")
        there = (release.release_name, release.release_namespace)
        old = helm.get_manifest(*there, revision=base.number)
        new = self.rendered().objects
        lines.append(summary("images", changed_images(old, new)))
        was = helm.get_values(*there, revision=base.number)
        values = list(changed_values(was, self.values(self._kept() or self._passing)))
        more = f", and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
        lines.append(f"values: {', '.join(values[:_SHOWN]) or 'as they are'}{more}")
        lines.append(summary("objects", changed_objects(old, new)))
        return lines

    def apply(self) -> str:
        """Upgrade; a failure says in which state things are, and lifts what was set for it."""
        if self._release.harbor is None:
            return super().apply()
        begun = self._snapshot.begin()
        try:
            return super().apply()
        except AirgapError as error:
            with suppress(AirgapError):
                self._explain(error, begun)
            raise
        except KeyboardInterrupt:
            with suppress(AirgapError):
                self.read_only.lift(0)  # if it can't be now, the next run does it
            raise

    def _explain(self, error: AirgapError, begun: Snapshot | None) -> None:
        state, way = self._snapshot.failed(begun)
        if self.read_only.since():
            try:
                self.read_only.lift(_SHORT)
            except AirgapError as still:
                state = "; ".join(filter(None, [state, still.message]))
        error.message = "\n  ".join(filter(None, [error.message, state]))
        error.hint = "; ".join(filter(None, [error.hint, way]))

    def bring_back(self, values: Mapping[str, Any]) -> None:
        """Deploy this bundle's chart with values of then; raises PreflightFailed, DeploymentFailed.

        Every image must be the bundle's, as in ``apply``.
        """
        kept = self._kept()
        self.check_values(values)
        self.revisions.bring_back(
            self._context.chart_file(self._entry),
            self._identity,
            values,
            timeout=self._release.timeout,
            secrets=secret_texts(values, kept.texts() if kept else ()),
        )

    def check_values(self, values: Mapping[str, Any]) -> None:
        """Render with values of then; raises PreflightFailed for an image that is not here."""
        self._render(self._context.helm, dict(values), self._kept())

    def is_at(self, values: Mapping[str, Any]) -> bool:
        """Whether it is deployed with this bundle's chart and values of then."""
        return self.revisions.is_at(self._identity, values)

    @property
    def chart(self) -> ChartIdentity:
        """The bundle's chart for it."""
        return self._identity

    def _client(self) -> HarborClient:
        harbor = self._release.harbor
        if harbor is None:
            raise ValueError(f"{self._release.key} is no Harbor")
        passwords = admin_passwords(self._context.state, self._release, harbor)
        return HarborClient(harbor.external_url, self._ca(), passwords, pauses=())

    def _is_running(self) -> bool:
        name = self._release.release_name
        for pod in self._context.kubectl.pods(self.namespace):
            labels = pod["metadata"].get("labels") or {}
            conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions", ())}
            if (labels.get("release"), labels.get("component")) == (name, "core") and (
                conditions.get("Ready") == "True"
            ):
                return True
        return False


def database_image(context: Context) -> str:
    """The bundle's image with PostgreSQL's programs, as at the site; raises PreflightFailed."""
    found = context.images.named(DATABASE_IMAGE)
    if found is None:
        raise PreflightFailed(
            f"the bundle has no image {DATABASE_IMAGE}, whose pg_dump takes the snapshot",
            hint="build the bundle with Harbor's default profile",
        )
    return str(found)


def check_no_undo(state: State) -> None:
    """Refuse to go on over an undo that has not come to its end; raises PreflightFailed."""
    begun = state.read(UNDO, Undoing)
    if begun is not None:
        raise PreflightFailed(
            f"release {begun.key}: an undo has begun and is not finished",
            hint="run the same `installer undo` again: it goes on where it stopped",
        )
