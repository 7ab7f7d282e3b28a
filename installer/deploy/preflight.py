"""What must hold before anything is changed: a cluster that answers, and nodes that can run it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from installer.errors import DeploymentFailed, PreflightFailed

if TYPE_CHECKING:
    from installer.bundle.manifest import Manifest
    from installer.deploy.kubectl import Kubectl

_PATIENCE = 20


class ClusterInfo(msgspec.Struct, frozen=True):
    """What charts are rendered for: the server's version and the API versions that it serves."""

    version: str
    api_versions: tuple[str, ...]


def examine(kubectl: Kubectl, manifest: Manifest) -> ClusterInfo:
    """Ask the cluster; raises PreflightFailed."""
    try:
        version = kubectl.get("version", timeout=_PATIENCE)["serverVersion"]["gitVersion"]
        nodes = kubectl.get("get", "nodes", timeout=_PATIENCE)["items"]
        api_versions = kubectl.run("api-versions", timeout=_PATIENCE).split()
    except KeyError as error:
        raise PreflightFailed(f"the cluster's answer lacks {error}") from error
    except DeploymentFailed as error:
        raise PreflightFailed(
            f"the cluster can't be reached: {error.message}",
            hint="check cluster.kubeconfig and cluster.context in site.yaml; nothing was changed",
        ) from error
    _check_nodes(nodes, manifest)
    return ClusterInfo(version, tuple(api_versions))


def _check_nodes(nodes: list[dict[str, Any]], manifest: Manifest) -> None:
    able = [node for node in nodes if not node.get("spec", {}).get("unschedulable")]
    if not able:
        raise PreflightFailed(
            "the cluster has no node that takes pods", hint="`kubectl get nodes` shows them"
        )
    other = {}
    for node in able:
        info = node["status"]["nodeInfo"]
        platform = f"{info['operatingSystem']}/{info['architecture']}"
        if not any(p == platform or p.startswith(f"{platform}/") for p in manifest.platforms):
            other[node["metadata"]["name"]] = platform
    if other:
        listed = ", ".join(f"{name} is {platform}" for name, platform in sorted(other.items()))
        raise PreflightFailed(
            f"the bundle is for {', '.join(manifest.platforms)}, but {listed}",
            hint="build the bundle for these platforms, or cordon these nodes",
        )
