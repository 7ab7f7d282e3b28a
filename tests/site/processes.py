"""Long-running programs by name: started in a namespace, recorded, ended by their own id.

The record lies in a file, so that another process (``cluster down`` in a second shell, or after a
crash) can end what this one started. An id alone could meanwhile belong to somebody else's
process: the record has the start time as well, and who differs in it is left alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class Processes:
    """What runs for one cluster; ``record`` is the file that remembers it."""

    def __init__(self, record: Path, logs: Path) -> None:
        self._record = record
        self._logs = logs
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._known: dict[str, tuple[int, int]] = {}
        if record.exists():
            loaded = json.loads(record.read_text())
            self._known = {name: (pid, started) for name, (pid, started) in loaded.items()}

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> int:
        """Start a program in a session of its own, output to ``NAME.log``; its process id."""
        if self.alive(name):
            raise RuntimeError(f"{name} is running already")
        with self.log(name).open("ab") as log:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )
        self._children[name] = child
        self._known[name] = (child.pid, _started(child.pid) or 0)
        self._save()
        return child.pid

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def tail(self, name: str, lines: int = 12) -> str:
        """Last lines of a program's log."""
        path = self.log(name)
        text = path.read_text(errors="replace") if path.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def names(self) -> list[str]:
        return list(self._known)

    def pid(self, name: str) -> int:
        return self._known[name][0]

    def alive(self, name: str) -> bool:
        """Whether the very process that was started still runs."""
        if name not in self._known:
            return False
        if child := self._children.get(name):
            return child.poll() is None
        pid, started = self._known[name]
        return _started(pid) == started

    def stop(self, names: Iterable[str], seconds: float = 5) -> None:
        """Ask all of them at once to end, wait, then kill."""
        names = [name for name in names if name in self._known]
        for name in names:
            self._signal(name, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(map(self.alive, names)):
            time.sleep(0.02)
        for name in names:
            self._signal(name, signal.SIGKILL)
            if child := self._children.pop(name, None):
                child.wait()
            del self._known[name]
        self._save()

    def _signal(self, name: str, number: signal.Signals) -> None:
        if self.alive(name):
            kill(self.pid(name), number)

    def _save(self) -> None:
        if self._record.parent.exists():
            part = self._record.with_suffix(".part")
            part.write_text(json.dumps(self._known))
            part.replace(self._record)


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal; a process that has ended is fine."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _started(pid: int) -> int | None:
    """Start time in clock ticks since boot, None for no process or a zombie (see proc(5))."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before may have spaces
    return None if fields[0] in "ZX" else int(fields[19])
