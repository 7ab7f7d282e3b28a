"""Runs commands one after the other and prints what the kernel accounted for each, as JSON.

A process of its own, small and without the project's code: a child's peak memory (``ru_maxrss``)
starts at that of the process that forked it, so a large parent would hide small children. Bytes
written are those of the commands and all their descendants: the kernel adds the accounts of
children that were waited for, so the difference of this process's own account is theirs.

    python -I -S meter.py < plan.json      plan: {"steps": [[program, ...], ...], "folder", "log"}
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

_SAMPLE_SECONDS = 0.05


def written() -> int:
    """Bytes that this process and its finished descendants have caused to be written to a disk."""
    with open("/proc/self/io", encoding="ascii") as file:  # noqa: PTH123 (read again and again)
        fields = dict(line.split(": ") for line in file)
    return int(fields["write_bytes"])


def used(folder: str) -> int:
    """Bytes on disk below a folder, a file with several names once; what vanishes counts as 0."""
    total, seen = 0, set()
    for base, folders, files in os.walk(folder):
        for name in (*folders, *files):
            try:
                status = os.lstat(f"{base}/{name}")
            except OSError:
                continue
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_blocks * 512
    return total


class Sampler(threading.Thread):
    """Watches the space that a folder takes while commands run."""

    def __init__(self, folder: str) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self._start = used(folder)
        self._done = threading.Event()
        self._peak = 0

    def run(self) -> None:
        """Look until ``finish``."""
        while not self._done.wait(_SAMPLE_SECONDS):
            self._look()

    def _look(self) -> None:
        self._peak = max(self._peak, used(self._folder) - self._start)

    def finish(self) -> int:
        """Bytes that were taken at most, beyond what was there."""
        self._done.set()
        self.join()
        self._look()
        return self._peak


def step(command: list[str], sink: int) -> dict[str, Any]:
    """Run one command to its end."""
    before, start = written(), time.monotonic()
    actions = (
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, sink, 1),
        (os.POSIX_SPAWN_DUP2, sink, 2),
    )
    process = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
    _, status, usage = os.wait4(process, 0)
    return {
        "exit": os.waitstatus_to_exitcode(status),
        "wall": time.monotonic() - start,
        "cpu": usage.ru_utime + usage.ru_stime,
        "rss": usage.ru_maxrss * 1024,
        "written": written() - before,
    }


def main() -> None:
    """Read the plan, run it until a command fails, print the account."""
    plan = json.load(sys.stdin)
    sampler = Sampler(plan["folder"])
    sampler.start()
    steps = []
    with Path(plan["log"]).open("wb") as log:
        for command in plan["steps"]:
            steps.append(step(command, log.fileno()))
            if steps[-1]["exit"]:
                break
    json.dump({"steps": steps, "peak": sampler.finish()}, sys.stdout)


if __name__ == "__main__":
    main()
