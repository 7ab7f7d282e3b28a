"""Helm and kubectl out of the bundle: the only programs that are executed, and only after a check.

They are copied to a private folder while their digest is computed, and appear there under their
name only when it held. Before each later use in another run they are hashed again.
"""

from __future__ import annotations

import hashlib
import stat
from typing import TYPE_CHECKING

from installer.bundle.digest import Digest
from installer.errors import PreflightFailed
from installer.oci.platforms import own_platform
from installer.site.private import private_folder, write_file

if TYPE_CHECKING:
    from pathlib import Path

    from installer.bundle.archive import VerifiedBundle
    from installer.bundle.layout import Entry
    from installer.bundle.manifest import Tool

NEEDED = ("helm", "kubectl")
_EXECUTABLE = 0o700


class Toolbox:
    """The tools that a run needs, in one private folder."""

    name = "tools"

    def __init__(
        self, bundle: VerifiedBundle, folder: Path, needed: tuple[str, ...] = NEEDED
    ) -> None:
        self._bundle = bundle
        self._folder = folder
        self._tools = {name: self._find(name) for name in needed}

    @property
    def sentence(self) -> str:
        """What applying it does."""
        return f"Copy {' and '.join(self._tools)} out of the bundle to {self._folder}"

    @property
    def helm(self) -> Path:
        """Helm's binary."""
        return self._folder / "helm"

    @property
    def kubectl(self) -> Path:
        """The binary of kubectl."""
        return self._folder / "kubectl"

    def check(self) -> bool:
        """Whether all are there with the bytes of the bundle."""
        return all(_is(self._folder / name, tool) for name, tool in self._tools.items())

    def apply(self) -> str:
        """Copy those that are not there; raises Corrupt when a digest differs."""
        private_folder(self._folder)
        for name, tool in self._tools.items():
            path = self._folder / name
            if not _is(path, tool):
                bundle, entry = self._place(tool)
                write_file(path, bundle.chunks(entry), mode=_EXECUTABLE)
        return ""

    def _find(self, name: str) -> Tool:
        mine = own_platform()
        for tool in self._bundle.manifest.tools:
            if tool.name == name and tool.platform == mine:
                return tool
        if self._bundle.manifest.only_databases:
            raise PreflightFailed(
                f"{self._bundle.path}: has vulnerability databases and nothing to install",
                hint="name the bundle that Harbor was installed from",
            )
        raise PreflightFailed(
            f"the bundle has no {name} for {mine}",
            hint="list it among `tools` of the bundle's spec, for the machine that installs",
        )

    def _place(self, tool: Tool) -> tuple[VerifiedBundle, Entry]:
        found = self._bundle.locate(Digest(tool.sha256).blob_path)
        if found is None:
            raise PreflightFailed(
                f"the bundle lists {tool.name} but does not carry it",
                hint="this bundle is a delta: name the bundle that it stands on with --base",
            )
        return found


def _is(path: Path, tool: Tool) -> bool:
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size != tool.size:
            return False
        if stat.S_IMODE(status.st_mode) != _EXECUTABLE:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == tool.sha256
    except OSError:
        return False
