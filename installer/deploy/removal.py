"""What takes a release out of the cluster, and its data if they are to go.

Each is a step of a run backwards (``uninstall``). Claims and volumes keep Helm's marks, by which
Helm 3 and 4 take them over again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from installer.deploy.installed import InstalledRelease
from installer.deploy.kept_secrets import secret_name
from installer.deploy.kubectl import has_ended
from installer.errors import DeploymentFailed

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from installer.deploy.context import Context
    from installer.site.model import Release

_PAUSE = 1.0
_SHOWN = 5
_SECONDS = 300
"""In which claims and volumes go when nothing uses them any more."""
_INSTANCE = "app.kubernetes.io/instance"
_MADE_BY = "meta.helm.sh/release-name"


class Remains(msgspec.Struct, frozen=True):
    """Something that stays: what and where, and what a person can do with it."""

    what: str
    where: str
    note: str


def companions(release: Release) -> list[str]:
    """Give Helm's name of what the installer put beside a Harbor."""
    return [f"{release.release_name}-companion"] if release.harbor is not None else []


def helm_names(release: Release) -> list[str]:
    """Helm's names of a release and of what the installer put beside it."""
    return [release.release_name, *companions(release)]


class RemoveRelease:
    """Let Helm uninstall one release, and wait until nothing of it runs."""

    def __init__(self, context: Context, release: Release, name: str) -> None:
        """``name`` is Helm's, of ``release`` or of its companion."""
        self._context = context
        self._timeout = release.timeout
        self._is_harbor = release.harbor is not None and name == release.release_name
        self._installed = InstalledRelease(context, release.release_namespace, name)
        self._namespace = f"--namespace={release.release_namespace}"
        self.name = f"uninstall:{self._installed.key}"
        self.sentence = f"Uninstall the release {self._installed.key}"

    def check(self) -> bool:
        """Whether it is gone, with its jobs and pods."""
        return self._installed.found() is None and not self._jobs() and not self._running()

    def apply(self) -> str:
        """Uninstall it; raises DeploymentFailed, also for pods that do not end."""
        installed = self._installed
        if installed.found() is not None:
            installed.forget()
            # Helm deletes Services before what needs them: pods would ask the site's DNS for names
            # that only the cluster knew, and could not tell each other that they end.
            if self._is_harbor and (workloads := [*self._workloads(), *self._jobs()]):
                self._delete(*workloads)
                self._wait()
            self._context.helm.uninstall(installed.name, installed.namespace, timeout=self._timeout)
        # Helm leaves the jobs of hooks; one that failed would try again for ever.
        if jobs := self._jobs():
            self._delete(*jobs)
        self._wait()
        return ""

    def _wait(self) -> None:
        end = time.monotonic() + self._timeout
        while running := self._running():
            if time.monotonic() >= end:
                raise DeploymentFailed(
                    f"pods of {self._installed.key} do not end: {', '.join(running[:_SHOWN])}",
                    hint="is their node away? `kubectl describe pod` says what they wait for",
                )
            time.sleep(_PAUSE)

    def _delete(self, *objects: str) -> None:
        self._context.kubectl.run(
            "delete", *objects, self._namespace, "--ignore-not-found", "--wait=false"
        )

    def _workloads(self) -> list[str]:
        """What makes its pods, by the marks that Helm gives to all that it makes."""
        found = self._context.kubectl.get(
            "get", "deployments,statefulsets,daemonsets", self._namespace
        ).get("items", [])
        return [
            f"{one['kind'].lower()}/{one['metadata']['name']}"
            for one in found
            if (one["metadata"].get("annotations") or {}).get(_MADE_BY) == self._installed.name
        ]

    def _jobs(self) -> list[str]:
        found = self._context.kubectl.get("get", "jobs", self._namespace).get("items", [])
        return [f"job/{job['metadata']['name']}" for job in found if self._is_ours(job)]

    def _running(self) -> list[str]:
        """Pods that have not ended, or have but are still there to be deleted."""
        found = self._context.kubectl.get("get", "pods", self._namespace).get("items", [])
        return [
            pod["metadata"]["name"]
            for pod in found
            if self._is_ours(pod) and ("deletionTimestamp" in pod["metadata"] or not has_ended(pod))
        ]

    def _is_ours(self, found: dict[str, Any]) -> bool:
        return belongs(found, (self._installed.name,))


def belongs(found: dict[str, Any], names: Collection[str]) -> bool:
    """Whether an object of the namespace is one of the releases' by its labels."""
    labels = found["metadata"].get("labels") or {}
    # Charts say it in one of these two ways; the claims of Harbor's StatefulSets in the old one.
    older = labels.get("release") if labels.get("heritage") == "Helm" else None
    return labels.get(_INSTANCE) in names or older in names


