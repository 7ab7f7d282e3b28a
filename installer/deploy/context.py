"""What the steps of a run share, and where they may leave passing files.

The workspace holds charts, Helm's home and kubectl's cache. While the installer only looks, it is
a temporary folder and the state stays as it is, even if that means not at all.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from installer.bundle.digest import Digest
from installer.deploy.images import SiteImages
from installer.deploy.kubectl import Kubectl
from installer.deploy.tools import NEEDED, Toolbox
from installer.errors import PreflightFailed
from installer.helm.client import Helm
from installer.site.private import private_folder, read_file, write_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from installer.bundle.archive import VerifiedBundle
    from installer.bundle.manifest import Chart
    from installer.site.model import Site
    from installer.site.state import State


@dataclass(frozen=True)
class Context:
    """One bundle, one site, the tools to bring one onto the other, and a private workspace."""

    bundle: VerifiedBundle
    site: Site
    state: State
    toolbox: Toolbox
    workspace: Path

    @property
    def helm(self) -> Helm:
        """Helm on the site's cluster."""
        return Helm(
            self.toolbox.helm,
            self.workspace / "helm",
            kubeconfig=Path(self.site.cluster.kubeconfig),
            context=self.site.cluster.context,
        )

    @property
    def kubectl(self) -> Kubectl:
        """The bundle's kubectl on the site's cluster."""
        return Kubectl(self.toolbox.kubectl, self.site.cluster, self.workspace / "kube-cache")

    @property
    def images(self) -> SiteImages:
        """The bundle's images under their names at the site."""
        return SiteImages(self.bundle.manifest, self.site.image_prefix)

    def chart_bytes(self, chart: Chart) -> bytes:
        """Give the packaged chart, checked; raises PreflightFailed when a delta lacks it."""
        path = Digest(chart.sha256).blob_path
        if self.bundle.locate(path) is None:
            raise PreflightFailed(
                f"the bundle lists chart {chart.name} {chart.version} but does not carry it",
                hint="this bundle is a delta: name the bundle that it stands on with --base",
            )
        return self.bundle.read(path)

    def chart_file(self, chart: Chart) -> Path:
        """Give the packaged chart as a file in the workspace."""
        folder = private_folder(self.workspace / "charts")
        path = folder / f"{chart.name}-{chart.version}.tgz"
        data = self.chart_bytes(chart)
        if read_file(path) != data:
            write_file(path, data)
        return path


def working(bundle: VerifiedBundle, site: Site, state: State) -> Context:
    """Context of a run: tools and workspace in the state folder, which is held."""
    toolbox = Toolbox(bundle, state.path("tools"))
    return Context(bundle, site, state, toolbox, state.subfolder("work"))


@contextmanager
def looking(
    bundle: VerifiedBundle, site: Site, state: State, needed: tuple[str, ...] = NEEDED
) -> Iterator[Context]:
    """Context that changes nothing: the kept tools if they are good, else passing copies."""
    with tempfile.TemporaryDirectory(prefix="harbor-airgap-", dir=_passing_folder(state)) as name:
        folder = Path(name)
        toolbox = Toolbox(bundle, state.path("tools"), needed)
        if not toolbox.check():
            toolbox = Toolbox(bundle, folder / "tools", needed)
            toolbox.apply()
        yield Context(bundle, site, state, toolbox, folder)


def check_state_folder(state: State) -> None:
    """Refuse a state folder from which no tool could be executed; raises PreflightFailed."""
    folder = _existing(state.folder)
    if not _executes(folder):
        raise PreflightFailed(
            f"{state.folder}: on a file system that is mounted with noexec",
            hint="helm and kubectl are executed from there: name another folder with --state",
        )


def _passing_folder(state: State) -> Path:
    """Where passing copies of the tools can be executed: /tmp often forbids it."""
    usual = Path(tempfile.gettempdir())
    for folder in (usual, _existing(state.folder)):
        if _executes(folder) and os.access(folder, os.W_OK):
            return folder
    raise PreflightFailed(
        f"{usual}: on a file system that is mounted with noexec",
        hint="helm and kubectl are executed from there: set TMPDIR to a folder where that is "
        "allowed",
    )


def _executes(folder: Path) -> bool:
    return not os.statvfs(folder).f_flag & os.ST_NOEXEC


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())
