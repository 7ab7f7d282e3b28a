"""What must hold before anything is changed: everything is looked at, then all of it is told.

Somebody who stands before the machine once wants all problems at once. So nothing here stops at
the first: what refuses becomes a failed check, what needs an answer that did not come becomes a
warning, and only what can't be looked at without the cluster is left out when the cluster is away.
Questions are asked side by side. Nothing is changed, with one exception that has to be asked for:
``pull`` makes pods, in a namespace of their own that goes again.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import itertools
import re
import secrets
import shutil
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

import msgspec

from installer.bundle.manifest import parse_time
from installer.deploy import checks, redis
from installer.deploy.checks import Check, Rendered, refusal
from installer.deploy.context import check_state_folder
from installer.deploy.nfs import check_export, minor_version
from installer.errors import AirgapError, Corrupt, DeploymentFailed, PreflightFailed
from installer.harbor.values import host_of
from installer.helm.images import read_objects
from installer.oci.graph import ImageIndex, read_manifest
from installer.oci.reference import Reference
from installer.site.authority import utc_now
from installer.site.private import private_folder, write_file
from installer.site.section import check_paths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from installer.bundle.archive import VerifiedBundle
    from installer.deploy.checks import Resource
    from installer.deploy.context import Context
    from installer.deploy.harbor import HarborParts
    from installer.deploy.kubectl import Kubectl
    from installer.deploy.push import PushBundle
    from installer.deploy.release import HelmRelease
    from installer.deploy.seed import ServeBundle
    from installer.oci.graph import Descriptor
    from installer.site.harbor import Harbor, Nfs, Redis
    from installer.site.model import Release, Site

    MakeParts = Callable[[Release, "ClusterInfo"], tuple[HelmRelease, HarborParts | None]]

T = TypeVar("T")

_PATIENCE = 20
_DEADLINE = 180.0
"""Seconds for questions that are asked side by side; each has a shorter one of its own."""
_ROUNDS = 4
"""How often the cluster is asked like this, one after the other."""
_GRACE = 5.0
"""Seconds for questions to end when nobody waits any more: their files are about to go."""
_CONNECTING = 5.0
_SOON = timedelta(days=30)
_SPARE = 64 << 20
"""Bytes that a state folder needs besides the tools: charts, kubectl's cache, the journal."""
_ASKED_NODES = 30
"""Kubelets are asked one by one; of more nodes these stand for all."""
_NFS = 2049
_UNREADABLE = "the account in the kubeconfig may lack the right to read it"
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_LIVING = "status.phase!=Succeeded,status.phase!=Failed"
_PULLING = 120.0
"""Seconds for a node to pull the smallest image."""
_LEAVING, _PAUSE = 60, 0.5
_WITH_SHELL = ("goharbor/registry-photon", "goharbor/harbor-db")
_COLUMNS = "K:.kind,S:.metadata.namespace,N:.metadata.name," + ",".join(
    rf"{key[0].upper()}:.metadata.annotations.meta\.helm\.sh/{key}"
    for key in ("release-name", "release-namespace")
)


class ClusterInfo(msgspec.Struct, frozen=True):
    """What charts are rendered for: the server's version and the API versions that it serves."""

    version: str
    api_versions: tuple[str, ...]


@dataclass(frozen=True)
class Examination:
    """All checks in the order in which people read them; ``cluster`` is None when it is away."""

    checks: tuple[Check, ...]
    cluster: ClusterInfo | None

    def required(self) -> ClusterInfo:
        """Go on with the cluster, or raise one error with all that failed."""
        error = refusal(self.checks)
        if error is not None or self.cluster is None:
            raise error or PreflightFailed("the cluster was not asked")
        return self.cluster


def examine(
    context: Context, make: MakeParts, seed: ServeBundle | PushBundle, *, pull: bool = False
) -> Examination:
    """Look at everything that a run of this bundle on this site needs.

    ``make`` gives a release's steps, ``seed`` is the registry's. With ``pull`` every node pulls an
    image, and a pod looks names up.
    """
    site = context.site
    found = [
        *_told("bundle", partial(_bundle, context)),
        *_told("site.yaml", partial(_paths, site)),
        *_told("state folder", partial(_state_folder, context)),
    ]
    api = _Api(context)
    cluster, nodes, told = _cluster(context, api)
    found += told
    parts: list[tuple[Release, HelmRelease, HarborParts | None]] = []
    for release in site.releases:
        try:
            parts.append((release, *make(release, cluster or ClusterInfo("", ()))))
        except AirgapError as error:
            found.append(Check.refused(f"release {release.key}", error))
    questions: dict[str, Callable[[], list[Check]]] = {}
    for release, _, harbor in parts:
        if harbor is not None:
            questions |= _of_parts(release.key, harbor, there=cluster is not None)
    questions["seed registry"] = partial(_seed, site, seed)
    for release in site.releases:
        if release.harbor is not None:
            questions |= _addresses(site, release.key, release.harbor)
    on_cluster: dict[str, Callable[[], list[Check]]] = {}
    if cluster is not None:
        look_there = _OnCluster(context, api, cluster, nodes, parts)
        on_cluster = {"cluster's answers": look_there.checks}
    answers = gather(on_cluster | questions, _ROUNDS * _DEADLINE)
    for name, answer in answers.items():
        found += [Check.refused(name, answer)] if isinstance(answer, AirgapError) else answer
    found += _insecure(site)
    if cluster is not None:
        found += _pulled(context, api, nodes) if pull else [_not_asked()]
    return Examination(tuple(found), cluster)


