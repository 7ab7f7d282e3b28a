"""What is asked of the cluster, and by which judge the answers are judged."""

from __future__ import annotations

import dataclasses
import itertools
import secrets
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from installer.deploy.cluster import ClusterInfo
from installer.deploy.preflight.conflicts import (
    check_ingress,
    check_kinds,
    check_objects,
    check_ports,
    check_releases,
)
from installer.deploy.preflight.gather import gather
from installer.deploy.preflight.nodes import (
    check_capacity,
    check_clocks,
    check_disk,
    check_nodes,
    is_ready,
    takes_pods,
)
from installer.deploy.preflight.objects import Rendered
from installer.deploy.preflight.rights import Resource, check_rights, read_resources, wanted_rights
from installer.deploy.preflight.storage import check_leftovers, check_storage, maker_of_secret
from installer.deploy.preflight.verdict import Check
from installer.errors import AirgapError, DeploymentFailed, PreflightFailed
from installer.helm.images import read_objects
from installer.site.authority import utc_now
from installer.site.private import private_folder, write_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from installer.deploy.context import Context
    from installer.deploy.harbor import HarborParts
    from installer.deploy.kubectl import Kubectl
    from installer.deploy.release import HelmRelease
    from installer.site.model import Release

PATIENCE = 20
_ASKED_NODES = 30
"""Kubelets are asked one by one; of more nodes these stand for all."""
_UNREADABLE = "the account in the kubeconfig may lack the right to read it"
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_LIVING = "status.phase!=Succeeded,status.phase!=Failed"
_COLUMNS = "K:.kind,S:.metadata.namespace,N:.metadata.name," + ",".join(
    rf"{key[0].upper()}:.metadata.annotations.meta\.helm\.sh/{key}"
    for key in ("release-name", "release-namespace")
)


