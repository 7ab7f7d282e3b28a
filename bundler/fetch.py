"""Fills a laid-out file: many threads, each byte written once, at its final place.

The unfinished file is itself the state to resume from. A journal beside it notes how far each
member has come; it is a hint only, since whatever is on disk from an earlier run is hashed again
before it is believed, so neither the journal nor the data needs an fsync on the way. A member
that an earlier run left unfinished is gone on with from the byte where it stopped. A digest that
differs in the end is a reason to fetch the member once more from the beginning, whoever was wrong.

A member that upstream no longer has, or has with other bytes, does not stop the others: at the end
one error names all of them, and the next run has only those left to fetch. A network that is gone
or a full disk stops everything.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from installer.bundle.digest import CHUNK
from installer.errors import AirgapError, Corrupt, Interrupted, NotFound, TransferFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from bundler.target import Target
    from installer.bundle.layout import Entry

Origin = Literal["fetched", "copied", "made"]
"""Who gave bytes: upstream, this machine, or the builder itself."""

_NOTE_EVERY = 4 * CHUNK
"""Bytes: what a kill may cost each connection."""
_SYNC_EVERY = 256 * CHUNK
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Job:
    """A member to fill: its place, where it comes from, and what to call it in an error.

    ``open`` gives the bytes from an offset on, unchecked: the digest is checked here. ``local``
    gives all of them from this machine, if it seems to have them. ``host`` is who is asked (empty:
    nobody). ``origin`` is as what the bytes of ``open`` count.
    """

    entry: Entry
    open: Callable[[int], Iterator[bytes]]
    what: str
    local: Callable[[], Iterator[bytes]] | None = None
    host: str = ""
    origin: Origin = "fetched"


class Observer:
    """Hears what happens; called from several threads. Does nothing by itself."""

    def started(self, job: Job) -> None:
        """A member is being brought to its end."""

    def advanced(self, job: Job, count: int) -> None:
        """So many bytes of it are in place; fewer than nothing when it starts again."""

    def finished(self, job: Job, transfer: Transfer) -> None:
        """It is complete and its digest held."""

    def again(self, job: Job, reason: str) -> None:
        """It came with wrong bytes, and is fetched from the beginning."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """What became of one member: bytes as in ``Filled``, and seconds."""

    fetched: int = 0
    reused: int = 0
    copied: int = 0
    made: int = 0
    seconds: float = 0


class RateLimit:
    """At most so many bytes a second over all threads; ``clock`` and ``sleep`` in seconds."""

    def __init__(
        self,
        rate: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._free_at = 0.0
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Wait until this many bytes, which have come, are within the rate."""
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now) + count / self._rate
            pause = self._free_at - now
        self._sleep(pause)


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


