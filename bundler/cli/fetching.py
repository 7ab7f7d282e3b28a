"""What a person, or a program, sees of a build while it fetches, and the account at its end.

On a terminal: the whole and the members that are on their way, with rate and time left. Elsewhere:
a line now and then. For programs: one JSON object a line on standard error, so that the document at
the end has standard output for itself.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bundler.fetch import Observer
from installer.cli.console import progress, say, size_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Progress, TaskID

    from bundler.fetch import Job, Transfer
    from installer.oci.http import Retry

Form = Literal["terminal", "lines", "events", "quiet"]

_EVERY = 10.0
"""Seconds between two lines where nobody watches a terminal."""
_EVENT_EVERY = 1.0
_ROWS = 6
_WIDTH = 34
"""Characters of a name, so that a row of hundreds of GB fits into 80 columns."""


def form_for(output: str, *, quiet: bool) -> Form:
    """How to tell, by the options and by what standard error is."""
    if quiet:
        return "quiet"
    if output == "json":
        return "events"
    return "terminal" if sys.stderr.isatty() else "lines"


@dataclass
class HostAccount:
    """What one host gave: bytes, and the seconds of all its transfers together; failed tries."""

    fetched: int = 0
    seconds: float = 0
    retries: int = 0

    @property
    def rate(self) -> float:
        """Bytes a second of one connection."""
        return self.fetched / self.seconds if self.seconds else 0.0


class Watch(Observer):
    """Counts what happens and shows it; ``clock`` in seconds."""

    def __init__(
        self,
        form: Form,
        write: Callable[[str], object] = say,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.hosts: dict[str, HostAccount] = defaultdict(HostAccount)
        self.restarts = 0
        self._form = form
        self._write = write
        self._clock = clock
        self._lock = threading.RLock()
        self._total = self._done = self._moved = 0
        self._began = self._told = clock()
        self._bars: Progress | None = None
        self._whole: TaskID | None = None
        self._rows: dict[str, TaskID] = {}

    @contextmanager
    def fetching(self, total: int) -> Iterator[None]:
        """Show the way of so many bytes while the block runs."""
        self._total, self._began = total, self._clock()
        self._told = self._began
        if self._form != "terminal":
            yield
            return
        with _bars() as bars:
            self._bars, self._whole = bars, bars.add_task("all", total=total)
            try:
                yield
            finally:
                self._bars = None

    @contextmanager
    def working(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show other work while the block runs; the callable takes bytes done, of so many."""
        if self._form == "terminal":
            with progress(what, total) as advance:
                yield advance
        else:
            self.note(what)
            yield lambda _: None

    def note(self, text: str) -> None:
        """Say something that is neither a failure nor the account."""
        if self._form == "events":
            self._event("note", text=text)
        elif self._form != "quiet":
            self._line(text)

    def retried(self, retry: Retry) -> None:
        """A request failed and is sent again after a pause."""
        with self._lock:
            self.hosts[retry.host].retries += 1
            if self._form == "events":
                self._event(
                    "retry",
                    host=retry.host,
                    reason=retry.reason,
                    attempt=retry.attempt,
                    pauseSeconds=round(retry.pause, 1),
                )
            elif self._form != "quiet":
                self._line(
                    f"{retry.reason}: attempt {retry.attempt} failed, again in {retry.pause:.0f} s"
                )

    def again(self, job: Job, reason: str) -> None:
        """A member came with wrong bytes."""
        with self._lock:
            self.restarts += 1
            if self._form == "events":
                self._event("again", artefact=job.what, reason=reason)
            elif self._form != "quiet":
                self._line(f"{reason}: fetched again from the beginning")

    def started(self, job: Job) -> None:
        """A member is on its way."""
        with self._lock:
            if self._form == "events":
                self._event("started", artefact=job.what, bytes=job.entry.member.size)
            elif self._bars is not None and len(self._rows) < _ROWS and job.host:
                row = self._bars.add_task(_short(job.what), total=job.entry.member.size)
                self._rows[job.entry.member.path] = row

    def advanced(self, job: Job, count: int) -> None:
        """Some of it is in place."""
        with self._lock:
            self._done += count
            self._moved += max(count, 0)
            if self._bars is not None and self._whole is not None:
                self._bars.advance(self._whole, count)
                if (row := self._rows.get(job.entry.member.path)) is not None:
                    self._bars.advance(row, count)
                return
            every = _EVENT_EVERY if self._form == "events" else _EVERY
            if self._form in ("lines", "events") and self._clock() - self._told >= every:
                self._told = self._clock()
                self._tell()

    def finished(self, job: Job, transfer: Transfer) -> None:
        """A member is complete."""
        with self._lock:
            if job.host and transfer.fetched:
                account = self.hosts[job.host]
                account.fetched += transfer.fetched
                account.seconds += transfer.seconds
            if self._form == "events":
                self._event(
                    "finished",
                    artefact=job.what,
                    bytes=job.entry.member.size,
                    fetched=transfer.fetched,
                    reused=transfer.reused,
                    copied=transfer.copied,
                    made=transfer.made,
                    seconds=round(transfer.seconds, 3),
                )
            elif self._bars is not None:
                row = self._rows.pop(job.entry.member.path, None)
                if row is not None:
                    self._bars.remove_task(row)

    def _tell(self) -> None:
        seconds = max(self._clock() - self._began, 0.001)
        rate = self._moved / seconds
        left = (self._total - self._done) / rate if rate else 0
        if self._form == "events":
            self._event(
                "progress",
                bytes=self._done,
                total=self._total,
                bytesPerSecond=int(rate),
                secondsLeft=round(left),
            )
            return
        share = 100 * self._done // max(self._total, 1)
        self._write(
            f"{share:3} %  {size_text(self._done)} of {size_text(self._total)}, "
            f"{size_text(int(rate))}/s, {time_text(left)} left"
        )

    def _line(self, text: str) -> None:
        """A sentence that stays, above the bars if there are any."""
        if self._bars is None:
            self._write(text)
        else:
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _event(self, name: str, **facts: Any) -> None:
        self._write(json.dumps({"event": name, **facts}))

    def hosts_text(self) -> str:
        """The hosts, the slowest first, on a line; empty when none was asked."""
        named = [(name, host) for name, host in self.hosts.items() if host.fetched or host.retries]
        texts = []
        for name, host in sorted(named, key=lambda item: item[1].rate):
            tries = f", {host.retries} failed tries" if host.retries else ""
            rate = f" at {size_text(int(host.rate))}/s" if host.rate else ""
            texts.append(f"{name} {size_text(host.fetched)}{rate} a connection{tries}")
        return "; ".join(texts)

    def hosts_document(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            name: {
                "fetched": host.fetched,
                "bytesPerSecond": int(host.rate),
                "retries": host.retries,
            }
            for name, host in sorted(self.hosts.items())
        }


def time_text(seconds: float) -> str:
    """A time that is left, for people."""
    whole = round(seconds)
    if whole < 60:  # noqa: PLR2004 (seconds in a minute)
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _short(what: str) -> str:
    """An artefact's name in the width of a row: its end says most."""
    return what if len(what) <= _WIDTH else "…" + what[1 - _WIDTH :]


def _bars() -> Progress:
    from rich.console import Console  # noqa: PLC0415 (rich takes 60 ms)
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=10),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=True,
    )
