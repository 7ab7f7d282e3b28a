"""Harbor's switch to read-only, for as long as its database is dumped and moved.

Whoever sets it may be killed before it is lifted. So a note in the state says that it was us, from
before it is set until after it is lifted, and the next run's steps look at that. What people have
set is theirs.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec

from installer.deploy.snapshot import now
from installer.errors import DeploymentFailed, PreflightFailed
from installer.harbor.api import HarborRefused
from installer.site.http import NotAnswering

if TYPE_CHECKING:
    from collections.abc import Callable

    from installer.harbor.api import HarborClient
    from installer.site.state import State

_NOTES = "read-only.json"
_PATH = "/configurations"
_PATIENCE = 300.0
_PAUSE = 3.0
_UNREACHED = (
    "its database would change while it is dumped: is externalURL reachable from this machine?"
)


class _Flag(msgspec.Struct):
    value: bool


class _Configurations(msgspec.Struct):
    read_only: _Flag


class _Notes(msgspec.Struct, frozen=True):
    """Since when each Harbor is read-only because of us."""

    since: dict[str, str] = {}


class ReadOnly:
    """Harbor's switch, with a note in the state for as long as it is set by us."""

    def __init__(
        self,
        state: State,
        key: str,
        client: Callable[[], HarborClient],
        is_running: Callable[[], bool],
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._state = state
        self._key = key
        self._client = client
        self._is_running = is_running
        self._pause = pause

    def since(self) -> str:
        """Since when it is read-only because of us, "" if it isn't."""
        return self._read().since.get(self._key, "")

    def preflight(self) -> None:
        """Raise PreflightFailed if Harbor runs and can't be asked, or doesn't let us in."""
        try:
            _get(self._client())
        except NotAnswering as error:
            if self._is_running():
                raise PreflightFailed(
                    f"{self._key}: Harbor runs, but can't be set read-only: {error.message}",
                    hint=_UNREACHED,
                ) from error

    def set(self) -> str:
        """Set it; gives what people should know. Raises DeploymentFailed if it runs and can't."""
        client = self._client()
        try:
            if _get(client) and not self.since():
                return "Harbor was read-only already and stays so"
        except NotAnswering as error:
            if self._is_running():
                raise DeploymentFailed(
                    f"{self._key}: Harbor runs, but can't be set read-only: {error.message}",
                    hint=_UNREACHED,
                ) from error
            return "Harbor was not running, so it was not set read-only"
        self.note()  # before: a run that is killed here must not leave it read-only for ever
        _set(client, on=True)
        return ""

    def note(self) -> None:
        """Remember that it is read-only because of us."""
        self._state.write(_NOTES, _Notes({**self._read().since, self._key: now()}))

    def lift(self, patience: float = _PATIENCE) -> None:
        """Let it be written to again; raises AirgapError after so many seconds without answer."""
        if not self.since():
            return
        end = time.monotonic() + patience
        while True:
            try:
                _set(self._client(), on=False)
            except NotAnswering as error:
                if time.monotonic() >= end:
                    raise DeploymentFailed(
                        f"{self._key}: Harbor is still read-only: {error.message}",
                        hint="the next run lifts that, as soon as Harbor answers",
                    ) from error
                self._pause(_PAUSE)
            else:
                break
        left = {key: time for key, time in self._read().since.items() if key != self._key}
        self._state.write(_NOTES, _Notes(left))

    def _read(self) -> _Notes:
        return self._state.read(_NOTES, _Notes) or _Notes()


class LiftReadOnly:
    """Let Harbor be written to again, when it was set read-only by us."""

    def __init__(self, key: str, read_only: ReadOnly, is_ahead: Callable[[], bool]) -> None:
        """``is_ahead`` says whether it is going to be set: for a plan."""
        self._read_only = read_only
        self._is_ahead = is_ahead
        self.name = f"writable:{key}"
        self.sentence = f"Let {key} be written to again"

    def check(self) -> bool:
        """Whether it is not read-only because of us, and will not be."""
        return not self._read_only.since() and not self._is_ahead()

    def apply(self) -> str:
        """Wait until Harbor answers, and lift it; raises DeploymentFailed."""
        self._read_only.lift()
        return ""


def _get(client: HarborClient) -> bool:
    """Whether it says that it is read-only."""
    try:
        return client.get(_PATH, type=_Configurations).read_only.value
    except HarborRefused as error:
        raise _as_silence(error) from error


def _set(client: HarborClient, *, on: bool) -> None:
    """Set it and read it back, because Harbor answers 200 to what it ignores.

    Set even where Harbor says that it is so already: it may speak from a cache that knows nothing
    of a database which was restored.
    """
    try:
        client.put(_PATH, {"read_only": on})
    except HarborRefused as error:
        raise _as_silence(error) from error
    if _get(client) != on:
        raise DeploymentFailed(f"{client.url}: read_only was set to {on}, and is not")


def _as_silence(error: HarborRefused) -> Exception:
    """A Harbor that has lost its database answers 500: worth to be asked again."""
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return NotAnswering(error.url, f"HTTP {error.status}")
    return error
