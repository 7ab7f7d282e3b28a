"""Any other file that the site needs: runbooks, licences, certificates. Carried as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bundler.lock import Blob
from bundler.sources.upstream import OCTETS, Locked, authored
from installer.bundle.manifest import File, Verification

if TYPE_CHECKING:
    from bundler.sources.upstream import Upstream
    from bundler.spec_document import ExtraFile

FILE_TYPE = "application/vnd.harbor-airgap.file.v1"


def lock_file(upstream: Upstream, wanted: ExtraFile) -> Locked[File]:
    """Hash a file where it lies, or in the cache when it is downloaded."""
    file = upstream.file(wanted.source, f"file {wanted.name}")
    layer = Blob(str(file.digest), file.size, OCTETS, source=wanted.source)
    root, blobs = authored(layer, artifact_type=FILE_TYPE, title=wanted.name)
    entry = File(
        digest=str(root.digest),
        media_type=root.media_type,
        manifest_size=root.size,
        name=wanted.name,
        sha256=file.digest.hex,
        size=file.size,
        verified=(Verification("local"),),
    )
    return Locked(entry, blobs)