def gather(
    calls: Mapping[str, Callable[[], T]], seconds: float = _DEADLINE
) -> dict[str, T | AirgapError]:
    """Make all calls side by side; what one refuses, or that it is too slow, is its answer."""
    answers: dict[str, T | AirgapError] = {}
    unexpected: list[BaseException] = []

    def call(name: str, ask: Callable[[], T]) -> None:
        try:
            answers[name] = ask()
        except AirgapError as error:
            answers[name] = error
        except OSError as error:
            answers[name] = PreflightFailed(error.strerror or str(error))
        except BaseException as error:  # noqa: BLE001 - it is raised below, where somebody waits
            unexpected.append(error)

    # Daemons: one that hangs in the resolver must not keep the program from ending.
    threads = {
        name: threading.Thread(target=call, args=(name, ask), daemon=True)
        for name, ask in calls.items()
    }
    for thread in threads.values():
        thread.start()
    try:
        _join(threads.values(), seconds)
    except BaseException:
        _join(threads.values(), _GRACE)
        raise
    if unexpected:
        raise unexpected[0]
    late = PreflightFailed(f"no answer within {seconds:.0f} s")
    return {name: answers.get(name, late) for name in calls}


def _join(threads: Iterable[threading.Thread], seconds: float) -> None:
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))


def _told(name: str, ask: Callable[[], Iterable[Check]]) -> list[Check]:
    found: list[Check] = []
    try:
        found.extend(ask())
    except AirgapError as error:
        found.append(Check.refused(name, error))
    return found


# This machine and its files


def _bundle(context: Context) -> Iterator[Check]:
    manifest = context.bundle.manifest
    text = (
        f"{manifest.name} serial {manifest.serial} of channel {manifest.channel}, signed by key "
        f"{context.bundle.signers[0][:16]}; a run checks every byte first"
    )
    if manifest.expires and parse_time(manifest.expires) - utc_now() < _SOON:
        hint = f"it is refused after {manifest.expires}: get a newer one before"
        yield Check("bundle", "warning", text, hint)
    else:
        yield Check("bundle", "ok", text)


def _paths(site: Site) -> Iterator[Check]:
    check_paths(site)
    yield Check("site.yaml", "ok", "the files and folders that it names are there")


