"""Each blob is hashed once before its first byte goes out, and all of them behind the scenes.

The background goes through the bundles in the order of the bytes on the medium, which a disk
likes best, and steps aside while a client waits for another blob. A client's blob is hashed by the
thread that serves it; a second client of the same blob waits for the first instead of reading it
again. So the first client of a blob waits for one pass over it, out of which the page cache then
serves, and everyone else for nothing.

A verdict is about the file as it was. Its size and times are looked at before each answer: when
they differ, all that was found out is dropped, and the background starts over. What this can't see
is a write while the bytes are on their way; there the client's own check of the digest has to do.
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from installer.errors import Corrupt, Interrupted, TransferFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from installer.bundle.archive import VerifiedBundle
    from installer.bundle.layout import Entry
    from installer.bundle.parts import FileIdentity

    _Key = tuple[VerifiedBundle, str]  # by object: two copies of one bundle are two files

log = logging.getLogger(__name__)

_HEAD_START = 1.0
"""Seconds for clients alone: they often wait for the server, and for its first blob."""
_State = Literal["waiting", "running", "done", "stopped"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the full check is: bytes, and one sentence for each member that failed."""

    state: _State
    checked_bytes: int
    total_bytes: int
    failed: tuple[str, ...]


class ContentCheck:
    """Hashes members of bundles on demand and in the background; safe from several threads."""

    def __init__(self, bundles: Sequence[VerifiedBundle]) -> None:
        self._bundles = tuple(bundles)
        self._order = [(b, e) for b in bundles for e in b.layout.entries]
        self._total = sum(entry.member.size for _, entry in self._order)
        self._turn = threading.Condition()
        # All below is guarded by _turn.
        self._stamps = {bundle: bundle.stamp() for bundle in bundles}
        self._verdicts: dict[_Key, Corrupt | None] = {}
        self._hashing: set[_Key] = set()
        self._awaited: set[_Key] = set()
        self._urgent = 0
        self._most_urgent = max(2, len(os.sched_getaffinity(0)))
        self._checked_bytes = 0
        self._failed: dict[_Key, str] = {}
        self._changed = False
        self._stopping = False
        self._state: _State = "waiting"
        self._thread = threading.Thread(target=self._run, name="content-check", daemon=True)

    def start(self) -> None:
        """Begin the check of everything, in a thread of its own."""
        self._state = "running"
        self._thread.start()

    def stop(self) -> None:
        """End the background check, and interrupt what is being hashed for clients."""
        with self._turn:
            self._stopping = True
            self._turn.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def progress(self) -> Progress:
        """Where the background check stands; raises TransferFailed."""
        with self._turn:
            for bundle in self._bundles:
                self._look(bundle)
            failed = tuple(self._failed.values())
            return Progress(self._state, self._checked_bytes, self._total, failed)

    def known_bad(self, bundle: VerifiedBundle, entry: Entry) -> Corrupt | None:
        """Why the member must not be served, as far as that is known; hashes nothing."""
        with self._turn:
            self._look(bundle)
            return self._verdicts.get(_key(bundle, entry))

    def ensure(self, bundle: VerifiedBundle, entry: Entry) -> None:
        """Return when the member's digest held.

        Raises Corrupt when it did not, TransferFailed when the disk can't be read or the file is
        being written to, Interrupted after ``stop``.
        """
        key = _key(bundle, entry)
        if self._claim(bundle, key):
            try:
                self._hash(bundle, entry, self._go_on)
            finally:
                with self._turn:
                    self._urgent -= 1
                    self._turn.notify_all()
        with self._turn:
            if key not in self._verdicts:
                raise TransferFailed(f"{bundle.path}: it is being written to")
            verdict = self._verdicts[key]
        if verdict is not None:
            raise Corrupt(verdict.message, hint=verdict.hint)

    def _look(self, bundle: VerifiedBundle) -> tuple[FileIdentity, ...]:
        """Drop what is known about a file that was written to since; under ``_turn``."""
        stamp = bundle.stamp()
        if stamp != self._stamps[bundle]:
            if not self._changed:
                log.warning("%s: was written to while it is served: hashed again", bundle.path)
            self._stamps[bundle] = stamp
            self._verdicts = {k: v for k, v in self._verdicts.items() if k[0] is not bundle}
            self._failed = {k: v for k, v in self._failed.items() if k[0] is not bundle}
            self._changed = True
            if self._state == "done":
                self._state, self._checked_bytes = "running", 0
            self._turn.notify_all()
        return stamp

    def _claim(self, bundle: VerifiedBundle, key: _Key) -> bool:
        """Wait until the verdict is there (False) or it is this thread's turn to find it (True)."""
        with self._turn:
            self._look(bundle)
            while key not in self._verdicts:
                if self._stopping:
                    raise Interrupted("the registry is stopping")
                if key in self._hashing:
                    self._awaited.add(key)
                    self._turn.notify_all()  # the background may hold it and have stepped aside
                elif self._urgent < self._most_urgent:
                    self._hashing.add(key)
                    self._urgent += 1
                    return True
                self._turn.wait()
        return False

    def _go_on(self, _: int) -> None:
        if self._stopping:
            raise Interrupted("the registry is stopping")

    def _hash(self, bundle: VerifiedBundle, entry: Entry, between: Callable[[int], None]) -> None:
        """Find the verdict over a member; ``between`` is told the bytes of each piece."""
        key = _key(bundle, entry)
        verdict: Corrupt | None = None
        try:
            with self._turn:
                stamp = self._look(bundle)
            try:
                for piece in bundle.chunks(entry):
                    between(len(piece))
            except Corrupt as error:
                verdict = error
                log.error("%s: %s", bundle.path, error.message)  # noqa: TRY400 (no traceback)
            with self._turn:
                if self._look(bundle) != stamp:
                    return
                self._verdicts[key] = verdict
                if verdict is not None:
                    self._failed[key] = verdict.message
        finally:
            with self._turn:
                self._hashing.discard(key)
                self._turn.notify_all()

    def _run(self) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._stopping, _HEAD_START)
        while True:
            self._check_all()
            with self._turn:
                if self._stopping or not self._changed:
                    self._state = "stopped" if self._stopping else "done"
                    log.info("content check %s: %d failed", self._state, len(self._failed))
                self._turn.wait_for(lambda: self._stopping or self._changed)
                if self._stopping:
                    break

    def _check_all(self) -> None:
        with self._turn:
            self._changed, self._checked_bytes = False, 0
        for bundle, entry in self._order:
            key = _key(bundle, entry)
            with self._turn:
                self._turn.wait_for(lambda: self._stopping or not self._urgent)
                if self._stopping:
                    break
                if key in self._verdicts:
                    self._checked_bytes += entry.member.size
                    continue
                self._hashing.add(key)
            try:
                self._hash(bundle, entry, partial(self._step_aside, key))
            except Interrupted:
                break
            except TransferFailed as error:
                log.error("%s: %s", bundle.path, error.message)  # noqa: TRY400 (no traceback)
                with self._turn:
                    self._failed[key] = error.message

    def _step_aside(self, key: _Key, count: int) -> None:
        """Count, and let clients' blobs go first, unless a client waits for this very one."""
        with self._turn:
            self._checked_bytes += count
            self._turn.wait_for(lambda: self._stopping or not self._urgent or key in self._awaited)
        self._go_on(count)


def _key(bundle: VerifiedBundle, entry: Entry) -> _Key:
    return bundle, entry.member.path
