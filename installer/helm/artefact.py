"""A packaged chart as the OCI artefact that ``helm push`` makes of it.

Chart.yaml is its config, the archive its one layer (helm.sh, "Use OCI-based registries").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from installer.bundle.catalog import chart_tag
from installer.helm.chart import ChartArchive
from installer.oci.archive_store import ArchiveStore
from installer.oci.artefact import Blob, author
from installer.oci.graph import HELM_CHART, HELM_CONFIG

if TYPE_CHECKING:
    from pathlib import Path


def chart_store(path: Path) -> ArchiveStore:
    """Read a packaged chart as a store with one artefact, called ``NAME:VERSION``.

    Raises InvalidInput for what is no chart.
    """
    chart = ChartArchive.read(path)
    layer = Blob.of(HELM_CHART, path.read_bytes())
    artefact = author(Blob.of(HELM_CONFIG, chart.config), [layer.descriptor], [layer])
    return ArchiveStore.of(path, artefact, f"{chart.name}:{chart_tag(chart.version)}")
