"""Which chart and which profile of the bundle a release of the site means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from installer.documents import nearest
from installer.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from installer.bundle.manifest import Chart, Manifest
    from installer.site.model import Release

_DEFAULT_PROFILE = "default"


def find_chart(manifest: Manifest, release: Release) -> Chart:
    """Find the release's chart in the bundle; raises InvalidInput."""
    named = [chart for chart in manifest.charts if chart.name == release.chart]
    if not named:
        names = sorted({chart.name for chart in manifest.charts})
        meant = nearest(release.chart, names)
        raise InvalidInput(
            f"release {release.key}: the bundle has no chart {release.chart!r}",
            hint=f"did you mean {meant!r}?" if meant else f"it has: {', '.join(names) or 'none'}",
        )
    versions = ", ".join(chart.version for chart in named)
    found = [chart for chart in named if release.version in ("", chart.version)]
    if len(found) != 1:
        raise InvalidInput(
            f"release {release.key}: chart {release.chart} "
            + (f"has no version {release.version}" if not found else "has several versions"),
            hint=f"set `version` to one of: {versions}",
        )
    return found[0]


def profile_values(chart: Chart, release: Release) -> Mapping[str, Any]:
    """Values of the release's profile; raises InvalidInput for one that the bundle lacks."""
    if not release.profile:
        return chart.profiles.get(_DEFAULT_PROFILE, {})
    if release.profile in chart.profiles:
        return chart.profiles[release.profile]
    meant = nearest(release.profile, chart.profiles)
    raise InvalidInput(
        f"release {release.key}: chart {chart.name} has no profile {release.profile!r}",
        hint=f"did you mean {meant!r}?"
        if meant
        else f"the bundle was built with: {', '.join(sorted(chart.profiles)) or 'none'}",
    )
