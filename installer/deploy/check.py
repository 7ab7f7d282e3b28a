"""The proof at the end: what runs is what the bundle carries, and Harbor says that it is well."""

from __future__ import annotations

import time
from functools import cache
from typing import TYPE_CHECKING

from installer.deploy.images import accepted_ids
from installer.deploy.kubectl import has_ended, troubles
from installer.errors import AcceptanceFailed, DeploymentFailed
from installer.harbor.health import ask, wait_until_healthy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from installer.bundle.archive import VerifiedBundle
    from installer.deploy.kubectl import Kubectl
    from installer.deploy.release import HelmRelease
    from installer.site.harbor import Harbor
    from installer.site.model import Release

_PATIENCE = 300.0
_PAUSE = 3.0
_CONTAINERS = {
    "initContainers": "initContainerStatuses",
    "containers": "containerStatuses",
    "ephemeralContainers": "ephemeralContainerStatuses",
}


class RunningImages:
    """Every container in a namespace runs an image of the bundle, or ran one; all are ready."""

    def __init__(
        self,
        namespace: str,
        bundle: VerifiedBundle,
        kubectl: Kubectl,
        releases: Sequence[HelmRelease],
    ) -> None:
        """``releases`` are those of the namespace: whether there must be pods is asked of them."""
        self._namespace = namespace
        self._releases = releases
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
        if not pods and any(release.has_workloads() for release in self._releases):
            return ["there is no pod"]
        accepted = self._accepted()
        return [problem for pod in pods for problem in _problems(pod, accepted)]


def _problems(pod: dict[str, Any], accepted: frozenset[str]) -> Iterator[str]:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    ended = has_ended(pod)
    for kind, of in _CONTAINERS.items():
        images = {part["name"]: part.get("imageID", "") for part in status.get(of, ())}
        # What the node has said nothing about is asked for as well.
        for container in {part["name"]: None for part in pod["spec"].get(kind, ())} | images:
            image = images.get(container, "")
            if ended and not image:
                continue  # the pod ended before this one ran
            if image.rpartition("sha256:")[2] not in accepted:
                verb = "ran, in a pod that can be deleted," if ended else "runs"
                yield f"{name}: container {container} {verb} {image or 'nothing yet'}"
    ready = {c["type"]: c["status"] for c in status.get("conditions", ())}.get("Ready")
    if ready != "True" and not ended:
        yield f"{name}: not ready"


class HarborIsHealthy:
    """Harbor answers at its external URL and calls all its components healthy."""

    def __init__(self, release: Release, harbor: Harbor, ca: Callable[[], str]) -> None:
        """``ca`` gives the path of what https is checked with, "" for the system's."""
        self._harbor = harbor
        self._ca = ca
        self.name = f"health:{release.key}"
        self.sentence = f"Check that Harbor is healthy at {harbor.external_url}"

    def check(self) -> bool:
        """Whether it says so at this moment."""
        return ask(self._harbor.external_url, self._ca()).healthy

    def apply(self) -> str:
        """Wait for it; raises AcceptanceFailed."""
        wait_until_healthy(self._harbor.external_url, self._ca(), patience=_PATIENCE)
        return ""
