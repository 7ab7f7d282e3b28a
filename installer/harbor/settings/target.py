"""The Harbor that is compared and set: its client, what it said so far, what is remembered of it.

Some secrets Harbor never shows again (an endpoint's password, an OIDC client's). Whether they are
still those of the file can't be asked, so a fingerprint of the last one that was sent is kept, and
one is sent again only when it differs. For robots it is the other way round: only Harbor makes
their secret and says it once. That it is being made is noted before, so that a run that is killed
between the answer and the file is known to have lost it.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from installer.environment import variable
from installer.errors import InvalidInput, PreflightFailed
from installer.harbor.api import Version
from installer.harbor.settings.change import Line
from installer.site.private import VARIABLE, read_secret

if TYPE_CHECKING:
    from collections.abc import Collection

    from installer.harbor.api import HarborClient
    from installer.site.harbor_settings import HarborSettings
    from installer.site.settings_memory import RobotState

SUPPORTED = (Version(2, 12), Version(2, 16))
"""From the first to before the second."""


class Memory(Protocol):
    """What is remembered of one Harbor."""

    def knows(self, name: str, secret: str) -> bool:
        """Whether this was the last secret that was sent for ``name``."""
        ...

    def remember(self, name: str, secret: str) -> None:
        """Note that it was sent."""
        ...

    def robot(self, name: str) -> RobotState:
        """How far the secret of a robot came; "" for one that is not ours."""
        ...

    def note_robot(self, name: str, state: RobotState) -> None:
        """Note how far it came."""
        ...

    def secret_file(self, robot: str) -> Path:
        """Where the secret of a robot goes for which the file names no place."""
        ...


class Target:
    """One Harbor, its section of site.yaml, and what it said since the last ``forget``."""

    def __init__(
        self,
        client: HarborClient,
        settings: HarborSettings,
        memory: Memory,
        own_projects: Collection[str] = (),
    ) -> None:
        """``own_projects`` are made by other steps of a run: nobody is told of them."""
        self.client = client
        self.own_projects = own_projects
        self.settings = settings
        self.memory = memory
        self._projects: dict[str, dict[str, Any]] | None = None
        self._registries: dict[str, dict[str, Any]] | None = None
        self._configuration: dict[str, Any] | None = None
        self._quotas: dict[int, dict[str, Any]] | None = None

    def forget(self) -> None:
        """Ask again: something was changed."""
        self._projects = self._registries = self._configuration = self._quotas = None

    @cached_property
    def version(self) -> Version:
        """What Harbor says it is."""
        return self.client.version()

    def configuration(self) -> dict[str, Any]:
        """``GET /configurations``: each key with ``value`` and ``editable``."""
        if self._configuration is None:
            self._configuration = self.client.get("/configurations", type=dict[str, Any])
        return self._configuration

    def value(self, key: str) -> Any:
        """Value of a configuration, None if this Harbor has none of that name."""
        return (self.configuration().get(key) or {}).get("value")

    def projects(self) -> dict[str, dict[str, Any]]:
        """All projects by their names."""
        if self._projects is None:
            self._projects = {one["name"]: one for one in self.client.pages("/projects")}
        return self._projects

    def quotas(self) -> dict[int, dict[str, Any]]:
        """All quotas by the ids of their projects."""
        if self._quotas is None:
            self._quotas = {one["ref"]["id"]: one for one in self.client.pages("/quotas")}
        return self._quotas

    def project_id(self, name: str) -> int:
        """Id of a project that is there."""
        return int(self.projects()[name]["project_id"])

    def registries(self) -> dict[str, dict[str, Any]]:
        """All registry endpoints by their names."""
        if self._registries is None:
            self._registries = {one["name"]: one for one in self.client.pages("/registries")}
        return self._registries

    def require(self, since: Version, what: str) -> None:
        """Refuse an option that this Harbor is too old for; raises PreflightFailed."""
        if self.version < since:
            raise PreflightFailed(
                f"{what}: Harbor {self.version} does not have it, only {since.major}.{since.minor} "
                "and later",
                hint="leave it out, or upgrade Harbor first",
            )

    def secret(self, name: str, file: str, key: str) -> tuple[str, tuple[Line, ...]]:
        """A secret of the file, and a line if Harbor may have another one.

        "" for a file that is gone: then Harbor's stays. It is shown in no error. Raises
        InvalidInput for a file that has no secret.
        """
        if not file or not _is_there(file):
            return "", ()
        word = read_secret(Path(file))
        if not word:
            raise InvalidInput(f"{file}: it is empty")
        self.client.hide(word)
        if self.memory.knows(name, word):
            return word, ()
        return word, (Line(key, "another one, or unknown", f"that of {file}"),)


def _is_there(file: str) -> bool:
    if file.startswith(VARIABLE):
        return variable(file.removeprefix(VARIABLE)) is not None
    return Path(file).exists()
