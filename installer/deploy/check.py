"""The proof at the end: what runs is what the bundle carries, and Harbor says that it is well."""

from __future__ import annotations

import time
from functools import cache
from typing import TYPE_CHECKING

from installer.deploy.images import accepted_ids
from installer.deploy.kubectl import troubles
from installer.errors import AcceptanceFailed, DeploymentFailed
from installer.harbor.health import ask, wait_until_healthy

if TYPE_CHECKING:
    from installer.bundle.archive import VerifiedBundle
    from installer.deploy.kubectl import Kubectl
    from installer.site.model import Harbor, Release

_PATIENCE = 300.0
_PAUSE = 3.0


class RunningImages:
    """Every container in a release's namespace runs an image of the bundle, and is ready."""

    def __init__(self, release: Release, bundle: VerifiedBundle, kubectl: Kubectl) -> None:
        self._namespace = release.release_namespace
        self._accepted = cache(lambda: accepted_ids(bundle))
        self._kubectl = kubectl
        self.name = f"images:{self._namespace}"
        self.sentence = f"Check that all pods in {self._namespace} run images of the bundle"

    def check(self) -> bool:
        """Whether it is so at this moment."""
        try:
            return not self.problems()
        except DeploymentFailed:
            return False

    def apply(self) -> str:
        """Wait for it; raises AcceptanceFailed that names what is wrong."""
        end = time.monotonic() + _PATIENCE
        while problems := self.problems():
            if time.monotonic() >= end:
                raise AcceptanceFailed(
                    f"in namespace {self._namespace}:\n  " + "\n  ".join(problems[:10]),
                    hint="; ".join(troubles(self._kubectl, self._namespace))
                    or "look at these pods with kubectl",
                )
            time.sleep(_PAUSE)
        return ""

    def problems(self) -> list[str]:
        """What is not as it should be, one line each."""
        pods = self._kubectl.pods(self._namespace)
        if not pods:
            return ["there is no pod"]
        accepted = self._accepted()
        found = []
        for pod in pods:
            name, status = pod["metadata"]["name"], pod.get("status", {})
            kinds = ("initContainerStatuses", "containerStatuses")
            for part in (part for kind in kinds for part in status.get(kind, ())):
                running = part.get("imageID", "").rpartition("sha256:")[2]
                if running not in accepted:
                    shown = part.get("imageID") or "nothing yet"
                    found.append(f"{name}: container {part['name']} runs {shown}")
            ready = {c["type"]: c["status"] for c in status.get("conditions", ())}.get("Ready")
            if ready != "True":
                found.append(f"{name}: not ready")
        return found


class HarborIsHealthy:
    """Harbor answers at its external URL and calls all its components healthy."""

    def __init__(self, release: Release, harbor: Harbor) -> None:
        self._harbor = harbor
        self.name = f"health:{release.key}"
        self.sentence = f"Check that Harbor is healthy at {harbor.external_url}"

    def check(self) -> bool:
        """Whether it says so at this moment."""
        return ask(self._harbor.external_url, self._harbor.ca).healthy

    def apply(self) -> str:
        """Wait for it; raises AcceptanceFailed."""
        wait_until_healthy(self._harbor.external_url, self._harbor.ca, patience=_PATIENCE)
        return ""