class Api:
    """The API's own answers: no discovery before them, and no right but to the thing itself."""

    def __init__(self, context: Context) -> None:
        self.kubectl: Kubectl = context.kubectl
        self._folder = context.workspace

    def get(self, path: str) -> dict[str, Any]:
        """Read one document; raises DeploymentFailed."""
        return self.kubectl.raw(path, timeout=PATIENCE)

    def items(self, path: str) -> list[dict[str, Any]]:
        """Read the objects of a list."""
        return [one for one in self.get(path).get("items") or () if isinstance(one, dict)]

    def review(self, group: str, kind: str, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Ask what is asked by posting, and is stored nowhere."""
        folder = private_folder(self._folder / "reviews")
        file = folder / f"{secrets.token_hex(8)}.json"
        document = {"apiVersion": f"{group}/v1", "kind": kind, "spec": spec}
        write_file(file, msgspec.json.encode(document))
        path = f"/apis/{group}/v1/{kind.lower()}s"
        return self.kubectl.raw(path, f"--filename={file}", verb="create", timeout=PATIENCE)


def ask_cluster(
    context: Context, api: Api
) -> tuple[ClusterInfo | None, list[dict[str, Any]], list[Check]]:
    """Ask the cluster for itself, one after the other: the first answer may be that it is away."""
    kubectl, name = context.kubectl, "cluster"
    try:
        version = kubectl.get("version", timeout=PATIENCE)["serverVersion"]["gitVersion"]
        nodes = api.items("/api/v1/nodes")
        api_versions = kubectl.run("api-versions", timeout=PATIENCE).split()
    except KeyError as error:
        return None, [], [Check(name, "failed", f"the cluster's answer lacks {error}")]
    except DeploymentFailed as error:
        if "(Forbidden)" in error.message:
            hint = "use an account in cluster.kubeconfig that may at least list nodes"
            return None, [], [Check(name, "failed", error.message, hint)]
        text = f"the cluster can't be reached: {error.message}"
        hint = "check cluster.kubeconfig and cluster.context in site.yaml; nothing was changed"
        return None, [], [Check(name, "failed", text, hint)]
    except PreflightFailed as error:
        return None, [], [Check.refused(name, error)]
    told = [Check(name, "ok", f"Kubernetes {version} answers")]
    told.append(check_nodes(nodes, context.bundle.manifest.platforms))
    return ClusterInfo(version, tuple(api_versions)), nodes, told


class ClusterQuestions:
    """What is asked of a cluster that answers, in two rounds: the second needs the rendering."""

    def __init__(
        self,
        context: Context,
        api: Api,
        cluster: ClusterInfo,
        nodes: list[dict[str, Any]],
        parts: list[tuple[Release, HelmRelease, HarborParts | None]],
    ) -> None:
        self._context = context
        self._api = api
        self._cluster = cluster
        self._nodes = nodes
        self._parts = parts
        self._answers: dict[str, Any] = {}

    def checks(self) -> list[Check]:
        """Ask all and judge."""
        start = utc_now()
        self._answers = gather(self._first())
        asked = (start, utc_now())
        found, rendered = [], []
        for release, *_ in self._parts:
            made = self._answers[f"release {release.key}"]
            if isinstance(made, AirgapError):
                found.append(self._unrendered(release, made))
            else:
                text, releases = made
                found.append(Check(f"release {release.key}", "ok", text))
                rendered += releases
        rendered = [self._placed(one) for one in rendered]
        resources = self._resources(rendered)
        self._answers |= gather(self._second(resources, rendered))
        found += self._judged(rendered, asked)
        return found

    def _first(self) -> dict[str, Callable[[], Any]]:
        api = self._api
        asked: dict[str, Callable[[], Any]] = {
            f"release {release.key}": partial(self._render, release, installed, harbor)
            for release, installed, harbor in self._parts
        }
        return asked | {
            "releases": self._listed,
            "pods": partial(api.items, f"/api/v1/pods?fieldSelector={_LIVING}"),
            "services": partial(api.items, "/api/v1/services"),
            "classes": partial(api.items, "/apis/storage.k8s.io/v1/storageclasses"),
            "leases": partial(api.items, _LEASES),
            "account": partial(api.review, "authentication.k8s.io", "SelfSubjectReview", {}),
            "file systems": self._file_systems,
            "claims": self._claims,
        }

    def _second(
        self, resources: Mapping[tuple[str, str], Resource], rendered: list[Rendered]
    ) -> dict[str, Callable[[], Any]]:
        inside, outside = wanted_rights(resources, rendered)
        asked: dict[str, Callable[[], Any]] = {
            "objects": partial(self._existing, resources, rendered),
            "rights": partial(self._rights, inside, outside),
        }
        if _has_ingress(rendered):
            for kind in ("ingresses", "ingressclasses"):
                asked[kind] = partial(self._api.items, f"/apis/networking.k8s.io/v1/{kind}")
        for release, *_ in self._parts:
            if name := _secret_of(release):
                place = f"--namespace={release.release_namespace}"
                # Its type is enough to know; what is in it is not for us.
                get = ("get", "secret", name, place, "--output=jsonpath={.type}")
                asked[f"secret {release.key}"] = partial(
                    self._api.kubectl.run, *get, timeout=PATIENCE
                )
        return asked

    def _judged(
        self, rendered: list[Rendered], asked: tuple[datetime, datetime]
    ) -> Iterator[Check]:
        versions = self._cluster.api_versions
        account = self._answers["account"]
        able = sum(map(takes_pods, self._nodes))
        manifest = self._context.bundle.manifest
        size = sum(member.size for member in (*manifest.members, *manifest.required))
        for release, *_ in self._parts:
            if _secret_of(release):
                yield self._secret(release, rendered)
        yield self._judge("kinds", lambda: check_kinds(versions, rendered))
        yield self._judge(
            "rights", lambda found: check_rights(*found, who=_user(account)), "rights"
        )
        yield self._judge(
            "capacity", lambda pods: check_capacity(self._nodes, pods, rendered), "pods"
        )
        yield self._judge("disk", lambda found: check_disk(found, size), "file systems")
        for name, judge, *needed in (
            ("storage", partial(check_storage, nodes=able), "classes", "claims"),
            ("leftovers", check_leftovers, "claims"),
            ("node ports", check_ports, "services"),
            ("objects in the way", check_objects, "objects"),
            ("other releases", check_releases, "releases"),
        ):
            yield self._judge(name, partial(judge, rendered=rendered), *needed)
        if _has_ingress(rendered):
            judge = partial(check_ingress, rendered=rendered)
            yield self._judge("ingress", judge, "ingresses", "ingressclasses")
        clocks = partial(check_clocks, *asked, _time(account), self._nodes)
        yield self._judge("clocks", clocks, "leases")

    def _judge(self, name: str, judge: Callable[..., Check], *needed: str) -> Check:
        answers = [self._answers[key] for key in needed]
        for answer in answers:
            if isinstance(answer, AirgapError):
                return Check(name, "warning", f"not known: {answer.message}", _UNREADABLE)
        try:
            return judge(*answers)
        except AirgapError as error:
            return Check.refused(name, error)

    # Questions

    def _render(
        self, release: Release, installed: HelmRelease, harbor: HarborParts | None
    ) -> tuple[str, list[Rendered]]:
        installed.preflight()
        rendering = installed.rendered()
        space, name = release.release_namespace, release.release_name
        kept = harbor is None or harbor.secrets.are_known()
        objects = tuple(_objects(rendering.objects))
        made = [Rendered(space, name, release.chart, objects, keys_kept=kept)]
        if harbor is not None and (text := harbor.rendered()):
            # In the order in which they are applied: what one brings is there for the next.
            made.insert(0, Rendered(space, f"{name}-companion", "", tuple(_objects(text))))
        images = len({str(image.reference) for image in rendering.images})
        count = sum(len(one.objects) for one in made)
        version = self._cluster.version
        return f"{count} objects for {version}; all {images} images are in the bundle", made

    def _unrendered(self, release: Release, error: AirgapError) -> Check:
        if "incompatible with Kubernetes" not in error.message:
            return Check.refused(f"release {release.key}", error)
        words = error.message.rpartition("requires ")[2]
        text = f"chart {release.chart} {release.version}".rstrip() + f" requires {words}"
        hint = "upgrade the cluster, or carry a bundle with another version of the chart"
        return Check(f"release {release.key}", "failed", text, hint)

    def _listed(self) -> list[dict[str, Any]]:
        """All releases, or those of our namespaces for an account that may see no others."""
        helm = self._context.helm
        try:
            return helm.releases()
        except DeploymentFailed:
            spaces = {release.release_namespace for release, *_ in self._parts}
            return [found for space in spaces for found in helm.releases(space)]

    def _placed(self, one: Rendered) -> Rendered:
        listed = self._answers["releases"]
        for found in () if isinstance(listed, AirgapError) else listed:
            if (found.get("namespace"), found.get("name")) == (one.namespace, one.name):
                return dataclasses.replace(one, found=found)
        return one

    def _resources(self, rendered: list[Rendered]) -> dict[tuple[str, str], Resource]:
        used = {str(document.get("apiVersion")) for one in rendered for document in one.objects}
        served = used & {*self._cluster.api_versions}
        path = {version: "apis" if "/" in version else "api" for version in served}
        lists = gather({v: partial(self._api.get, f"/{path[v]}/{v}") for v in served})
        return read_resources(one for one in lists.values() if not isinstance(one, AirgapError))

    def _claims(self) -> list[dict[str, Any]]:
        spaces = {release.release_namespace for release, *_ in self._parts}
        path = "/api/v1/namespaces/{}/persistentvolumeclaims"
        return [one for space in spaces for one in self._api.items(path.format(space))]

    def _file_systems(self) -> dict[str, dict[str, Any]]:
        """What kubelets say of their disks; those that say nothing are left out."""
        names = [node["metadata"]["name"] for node in self._nodes if is_ready(node)]
        path = "/api/v1/nodes/{}/proxy/stats/summary"
        said = gather({n: partial(self._api.get, path.format(n)) for n in names[:_ASKED_NODES]})
        return {name: one for name, one in said.items() if not isinstance(one, AirgapError)}

    def _existing(
        self, resources: Mapping[tuple[str, str], Resource], rendered: list[Rendered]
    ) -> list[list[str]]:
        """Objects of the rendered kinds: their names and owners only, no content."""
        kinds: dict[str, set[str]] = {}
        for one in rendered:
            for document in one.objects:
                kind = (str(document.get("apiVersion")), str(document.get("kind")))
                if resource := resources.get(kind):
                    space = f"--namespace={one.namespace}" if resource.namespaced else ""
                    kinds.setdefault(space, set()).add(str(resource))
        output = f"--output=custom-columns={_COLUMNS}"
        asked = [
            ("get", ",".join(sorted(names)), *filter(None, [space]), "--no-headers", output)
            for space, names in kinds.items()
        ]
        kubectl = self._api.kubectl
        lines = [
            line.split()
            for words in asked
            for line in kubectl.run(*words, timeout=PATIENCE).splitlines()
        ]
        return [["" if word == "<none>" else word for word in line] for line in lines]

    def _rights(
        self, inside: Mapping[str, set[Resource]], outside: set[Resource]
    ) -> tuple[dict[str, Any], Mapping[str, set[Resource]], dict[Resource, bool]]:
        review = partial(self._api.review, "authorization.k8s.io")
        rules = {space: review("SelfSubjectRulesReview", {"namespace": space}) for space in inside}
        allowed = {}
        for resource in outside:
            wanted = {"verb": "create", "group": resource.group, "resource": resource.name}
            said = review("SelfSubjectAccessReview", {"resourceAttributes": wanted})
            allowed[resource] = bool(said.get("status", {}).get("allowed"))
        return rules, inside, allowed

    def _secret(self, release: Release, rendered: list[Rendered]) -> Check:
        name, wanted = f"certificate {release.key}", "kubernetes.io/tls"
        place = f"Secret {_secret_of(release)} in namespace {release.release_namespace}"
        said = self._answers[f"secret {release.key}"]
        if isinstance(said, AirgapError):
            earlier = itertools.takewhile(lambda one: one.key != release.key, rendered)
            if by := maker_of_secret(earlier, release.release_namespace, _secret_of(release)):
                return Check(name, "ok", f"{place} comes with release {by}")
            missing = "NotFound" in said.message
            text = f"there is no {place}" if missing else f"not known: {said.message}"
            hint = "make it before, or choose another certificate" if missing else _UNREADABLE
            return Check(name, "failed" if missing else "warning", text, hint)
        if said != wanted:
            hint = f"make one with `kubectl create secret tls {_secret_of(release)}`"
            return Check(name, "failed", f"{place} is of type {said}, not {wanted}", hint)
        return Check(name, "ok", f"{place} is there")


def _objects(rendered: str) -> Iterator[dict[str, Any]]:
    for _, document in read_objects(rendered):
        if isinstance(document, dict):
            items = document.get("items")
            is_list = str(document.get("kind")).endswith("List") and isinstance(items, list)
            yield from items if is_list and items else [document]


def _has_ingress(rendered: Iterable[Rendered]) -> bool:
    return any(True for one in rendered for _ in one.of_kind("Ingress"))


def _secret_of(release: Release) -> str:
    certificate = release.harbor.certificate if release.harbor else None
    return certificate.secret if certificate else ""


def _user(account: Any) -> str:
    """Name of the account, empty where the cluster does not tell."""
    if not isinstance(account, dict):
        return ""
    return str(account.get("status", {}).get("userInfo", {}).get("username", ""))


def _time(account: Any) -> datetime | None:
    """The API server's clock: a review is made when it is answered."""
    made = account.get("metadata", {}).get("creationTimestamp") if isinstance(account, dict) else ""
    return datetime.fromisoformat(made) if made else None
