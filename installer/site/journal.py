"""What was done at a site, one line of JSON each: evidence for people, resume notes for a run.

Lines are appended and synced before and after each step, so after a power cut the last line may
be torn: reading leaves it out, the next append cuts it off. What still has to be done is never
decided by the journal, each step looks for itself; the journal tells what happened and when.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from installer.errors import Corrupt, TransferFailed
from installer.site.private import read_file
from installer.structs import decode_json

if TYPE_CHECKING:
    from pathlib import Path


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event: ``bundle`` is the digest of the bundle, ``time`` RFC 3339 in UTC.

    ``event`` is started, done, failed or interrupted for a step; run or downgrade for all of them.
    """

    time: str
    event: str
    bundle: str = ""
    step: str = ""
    text: str = ""


class Journal:
    """The journal of one site; only the holder of the site's lock appends."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lines(self) -> list[Line]:
        """All whole lines, oldest first; raises Corrupt when one in the middle is damaged."""
        data = read_file(self._path) or b""
        whole = data[: data.rfind(b"\n") + 1]
        lines = []
        for number, text in enumerate(whole.splitlines(), start=1):
            try:
                lines.append(decode_json(text, Line))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise Corrupt(
                    f"{self._path}:{number}: not a line of a journal",
                    hint="move the file away and look at the disk: the next run starts a new one",
                ) from error
        return lines

    def append(self, event: str, *, bundle: str = "", step: str = "", text: str = "") -> None:
        """Write one event and wait until it is on the disk; raises TransferFailed."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        line = msgspec.json.encode(Line(now, event, bundle, step, text)) + b"\n"
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(self._path, flags, 0o600), "r+b") as file:
                data = file.read()
                end = data.rfind(b"\n") + 1
                if end < len(data):
                    file.truncate(end)
                file.seek(end)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise TransferFailed(
                f"{self._path}: can't be written: {error.strerror}",
                hint="is the disk full or read-only?",
            ) from error

    def unfinished(self) -> Line | None:
        """The step that the last run was in when it stopped, None when it came to its end."""
        last: Line | None = None
        for line in self.lines():
            if line.event in ("started", "failed", "interrupted"):
                last = line
            elif line.event in ("done", "run", "databases"):
                last = None
        return last
