"""A background process that outlives the installer, and is found again without being mistaken.

A process id alone is worth nothing: after a reboot another program has it. So the start time that
the kernel gives (/proc/PID/stat, field 22, clock ticks since boot) is kept beside it with the id
of the boot, and only a process that agrees in all three is ours.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from installer.environment import closed_environment
from installer.errors import DeploymentFailed
from installer.site.private import read_file, write_file
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_GRACE = 10.0
_PAUSE = 0.1
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_STATE_FIELD, _START_FIELD = 0, 19  # counted behind the command's name in parentheses


class Process(msgspec.Struct, frozen=True):
    """What tells a process from all others; ``command`` is what was started."""

    pid: int
    start: str
    boot: str
    command: tuple[str, ...]


def _fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; empty when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    fields = text.rpartition(")")[2].split()
    # A zombie has ended: only its parent hasn't asked yet.
    return [] if fields[_STATE_FIELD] in "ZX" else fields


def start(command: Sequence[str], log: Path, pid_file: Path) -> Process:
    """Start a command in a session of its own with its output in ``log``; remember it.

    It sees nothing of the environment here, and its working directory keeps no disk busy.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(log, flags, 0o600), "ab") as output:
            child = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                close_fds=True,
                env=closed_environment(pid_file.parent),
                cwd="/",
            )
    except OSError as error:
        raise DeploymentFailed(f"{command[0]}: can't be started: {error.strerror}") from error
    fields = _fields(child.pid)
    process = Process(
        child.pid,
        fields[_START_FIELD] if fields else "",
        _BOOT.read_text().strip(),
        tuple(command),
    )
    write_file(pid_file, msgspec.json.encode(process))
    # It is not ours to wait for: whether it lives is asked of the kernel from now on.
    child.returncode = 0
    return process


def running(pid_file: Path) -> Process | None:
    """Give the remembered process if it is still that one and alive."""
    data = read_file(pid_file)
    try:
        process = decode_json(data, Process) if data else None
    except msgspec.DecodeError:
        return None
    if process is None or process.boot != _BOOT.read_text().strip():
        return None
    _reap(process.pid)
    fields = _fields(process.pid)
    return process if fields and fields[_START_FIELD] == process.start else None


def stop(pid_file: Path) -> None:
    """End the remembered process, politely first; does nothing when it is gone."""
    process = running(pid_file)
    if process is None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
        end = time.monotonic() + _GRACE
        while time.monotonic() < end:
            if running(pid_file) is None:
                return
            time.sleep(_PAUSE)
    raise DeploymentFailed(f"process {process.pid} does not end: {' '.join(process.command)[:200]}")


def end_programs(binary: Path, home: Path) -> None:
    """End processes that run exactly this file from this home: of an installer that was killed.

    Who only looks, such as a second installer, runs the same file with a home of its own. Raises
    DeploymentFailed for one that even SIGKILL does not end.
    """
    start = time.monotonic()
    while found := list(_programs(binary, home)):
        waited = time.monotonic() - start
        if waited > _GRACE * 3:
            raise DeploymentFailed(
                f"{binary.name}: process {found[0]} of an earlier run does not end",
                hint="it waits for a device or a network file system: look at those, or restart "
                "this machine",
            )
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM if waited < _GRACE * 2 else signal.SIGKILL)
        time.sleep(_PAUSE * 5)


def _programs(binary: Path, home: Path) -> Iterator[int]:
    # A file that was replaced meanwhile is shown with this ending (proc(5)).
    names = (str(binary), f"{binary} (deleted)")
    started_from = f"HOME={home}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if str((entry / "exe").readlink()) not in names or not _fields(int(entry.name)):
                    continue
                if started_from in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


def last_words(log: Path, count: int = 5) -> str:
    """Give the last lines of a log for an error."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n  ".join(lines[-count:])


def _reap(pid: int) -> None:
    """Take the result of an ended child, if it is one of this process."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