class _Queue:
    """Jobs in their order, each thread one at a time, and no more at once of one host."""

    def __init__(self, jobs: Sequence[Job], per_host: int) -> None:
        self._jobs = deque(jobs)
        self._per_host = per_host
        self._active: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._stopped = False

    def take(self) -> Job | None:
        """The next job that may begin; None when there is none any more."""
        with self._changed:
            while self._jobs and not self._stopped:
                for at, job in enumerate(self._jobs):
                    if not job.host or self._active[job.host] < self._per_host:
                        del self._jobs[at]
                        self._active[job.host] += 1
                        return job
                self._changed.wait()
            return None

    def done(self, job: Job) -> None:
        """Let another one of its host begin."""
        with self._changed:
            self._active[job.host] -= 1
            self._changed.notify_all()

    def stop(self) -> None:
        """Give out no more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


class _Filler:
    """What the threads share."""

    def __init__(
        self, target: Target, journal: Journal, observer: Observer, limit: RateLimit | None
    ) -> None:
        self.target = target
        self.journal = journal
        self.observer = observer
        self.limit = limit
        self.stop = threading.Event()
        self.written = 0
        self._lock = threading.Lock()

    def work(self, queue: _Queue, results: _Results) -> None:
        """Fill one member after the other, as long as there are any."""
        while (job := queue.take()) is not None:
            try:
                results.transfers.append(_Filling(self, job).run())
            except (NotFound, Corrupt) as error:
                results.lacking.append(error)
            except BaseException:
                self.stop.set()
                queue.stop()
                raise
            finally:
                queue.done(job)

    def write(self, piece: bytes, offset: int) -> None:
        """Write a piece at its place, unless another thread has failed; raises Interrupted."""
        if self.stop.is_set():
            raise Interrupted("stopped")
        self.target.write(piece, offset)
        with self._lock:
            self.written += len(piece)


class _Filling:
    """One member on its way: where it stands, and what it took."""

    def __init__(self, filler: _Filler, job: Job) -> None:
        self._filler = filler
        self._job = job
        self._entry = job.entry
        self._size = job.entry.member.size
        self._hasher = hashlib.sha256()
        self._mark = 0
        """Bytes that are in place and hashed."""
        self._opened = 0
        """Bytes that ``open`` of the job gave."""

    def run(self) -> Transfer:
        """Bring it to its end; raises what could not be mended."""
        began = time.monotonic()
        job, journal, observer = self._job, self._filler.journal, self._filler.observer
        observer.started(job)
        digest = self._entry.member.sha256
        self._rehash(min(journal.marks.get(digest, 0), self._size))
        reused, copied = self._mark, 0
        if not reused and job.local is not None:
            copied = self._copy(job.local)
        if not copied:
            try:
                self._fetch()
            except Corrupt as error:
                observer.again(job, error.message)
                self._restart()
                reused = 0
                self._fetch()
        journal.note(digest, self._size)
        counts = Counter(reused=reused, copied=copied)
        counts[job.origin] += self._opened
        transfer = Transfer(**counts, seconds=time.monotonic() - began)
        observer.finished(job, transfer)
        return transfer

    def _restart(self) -> None:
        self._filler.observer.advanced(self._job, -self._mark)
        self._filler.journal.marks.pop(self._entry.member.sha256, None)
        self._filler.journal.note(self._entry.member.sha256, 0)
        self._mark, self._hasher = 0, hashlib.sha256()

    def _rehash(self, mark: int) -> None:
        """Hash what an earlier run has left."""
        view = memoryview(bytearray(min(CHUNK, mark)))
        while self._mark < mark:
            if self._filler.stop.is_set():
                raise Interrupted("stopped")
            most = min(len(view), mark - self._mark)
            count = self._filler.target.read_into(view[:most], self._entry.offset + self._mark)
            if not count:
                break
            self._advance(view[:count])

    def _copy(self, local: Callable[[], Iterator[bytes]]) -> int:
        """Take all of it from this machine; nothing if that is something else or can't be read."""
        with suppress(OSError):
            for piece in local():
                if self._mark + len(piece) > self._size:
                    break
                self._filler.write(piece, self._entry.offset + self._mark)
                self._advance(piece)
        if self._hasher.hexdigest() == self._entry.member.sha256:
            return self._mark
        self._filler.observer.advanced(self._job, -self._mark)
        self._mark, self._hasher = 0, hashlib.sha256()
        return 0

    def _fetch(self) -> None:
        """Fetch what is not there yet; raises Corrupt when the digest differs in the end.

        Cut connections are the source's to go on with; what reaches here has been given up.
        """
        job, digest, noted = self._job, self._entry.member.sha256, self._mark
        try:
            for piece in job.open(self._mark) if self._mark < self._size else ():
                if self._mark + len(piece) > self._size:
                    raise Corrupt(f"{job.what}: more than the {self._size} bytes in the lock")
                self._filler.write(piece, self._entry.offset + self._mark)
                self._opened += len(piece)
                self._advance(piece)
                if self._mark - noted >= _NOTE_EVERY:
                    self._filler.journal.note(digest, self._mark)
                    noted = self._mark
                if self._filler.limit is not None:
                    self._filler.limit.take(len(piece))
        except NotFound as error:
            error.hint = "it was there when the lock was made: lock again, or --reuse what has it"
            raise
        finally:
            if self._mark != noted:
                self._filler.journal.note(digest, self._mark)
        if self._mark < self._size:
            raise TransferFailed(
                f"{job.what}: ended after {self._mark} of {self._size} bytes",
                hint="run the same command again: it goes on where it stopped",
            )
        if self._hasher.hexdigest() != digest:
            raise Corrupt(
                f"{job.what}: fetched bytes have digest sha256:{self._hasher.hexdigest()}, "
                f"the lock says sha256:{digest}",
                hint="the upstream or a proxy on the way changes content; nothing was kept of it",
            )

    def _advance(self, piece: bytes | memoryview) -> None:
        self._hasher.update(piece)
        self._mark += len(piece)
        self._filler.observer.advanced(self._job, len(piece))


