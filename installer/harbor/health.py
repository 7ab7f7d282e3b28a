"""Does Harbor say that it is healthy? Asked as people reach it, at its external URL.

``/api/v2.0/health`` answers 200 even when a component is down, and lags some ten seconds: the
body counts, and patience is needed. Cookies are refused: Harbor takes a request that brings one
back for a browser's and asks it for a CSRF token. Redirects are not followed: the URL must be
the right one itself.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING

import msgspec
import requests

from installer.errors import AcceptanceFailed
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Callable

_PATH = "/api/v2.0/health"
_TIMEOUT = 15
_MAX_BYTES = 1024 * 1024
_PAUSE = 2.0


class _Component(msgspec.Struct):
    name: str
    status: str
    error: str = ""


class _Answer(msgspec.Struct):
    status: str
    components: list[_Component] = []


@dataclass(frozen=True)
class Health:
    """What Harbor said; ``problem`` is empty when it is healthy."""

    healthy: bool
    problem: str = ""


def ask(external_url: str, ca: str = "") -> Health:
    """Ask once. ``ca`` is the path of the CA certificates for https; empty means the system's."""
    url = external_url.rstrip("/") + _PATH
    with requests.Session() as session:
        session.trust_env = False  # a proxy of this machine is not the way to the site's Harbor
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        try:
            with session.get(
                url,
                verify=ca or True,
                allow_redirects=False,
                stream=True,
                timeout=_TIMEOUT,
            ) as answer:
                status = answer.status_code
                body = next(answer.iter_content(_MAX_BYTES), b"")
        except requests.exceptions.SSLError as error:
            return Health(healthy=False, problem=f"{url}: TLS: {_cause(error)}")
        except (requests.RequestException, OSError) as error:
            return Health(healthy=False, problem=f"{url}: {_cause(error)}")
    if status != requests.codes.ok:
        return Health(healthy=False, problem=f"{url}: HTTP {status}")
    try:
        said = decode_json(body, _Answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Health(healthy=False, problem=f"{url}: the answer is not Harbor's")
    ill = [c for c in said.components if c.status != "healthy"]
    if said.status == "healthy" and not ill:
        return Health(healthy=True)
    words = "; ".join(f"{c.name} {c.status} {c.error}".strip() for c in ill) or said.status
    return Health(healthy=False, problem=f"{url}: {words}")


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


def _cause(error: BaseException) -> str:
    """Give the innermost reason: requests wraps it three times."""
    reason: object = error
    while isinstance(reason, BaseException):
        inner = getattr(reason, "reason", None) or (reason.args[0] if reason.args else None)
        if not isinstance(inner, BaseException):
            break
        reason = inner
    return str(reason)[:300]
