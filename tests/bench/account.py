"""What something cost, and how it is got: commands under the meter, servers from /proc."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

HERE = Path(__file__).parent
PYTHON = (sys.executable, "-I", "-S")
"""Starts in a few milliseconds: without site-packages."""
_TICK = os.sysconf("SC_CLK_TCK")
_READY_SECONDS = 30.0
_POLL = 0.002
_MOMENT = 0.25
_BUSY = 0.1


class BenchFailed(Exception):
    """A contender did not do its work, so that there is nothing to measure."""


@dataclass(frozen=True)
class Cost:
    """Seconds and bytes; None is what this measurement does not tell.

    ``settle`` is how long the disk still wrote after the last command had ended; ``figures`` are
    the measurement's own (``ready``: seconds until a server answered).
    """

    wall: float
    cpu: float | None = None
    rss: int | None = None
    written: int | None = None
    peak: int | None = None
    settle: float | None = None
    requests: int | None = None
    result: int | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


def metered(
    steps: Sequence[Sequence[str | Path]], folder: Path, environment: Mapping[str, str]
) -> Cost:
    """Run commands one after the other under the meter; ``folder`` is where they write.

    Raises BenchFailed with the end of their output.
    """
    log = folder.with_name(folder.name + ".log")
    plan = {
        "steps": [[str(part) for part in step] for step in steps],
        "folder": str(folder),
        "log": str(log),
    }
    done = subprocess.run(
        [*PYTHON, HERE / "meter.py"],
        input=json.dumps(plan),
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout)
    accounts = told["steps"]
    if accounts[-1]["exit"]:
        command = " ".join(plan["steps"][len(accounts) - 1])
        tail = log.read_text(errors="replace")[-2000:]
        raise BenchFailed(f"{command}: exit {accounts[-1]['exit']}:\n{tail}")
    return Cost(
        wall=sum(a["wall"] for a in accounts),
        cpu=sum(a["cpu"] for a in accounts),
        rss=max(a["rss"] for a in accounts),
        written=sum(a["written"] for a in accounts),
        peak=told["peak"],
    )


def run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
    """Run a command that is not accounted for; raises BenchFailed with the end of its output."""
    done = subprocess.run(
        [*command],
        env=os.environ | (environment or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        shown = " ".join(map(str, command))
        raise BenchFailed(f"{shown}: exit {done.returncode}:\n{done.stdout[-2000:]}")


@dataclass(frozen=True)
class Server:
    """A running server; ``host`` is where it answers, ``ready`` seconds from its start to that."""

    host: str
    pid: int
    started: float = 0
    ready: float = 0


def server_cost(pid: int) -> tuple[float, int, int]:
    """CPU seconds, peak memory and bytes written of a running process, so far."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]
    fields = dict(
        line.split(": ")
        for line in Path(f"/proc/{pid}/io").read_text(encoding="ascii").split("\n")[:-1]
    )
    return (int(stat[11]) + int(stat[12])) / _TICK, int(peak) * 1024, int(fields["write_bytes"])


@contextmanager
def started(
    command: Sequence[str | Path], log: Path, answers: Callable[[], str]
) -> Iterator[Server]:
    """Run a server; the block begins as soon as ``answers`` gives its host."""
    with log.open("wb") as sink:
        begun = time.monotonic()
        process = subprocess.Popen(
            [*command], stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT
        )
    try:
        while not (host := answers()):
            if process.poll() is not None or time.monotonic() > begun + _READY_SECONDS:
                tail = log.read_text(errors="replace")[-2000:]
                raise BenchFailed(f"{command[0]} does not answer:\n{tail}")
            time.sleep(_POLL)
        yield Server(host, process.pid, begun, time.monotonic() - begun)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def settle() -> float:
    """Write everything that is dirty to the disk, and say how many seconds that took."""
    start = time.monotonic()
    os.sync()
    return time.monotonic() - start


def wait_until_idle(patience: float) -> float:
    """Wait until nobody else computes, at most ``patience`` seconds; gives how long that took."""
    start = time.monotonic()
    while (waited := time.monotonic() - start) < patience and _busy() > _BUSY:
        continue
    return waited


def _busy() -> float:
    """Share of all cores that was in use during a moment from now."""
    before = _ticks()
    time.sleep(_MOMENT)
    idle, all_of = (now - then for now, then in zip(_ticks(), before, strict=True))
    return 1 - idle / max(1, all_of)


def _ticks() -> tuple[int, int]:
    """Ticks that the cores were idle or waiting for a disk, and all ticks, since the start."""
    with Path("/proc/stat").open(encoding="ascii") as file:
        fields = [int(field) for field in file.readline().split()[1:9]]
    return fields[3] + fields[4], sum(fields)


def forget(path: Path) -> None:
    """Drop a file from the page cache, so that it is read from the disk again."""
    os.sync()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def values(costs: Sequence[Cost], name: str) -> list[float]:
    """One figure of all runs, by its name; empty where it was not taken."""
    found = [getattr(cost, name, cost.figures.get(name)) for cost in costs]
    return [value for value in found if value is not None]
