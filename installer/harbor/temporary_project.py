"""A project in Harbor that is there for a check alone, and that never stays.

It is taken away whatever happened. A check that was killed could not do so: the name tells the next
one, which takes that project away as well.
"""

from __future__ import annotations

import re
import secrets
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Self

import msgspec

from installer.errors import AirgapError
from installer.harbor.api import HarborRefused, segment

if TYPE_CHECKING:
    from installer.harbor.api import HarborClient

PREFIX = "airgap-acceptance-"
_NAME = re.compile(rf"{PREFIX}[0-9a-f]{{8}}")


class _Named(msgspec.Struct):
    name: str


class TemporaryProject:
    """A project with a name that nobody else has; leaving the ``with`` block takes it away.

    What Harbor refuses then is not raised: who wants to know calls ``remove`` before.
    """

    def __init__(self, client: HarborClient) -> None:
        self.name = PREFIX + secrets.token_hex(4)
        self._client = client
        self._made = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(AirgapError):
            self.remove()

    def make(self, **metadata: str) -> list[str]:
        """Make it private; gives the names of those that a killed check has left, now gone."""
        left = [
            one.name
            for one in self._client.pages("/projects", {"name": PREFIX}, type=_Named)
            if _NAME.fullmatch(one.name)
        ]
        for name in left:
            self._remove(name)
        self._made = True  # before the request: an answer may get lost
        document = {"project_name": self.name, "metadata": {"public": "false", **metadata}}
        self._client.post("/projects", document)
        return left

    def remove(self) -> bool:
        """Take it away with all that is in it; gives whether there was one."""
        was_made = self._made
        if was_made:
            self._remove(self.name)
            self._made = False
        return was_made

    def _remove(self, name: str) -> None:
        path = f"/projects/{segment(name)}"
        try:
            found = list(self._client.pages(f"{path}/repositories", type=_Named))
        except HarborRefused as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return
            raise
        for repository in found:
            inner = repository.name.partition("/")[2]
            self._client.delete(f"{path}/repositories/{segment(inner)}", missing_ok=True)
        self._client.delete(path, missing_ok=True)
