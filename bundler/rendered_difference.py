"""Which Kubernetes objects another version of a chart would make, told by rendering both versions.

Both are rendered with the Helm of the newer bundle, each with its own bundle's profiles, for those
that both have. Charts make random secrets and their checksums at each rendering: an object that
differs between two renderings of one chart says nothing, and is named as such instead of compared.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bundler.resolve import HELM
from installer.bundle.digest import Digest
from installer.errors import InvalidInput
from installer.helm.client import Helm
from installer.helm.difference import changed_objects
from installer.oci.platforms import own_platform

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bundler.difference import Change
    from installer.bundle.archive import VerifiedBundle
    from installer.bundle.manifest import Chart


class ObjectChanges(NamedTuple):
    """Objects (``Kind/name``) of a chart rendered with a profile, by what became of them."""

    chart: str
    profile: str
    added: list[str]
    removed: list[str]
    changed: list[str]
    random: list[str]
    """Others at each rendering, so that nothing can be said of them."""


def rendered_changes(
    old: VerifiedBundle, new: VerifiedBundle, charts: Iterable[Change]
) -> list[ObjectChanges]:
    """Render each chart that changed as it was and as it will be; ``charts`` are such changes.

    Raises InvalidInput for a bundle without a Helm for this machine, or without the chart's file,
    as a delta may be.
    """
    with tempfile.TemporaryDirectory(prefix="bundler-") as name:
        folder = Path(name)
        helm = _helm(new, folder)
        found = []
        for change in charts:
            before, was = _chart(old, change.before, folder)
            after, will = _chart(new, change.after, folder)
            for profile in sorted(before.profiles.keys() & after.profiles.keys()):
                one, other, again = (
                    helm.template(path, chart.name, "default", chart.profiles[profile])
                    for chart, path in ((before, was), (after, will), (after, will))
                )
                added, removed, changed = changed_objects(one, other)
                random = changed_objects(other, again)[2]
                told = [name for name in changed if name not in random]
                found.append(ObjectChanges(change.name, profile, added, removed, told, random))
        return found


def _helm(bundle: VerifiedBundle, folder: Path) -> Helm:
    here = own_platform()
    for tool in bundle.manifest.tools:
        if (tool.name, tool.platform) == (HELM, here):
            binary = folder / HELM
            _write(bundle, tool.sha256, binary)
            binary.chmod(0o700)
            return Helm(binary, folder / "home")
    raise InvalidInput(
        f"{bundle.path}: has no Helm for {here} to render with",
        hint="leave --objects out, or ask where the bundle was built",
    )


def _chart(bundle: VerifiedBundle, digest: str, folder: Path) -> tuple[Chart, Path]:
    chart = next(chart for chart in bundle.manifest.charts if chart.digest == digest)
    path = folder / f"{chart.name}-{chart.version}-{chart.sha256[:12]}.tgz"
    if not path.exists():
        _write(bundle, chart.sha256, path)
    return chart, path


def _write(bundle: VerifiedBundle, sha256: str, path: Path) -> None:
    """Copy a blob, hashed on the way: Helm is executed from the copy."""
    entry = bundle.find(Digest(sha256).blob_path)
    if entry is None:
        raise InvalidInput(
            f"{bundle.path}: leaves out {path.name}, which the site has",
            hint="compare two whole bundles",
        )
    with path.open("xb") as out:
        out.writelines(bundle.chunks(entry))
