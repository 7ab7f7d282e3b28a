"""Sees what a piece of code does to the machine: files that it changes, programs that it starts.

By the interpreter's own audit events, so that nothing has to be replaced for it. A hook can't be
taken away again: it is there once, and listens only inside ``untouched``.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHANGES = (
    "os.chmod", "os.chown", "os.exec", "os.fork", "os.link", "os.mkdir", "os.posix_spawn",
    "os.remove", "os.rename", "os.rmdir", "os.setxattr", "os.symlink", "os.system", "os.truncate",
    "os.utime", "shutil.", "socket.connect", "subprocess.Popen", "tempfile.",
)  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_seen: list[str] | None = None
_installed = False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _seen is None:
        return
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
    if writes or event.startswith(_CHANGES):
        _seen.append(f"{event} {arguments!r}")


@contextmanager
def untouched() -> Iterator[None]:
    """Fail when what happens inside writes to a file, starts a program or connects somewhere."""
    global _installed, _seen  # noqa: PLW0603 - the hook is there once in the interpreter
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    _seen = []
    try:
        yield
    finally:
        seen, _seen = _seen, None
    assert not seen, seen
