"""What a release was before an upgrade: its chart and values, and a dump of its database.

A snapshot is a folder ``STATE/snapshots/NAMESPACE/NAME/REVISION``. Its ``snapshot.json`` is written
last: a folder without one is what a killed run left, and is made anew. A snapshot from which an
upgrade has begun is never made anew: the database may have moved on, and there is no second chance
to see it as it was. Two are kept of each release.
"""

from __future__ import annotations

import hashlib
import shutil
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from installer.deploy.dump import compressed
from installer.errors import Corrupt, InvalidInput, PreflightFailed
from installer.site.private import private_folder, read_file, sync_folder, write_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from installer.deploy.dump import Programs
    from installer.deploy.installed import ChartIdentity
    from installer.site.state import State

KEPT = 2
DUMP = "database.sql.gz"
_FILE = "snapshot.json"
_FOLDER = "snapshots"
_MARGIN = 64 * 1024 * 1024


class Snapshot(msgspec.Struct, frozen=True, rename="camel"):
    """A release at one revision; ``values`` are Helm's and hold secrets.

    ``target`` is the chart that the upgrade is to, ``dump_sha256`` of the gzipped dump,
    ``postgresql`` the server's major version. ``began`` says that an upgrade from here has begun,
    ``undone`` that it was taken back; both are times, or empty.
    """

    time: str
    revision: int
    chart: str
    app_version: str
    target: str
    values: dict[str, Any]
    dump_sha256: str
    postgresql: int
    chart_sha256: str = ""
    target_sha256: str = ""
    read_only: bool = False
    began: str = ""
    undone: str = ""

    def __repr__(self) -> str:
        return f"Snapshot({self.chart}, revision {self.revision}, {self.time})"

    def is_for(self, target: ChartIdentity) -> bool:
        """Whether it was made before an upgrade to this very chart."""
        return self.target_sha256 == target.sha256


class Undoing(msgspec.Struct, frozen=True, rename="camel"):
    """An undo that has begun: of which release, to which snapshot, from which of Helm's revisions.

    ``restored`` says that the database is as it was; from then on the release may come back.
    """

    key: str
    revision: int
    start: int
    restored: bool = False


UNDO = "undo.json"


class Snapshots:
    """The snapshots of one release; ``key`` is ``NAMESPACE/NAME``."""

    def __init__(self, state: State, key: str) -> None:
        self._state = state
        self._name = f"{_FOLDER}/{key}"
        self.folder = state.path(self._name)

    def read(self, revision: int) -> Snapshot | None:
        """Give the snapshot of a revision, None when there is no whole one; raises Corrupt."""
        folder = self.folder / str(revision)
        if not folder.is_dir():
            return None
        found = self._state.read(f"{self._name}/{revision}/{_FILE}", Snapshot)
        return found if found is not None and (folder / DUMP).is_file() else None

    def all(self) -> list[Snapshot]:
        """All whole ones, the newest revision last."""
        found = (self.read(revision) for revision in self._revisions())
        return [snapshot for snapshot in found if snapshot is not None]

    def dump(self, snapshot: Snapshot) -> Path:
        """Where its dump is."""
        return self.folder / str(snapshot.revision) / DUMP

    def make(self, snapshot: Snapshot, programs: Programs) -> Snapshot:
        """Dump the database and complete the snapshot, over whatever was of this revision.

        Raises PreflightFailed when the disk has no room, DeploymentFailed when the dump fails.
        """
        folder = self._state.subfolder(f"{self._name}/{snapshot.revision}")
        size = programs.size()
        free = shutil.disk_usage(folder).free
        if free < size + _MARGIN:
            raise PreflightFailed(
                f"{folder}: {free // 10**6} MB are free, the database takes {size // 10**6} MB",
                hint="make room there, or name a --state on a larger disk",
            )
        self._remove_file(folder / _FILE)  # from here on it is not whole
        digest = hashlib.sha256()
        write_file(folder / DUMP, _hashed(compressed(programs.dump()), digest))
        line = f"{digest.hexdigest()}  {DUMP}\n"  # for sha256sum -c
        write_file(folder / f"{DUMP}.sha256", line.encode())
        whole = msgspec.structs.replace(
            snapshot, dump_sha256=digest.hexdigest(), postgresql=programs.version()
        )
        self.write(whole)
        return whole

    def write(self, snapshot: Snapshot) -> None:
        """Keep what is said of it; its dump stays."""
        self._state.write(f"{self._name}/{snapshot.revision}/{_FILE}", snapshot)

    def prune(self) -> None:
        """Remove all but the newest whole ones, and what killed runs left."""
        whole = [snapshot.revision for snapshot in self.all()][-KEPT:]
        for revision in self._revisions():
            if revision not in whole:
                # First what makes it whole: half a removal must not look like a snapshot.
                folder = private_folder(self.folder / str(revision))
                self._remove_file(folder / _FILE)
                shutil.rmtree(folder)

    def _revisions(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    @staticmethod
    def _remove_file(path: Path) -> None:
        path.unlink(missing_ok=True)
        sync_folder(path.parent)


def check_dump(path: Path, sha256: str) -> None:
    """Raise Corrupt unless the dump is as it was written."""
    try:
        data = read_file(path.with_name(f"{path.name}.sha256"))
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, InvalidInput) as error:
        raise Corrupt(f"{path}: can't be read: {error}") from error
    if found != sha256 or data is None:
        raise Corrupt(
            f"{path}: the snapshot is damaged: not the file that was written",
            hint="bring it back from a backup of the state folder; nothing was changed",
        )


def now() -> str:
    """The time as the state has it: RFC 3339 in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _hashed(pieces: Iterator[bytes], digest: Any) -> Iterator[bytes]:
    for piece in pieces:
        digest.update(piece)
        yield piece
