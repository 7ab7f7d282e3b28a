"""Logins for registries, as ``docker login``, ``podman login`` and their kin keep them.

The docker SDK reads the files, which have one form, with their ``auths``, ``credsStore`` and
``credHelpers``. A login is looked up when a registry is first spoken to and is sent only when that
registry asks for one (installer.oci.auth).
"""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from installer.errors import InvalidInput
from installer.oci.auth import Credentials

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")
_API_PATHS = ("", "v1", "v2")
_IDENTITY_TOKEN = "<token>"  # noqa: S105 (docker's user name beside a token)


class RegistryLogins:
    """Finds the login for a registry's host in the first of some files that has one.

    Files that don't exist are passed over. Entries for a part of a registry
    (``quay.io/team``, which podman writes) are not used.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files

    def __call__(self, host: str) -> Credentials | None:
        """The login for ``host``, None for anonymous; raises InvalidInput for a broken file."""
        for file in self._files:
            if file.is_file() and (found := _find(file, host)):
                return found
        return None


def _find(file: Path, host: str) -> Credentials | None:
    from docker import auth, errors  # noqa: PLC0415 (slow to import, and seldom needed)

    try:
        written = _read(file)
        with warnings.catch_warnings(action="ignore"):  # a missing helper is an error below
            config = auth.load_config(config_dict=written) if written else auth.AuthConfig({})
            found = config.resolve_authconfig(None if host in _DOCKER_HUB else host)
    except (errors.DockerException, ValueError, OSError) as error:
        # What can't be read may be a secret: only a helper's own words are repeated.
        why = str(error) if isinstance(error, errors.DockerException) else type(error).__name__
        raise InvalidInput(
            f"{file}: no login for {host}: {why}",
            hint="run `docker login` again, or remove the entry",
        ) from error
    if not found:
        return None
    if token := found.get("IdentityToken"):
        return Credentials("", "", token)
    username = found.get("Username", found.get("username"))
    password = found.get("Password", found.get("password"))
    if not username or not password or username == _IDENTITY_TOKEN:
        return None
    return Credentials(username, password)


def _read(file: Path) -> dict[str, Any]:
    """The parts about logins; raises ValueError or OSError."""
    content = json.loads(file.read_bytes())
    if not isinstance(content, dict):
        raise ValueError("no object")  # noqa: TRY004 (as for JSON that can't be read)
    kept = {key: content[key] for key in ("credsStore", "credHelpers") if content.get(key)}
    auths = content.get("auths") or {}
    whole = {key: entry for key, entry in auths.items() if _path(key) in _API_PATHS}
    return kept | ({"auths": whole} if whole else {})


def _path(key: str) -> str:
    return urlsplit(key if "://" in key else f"https://{key}").path.strip("/")
