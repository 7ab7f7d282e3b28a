"""Commands at a terminal of a given width, as a person sees them."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LINES = 50


class Shown(NamedTuple):
    """How a command ended, and what came to the terminal, each line without its colours."""

    returncode: int
    lines: list[str]


def run_in_terminal(*argv: str, cwd: Path, columns: int = 80, **env: str) -> Shown:
    """Run a command whose standard streams are a terminal, and wait for its end."""
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, columns, 0, 0))
        forced = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE")
        kept = {name: value for name, value in os.environ.items() if name not in forced}
        process = subprocess.Popen(
            argv, cwd=cwd, env=kept | {"TERM": "xterm-256color"} | env,
            stdin=theirs, stdout=theirs, stderr=theirs,
        )  # fmt: skip
    finally:
        os.close(theirs)
    with os.fdopen(ours, "rb", buffering=0) as screen:
        text = bytearray()
        while piece := _read(screen.fileno()):
            text += piece
    returncode = process.wait(timeout=30)
    shown = _CONTROL.sub("", text.decode()).replace("\r\n", "\n")
    return Shown(returncode, re.split(r"[\r\n]", shown))


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # EIO: the last one who had it open is gone
        return b""
