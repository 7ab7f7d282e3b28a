"""What is remembered of the settings of a Harbor, in the state folder: which secrets were sent.

Harbor shows some secrets to nobody. So that a password in a file that is still the same is not
sent at every run, and a new one is, a fingerprint of the last one is kept (HMAC-SHA-256 with a key
of its own, in a file of mode 0600). Of robots it is kept how far their secrets came.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

    from installer.site.state import State

FILE = "harbor-settings.json"
ROBOTS = "robots"

RobotState = Literal["", "begun", "written"]


class _Harbor(msgspec.Struct, frozen=True):
    key: str
    sent: dict[str, str] = {}
    robots: dict[str, RobotState] = {}


class _Kept(msgspec.Struct, frozen=True):
    harbors: dict[str, _Harbor] = {}


class SettingsMemory:
    """What is remembered of the Harbor of a release; written only while the state is held."""

    def __init__(self, state: State, release: str) -> None:
        self._state = state
        self._release = release

    def knows(self, name: str, secret: str) -> bool:
        """Whether this was the last secret that was sent for ``name``."""
        kept = self._read()
        there = kept.sent.get(name, "") if kept else ""
        return kept is not None and hmac.compare_digest(there, _fingerprint(kept.key, secret))

    def remember(self, name: str, secret: str) -> None:
        """Note that it was sent."""
        kept = self._read() or _Harbor(secrets.token_hex(32))
        sent = {**kept.sent, name: _fingerprint(kept.key, secret)}
        self._write(msgspec.structs.replace(kept, sent=sent))

    def forget_secrets(self) -> None:
        """Count none as sent: Harbor's database is one of before."""
        kept = self._read()
        if kept is not None and kept.sent:
            self._write(msgspec.structs.replace(kept, sent={}))

    def robot(self, name: str) -> RobotState:
        """How far the secret of a robot came; "" for one that is not ours."""
        kept = self._read()
        return kept.robots.get(name, "") if kept else ""

    def note_robot(self, name: str, state: RobotState) -> None:
        """Note how far it came, and have a place for it."""
        self._state.subfolder(self._folder)
        kept = self._read() or _Harbor(secrets.token_hex(32))
        self._write(msgspec.structs.replace(kept, robots={**kept.robots, name: state}))

    def secret_file(self, robot: str) -> Path:
        """Where the secret of a robot goes for which site.yaml names no place."""
        return self._state.path(f"{self._folder}/{robot}")

    @property
    def _folder(self) -> str:
        # No name of Kubernetes has an underscore: two releases never share a folder.
        return f"{ROBOTS}/{self._release.replace('/', '_')}"

    def _read(self) -> _Harbor | None:
        return (self._state.read(FILE, _Kept) or _Kept()).harbors.get(self._release)

    def _write(self, harbor: _Harbor) -> None:
        everyone = (self._state.read(FILE, _Kept) or _Kept()).harbors
        self._state.write(FILE, _Kept({**everyone, self._release: harbor}))


def _fingerprint(key: str, secret: str) -> str:
    return hmac.new(bytes.fromhex(key), secret.encode(), hashlib.sha256).hexdigest()
