"""Logins for registries, as ``docker login`` keeps them.

The docker SDK reads ``config.json`` with its ``auths``, ``credsStore`` and ``credHelpers``; this is
the only module of the connected side that imports it. A login is looked up when a registry is
first spoken to and is sent only when that registry asks for one (installer.oci.auth).
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from installer.errors import InvalidInput
from installer.oci.auth import Credentials

if TYPE_CHECKING:
    from pathlib import Path

_DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")
_IDENTITY_TOKEN = "<token>"  # noqa: S105 (docker's user name for a token, not a token)


class DockerLogins:
    """Finds the login for a registry's host in a docker config folder."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "config.json"

    def __call__(self, host: str) -> Credentials | None:
        """The login for ``host``, None for anonymous; raises InvalidInput for a broken config."""
        if not self._file.is_file():
            return None
        from docker import auth, errors  # noqa: PLC0415 (slow to import, and seldom needed)

        try:
            with warnings.catch_warnings(action="ignore"):  # a missing helper is an error below
                config = auth.load_config(str(self._file))
                found = config.resolve_authconfig(None if host in _DOCKER_HUB else host)
        except (errors.DockerException, ValueError) as error:
            raise InvalidInput(
                f"{self._file}: no login for {host}: {error}",
                hint="run `docker login` again, or remove the entry",
            ) from error
        username = found.get("Username", found.get("username")) if found else None
        password = found.get("Password", found.get("password")) if found else None
        if not username or not password or username == _IDENTITY_TOKEN:
            return None
        return Credentials(username, password)
