"""Who is told which secret: logins, the registry's challenges, and tokens with their scopes.

Nothing is sent until the registry asks for it (RFC 9110, 11.6). A token is fetched for a set of
scopes, kept until shortly before it expires, and shared by all threads (distribution project,
"Token Authentication Specification"). Who logged in with a browser has no password but an identity
token, which is given to the token service alone ("OAuth2 Token Authentication").
"""

from __future__ import annotations

import base64
import re
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlencode

if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST_CHALLENGE = 1 << 16


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and a password for a registry, or an identity token; the repr hides both."""

    username: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)
    """A refresh token (OAuth 2.0): then there is no password."""

    def header(self) -> str | None:
        """Value of an Authorization header (HTTP Basic); None for an identity token."""
        if self.identity_token:
            return None
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What a token service is asked: for whom, for which scopes, and with which secret."""

    realm: str
    service: str
    scopes: tuple[str, ...]
    basic: str | None = field(repr=False)
    identity_token: str = field(repr=False)

    @property
    def query(self) -> str:
        """The question as a query string ("Token Authentication Specification")."""
        pairs = [("service", self.service)] if self.service else []
        return urlencode([*pairs, *(("scope", scope) for scope in self.scopes)])

    @property
    def form(self) -> bytes:
        """The question as a form, for an identity token ("OAuth2 Token Authentication")."""
        fields = {
            "grant_type": "refresh_token",
            "service": self.service,
            "client_id": "harbor-airgap",
            "scope": " ".join(self.scopes),
            "refresh_token": self.identity_token,
        }
        return urlencode(fields).encode()


class Authority:
    """What to put into Authorization: nothing until the registry asks, then what it asked for.

    Tokens are kept for each set of scopes and fetched anew before they expire, by one thread while
    the others that need the same one wait.
    """

    def __init__(
        self,
        credentials: Credentials | None,
        fetch: Callable[[TokenRequest], tuple[str, float]],
    ) -> None:
        self._identity_token = credentials.identity_token if credentials else ""
        self._basic = credentials.header() if credentials else None
        self._fetch = fetch
        self._use_basic = False
        self._realm: tuple[str, str] | None = None
        self._tokens: dict[tuple[str, ...], tuple[str, float]] = {}
        self._asked: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._locks: defaultdict[tuple[str, ...], threading.Lock] = defaultdict(threading.Lock)

    def header(self, scopes: tuple[str, ...]) -> str | None:
        """Value for the next request that needs these scopes."""
        if self._use_basic:
            return self._basic
        if self._realm is None:
            return None
        with self._locks[scopes]:
            value, until = self._tokens.get(scopes, ("", 0.0))
            return value if time.monotonic() < until else self._renewed(scopes)

    def renew(self, challenge: str, scopes: tuple[str, ...], used: str | None) -> bool:
        """Take in a challenge; whether it is worth to send the request again."""
        schemes = _challenges(challenge)
        if realm := schemes.get("bearer", {}).get("realm"):
            with self._locks[scopes]:
                if used == self._tokens.get(scopes, (None, 0.0))[0]:
                    bearer = schemes["bearer"]
                    self._realm = (realm, bearer.get("service", ""))
                    self._asked[scopes] = _merged((*scopes, *bearer.get("scope", "").split()))
                    self._renewed(scopes)
                return True  # another thread was faster, or this one has a new token
        if "basic" in schemes and self._basic is not None and used != self._basic:
            self._use_basic = True
            return True
        return False

    def _renewed(self, scopes: tuple[str, ...]) -> str:
        realm, service = self._realm or ("", "")
        wanted = self._asked.get(scopes, scopes)
        asked = time.monotonic()
        token, life = self._fetch(
            TokenRequest(realm, service, wanted, self._basic, self._identity_token)
        )
        # A tenth is left for clocks and for the way of the request.
        self._tokens[scopes] = (f"Bearer {token}", asked + 0.9 * life)
        return f"Bearer {token}"


def _merged(scopes: tuple[str, ...]) -> tuple[str, ...]:
    """Unite the actions of scopes for the same thing (``repository:name:pull,push``)."""
    actions: dict[str, dict[str, None]] = {}
    for scope in scopes:
        resource, _, verbs = scope.rpartition(":")
        actions.setdefault(resource, {}).update(dict.fromkeys(verbs.split(",")))
    return tuple(f"{resource}:{','.join(verbs)}" for resource, verbs in actions.items())


_PARAMETER = re.compile(
    r"\s*,?\s*([A-Za-z0-9!#$%&'*+.^_`|~-]+)(?:\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s,\"]+)))?"
)


def _challenges(header: str) -> dict[str, dict[str, str]]:
    """Schemes of a WWW-Authenticate header with their parameters (RFC 9110, 11.6.1)."""
    schemes: dict[str, dict[str, str]] = {}
    parameters: dict[str, str] = {}
    for found in _PARAMETER.finditer(header[:_LONGEST_CHALLENGE]):
        name, quoted, plain = found.groups()
        if quoted is None and plain is None:
            parameters = schemes.setdefault(name.lower(), {})
        else:
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            parameters[name.lower()] = value
    return schemes
