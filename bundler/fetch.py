"""Fills a laid-out file: many threads, each byte written once, at its final place.

The unfinished file is itself the state to resume from. A journal beside it notes how far each
member has come; it is a hint only, since whatever is on disk from an earlier run is hashed again
before it is believed, so neither the journal nor the data needs an fsync on the way. A member
that an earlier run left unfinished is gone on with from the byte where it stopped; if its digest
then differs, it is fetched once more from the beginning.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from installer.bundle.archive import CHUNK
from installer.errors import Corrupt, Interrupted, TransferFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from installer.bundle.layout import Entry

_NOTE_EVERY = 8 * CHUNK
_SYNC_EVERY = 64 * CHUNK


@dataclass(frozen=True, slots=True)
class Job:
    """A member to fill: its place, where it comes from, and what to call it in an error.

    ``open`` gives the bytes from an offset on, unchecked: the digest is checked here. ``local``
    gives all of them from this machine, if it seems to have them.
    """

    entry: Entry
    open: Callable[[int], Iterator[bytes]]
    what: str
    local: Callable[[], Iterator[bytes]] | None = None


class Journal:
    """How far each member of an unfinished file has come, in bytes, by digest.

    The first line names the layout that the file has; a journal of another layout is no use and
    the file beside it starts anew. A torn last line is what a kill leaves, and is ignored.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self._lock = threading.Lock()
        found = read_marks(path, identity)
        self.marks: dict[str, int] = found or {}
        self.resumed = found is not None
        start = os.O_APPEND if self.resumed else os.O_TRUNC
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | start
        self._stream = os.fdopen(os.open(path, flags, 0o644), "w", encoding="utf-8", buffering=1)
        if not self.resumed:
            self._stream.write(json.dumps({"layout": identity}) + "\n")
        else:
            self._stream.write("\n")  # ends a torn line

    def note(self, digest: str, mark: int) -> None:
        """Remember that the first ``mark`` bytes of a member are in the file."""
        with self._lock:
            self._stream.write(f"{digest} {mark}\n")

    def close(self) -> None:
        """Close the file; it stays until the bundle is finished."""
        self._stream.close()


