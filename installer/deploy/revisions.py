"""A release's past: the revisions that Helm knows, and the way back to one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from installer.deploy import daemon
from installer.deploy.installed import _FILE, ChartIdentity, InstalledRelease, _Applied

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Revision:
    """A revision as Helm lists it; ``chart`` is name and version in one."""

    number: int
    status: str
    chart: str
    app_version: str


class Revisions(InstalledRelease):
    """What Helm and the state know of a release's past."""

    def history(self) -> list[Revision]:
        """All revisions, oldest first."""
        return [
            Revision(
                int(entry["revision"]),
                str(entry.get("status", "")),
                str(entry.get("chart", "")),
                str(entry.get("app_version", "")),
            )
            for entry in self._context.helm.history(self.name, self.namespace)
        ]

    def base(self) -> Revision | None:
        """The revision that was last deployed whole, None before there was one."""
        history = self.history()
        for status in ("deployed", "superseded"):
            found = [revision for revision in history if revision.status == status]
            if found:
                return found[-1]
        return None

    def chart_sha256(self) -> str:
        """Digest of the chart that it was last brought to, "" if that is not known."""
        return self._applied().get(self.key, "")

    def bring_back(
        self,
        path: Path,
        chart: ChartIdentity,
        values: Mapping[str, Any],
        *,
        timeout: float,
        secrets: tuple[str, ...],
    ) -> None:
        """Deploy what was deployed before, over whatever was scaled or edited since.

        Not by Helm's rollback: Helm forgets old revisions, the snapshot doesn't.
        """
        helm = self._context.helm
        daemon.end_programs(helm.binary, helm.home)
        self._clear_pending()
        helm.upgrade_install(
            path, self.name, self.namespace, values, timeout=timeout, force=True, secrets=secrets
        )
        self._context.state.write(_FILE, _Applied({**self._applied(), self.key: chart.sha256}))
