"""Objects as Kubernetes gives them, read with care: what is not there is empty, never an error."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Object = Mapping[str, Any]

_WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "Pod")
HOOK = "helm.sh/hook"


@dataclass(frozen=True)
class Rendered:
    """A Helm release as it would be applied; ``name`` is Helm's name of it.

    ``chart`` is the chart's name, empty for one that the installer brings itself. ``found`` is how
    Helm lists what is there under that name, None if nothing is. ``keys_kept``: the secrets of
    what is there, or was, are in the state folder.
    """

    namespace: str
    name: str
    chart: str
    objects: tuple[Object, ...] = field(repr=False)
    found: Object | None = None
    keys_kept: bool = True

    @property
    def key(self) -> str:
        """What tells two releases apart."""
        return f"{self.namespace}/{self.name}"

    def of_kind(self, *kinds: str) -> Iterator[Object]:
        """Objects of these kinds that are there as long as the release is: no hooks."""
        for document in self.objects:
            if document.get("kind") in kinds and not annotation_of(document, HOOK):
                yield document

    def claims(self) -> Iterator[tuple[str, Object]]:
        """Volume claims by name, those of StatefulSets for each replica."""
        for document in self.of_kind("PersistentVolumeClaim"):
            yield name_of(document), document
        for document in self.of_kind("StatefulSet"):
            for template in list_at(document, "spec", "volumeClaimTemplates"):
                for ordinal in range(_replicas(document)):
                    yield f"{name_of(template)}-{name_of(document)}-{ordinal}", template

    def pods(self) -> Iterator[tuple[str, Object]]:
        """Specs of its pods with the name of what makes them, one for each replica."""
        for document in self.of_kind(*_WORKLOADS):
            spec = document.get("spec") or {}
            pod = spec if document["kind"] == "Pod" else value_at(spec, "template", "spec") or {}
            for _ in range(_replicas(document)):
                yield name_of(document), pod

    def mounted(self) -> Iterator[tuple[str, str]]:
        """Claims that its pods mount, after the name of what makes the pod."""
        for of, spec in self.pods():
            for volume in list_at(spec, "volumes"):
                if name := value_at(volume, "persistentVolumeClaim", "claimName"):
                    yield of, str(name)

    def node_ports(self) -> Iterator[tuple[int, str]]:
        """Ports of every node that it asks for, with namespace and name of the Service."""
        for service in self.of_kind("Service"):
            for port in list_at(service, "spec", "ports"):
                if number := port.get("nodePort"):
                    yield number, f"{self.namespace}/{name_of(service)}"


def value_at(value: Any, *path: str) -> Any:
    """Give what lies at a path of keys, None if nothing does."""
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def list_at(value: Any, *path: str) -> list[Any]:
    """Give the list at a path of keys, empty if there is none."""
    found = value_at(value, *path)
    return found if isinstance(found, list) else []


def name_of(document: Object) -> str:
    """Give the object's name, empty without one."""
    return str(value_at(document, "metadata", "name") or "")


def namespace_of(document: Object) -> str:
    """Give the namespace that the object names itself, empty without one."""
    return str(value_at(document, "metadata", "namespace") or "")


def annotation_of(document: Object, key: str) -> str:
    """Give the text of an annotation, empty without it."""
    return str(value_at(document, "metadata", "annotations", key) or "")


def _replicas(document: Object) -> int:
    if document.get("kind") not in ("Deployment", "StatefulSet", "ReplicaSet"):
        return 1
    given = value_at(document, "spec", "replicas")
    return given if isinstance(given, int) else 1
