"""One request to something of the site: Harbor, a seed registry.

A proxy of this machine is not the way there. Cookies are refused: Harbor takes a request that
brings one back for a browser's and asks it for a CSRF token. Redirects are not followed: the URL
must be the right one itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests

from installer.errors import TransferFailed, cause_of

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
    """Status code and body, which is cut where it is too long to be an answer to us."""

    status: int
    body: bytes

    @property
    def good(self) -> bool:
        """Whether the status is 200."""
        return self.status == HTTPStatus.OK


def request(
    url: str,
    ca: str = "",
    *,
    method: str = "GET",
    document: dict[str, Any] | None = None,
    login: tuple[str, str] | None = None,
    timeout: float = _TIMEOUT,
) -> Answer:
    """Ask once; raises NotAnswering.

    ``ca`` is the path of what https is checked with, "" for the system's; ``document`` goes out as
    JSON, ``login`` as HTTP Basic in UTF-8; ``timeout`` is seconds to connect, and between two
    pieces of the answer.
    """
    auth = tuple(word.encode().decode("latin-1") for word in login) if login else None
    with requests.Session() as session:
        session.trust_env = False
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        try:
            with session.request(
                method,
                url,
                json=document,
                auth=auth,  # type: ignore[arg-type]  # a pair, which mypy can't see
                verify=ca or True,
                allow_redirects=False,
                stream=True,
                timeout=timeout,
            ) as answer:
                body = b""
                for piece in answer.iter_content(_PIECE):
                    body += piece
                    if len(body) > _MAX_BYTES:
                        break
                return Answer(answer.status_code, body)
        except requests.exceptions.SSLError as error:
            raise NotAnswering(url, f"TLS: {cause_of(error)}") from error
        except (requests.RequestException, OSError) as error:
            raise NotAnswering(url, cause_of(error)) from error
