"""Pods that pull an image and look a name up: the only change, and only when asked for."""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import msgspec

from installer.deploy.preflight.cluster import PATIENCE, Api
from installer.deploy.preflight.machine import is_address
from installer.deploy.preflight.nodes import ENDED, is_ready, nodes_text, takes_pods
from installer.deploy.preflight.objects import list_at, value_at
from installer.deploy.preflight.verdict import SHOWN, Check
from installer.errors import AirgapError, Corrupt, DeploymentFailed
from installer.harbor.values import host_of
from installer.oci.graph import ImageIndex, read_manifest
from installer.oci.reference import Reference
from installer.site.private import write_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from installer.bundle.archive import VerifiedBundle
    from installer.deploy.context import Context
    from installer.deploy.preflight.objects import Object
    from installer.oci.graph import Descriptor

_PULLING = 120.0
"""Seconds for a node to pull the smallest image."""
_LEAVING, _PAUSE = 60, 0.5
_WITH_SHELL = ("goharbor/registry-photon", "goharbor/harbor-db")
_NOT_PULLED = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "RegistryUnavailable")
_WORDS = 300


def is_decided(pod: Object) -> bool:
    """Whether a pod has pulled its image and ended, or can't pull it."""
    return value_at(pod, "status", "phase") in ENDED or bool(_pull_problem(pod))


def _pull_problem(pod: Object) -> str:
    for status in list_at(pod, "status", "containerStatuses"):
        waiting = value_at(status, "state", "waiting") or {}
        if waiting.get("reason") in _NOT_PULLED:
            words = " ".join(str(waiting.get("message", "")).split())
            # The cause stands at the end, after the names of what was tried.
            return f"{waiting['reason']}: {words[-_WORDS:]}"
    return ""


def check_pulls(pods: Mapping[str, Object], image: str) -> Check:
    """Every node pulled the image; ``pods`` are those that tried, by node."""
    name = "nodes can pull"
    bad = {}
    for node, pod in pods.items():
        statuses = list_at(pod, "status", "containerStatuses")
        if not any(status.get("imageID") for status in statuses):
            bad[node] = _pull_problem(pod) or str(value_at(pod, "status", "reason") or "no answer")
    if not bad:
        return Check(name, "ok", f"{nodes_text(len(pods))} pulled {image}")
    listed = "; ".join(f"{node}: {reason}" for node, reason in list(bad.items())[:SHOWN])
    hint = "is the seed registry served (`installer run` starts it), do nodes reach its address, "
    hint += "and does containerd have its hosts.toml?"
    return Check(name, "failed", f"{len(bad)} of {len(pods)} can't: {listed}", hint)


def check_lookup(host: str, pod: Object) -> Check:
    """A pod found the host of externalURL."""
    name = f"DNS in the cluster {host}"
    phase = value_at(pod, "status", "phase")
    if phase == "Succeeded":
        return Check(name, "ok", f"pods find {host}")
    if problem := _pull_problem(pod):
        return Check(name, "warning", f"not known: {problem}")
    text = f"pods don't find {host}" if phase == "Failed" else f"not known: the pod is {phase}"
    hint = "nodes and replication need it: enter the host in the DNS that the cluster's asks"
    return Check(name, "warning", text, hint)


def not_asked() -> Check:
    """Say that nothing was pulled."""
    text = "not asked: `installer preflight --pull` makes a pod on each node for it"
    return Check("nodes can pull", "ok", text)