def _state_folder(context: Context) -> Iterator[Check]:
    state = context.state
    check_state_folder(state)
    needed = _SPARE
    if not state.path("tools").is_dir():
        needed += sum(tool.size for tool in context.bundle.manifest.tools)
    there = next(path for path in (state.folder, *state.folder.parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    text = f"{state.folder}: {free >> 20} MiB free"
    if free < needed:
        hint = "make room, or name another folder with --state"
        yield Check("state folder", "failed", f"{text}, {needed >> 20} MiB are needed", hint)
    else:
        yield Check("state folder", "ok", text)


def _of_parts(
    key: str, harbor: HarborParts, *, there: bool
) -> dict[str, Callable[[], list[Check]]]:
    """What the parts of a Harbor say themselves, and what its certificate warns of.

    ``there`` says whether the cluster can be asked.
    """
    found: dict[str, Callable[[], list[Check]]] = {}
    for part, look in harbor.preflights().items():
        if part == "cert-manager" and not there:
            continue
        name = f"{part} {key}"
        warned = harbor.certificate.warnings if part == "certificate" else tuple
        found[name] = partial(_part, name, look, warned)
    return found


def _part(name: str, look: Callable[[], None], warned: Callable[[], Sequence[str]]) -> list[Check]:
    look()
    if sentences := warned():
        return [Check(name, "warning", "; ".join(sentences))]
    return [Check(name, "ok", "nothing stands against it")]


def _seed(site: Site, seed: ServeBundle | PushBundle) -> list[Check]:
    seed.preflight()
    if site.seed.serve is not None:
        return [Check("seed registry", "ok", f"{site.seed.serve.listen} is free, or ours already")]
    # The first step asks it for what it has, which can take long: not here.
    return [Check("seed registry", "ok", "how to log in is known; a run asks it first of all")]


def _addresses(site: Site, key: str, harbor: Harbor) -> dict[str, Callable[[], list[Check]]]:
    """Questions about hosts that a Harbor needs, asked from this machine."""
    name = f"DNS {key}"
    found: dict[str, Callable[[], list[Check]]] = {}
    found[name] = partial(_resolved, name, host_of(harbor.external_url))
    if harbor.storage is not None and harbor.storage.nfs is not None:
        nfs = harbor.storage.nfs
        port = next((o[5:] for o in nfs.mount_options if re.match(r"port=[0-9]+\Z", o)), _NFS)
        # Nodes mount it: elsewhere that it does not answer says little.
        here = bool(site.nodes.containerd_certs_dir)
        found[f"NFS {key}"] = partial(_nfs, f"NFS {key}", nfs, int(port), here=here)
    for address in harbor.redis.addresses if harbor.redis else ():
        name = f"Redis {address} {key}"
        found[name] = partial(_redis, name, harbor.redis, address)
    return found


def _redis(name: str, section: Redis | None, address: str) -> list[Check]:
    if section is None:
        return []
    try:
        return [Check(name, "ok", redis.ask(section, address))]
    except redis.Unreachable as error:
        hint = "pods may reach it all the same: is it running, and does a firewall let them in?"
        return [Check(name, "warning", error.message, hint)]


def _resolved(name: str, host: str) -> list[Check]:
    if _is_address(host):
        return [Check(name, "ok", f"externalURL has an address: {host}")]
    # The resolver has no deadline of its own that would be short enough.
    answer = gather({host: partial(socket.getaddrinfo, host, None)}, _CONNECTING * 2)[host]
    if isinstance(answer, AirgapError):
        text = f"{host}, the host of externalURL, is not known here: {answer.message}"
        hint = "enter it in the site's DNS, or in /etc/hosts here and on clients: Harbor is asked "
        return [Check(name, "failed", text, f"{hint}there at the end of a run")]
    addresses = ", ".join(dict.fromkeys(str(one[4][0]) for one in answer))
    return [Check(name, "ok", f"{host} is {addresses}")]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _reached(name: str, host: str, port: int, *, here: bool) -> list[Check]:
    reason = _unreachable(host, port)
    if not reason:
        return [Check(name, "ok", f"{host}:{port} takes connections")]
    hint = "is the service running, and does a firewall let this machine and the nodes in?"
    return [Check(name, "failed" if here else "warning", f"{host}:{port}: {reason}", hint)]


def _nfs(name: str, nfs: Nfs, port: int, *, here: bool) -> list[Check]:
    minor = minor_version(nfs.mount_options)
    if minor is None:
        return _reached(name, nfs.server, port, here=here)
    return [check_export(name, nfs, port, minor, here=here)]


def _unreachable(host: str, port: int) -> str:
    try:
        socket.create_connection((host, port), timeout=_CONNECTING).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _insecure(site: Site) -> Iterator[Check]:
    """Chart defaults that are published are refused with the values; these are choices."""
    chosen = []
    push = site.seed.push
    if push is not None and push.plain_http and push.username:
        chosen.append("seed.push.plainHTTP: the password for the registry is sent in the clear")
    for release in site.releases:
        harbor = release.harbor
        if harbor is not None and harbor.external_url.startswith("http:"):
            chosen.append(f"{release.key}: externalURL is http: passwords are sent in the clear")
        database = harbor.database if harbor else None
        if database is not None and database.ssl_mode == "disable":
            chosen.append(f"{release.key}: database.sslMode is disable: nothing is encrypted")
    if chosen:
        hint = "fine for a trial; a certificate of its own takes `certificate: {selfSigned: {}}`"
        yield Check("insecure settings", "warning", "; ".join(chosen), hint)
    else:
        yield Check("insecure settings", "ok", "none; no default secret of a chart is used")


# The cluster


class _Api:
    """The API's own answers: no discovery before them, and no right but to the thing itself."""

    def __init__(self, context: Context) -> None:
        self.kubectl: Kubectl = context.kubectl
        self._folder = context.workspace

    def get(self, path: str) -> dict[str, Any]:
        """Read one document; raises DeploymentFailed."""
        return self.kubectl.raw(path, timeout=_PATIENCE)

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
        return self.kubectl.raw(path, f"--filename={file}", verb="create", timeout=_PATIENCE)


def _cluster(
    context: Context, api: _Api
) -> tuple[ClusterInfo | None, list[dict[str, Any]], list[Check]]:
    """Ask the cluster for itself, one after the other: the first answer may be that it is away."""
    kubectl, name = context.kubectl, "cluster"
    try:
        version = kubectl.get("version", timeout=_PATIENCE)["serverVersion"]["gitVersion"]
        nodes = api.items("/api/v1/nodes")
        api_versions = kubectl.run("api-versions", timeout=_PATIENCE).split()
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
    told.append(checks.check_nodes(nodes, context.bundle.manifest.platforms))
    return ClusterInfo(version, tuple(api_versions)), nodes, told


class _OnCluster:
    """What is asked of a cluster that answers, in two rounds: the second needs the rendering."""

    def __init__(
        self,
        context: Context,
        api: _Api,
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
        inside, outside = checks.wanted_rights(resources, rendered)
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
                    self._api.kubectl.run, *get, timeout=_PATIENCE
                )
        return asked

    def _judged(
        self, rendered: list[Rendered], asked: tuple[datetime, datetime]
    ) -> Iterator[Check]:
        versions = self._cluster.api_versions
        account = self._answers["account"]
        able = sum(map(checks.takes_pods, self._nodes))
        size = sum(member.size for member in self._context.bundle.manifest.members)
        for release, *_ in self._parts:
            if _secret_of(release):
                yield self._secret(release, rendered)
        yield self._judge("kinds", lambda: checks.check_kinds(versions, rendered))
        yield self._judge(
            "rights", lambda found: checks.check_rights(*found, who=_user(account)), "rights"
        )
        yield self._judge(
            "capacity", lambda pods: checks.check_capacity(self._nodes, pods, rendered), "pods"
        )
        yield self._judge("disk", lambda found: checks.check_disk(found, size), "file systems")
        for name, judge, *needed in (
            ("storage", partial(checks.check_storage, nodes=able), "classes", "claims"),
            ("leftovers", checks.check_leftovers, "claims"),
            ("node ports", checks.check_ports, "services"),
            ("objects in the way", checks.check_objects, "objects"),
            ("other releases", checks.check_releases, "releases"),
        ):
            yield self._judge(name, partial(judge, rendered=rendered), *needed)
        if _has_ingress(rendered):
            judge = partial(checks.check_ingress, rendered=rendered)
            yield self._judge("ingress", judge, "ingresses", "ingressclasses")
        clocks = partial(checks.check_clocks, *asked, _time(account), self._nodes)
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
        return checks.read_resources(
            one for one in lists.values() if not isinstance(one, AirgapError)
        )

    def _claims(self) -> list[dict[str, Any]]:
        spaces = {release.release_namespace for release, *_ in self._parts}
        path = "/api/v1/namespaces/{}/persistentvolumeclaims"
        return [one for space in spaces for one in self._api.items(path.format(space))]

    def _file_systems(self) -> dict[str, dict[str, Any]]:
        """What kubelets say of their disks; those that say nothing are left out."""
        names = [node["metadata"]["name"] for node in self._nodes if checks.is_ready(node)]
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
            for line in kubectl.run(*words, timeout=_PATIENCE).splitlines()
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
            if by := checks.maker_of_secret(
                earlier, release.release_namespace, _secret_of(release)
            ):
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


# Pods that pull and look up: the only change, and only when asked for


def _not_asked() -> Check:
    text = "not asked: `installer preflight --pull` makes a pod on each node for it"
    return Check("nodes can pull", "ok", text)


class _Pods:
    """Pods in a namespace of their own, which goes at the end, whatever happens."""

    def __init__(self, context: Context, api: _Api) -> None:
        self._kubectl = api.kubectl
        self._api = api
        self._folder = context.workspace
        self._namespace = f"harbor-airgap-preflight-{secrets.token_hex(4)}"

    def __enter__(self) -> Self:
        self._kubectl.run("create", "namespace", self._namespace, timeout=_PATIENCE)
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
                self._kubectl.run(*words, timeout=_PATIENCE)
                break
            except DeploymentFailed as error:
                # The namespace's service account comes a moment after it.
                if "serviceaccount" not in error.message or time.monotonic() > end:
                    raise
            time.sleep(_PAUSE)
        while True:
            listed = self._api.items(f"/api/v1/namespaces/{self._namespace}/pods")
            found = {str(pod["metadata"]["name"]): pod for pod in listed}
            if all(map(checks.is_decided, found.values())) or time.monotonic() > end:
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


def _pulled(context: Context, api: _Api, nodes: Iterable[Mapping[str, Any]]) -> list[Check]:
    """Let each node pull the smallest image from the seed, and one pod look names up."""
    able = [
        node["metadata"]["name"]
        for node in nodes
        if checks.is_ready(node) and checks.takes_pods(node)
    ]
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
        if release.harbor and not _is_address(host := host_of(release.harbor.external_url))
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
    told = [checks.check_pulls(by_node, str(image))]
    if shell is None and hosts:
        text = f"not asked: the bundle has none of {', '.join(_WITH_SHELL)}"
        return [*told, Check("DNS in the cluster", "ok", text)]
    looked_up = (found.get(f"lookup-{index}", {}) for index in range(len(hosts)))
    return told + list(map(checks.check_lookup, hosts, looked_up))


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