class DeleteData:
    """Delete the claims and volumes of a release; content that is no provisioner's stays."""

    def __init__(self, context: Context, release: Release) -> None:
        self._kubectl = context.kubectl
        self._namespace = release.release_namespace
        self._names = helm_names(release)
        storage = release.harbor.storage if release.harbor else None
        self._brought = storage.claim if storage else ""
        self.name = f"uninstall:data:{release.key}"
        self.sentence = f"Delete the claims, volumes and kept secrets of {release.key}"

    def claims(self) -> list[dict[str, Any]]:
        """Its PersistentVolumeClaims, but for one that site.yaml found there."""
        found = self._kubectl.get(
            "get", "persistentvolumeclaims", f"--namespace={self._namespace}"
        ).get("items", [])
        return [
            claim
            for claim in found
            if belongs(claim, self._names) and claim["metadata"]["name"] != self._brought
        ]

    def volumes(self) -> list[dict[str, Any]]:
        """Its PersistentVolumes; those of a provisioner are the provisioner's."""
        found = self._kubectl.get("get", "persistentvolumes").get("items", [])
        return [
            volume
            for volume in found
            # Volumes have no namespace: a release of the same name may be in another one.
            if belongs(volume, self._names)
            and (volume["spec"].get("claimRef") or {}).get("namespace") == self._namespace
        ]

    def secrets(self) -> list[dict[str, Any]]:
        """The Secret with a copy of what the state folder keeps."""
        found = self._kubectl.get("get", "secrets", f"--namespace={self._namespace}")
        name = secret_name(self._names[0])
        return [one for one in found.get("items", []) if one["metadata"]["name"] == name]

    def details(self) -> list[str]:
        """What would go, a line each."""
        lines = [
            f"Secret {self._namespace}/{one['metadata']['name']}; the state folder keeps the same"
            for one in self.secrets()
        ]
        for claim in self.claims():
            of = claim["spec"].get("storageClassName")
            content = f"; its content too, if storage class {of} deletes it" if of else ""
            lines.append(f"claim {self._namespace}/{claim['metadata']['name']}{content}")
        return lines + [
            f"volume {volume['metadata']['name']}; its content, {volume_content(volume)}, "
            "is not touched"
            for volume in self.volumes()
        ]

    def check(self) -> bool:
        """Whether there are none."""
        return not self.claims() and not self.volumes() and not self.secrets()

    def apply(self) -> str:
        """Delete the claims, then the volumes; raises DeploymentFailed when one doesn't go."""
        claims = self.claims()
        theirs = self._provisioned(claims)
        # The other way round a volume would wait for its claim.
        self._delete("persistentvolumeclaims", claims, f"--namespace={self._namespace}")
        self._wait(theirs)
        volumes = self.volumes()
        self._delete("persistentvolumes", volumes)
        self._delete("secrets", self.secrets(), f"--namespace={self._namespace}")
        return "; ".join(f"the content of {volume_content(v)} is not touched" for v in volumes)

    def _provisioned(self, claims: Sequence[dict[str, Any]]) -> set[str]:
        """Volumes of the claims that a provisioner deletes after them."""
        names = {claim["metadata"]["name"] for claim in claims}
        found = self._kubectl.get("get", "persistentvolumes").get("items", []) if names else []
        return {
            volume["metadata"]["name"]
            for volume in found
            if volume["spec"].get("persistentVolumeReclaimPolicy") == "Delete"
            and (of := volume["spec"].get("claimRef") or {}).get("namespace") == self._namespace
            and of.get("name") in names
        }

    def _wait(self, names: set[str]) -> None:
        """Let provisioners do it: theirs may be the next release to go."""
        end = time.monotonic() + _SECONDS
        while names:
            found = self._kubectl.get("get", "persistentvolumes").get("items", [])
            names &= {volume["metadata"]["name"] for volume in found}
            if names and time.monotonic() >= end:
                raise DeploymentFailed(
                    f"their storage class does not delete volumes {', '.join(sorted(names))}",
                    hint="is its provisioner well? `kubectl describe pv` says more; run the same "
                    "command again to go on without it",
                )
            time.sleep(_PAUSE if names else 0)

    def _delete(self, kind: str, found: Sequence[dict[str, Any]], *where: str) -> None:
        if not found:
            return
        names = [one["metadata"]["name"] for one in found]
        try:
            self._kubectl.run(
                "delete", kind, *names, *where, "--ignore-not-found", f"--timeout={_SECONDS}s",
                timeout=_SECONDS,
            )  # fmt: skip
        except DeploymentFailed as error:
            error.hint = error.hint or "does a pod still use it? `kubectl describe` says which"
            raise


def volume_content(volume: dict[str, Any]) -> str:
    """Where a volume's bytes are, for a person."""
    spec = volume["spec"]
    if nfs := spec.get("nfs"):
        return f"{nfs['server']}:{nfs['path']}"
    if folder := spec.get("hostPath"):
        return f"{folder['path']} on the node"
    return f"of storage class {spec.get('storageClassName') or '(none)'}"
