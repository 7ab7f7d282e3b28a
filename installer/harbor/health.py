"""Does Harbor say that it is healthy? Asked as people reach it, at its external URL.

``/api/v2.0/health`` answers 200 even when a component is down, and lags some ten seconds: the
body counts, and patience is needed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from installer.errors import AcceptanceFailed
from installer.site.http import NotAnswering, request
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Callable

_PATH = "/api/v2.0/health"
_PAUSE = 2.0


class Component(msgspec.Struct, frozen=True):
    """One of Harbor's parts; ``error`` is what Harbor says of it, empty where it is healthy."""

    name: str
    status: str
    error: str = ""

    @property
    def healthy(self) -> bool:
        """Whether Harbor calls it so."""
        return self.status == "healthy"


class _Answer(msgspec.Struct, frozen=True):
    status: str
    components: tuple[Component, ...] = ()


class Health(msgspec.Struct, frozen=True):
    """What Harbor said; ``problem`` is empty when it is healthy, with all its ``components``."""

    problem: str = ""
    components: tuple[Component, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problem


def ask(external_url: str, ca: str = "") -> Health:
    """Ask once. ``ca`` is the path of the CA certificates for https; empty means the system's."""
    url = external_url.rstrip("/") + _PATH
    try:
        answer = request(url, ca)
    except NotAnswering as error:
        return Health(error.message)
    if not answer.good:
        return Health(f"{url}: HTTP {answer.status}")
    try:
        said = decode_json(answer.body, _Answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Health(f"{url}: the answer is not Harbor's")
    ill = [part for part in said.components if not part.healthy]
    if said.status == "healthy" and not ill:
        return Health("", said.components)
    words = "; ".join(f"{c.name} {c.status} {c.error}".strip() for c in ill) or said.status
    return Health(f"{url}: {words}", said.components)


def wait_until_healthy(
    external_url: str,
    ca: str = "",
    *,
    patience: float,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Ask until Harbor is healthy; raises AcceptanceFailed after ``patience`` seconds."""
    end = clock() + patience
    while not (health := ask(external_url, ca)).healthy:
        if clock() >= end:
            raise AcceptanceFailed(
                f"Harbor is not healthy after {patience:.0f} s: {health.problem}",
                hint="is externalURL reachable from this machine, and, for https, does "
                "harbor.ca name its CA? `kubectl logs` of the component says more",
            )
        pause(_PAUSE)
