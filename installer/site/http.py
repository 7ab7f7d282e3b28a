"""One request to something of the site: Harbor, a seed registry.

A proxy of this machine is not the way there. Cookies are refused: Harbor takes a request that
brings one back for a browser's and asks it for a CSRF token. Redirects are not followed: the URL
must be the right one itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any

import requests

from installer.errors import TransferFailed, cause_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_TIMEOUT = 15.0
_MAX_BYTES = 4 * 1024 * 1024
_PIECE = 64 * 1024


class NotAnswering(TransferFailed):
    """Nobody answers there, or nobody whom we trust; ``cause`` is the innermost reason."""

    def __init__(self, url: str, cause: str) -> None:
        super().__init__(f"{url}: {cause}")
        self.cause = cause


@dataclass(frozen=True)
class Answer:
    """Status code, body and headers; the body is cut where it is too long to be an answer to us.

    Names of ``headers`` are found in upper and lower case.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Whether the status is 200."""
        return self.status == HTTPStatus.OK


class Connection:
    """Several requests over one connection, which is kept for as long as the other side keeps it.

    ``ca`` is the path of what https is checked with, "" for the system's; ``login`` goes out as
    HTTP Basic in UTF-8; of a longer answer than ``max_bytes`` the end is not read. Not for several
    threads at once.
    """

    def __init__(
        self, ca: str = "", login: tuple[str, str] | None = None, max_bytes: int = _MAX_BYTES
    ) -> None:
        self._ca = ca
        self._auth = tuple(word.encode().decode("latin-1") for word in login) if login else None
        self._max_bytes = max_bytes
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def close(self) -> None:
        """Hang up."""
        self._session.close()

    def request(
        self,
        method: str,
        url: str,
        *,
        document: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = _TIMEOUT,
    ) -> Answer:
        """Ask once; raises NotAnswering.

        ``document`` goes out as JSON; ``timeout`` is seconds to connect, and between two pieces of
        the answer.
        """
        try:
            with self._session.request(
                method,
                url,
                json=document,
                headers=headers,
                auth=self._auth,  # type: ignore[arg-type]  # a pair, which mypy can't see
                verify=self._ca or True,
                allow_redirects=False,
                stream=True,
                timeout=timeout,
            ) as answer:
                body = bytearray()
                for piece in answer.iter_content(_PIECE):
                    body += piece
                    if len(body) > self._max_bytes:
                        break
                return Answer(answer.status_code, bytes(body), answer.headers)
        except requests.exceptions.SSLError as error:
            raise NotAnswering(url, f"TLS: {cause_of(error)}") from error
        except (requests.RequestException, OSError) as error:
            raise NotAnswering(url, cause_of(error)) from error


def request(
    url: str,
    ca: str = "",
    *,
    method: str = "GET",
    document: dict[str, Any] | None = None,
    login: tuple[str, str] | None = None,
    timeout: float = _TIMEOUT,
) -> Answer:
    """Ask once, over a connection of its own; all as there."""
    connection = Connection(ca, login)
    try:
        return connection.request(method, url, document=document, timeout=timeout)
    finally:
        connection.close()
