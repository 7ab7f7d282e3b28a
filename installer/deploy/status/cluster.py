"""The cluster: its nodes, the site's releases in it, and their pods."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from installer.deploy.charts import find_chart
from installer.deploy.cluster import ClusterInfo
from installer.deploy.images import accepted_ids
from installer.deploy.installed import InstalledRelease
from installer.deploy.kubectl import has_ended, troubles
from installer.deploy.release import HelmRelease
from installer.deploy.status.bundle import last_bundle
from installer.deploy.status.harbor import planned_parts
from installer.deploy.status.line import (
    PATIENCE,
    RUN_AGAIN,
    SHOWN,
    Line,
    Part,
    State,
    days,
    few,
    refused,
)
from installer.errors import AirgapError, DeploymentFailed
from installer.site import credentials

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from installer.deploy.context import Context
    from installer.deploy.internal_tls import InternalCertificates
    from installer.site.harbor import Harbor
    from installer.site.model import Release

_AWAY = "check cluster.kubeconfig and cluster.context in site.yaml, and whether its API answers"
_RECENT = timedelta(days=1)


def cluster_lines(context: Context, now: datetime) -> Iterator[Line]:
    """Its nodes, then each release and the pods of each namespace; nothing more if it is away."""
    kubectl, releases = context.kubectl, context.site.releases
    try:
        said = kubectl.get("version", timeout=PATIENCE).get("serverVersion", {})
        # The version is answered without etcd, nodes are not.
        nodes = kubectl.get("get", "nodes", timeout=PATIENCE).get("items", [])
        api_versions = kubectl.run("api-versions", timeout=PATIENCE).split()
    except DeploymentFailed as error:
        yield Line("cluster", "api", "failed", f"it can't be reached: {error.message}", _AWAY)
        for release in releases:
            text = "it can't be asked: the cluster can't be reached"
            yield Line(f"release {release.key}", "helm", "failed", text)
        return
    version = str(said.get("gitVersion", ""))
    yield Line("cluster", "api", "ok", f"Kubernetes {version} answers")
    yield _nodes(nodes)
    asker = _Releases(context, ClusterInfo(version, tuple(api_versions)), now)
    parts = [
        Part(f"release {release.key}", "helm", partial(asker.release, release))
        for release in releases
    ]
    for namespace in dict.fromkeys(release.release_namespace for release in releases):
        group = f"namespace {namespace}"
        parts.append(Part(group, "pods", partial(asker.namespace, group, namespace)))
    for part in parts:
        try:
            yield from part.ask()
        except (AirgapError, OSError) as error:
            yield refused(part.group, part.name, error)


def _nodes(nodes: list[dict[str, Any]]) -> Line:
    away = [node["metadata"]["name"] for node in nodes if not _is_ready(node)]
    text = f"{len(nodes) - len(away)} of {len(nodes)} ready"
    if not away and nodes:
        return Line("cluster", "nodes", "ok", text)
    hint = "`kubectl describe node` says why"
    return Line("cluster", "nodes", "failed", f"{text}; not ready: {few(away)}", hint)


class _Releases:
    """The releases of the site and their pods, on a cluster that answers."""

    def __init__(self, context: Context, cluster: ClusterInfo, now: datetime) -> None:
        self._context = context
        self._cluster = cluster
        self._now = now

    @cached_property
    def _accepted(self) -> frozenset[str]:
        return accepted_ids(self._context.bundle)

    def release(self, release: Release) -> Iterator[Line]:
        """Helm's word on it, and whether a run would change it."""
        group = f"release {release.key}"
        helm = InstalledRelease(self._context, release.release_namespace, release.release_name)
        found = helm.found()
        if found is None:
            yield Line(group, "helm", "failed", "it is not installed", RUN_AGAIN)
            return
        status = str(found.get("status", ""))
        good, pending = status == "deployed", status.startswith("pending")
        text = f"{status}, revision {found.get('revision')}, {str(found.get('updated'))[:19]} UTC"
        hint = (
            RUN_AGAIN if pending else f"`helm history {release.release_name}` says why; {RUN_AGAIN}"
        )
        yield Line(group, "helm", "ok" if good else "failed", text, "" if good else hint)
        chart = find_chart(self._context.bundle.manifest, release)
        there, wanted = found.get("chart"), f"{chart.name}-{chart.version}"
        same = there == wanted
        text = f"{there}, as in the bundle" if same else f"{there}; the bundle has {wanted}"
        yield Line(group, "chart", "ok" if same else "warning", text, "" if same else RUN_AGAIN)
        yield self._drift(group, release, same_chart=same)
        if release.harbor is not None:
            yield from self._companion(group, release, release.harbor)

    def _drift(self, group: str, release: Release, *, same_chart: bool) -> Line:
        context = self._context
        kept = credentials.kept(context.state, release.key)
        if release.harbor is not None and kept is None:
            text = f"{context.state.folder} does not have the secrets of this release"
            hint = "name the right folder with --state; a run takes them back from the cluster"
            return Line(group, "values", "failed", text, hint)
        planned = HelmRelease(context, self._cluster, release)
        deployed = context.helm.get_values(release.release_name, release.release_namespace)
        if keys := differing(planned.values(kept), deployed):
            text = f"they differ from what would be installed: {', '.join(keys)}"
            return Line(group, "values", "warning", text, RUN_AGAIN)
        if same_chart and not planned.check():
            text = "they are the same, but the chart has the same version and another content"
            return Line(group, "values", "warning", text, RUN_AGAIN)
        return Line(group, "values", "ok", "they are what would be installed")

    def _companion(self, group: str, release: Release, harbor: Harbor) -> Iterator[Line]:
        context = self._context
        parts = planned_parts(context, release, harbor, self._cluster, self._now)
        internal, companion = parts.internal, parts.companion
        if internal.is_needed():
            yield self._internal(group, internal)
        if companion.is_needed():
            good = companion.check()
            text = "volume, certificates and authorities are" + ("" if good else " not")
            state: State = "ok" if good else "warning"
            hint = "" if good else RUN_AGAIN
            yield Line(group, "companion", state, f"{text} as they would be installed", hint)

    def _internal(self, group: str, internal: InternalCertificates) -> Line:
        """What is kept here; whether the cluster has it is the companion's line."""
        end = internal.ends()
        if end is None:
            text = "a certificate between the components is missing here"
            return Line(group, "internal TLS", "warning", text, RUN_AGAIN)
        left = end - self._now
        if left < timedelta():
            text = f"a certificate between the components ended on {end:%Y-%m-%d}"
            return Line(group, "internal TLS", "failed", text, RUN_AGAIN)
        text = f"{days(left)} left, until {end:%Y-%m-%d}"
        if internal.check():
            return Line(group, "internal TLS", "ok", text)
        return Line(group, "internal TLS", "warning", f"{text}; to be made anew", RUN_AGAIN)

    def namespace(self, group: str, namespace: str) -> Iterator[Line]:
        """The pods: do they run, did they end and start again, do they run the bundle's images."""
        context = self._context
        answer = context.kubectl.get("get", "pods", f"--namespace={namespace}", timeout=PATIENCE)
        pods = [
            pod
            for pod in answer.get("items", [])
            if not pod["metadata"].get("deletionTimestamp") and not has_ended(pod)
        ]
        yield self._pods(group, namespace, pods)
        if pods:
            yield self._restarts(group, pods)
            yield self._images(group, pods)

    def _pods(self, group: str, namespace: str, pods: list[dict[str, Any]]) -> Line:
        away = [pod["metadata"]["name"] for pod in pods if not _is_ready(pod)]
        text = f"{len(pods) - len(away)} of {len(pods)} ready"
        if away:
            hint = "; ".join(troubles(self._context.kubectl, namespace)[:SHOWN])
            return Line(group, "pods", "failed", f"{text}; not ready: {few(away)}", hint)
        there = [r for r in self._context.site.releases if r.release_namespace == namespace]
        expected = not pods and any(
            HelmRelease(self._context, self._cluster, release).has_workloads() for release in there
        )
        return Line(
            group, "pods", "failed" if expected else "ok", text, RUN_AGAIN if expected else ""
        )

    def _restarts(self, group: str, pods: list[dict[str, Any]]) -> Line:
        total, recent = 0, []
        for pod in pods:
            for container in _containers(pod):
                total += container.get("restartCount", 0)
                last = container.get("lastState", {}).get("terminated") or {}
                ended = _time(last.get("finishedAt", ""))
                if ended is not None and self._now - ended < _RECENT:
                    name = f"{pod['metadata']['name']} ({last.get('reason', 'unknown')})"
                    recent.append(name)
        if not recent:
            return Line(group, "restarts", "ok", f"{total} since the pods were made, none today")
        hint = "`kubectl logs --previous` says why, and so does `installer support-bundle`"
        text = f"{total} since the pods were made; within a day: {few(recent)}"
        return Line(group, "restarts", "warning", text, hint)

    def _images(self, group: str, pods: list[dict[str, Any]]) -> Line:
        found = {
            image
            for pod in pods
            for container in _containers(pod)
            if (image := container.get("imageID", ""))
        }
        other = sorted(i for i in found if i.rpartition("sha256:")[2] not in self._accepted)
        if not other:
            return Line(group, "images", "ok", f"all {len(found)} are of the bundle")
        text = f"{len(other)} of {len(found)} are not of this bundle: {few(other)}"
        if last_bundle(self._context) != str(self._context.bundle.digest):
            return Line(group, "images", "warning", text, RUN_AGAIN)
        hint = "who put them there? `kubectl get pods --output=yaml` says whose they are"
        return Line(group, "images", "failed", text, hint)


def differing(wanted: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """Top-level keys whose values are not the same; a null is the same as nothing, as for Helm."""
    first, second = _pruned(wanted), _pruned(there)
    return sorted(
        key
        for key in first.keys() | second.keys()
        if (key in first) != (key in second) or first[key] != second[key]
    )


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _pruned(child) for key, child in value.items() if child is not None}
    return value


def _containers(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for kind in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"):
        yield from pod.get("status", {}).get(kind, ())


def _is_ready(thing: dict[str, Any]) -> bool:
    conditions = thing.get("status", {}).get("conditions", ())
    return {c["type"]: c["status"] for c in conditions}.get("Ready") == "True"


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
