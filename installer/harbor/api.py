"""As much of Harbor's API v2.0 as an upgrade needs: is it read-only, and set that.

Asked as admin with HTTP Basic. What is set is read back, because Harbor answers 200 to what it
ignores; and it is set even where Harbor says that it is so already, because it may speak from a
cache that knows nothing of a database which was restored.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec

from installer.errors import DeploymentFailed, PreflightFailed
from installer.site.http import NotAnswering, request
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Sequence

_PATH = "/api/v2.0/configurations"


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
            answer = request(
                self._url, self._ca, method=method, document=document, login=("admin", password)
            )
            if answer.good:
                return answer.body
            if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise NotAnswering(self._url, f"HTTP {answer.status}")
            if answer.status != HTTPStatus.UNAUTHORIZED:
                raise DeploymentFailed(f"{self._url}: {method}: HTTP {answer.status}")
        raise WrongPassword(
            f"{self._url}: Harbor doesn't take the password of admin that is known here",
            hint="somebody has changed it: write today's into a file and name that as "
            "harbor.adminPasswordFile",
        )
