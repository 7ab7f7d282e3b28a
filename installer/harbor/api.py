"""As much of Harbor's API v2.0 as an upgrade needs: is it read-only, and set that.

Asked as admin with HTTP Basic. Cookies are refused: a request that brings one back is taken for a
browser's and needs a CSRF token. What is set is read back, because Harbor answers 200 to what it
ignores; and it is set even where Harbor says that it is so already, because it may speak from a
cache that knows nothing of a database which was restored.
"""

from __future__ import annotations

from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any

import msgspec
import requests

from installer.errors import DeploymentFailed, PreflightFailed, TransferFailed
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Sequence

_PATH = "/api/v2.0/configurations"
_TIMEOUT = 20
_MAX_BYTES = 4 * 1024 * 1024


class NotAnswering(TransferFailed):
    """Harbor can't be reached, or what stands before it has nobody behind it."""


class WrongPassword(PreflightFailed):
    """Harbor answers, and lets nobody in as admin with a password that is known here."""


class _Flag(msgspec.Struct):
    value: bool


class _Configurations(msgspec.Struct):
    read_only: _Flag


class HarborApi:
    """One Harbor at its external URL; ``passwords`` are tried in order for user ``admin``.

    ``ca`` is the path of what https is checked with, "" for the system's.
    """

    def __init__(self, external_url: str, ca: str, passwords: Sequence[str]) -> None:
        self._url = external_url.rstrip("/") + _PATH
        self._ca = ca
        self._passwords = passwords

    def read_only(self) -> bool:
        """Whether it says that it is read-only.

        Raises NotAnswering, WrongPassword, and DeploymentFailed for an answer that is not Harbor's.
        """
        body = self._ask("GET")
        try:
            return decode_json(body, _Configurations).read_only.value
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise DeploymentFailed(f"{self._url}: the answer is not Harbor's") from None

    def set_read_only(self, *, on: bool) -> None:
        """Set it and read it back; raises what ``read_only`` does."""
        self._ask("PUT", {"read_only": on})
        if self.read_only() != on:
            raise DeploymentFailed(f"{self._url}: read_only was set to {on}, and is not")

    def _ask(self, method: str, document: dict[str, Any] | None = None) -> bytes:
        for password in self._passwords:
            status, body = self._request(method, password, document)
            if status == requests.codes.ok:
                return body
            if status >= requests.codes.server_error:
                raise NotAnswering(f"{self._url}: HTTP {status}")
            if status != requests.codes.unauthorized:
                raise DeploymentFailed(f"{self._url}: {method}: HTTP {status}")
        raise WrongPassword(
            f"{self._url}: Harbor doesn't take the password of admin that is known here",
            hint="somebody has changed it: write today's into a file and name that as "
            "harbor.adminPasswordFile",
        )

    def _request(
        self, method: str, password: str, document: dict[str, Any] | None
    ) -> tuple[int, bytes]:
        with requests.Session() as session:
            session.trust_env = False  # a proxy of this machine is not the way to the site's Harbor
            session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
            try:
                with session.request(
                    method,
                    self._url,
                    json=document,
                    auth=("admin", password.encode().decode("latin-1")),  # goes out as UTF-8
                    verify=self._ca or True,
                    allow_redirects=False,
                    stream=True,
                    timeout=_TIMEOUT,
                ) as answer:
                    body = b""
                    for piece in answer.iter_content(_MAX_BYTES):
                        body += piece
                        if len(body) > _MAX_BYTES:
                            raise DeploymentFailed(f"{self._url}: the answer is not Harbor's")
                    return answer.status_code, body
            except (requests.RequestException, OSError) as error:
                raise NotAnswering(f"{self._url}: {type(error).__name__}: {error}"[:400]) from error
