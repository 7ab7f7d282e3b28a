"""A Helm release on the cluster: what is there, and how it comes to a chart and values.

Helm says what is deployed with which values; which chart it was made from it knows only by name
and version, so that the chart's digest is kept in the state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from installer.deploy import daemon
from installer.deploy.kubectl import troubles
from installer.errors import DeploymentFailed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from installer.deploy.context import Context
    from installer.site.state import State

_PENDING = "pending-"
_UNINSTALLING = "uninstalling"
_FILE = "releases.json"


class _Applied(msgspec.Struct, frozen=True):
    """sha256 of the chart that each release was last brought to."""

    charts: dict[str, str] = {}


@dataclass(frozen=True)
class ChartIdentity:
    """Which chart exactly; ``sha256`` in hex, of the package or of the unpacked files."""

    name: str
    version: str
    sha256: str


class InstalledRelease:
    """One release by name and namespace; ``key`` is ``NAMESPACE/NAME``."""

    def __init__(self, context: Context, namespace: str, name: str) -> None:
        self._context = context
        self.namespace = namespace
        self.name = name
        self.key = f"{namespace}/{name}"

    def found(self) -> dict[str, Any] | None:
        """Its latest revision as Helm lists it (``status``, ``chart``), None if there is none."""
        for found in self._context.helm.releases(self.namespace):
            if found.get("name") == self.name:
                return found
        return None

    def is_at(self, chart: ChartIdentity, values: Mapping[str, Any]) -> bool:
        """Whether it is deployed with this chart and exactly these values."""
        found = self.found()
        if found is None or found.get("status") != "deployed":
            return False
        if found.get("chart") != f"{chart.name}-{chart.version}":
            return False
        if self._applied().get(self.key) != chart.sha256:
            return False
        there = self._context.helm.get_values(self.name, self.namespace)
        return bool(_without_nulls(there) == _without_nulls(values))

    def bring_to(
        self,
        path: Path,
        chart: ChartIdentity,
        values: Mapping[str, Any],
        *,
        timeout: float,
        secrets: Collection[str] = (),
    ) -> None:
        """Install or upgrade, and wait until it is ready; ``timeout`` in seconds.

        ``path`` is the chart. ``secrets`` are cut out of Helm's words. Raises DeploymentFailed,
        whose hint says what troubles its pods have.
        """
        helm = self._context.helm
        daemon.end_programs(helm.binary, helm.home)
        self._clear_pending()
        self._finish_uninstall(timeout)
        try:
            helm.upgrade_install(
                path, self.name, self.namespace, values, timeout=timeout, secrets=secrets
            )
        except DeploymentFailed as error:
            found = troubles(self._context.kubectl, self.namespace)
            if found:
                error.hint = "; ".join([*found, error.hint])
            raise
        self._context.state.write(
            _FILE, _Applied({**applied_charts(self._context.state), self.key: chart.sha256})
        )

    def _clear_pending(self) -> None:
        """Forget Helm's note of an operation that nobody is doing any more.

        A Helm that was killed leaves its revision "pending", and each later one refuses to work.
        The site's lock is held and our own Helm was ended, so nobody works on it. Only the note is
        deleted (a Secret of type helm.sh/release.v1): objects stay, the next upgrade takes them.
        """
        found = self.found()
        if found is None or not str(found.get("status", "")).startswith(_PENDING):
            return
        states = ",".join(f"{_PENDING}{what}" for what in ("install", "upgrade", "rollback"))
        self._context.kubectl.run(
            "delete",
            "secret",
            f"--namespace={self.namespace}",
            f"--selector=owner=helm,name={self.name},status in ({states})",
        )

    def _finish_uninstall(self, timeout: float) -> None:
        """Bring an uninstallation that was killed to its end: Helm upgrades nothing half gone.

        What it keeps, as claims are, stays for the installation that follows.
        """
        found = self.found()
        if found is not None and found.get("status") == _UNINSTALLING:
            self._context.helm.uninstall(self.name, self.namespace, timeout=timeout)

    def _applied(self) -> dict[str, str]:
        return applied_charts(self._context.state)

    def forget(self) -> None:
        """Let the next run see that it isn't as it was made, whatever Helm says."""
        state = self._context.state
        charts = {key: of for key, of in applied_charts(state).items() if key != self.key}
        state.write(_FILE, _Applied(charts))


def applied_charts(state: State) -> dict[str, str]:
    """sha256 (hex) of the chart that each release, by its key, was last brought to."""
    return (state.read(_FILE, _Applied) or _Applied()).charts


def _without_nulls(value: Any) -> Any:
    """Drop keys with null: Helm keeps or drops them, depending on its version."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return value