def read_marks(path: Path, identity: str) -> dict[str, int] | None:
    """What a journal of this layout says, bytes by digest; None if there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return None
    if lines[0] != json.dumps({"layout": identity}):
        return None
    marks = (line.partition(" ") for line in lines[1:])
    return {digest: int(mark) for digest, _, mark in marks if mark.isdigit()}


class _Filler:
    def __init__(
        self,
        descriptor: int,
        journal: Journal,
        progress: Callable[[int], None],
    ) -> None:
        self._descriptor = descriptor
        self._journal = journal
        self._progress = progress
        self.stop = threading.Event()
        self.reused = 0
        self.fetched = 0
        self.copied = 0
        self._count_lock = threading.Lock()

    def fill(self, job: Job) -> None:
        """Bring one member to its end; raises what could not be mended."""
        member = job.entry.member
        mark = min(self._journal.marks.get(member.sha256, 0), member.size)
        hasher = hashlib.sha256()
        if mark and not self._rehash(job.entry, mark, hasher):
            mark, hasher = 0, hashlib.sha256()
        self._count(reused=mark)
        if not mark and job.local is not None and self._copy(job.entry, job.local):
            self._journal.note(member.sha256, member.size)
            return
        resumed = mark > 0
        if mark < member.size or not member.size:
            mark = self._fetch(job, mark, hasher)
        if hasher.hexdigest() == member.sha256:
            self._journal.note(member.sha256, mark)
            return
        if not resumed:
            raise Corrupt(
                f"{job.what}: fetched bytes have digest sha256:{hasher.hexdigest()}, "
                f"the lock says sha256:{member.sha256}",
                hint="the upstream or a proxy on the way changes content; nothing was kept of it",
            )
        self._progress(-member.size)
        self._count(reused=-min(self._journal.marks.get(member.sha256, 0), member.size))
        self._journal.marks.pop(member.sha256, None)
        self._journal.note(member.sha256, 0)
        self.fill(job)

    def _copy(self, entry: Entry, local: Callable[[], Iterator[bytes]]) -> bool:
        """Take all of it from this machine; False if that is something else, or can't be read."""
        hasher, done = hashlib.sha256(), 0
        with suppress(OSError):
            for piece in local():
                self._check_stop()
                hasher.update(piece)
                _write_all(self._descriptor, piece, entry.offset + done)
                done += len(piece)
                self._progress(len(piece))
        if hasher.hexdigest() == entry.member.sha256:
            self._count(copied=done)
            return True
        self._progress(-done)
        return False

    def _rehash(self, entry: Entry, mark: int, hasher: hashlib._Hash) -> bool:
        view = memoryview(bytearray(CHUNK))
        done = 0
        while done < mark:
            self._check_stop()
            count = os.preadv(
                self._descriptor, [view[: min(CHUNK, mark - done)]], entry.offset + done
            )
            if not count:
                return False
            hasher.update(view[:count])
            done += count
            self._progress(count)
        return True

    def _fetch(self, job: Job, mark: int, hasher: hashlib._Hash) -> int:
        """Fetch from ``mark`` on; gives the bytes that are now there, all of them or it raises.

        Cut connections are the source's to go on with; what reaches here has been given up.
        """
        member, offset = job.entry.member, job.entry.offset
        noted = mark
        try:
            for piece in job.open(mark):
                self._check_stop()
                if mark + len(piece) > member.size:
                    raise Corrupt(f"{job.what}: more than the {member.size} bytes in the lock")
                hasher.update(piece)
                _write_all(self._descriptor, piece, offset + mark)
                mark += len(piece)
                self._count(fetched=len(piece))
                self._progress(len(piece))
                if mark - noted >= _NOTE_EVERY:
                    self._journal.note(member.sha256, mark)
                    noted = mark
        finally:
            if mark != noted:
                self._journal.note(member.sha256, mark)
        if mark < member.size:
            raise TransferFailed(
                f"{job.what}: ended after {mark} of {member.size} bytes",
                hint="run the same command again: it goes on where it stopped",
            )
        return mark

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise Interrupted("stopped")

    def _count(self, *, reused: int = 0, fetched: int = 0, copied: int = 0) -> None:
        with self._count_lock:
            self.reused += reused
            self.fetched += fetched
            self.copied += copied


@dataclass(frozen=True, slots=True)
class Filled:
    """What filling took, in bytes: fetched, left by an unfinished run, taken from this machine.

    What the builder itself has made, some kilobytes, counts as fetched.
    """

    fetched: int
    reused: int
    copied: int = 0


def fill(
    descriptor: int,
    jobs: Sequence[Job],
    journal: Journal,
    *,
    threads: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Filled:
    """Fill all members; the largest start first, so that the last one does not run alone.

    Raises the first failure after all threads have stopped; what they wrote is in the journal.
    """
    filler = _Filler(descriptor, journal, progress)
    order = sorted(jobs, key=lambda job: -job.entry.member.size)
    done = threading.Event()
    syncer = threading.Thread(target=_write_back, args=(descriptor, filler, done), daemon=True)
    syncer.start()
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(filler.fill, job) for job in order]
        try:
            finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = [f for f in finished if f.exception() is not None]
            if failed:
                filler.stop.set()
                pool.shutdown(cancel_futures=True)
            for future in sorted(failed, key=lambda f: isinstance(f.exception(), Interrupted)):
                future.result()
        except BaseException:
            filler.stop.set()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            done.set()
            syncer.join()
    return Filled(filler.fetched, filler.reused, filler.copied)


def _write_back(descriptor: int, filler: _Filler, done: threading.Event) -> None:
    """Send written data to the disk while the network is busy: the last fsync then has little left.

    Its own errors show up again in that last fsync.
    """
    synced = 0
    while not done.wait(0.05):
        if filler.fetched + filler.copied - synced >= _SYNC_EVERY:
            synced = filler.fetched + filler.copied
            with suppress(OSError):
                os.fdatasync(descriptor)


def _write_all(descriptor: int, piece: bytes, offset: int) -> None:
    view = memoryview(piece)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view = view[count:]
        offset += count