@dataclass(slots=True)
class _Results:
    transfers: list[Transfer] = field(default_factory=list)
    lacking: list[NotFound | Corrupt] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Filled:
    """What filling took, in bytes.

    Fetched from upstream, left by an unfinished run, taken from this machine, and made by the
    builder itself: README, SBOM, attestations, indexes and the like.
    """

    fetched: int = 0
    reused: int = 0
    copied: int = 0
    made: int = 0


def fill(
    target: Target,
    jobs: Sequence[Job],
    journal: Journal,
    *,
    threads: int,
    per_host: int | None = None,
    limit: RateLimit | None = None,
    observer: Observer | None = None,
) -> Filled:
    """Fill all members; the largest start first, so that the last one does not run alone.

    ``per_host`` is how many may be fetched from one host at once. Raises the first failure after
    all threads have stopped, or one error for all members that upstream could not give; what was
    written is in the journal.
    """
    filler = _Filler(target, journal, observer or Observer(), limit)
    queue = _Queue(sorted(jobs, key=lambda job: -job.entry.member.size), per_host or threads)
    results = _Results()
    done = threading.Event()
    syncer = threading.Thread(target=_write_back, args=(target, filler, done), daemon=True)
    syncer.start()
    with ThreadPoolExecutor(threads) as pool:
        try:
            workers = [pool.submit(filler.work, queue, results) for _ in range(threads)]
            failures = [worker.exception() for worker in workers]
        except BaseException:
            filler.stop.set()
            queue.stop()
            raise
        finally:
            done.set()
            syncer.join()
    found = [failure for failure in failures if failure is not None]
    for failure in sorted(found, key=lambda f: isinstance(f, Interrupted)):
        raise failure
    if results.lacking:
        raise _all_lacking(results.lacking)
    transfers = results.transfers
    return Filled(
        sum(t.fetched for t in transfers),
        sum(t.reused for t in transfers),
        sum(t.copied for t in transfers),
        sum(t.made for t in transfers),
    )


def _all_lacking(errors: Sequence[NotFound | Corrupt]) -> AirgapError:
    """One error for all members that could not be had, with the code of the worst."""
    errors = sorted(errors, key=lambda e: (not isinstance(e, Corrupt), e.message))
    first, count = errors[0], len(errors)
    if count == 1:
        return first
    shown = "\n  ".join(error.message for error in errors[:_SHOWN])
    more = f"\n  and {count - _SHOWN} more" if count > _SHOWN else ""
    return type(first)(
        f"{count} artefacts could not be fetched:\n  {shown}{more}",
        hint=f"{first.hint}; all else is there, and the next run has only these to fetch",
    )


def _write_back(target: Target, filler: _Filler, done: threading.Event) -> None:
    """Send written data to the disk while the network is busy: the last fsync then has little left.

    Its own errors show up again in that last fsync.
    """
    synced = 0
    while not done.wait(0.05):
        if filler.written - synced >= _SYNC_EVERY:
            synced = filler.written
            with suppress(OSError):
                target.flush()
