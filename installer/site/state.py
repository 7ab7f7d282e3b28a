"""What this machine keeps of a site: a private folder, one installer at a time.

The folder holds secrets, the journal, the highest serial seen, tools and the seed registry's
files. A ``State`` that was only opened reads and changes nothing, not even by existing; whoever
wants to write holds it (``with state.held():``), which makes the folder and takes the lock.
Several sites have several folders, nothing is global.
"""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
from filelock import FileLock, Timeout

from installer.bundle.manifest import format_time, parse_time
from installer.bundle.receipt import (
    AcceptedBundle,
    Downgrade,
    Receipt,
    decode_receipt,
    encode_receipt,
    held_blobs,
)
from installer.bundle.trust import check_history
from installer.errors import Corrupt, InvalidInput, PreflightFailed
from installer.site.journal import Journal
from installer.site.private import private_folder, read_file, write_file
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import TypeVar

    from installer.bundle.archive import VerifiedBundle
    from installer.bundle.manifest import Manifest

    T = TypeVar("T")


_RECEIPT = "receipt.json"


class Serials(msgspec.Struct, frozen=True):
    """The channel that the site follows, and the highest serial seen in each history.

    ``created`` is the latest time (RFC 3339) at which a bundle that was used here was made: it is
    not earlier than that, whatever the clock says.
    """

    channel: str = ""
    highest: dict[str, int] = {}
    created: str = ""


class _Holder(msgspec.Struct, frozen=True):
    pid: int
    host: str
    since: str


class State:
    """The state folder of one site."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = Journal(folder / "journal.jsonl")

    def path(self, name: str) -> Path:
        """Where a file or folder of the state is, whether it exists or not."""
        return self.folder / name

    def subfolder(self, name: str) -> Path:
        """Make a private folder in the state; only while it is held."""
        folder = self.folder
        for part in name.split("/"):
            folder = private_folder(folder / part)
        return folder

    def read(self, name: str, type_: type[T]) -> T | None:
        """Read a JSON file of the state, None when there is none; raises Corrupt."""
        data = read_file(self.path(name))
        if data is None:
            return None
        try:
            return decode_json(data, type_)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Corrupt(
                f"{self.path(name)}: not what the installer wrote: {error}",
                hint="bring it back from a backup; secrets in it can't be made again",
            ) from error

    def write(self, name: str, value: msgspec.Struct) -> None:
        """Write a JSON file of the state, whole or not at all; only while it is held."""
        write_file(self.path(name), msgspec.json.format(msgspec.json.encode(value)) + b"\n")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and hold the site's lock; raises PreflightFailed if another has it."""
        private_folder(self.folder)
        lock = FileLock(self.path("lock"), mode=0o600, blocking=False)
        try:
            lock.acquire()
        except Timeout:
            raise PreflightFailed(
                f"{self.folder}: {self._holder()} works on this site",
                hint="wait until it has finished; one installer at a time",
            ) from None
        try:
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            self.write("holder.json", _Holder(os.getpid(), socket.gethostname(), now))
            yield
        finally:
            lock.release()

    def _holder(self) -> str:
        try:
            holder = self.read("holder.json", _Holder)
        except (Corrupt, InvalidInput):
            holder = None
        if holder is None:
            return "another installer"
        return f"another installer (process {holder.pid} on {holder.host}, since {holder.since})"

    @property
    def serials(self) -> Serials:
        """What the site has seen so far."""
        return self.read("serials.json", Serials) or Serials()

    def check_history(self, manifest: Manifest, *, channel: str, allow_downgrade: bool) -> None:
        """Refuse another channel or an older bundle (WrongChannel, Rollback); changes nothing.

        ``channel`` is what site.yaml says; empty means the one of the first bundle.
        """
        seen = self.serials
        check_history(
            manifest,
            channel=channel or seen.channel or None,
            highest_serial=seen.highest.get(manifest.history),
            allow_downgrade=allow_downgrade,
        )

    def time(self, clock: datetime) -> datetime:
        """The later of the clock and the newest bundle's date.

        A clock that was set back, or a dead battery, makes no expired bundle good again.
        """
        created = self.serials.created
        return max(clock, parse_time(created)) if created else clock

    def record(self, manifest: Manifest) -> None:
        """Remember channel, serial and date of a bundle that is used; lower ones change nothing."""
        seen = self.serials
        highest = max(manifest.serial, seen.highest.get(manifest.history, 0))
        created = max(manifest.created, seen.created)
        now = Serials(manifest.channel, {**seen.highest, manifest.history: highest}, created)
        if now != seen:
            self.write("serials.json", now)

    @property
    def receipt(self) -> Receipt | None:
        """What the site has and has accepted, None before its first bundle; raises Corrupt."""
        data = read_file(self.path(_RECEIPT))
        if data is None:
            return None
        try:
            return decode_receipt(data, str(self.path(_RECEIPT)))
        except InvalidInput as error:
            raise Corrupt(
                error.message,
                hint="bring it back from a backup; a run writes a deleted one anew",
            ) from error

    def accept(self, bundle: VerifiedBundle, site: str, now: datetime, *, downgrade: str) -> None:
        """Remember a bundle whose content was verified, in serials and receipt, only while held.

        ``downgrade`` is the reason for a lower serial than one seen; it is written into journal and
        receipt when the bundle is one.
        """
        manifest, when = bundle.manifest, format_time(now)
        highest = self.serials.highest.get(manifest.history, 0)
        digest = bundle.digest.hex
        before = self.receipt or Receipt("receipt/v1", "Receipt", site, when)
        bundles, downgrades = before.bundles, before.downgrades
        older = manifest.serial < highest
        if older:
            self.journal.append("downgrade", bundle=str(bundle.digest), text=downgrade)
        if not bundles or bundles[-1].sha256 != digest:
            name, channel, serial = manifest.name, manifest.channel, manifest.serial
            bundles += (AcceptedBundle(name, channel, serial, digest, when, bundle.signers),)
            if older:
                downgrades += (Downgrade(when, channel, serial, highest, digest, downgrade),)
        blobs = held_blobs([manifest])
        if manifest.only_databases:  # beside the bundle that Harbor is of
            blobs = tuple(sorted({*before.blobs, *blobs}))
        after = Receipt("receipt/v1", "Receipt", site, when, bundles, blobs, downgrades)
        if after != msgspec.structs.replace(before, created=when):
            write_file(self.path(_RECEIPT), encode_receipt(after))
        self.record(manifest)