class _Pods:
    """Pods in a namespace of their own, which goes at the end, whatever happens."""

    def __init__(self, context: Context, api: Api) -> None:
        self._kubectl = api.kubectl
        self._api = api
        self._folder = context.workspace
        self._namespace = f"harbor-airgap-preflight-{secrets.token_hex(4)}"

    def __enter__(self) -> Self:
        self._kubectl.run("create", "namespace", self._namespace, timeout=PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        words = ("delete", "namespace", self._namespace, "--ignore-not-found")
        self._kubectl.run(*words, f"--timeout={_LEAVING}s", timeout=_LEAVING)

    def run(self, pods: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Make pods by name and wait until each pulled its image, or can't, or ended."""
        items = [_pod(name, spec) for name, spec in pods.items()]
        file = self._folder / "pods.json"
        document = {"apiVersion": "v1", "kind": "List", "items": items}
        write_file(file, msgspec.json.encode(document))
        words = ("apply", f"--filename={file}", f"--namespace={self._namespace}")
        end = time.monotonic() + _PULLING
        while True:
            try:
                self._kubectl.run(*words, timeout=PATIENCE)
                break
            except DeploymentFailed as error:
                # The namespace's service account comes a moment after it.
                if "serviceaccount" not in error.message or time.monotonic() > end:
                    raise
            time.sleep(_PAUSE)
        while True:
            listed = self._api.items(f"/api/v1/namespaces/{self._namespace}/pods")
            found = {str(pod["metadata"]["name"]): pod for pod in listed}
            if all(map(is_decided, found.values())) or time.monotonic() > end:
                return found
            time.sleep(_PAUSE)


def _pod(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    container = {
        "name": "c",
        "image": spec["image"],
        "command": spec["command"],
        "imagePullPolicy": "Always",
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "runAsUser": 65534,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    placed = {"nodeName": spec["node"]} if "node" in spec else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "containers": [container],
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "activeDeadlineSeconds": int(_PULLING),
            "tolerations": [{"operator": "Exists"}] if placed else [],
            **placed,
        },
    }


def pulls(context: Context, api: Api, nodes: Iterable[Mapping[str, Any]]) -> list[Check]:
    """Let each node pull the smallest image from the seed, and one pod look names up."""
    able = [node["metadata"]["name"] for node in nodes if is_ready(node) and takes_pods(node)]
    image = _smallest(context)
    if image is None:
        return [Check("nodes can pull", "warning", "the bundle carries no image to pull")]
    # What it runs is not there on purpose: that comes after the pull, and nothing is executed.
    pods: dict[str, dict[str, Any]] = {
        f"pull-{index}": {"image": str(image), "node": node, "command": ["/harbor-airgap-none"]}
        for index, node in enumerate(able)
    }
    hosts = [
        host
        for release in context.site.releases
        if release.harbor and not is_address(host := host_of(release.harbor.external_url))
    ]
    shell = next(filter(None, map(context.images.named, _WITH_SHELL)), None)
    for index, host in enumerate(hosts if shell else ()):
        script = 'getent hosts "$0" || nslookup "$0"'
        pods[f"lookup-{index}"] = {"image": str(shell), "command": ["/bin/sh", "-c", script, host]}
    try:
        with _Pods(context, api) as made:
            found = made.run(pods)
    except AirgapError as error:
        return [Check.refused("nodes can pull", error)]
    by_node = {node: found.get(f"pull-{index}", {}) for index, node in enumerate(able)}
    told = [check_pulls(by_node, str(image))]
    if shell is None and hosts:
        text = f"not asked: the bundle has none of {', '.join(_WITH_SHELL)}"
        return [*told, Check("DNS in the cluster", "ok", text)]
    looked_up = (found.get(f"lookup-{index}", {}) for index in range(len(hosts)))
    return told + list(map(check_lookup, hosts, looked_up))


def _smallest(context: Context) -> Reference | None:
    sizes = {}
    for image in context.bundle.manifest.images:
        target = context.images.target(Reference.parse(image.reference))
        with suppress(Corrupt):  # a delta leaves out what the site has
            if target is not None:
                sizes[target] = _size(context.bundle, image.root)
    return min(sizes, key=lambda target: sizes[target], default=None)


def _size(bundle: VerifiedBundle, root: Descriptor) -> int:
    data = bundle.read(root.digest.blob_path)
    document = read_manifest(data, root.media_type, str(root.digest))
    if isinstance(document, ImageIndex):
        return sum(_size(bundle, child) for child in document.manifests)
    return sum(child.size for child in document.children)
