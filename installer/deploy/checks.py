"""Will what was rendered find its place on this cluster? Judgements on what the API answered.

Each question is a function that takes objects as Kubernetes gives them and gives one ``Check``: it
holds, it holds with a warning, or it does not and a run would stop or fail later. Nothing here
asks or changes anything. Where a judgement can only guess (affinities, quotas, admission) it says
ok: the scheduler has the last word, and a run must not be refused for a guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from installer.errors import AirgapError, InvalidInput, PreflightFailed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    Object = Mapping[str, Any]
    Amounts = dict[str, Decimal]

State = Literal["ok", "warning", "failed"]

_QUANTITY = re.compile(
    r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:[eE]([+-]?[0-9]{1,2})|([KMGTPE]i|[numkMGTPE]))?\Z"
)
_DECIMAL = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_GIB = 2**30

_WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "Pod")
_DEFINITION = "CustomResourceDefinition"
_ENDED = ("Succeeded", "Failed")
_HOOK = "helm.sh/hook"
_DEFAULT_CLASS = "is-default-class"
_NODE_PORTS = range(30000, 32768)
"""Unless the API server was told otherwise (--service-node-port-range)."""
_VERBS = ("get", "create", "patch", "delete")
"""What Helm does with each object in the life of a release."""
_RENEWED = timedelta(seconds=60)
"""A node renews its lease every ten seconds; a busy one is late."""
_NOTED, _WRONG = timedelta(seconds=30), timedelta(minutes=5)
_SHOWN = 5
_WORDS = 300


@dataclass(frozen=True)
class Check:
    """What was found about one thing; ``text`` is for people, ``hint`` says what to do.

    ``error`` is what a failed one is raised as, and so decides the exit code.
    """

    name: str
    state: State
    text: str
    hint: str = ""
    error: type[AirgapError] = PreflightFailed

    @classmethod
    def refused(cls, name: str, error: AirgapError) -> Check:
        """The failed check that an error stands for."""
        return cls(name, "failed", error.message, error.hint, type(error))


def refusal(checks: Iterable[Check]) -> AirgapError | None:
    """One error for all failed checks, of the first one's kind; None when nothing failed."""
    failed = [check for check in checks if check.state == "failed"]
    if not failed:
        return None
    first = failed[0]
    if len(failed) == 1:
        return first.error(first.text, hint=first.hint)
    lines = [
        f"{check.name}: {check.text}" + (f"\n    -> {check.hint}" if check.hint else "")
        for check in failed
    ]
    return first.error(
        f"{len(failed)} checks failed:\n  " + "\n  ".join(lines),
        hint="nothing was changed; `installer preflight` shows all checks",
    )


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
            if document.get("kind") in kinds and not _annotation(document, _HOOK):
                yield document

    def claims(self) -> Iterator[tuple[str, Object]]:
        """Volume claims by name, those of StatefulSets for each replica."""
        for document in self.of_kind("PersistentVolumeClaim"):
            yield _name(document), document
        for document in self.of_kind("StatefulSet"):
            for template in _list(document, "spec", "volumeClaimTemplates"):
                for ordinal in range(_replicas(document)):
                    yield f"{_name(template)}-{_name(document)}-{ordinal}", template

    def pods(self) -> Iterator[tuple[str, Object]]:
        """Specs of its pods with the name of what makes them, one for each replica."""
        for document in self.of_kind(*_WORKLOADS):
            spec = document.get("spec") or {}
            pod = spec if document["kind"] == "Pod" else _get(spec, "template", "spec") or {}
            for _ in range(_replicas(document)):
                yield _name(document), pod

    def mounted(self) -> Iterator[tuple[str, str]]:
        """Claims that its pods mount, after the name of what makes the pod."""
        for of, spec in self.pods():
            for volume in _list(spec, "volumes"):
                if name := _get(volume, "persistentVolumeClaim", "claimName"):
                    yield of, str(name)

    def node_ports(self) -> Iterator[tuple[int, str]]:
        """Ports of every node that it asks for, with namespace and name of the Service."""
        for service in self.of_kind("Service"):
            for port in _list(service, "spec", "ports"):
                if number := port.get("nodePort"):
                    yield number, f"{self.namespace}/{_name(service)}"


# Quantities


def quantity(value: object) -> Decimal:
    """Give the number that a Kubernetes quantity (``250m``, ``1.5Gi``) stands for.

    Raises InvalidInput.
    """
    match = _QUANTITY.match(str(value))
    if match is None:
        raise InvalidInput(
            f"not a quantity: {str(value)[:40]!r}", hint="for example 250m, 2, 512Mi or 10Gi"
        )
    number, exponent, suffix = Decimal(match[1]), match[2], match[3]
    if suffix in _BINARY:
        return number * (1 << _BINARY[suffix])
    return number.scaleb(int(exponent or 0) or _DECIMAL.get(suffix or "", 0))


def amount(resource: str, value: Decimal) -> str:
    """Write an amount of a resource for people: ``cpu 0.25``, ``memory 1.5 GiB``."""
    if resource in ("memory", "ephemeral-storage") or resource.startswith("hugepages-"):
        return f"{resource} {value / _GIB:.1f} GiB"
    return f"{resource} {value.quantize(Decimal('0.01')).normalize():f}"


def pod_requests(spec: Object) -> Amounts:
    """What the scheduler counts for a pod: its containers together, or a larger init container."""
    together: Amounts = {}
    for container in _list(spec, "containers"):
        for resource, value in _container_requests(container).items():
            together[resource] = together.get(resource, Decimal()) + value
    for container in _list(spec, "initContainers"):
        for resource, value in _container_requests(container).items():
            together[resource] = max(together.get(resource, Decimal()), value)
    return together


def _container_requests(container: Object) -> Amounts:
    resources = container.get("resources") or {}
    # What is only limited is requested as well, by the API server's defaults.
    given = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {str(resource): quantity(value) for resource, value in given.items()}


# Nodes and what is free on them


def check_nodes(nodes: Sequence[Object], platforms: Sequence[str]) -> Check:
    """Nodes that take pods are there, are Ready, and are of a platform that the bundle is for."""
    able = [node for node in nodes if takes_pods(node)]
    if not able:
        return Check(
            "nodes",
            "failed",
            "the cluster has no node that takes pods",
            "`kubectl get nodes` shows them",
        )
    other = {}
    for node in able:
        info = _get(node, "status", "nodeInfo") or {}
        platform = f"{info.get('operatingSystem')}/{info.get('architecture')}"
        if not any(p == platform or p.startswith(f"{platform}/") for p in platforms):
            other[_name(node)] = platform
    if other:
        listed = ", ".join(f"{name} is {platform}" for name, platform in sorted(other.items()))
        return Check(
            "nodes",
            "failed",
            f"the bundle is for {', '.join(platforms)}, but {listed}",
            "build the bundle for these platforms, or cordon these nodes",
        )
    away = sorted(_name(node) for node in able if not is_ready(node))
    text = f"{len(able)} for {', '.join(platforms)}"
    if away:
        text += f"; not ready: {_few(away)}"
        state: State = "failed" if len(away) == len(able) else "warning"
        return Check("nodes", state, text, "`kubectl describe node` says why")
    return Check("nodes", "ok", text)


def is_ready(node: Object) -> bool:
    """Whether a node is Ready, or says nothing about it."""
    conditions = {c.get("type"): c.get("status") for c in _list(node, "status", "conditions")}
    return bool(conditions.get("Ready", "True") == "True")


def takes_pods(node: Object) -> bool:
    """Whether nobody has taken it out of service (``kubectl cordon``)."""
    return not _get(node, "spec", "unschedulable")


def check_capacity(
    nodes: Sequence[Object], pods: Iterable[Object], rendered: Sequence[Rendered]
) -> Check:
    """Each pod finds a node with what it requests; those that our releases have make room."""
    name = "capacity"
    wanted = [(of, spec) for release in rendered for of, spec in release.pods()]
    rooms = _rooms(nodes, pods, rendered)
    if not any(room.free for room in rooms):
        hint = "`kubectl describe nodes` shows what is allocatable"
        return Check(name, "warning", "the nodes don't say what they have", hint)
    free = _total([room.free for room in rooms])
    lost, homeless = [], []
    # The largest first, each where most is left: what does not fit so will hardly fit at all.
    sized = [(pod_requests(spec), of, spec) for of, spec in wanted]
    for requests, of, spec in sorted(sized, key=lambda one: _weight(one[0]), reverse=True):
        selector = spec.get("nodeSelector") or {}
        places = [room for room in rooms if selector.items() <= room.labels.items()]
        if not places:
            lost.append(f"{of} ({', '.join(f'{key}={text}' for key, text in selector.items())})")
            continue
        fitting = [room for room in places if room.takes(requests, spec)]
        if not fitting:
            homeless.append(f"{of} ({_amounts(requests) or 'any'})")
            continue
        best = max(fitting, key=lambda room: _weight(room.free))
        best.take(requests)
    shown: Amounts = {key: free[key] for key in ("cpu", "memory", "pods") if key in free}
    text = (
        f"{len(wanted)} pods request {_amounts(_total([r for r, _, _ in sized])) or 'nothing'}; "
        f"free on {_nodes(len(rooms))}: {_amounts(shown)}"
    )
    if homeless:
        what = _few(list(dict.fromkeys(homeless)))
        hint = "lower resources.requests or replicas in values, or make room on the nodes"
        return Check(name, "failed", f"no node has room for {what}: {text}", hint)
    if lost:
        hint = "label a node, or change nodeSelector in values"
        return Check(name, "warning", f"no node has the labels for {_few(lost)}: {text}", hint)
    return Check(name, "ok", text)


@dataclass
class _Room:
    """What is left on a node."""

    free: Amounts
    labels: Mapping[str, str]
    taints: list[Object]

    def takes(self, requests: Amounts, spec: Object) -> bool:
        tolerations = _list(spec, "tolerations")
        if not all(any(_tolerates(t, taint) for t in tolerations) for taint in self.taints):
            return False
        asked = requests | {"pods": Decimal(1)}
        # What a node does not name it has none of, but for the number of pods.
        return all(
            value <= self.free.get(key, Decimal(key == "pods")) for key, value in asked.items()
        )

    def take(self, requests: Amounts) -> None:
        for key, value in (requests | {"pods": Decimal(1)}).items():
            self.free[key] = self.free.get(key, Decimal()) - value


def _rooms(
    nodes: Sequence[Object], pods: Iterable[Object], rendered: Sequence[Rendered]
) -> list[_Room]:
    rooms = {}
    for node in nodes:
        if takes_pods(node):
            has = _get(node, "status", "allocatable") or {}
            rooms[_name(node)] = _Room(
                {key: quantity(value) for key, value in has.items()},
                _get(node, "metadata", "labels") or {},
                [t for t in _list(node, "spec", "taints") if t.get("effect") != "PreferNoSchedule"],
            )
    ours = {(release.namespace, release.name) for release in rendered}
    for pod in pods:
        room = rooms.get(_get(pod, "spec", "nodeName") or "")
        labels = _get(pod, "metadata", "labels") or {}
        of = {labels.get("app.kubernetes.io/instance"), labels.get("release")}
        mine = any((_namespace(pod), name) in ours for name in of)
        if room and room.free and not mine and _get(pod, "status", "phase") not in _ENDED:
            room.take(pod_requests(pod.get("spec") or {}))
    return list(rooms.values())


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if toleration.get("key") not in (None, "", taint.get("key")):
        return False
    exists: bool = toleration.get("operator") == "Exists"
    return exists or str(toleration.get("value") or "") == str(taint.get("value") or "")


def _weight(amounts: Amounts) -> tuple[Decimal, Decimal]:
    return amounts.get("cpu", Decimal()), amounts.get("memory", Decimal())


def _total(all_amounts: Iterable[Amounts]) -> Amounts:
    total: Amounts = {}
    for amounts in all_amounts:
        for key, value in amounts.items():
            total[key] = total.get(key, Decimal()) + value
    return total


def _amounts(amounts: Amounts) -> str:
    return ", ".join(amount(key, value) for key, value in amounts.items() if value)


def check_disk(summaries: Mapping[str, Object], size: int) -> Check:
    """Kubelets' file systems have room for the bundle's content (bytes), packed and unpacked."""
    short, least = [], None
    for node, summary in summaries.items():
        free = [
            system["availableBytes"]
            for system in (
                _get(summary, "node", "fs"),
                _get(summary, "node", "runtime", "imageFs"),
            )
            if isinstance(system, dict) and isinstance(system.get("availableBytes"), int)
        ]
        if free:
            least = min(free) if least is None else min(least, *free)
            if min(free) < 3 * size:  # layers as they came, and about twice that unpacked
                short.append(f"{node} has {gib(min(free))}")
    if least is None:
        return Check("disk", "warning", "the nodes don't say what is free", "look with `df`")
    if short:
        text = f"images may take {gib(3 * size)} on a node: {_few(short)}"
        return Check("disk", "warning", text, "make room below /var/lib of the node's runtime")
    return Check("disk", "ok", f"at least {gib(least)} free, images take up to {gib(3 * size)}")


def gib(size: int) -> str:
    """Write a number of bytes for people."""
    return f"{size / _GIB:.1f} GiB"


# Volumes


def check_storage(
    classes: Iterable[Object],
    existing: Iterable[Object],
    rendered: Sequence[Rendered],
    *,
    nodes: int = 1,
) -> Check:
    """Claims name a StorageClass that is there, and pods only claims that are or will be there.

    Both may come with a release, for itself and for those after it. ``nodes`` is how many take
    pods: a folder of a node is there for its pods only.
    """
    known = {_name(one): one for one in classes}
    there = {(_namespace(claim), _name(claim)): claim for claim in existing}
    made = {(of.namespace, name): claim for of in rendered for name, claim in of.claims()}
    if lacking := dict.fromkeys(_lacking(known, there, rendered)):
        has = f"there is: {', '.join(sorted(known))}" if known else "the cluster has no class"
        hint = f"{has}; harbor.storage in site.yaml is where you choose"
        return Check("storage", "failed", _few(list(lacking), "; "), hint)
    if fixed := list(_unchangeable(there, made)):
        hint = "Kubernetes changes neither in a claim that is there: leave site.yaml as it was"
        return Check("storage", "failed", _few(fixed, "; "), hint)
    if apart := list(_apart(made | there, rendered) if nodes > 1 else ()):
        hint = "they may be put on different nodes: set accessMode: ReadWriteMany for a storage "
        hint += "class that can do it, or replicas: 1"
        return Check("storage", "warning", _few(apart, "; "), hint)
    if nodes > 1 and (folders := list(_folders(rendered))):
        text = f"volume {_few(folders)} is a folder of the node, and {nodes} nodes take pods"
        hint = "each node has another folder, unless all mount the same there: use nfs or claim"
        return Check("storage", "warning", text, hint)
    if not made and not there:
        return Check("storage", "ok", "no volume is asked for: data lives as long as its pods")
    old = len(made.keys() & there.keys())
    return Check("storage", "ok", f"{len(made)} claims, {old} of them are there")


def _folders(rendered: Iterable[Rendered]) -> Iterator[str]:
    """Volumes that are a folder of a node."""
    for release in rendered:
        for volume in release.of_kind("PersistentVolume"):
            if _get(volume, "spec", "hostPath"):
                yield _name(volume)


def _lacking(
    classes: Mapping[str, Object],
    existing: Collection[tuple[str, str]],
    rendered: Sequence[Rendered],
) -> Iterator[str]:
    """What keeps a new claim from getting a volume, and a pod from getting a claim."""
    known, there = dict(classes), set(existing)
    later = {_name(one): of.key for of in rendered for one in of.of_kind("StorageClass")}
    for release in rendered:
        known |= {_name(one): one for one in release.of_kind("StorageClass")}
        for name, claim in release.claims():
            if (release.namespace, name) not in there:
                yield from _unbound(name, claim, known, later)
        there |= {(release.namespace, name) for name, _ in release.claims()}
        for of, name in release.mounted():
            if (release.namespace, name) not in there:
                yield f"there is no claim {name}, which {of} mounts"


def _unbound(
    name: str, claim: Object, classes: Mapping[str, Object], later: Mapping[str, str]
) -> Iterator[str]:
    wanted = _get(claim, "spec", "storageClassName")
    if wanted and wanted not in classes:
        text = f"there is no StorageClass {wanted!r}, which claim {name} names"
        yield text + (f", before release {later[wanted]} brings it" if wanted in later else "")
    if wanted is None and not _get(claim, "spec", "volumeName") and not _default(classes.values()):
        yield f"claim {name} names no StorageClass, and none is the default"


def _default(classes: Iterable[Object]) -> bool:
    """Whether one of them is taken for claims that name none."""
    return any(
        key.endswith(_DEFAULT_CLASS) and text == "true"
        for one in classes
        for key, text in (_get(one, "metadata", "annotations") or {}).items()
    )


def _unchangeable(
    there: Mapping[tuple[str, str], Object], made: Mapping[tuple[str, str], Object]
) -> Iterator[str]:
    """What claims that are there have otherwise, and what can't be changed in them."""
    for key, wanted in made.items():
        # Claims of a StatefulSet are taken as they are.
        if key not in there or wanted.get("kind") != "PersistentVolumeClaim":
            continue
        for name in ("accessModes", "storageClassName"):
            has, asked = _get(there[key], "spec", name), _get(wanted, "spec", name)
            if has is not None and asked is not None and has != asked:
                yield f"claim {'/'.join(key)} is there with {name} {has}, and {asked} is asked for"


def _apart(claims: Mapping[tuple[str, str], Object], rendered: Iterable[Rendered]) -> Iterator[str]:
    """Claims for the pods of one node that several pods mount."""
    for release in rendered:
        users = [name for _, name in release.mounted()]
        for name in dict.fromkeys(users):
            modes = _list(claims.get((release.namespace, name)), "spec", "accessModes")
            if users.count(name) > 1 and modes == ["ReadWriteOnce"]:
                yield f"{users.count(name)} pods mount claim {name}, which is ReadWriteOnce"


def maker_of_secret(rendered: Iterable[Rendered], namespace: str, name: str) -> str:
    """Which release makes a Secret, empty for none of these."""
    for release in rendered:
        for document in release.of_kind("Secret"):
            place = _namespace(document) or release.namespace
            if (place, _name(document)) == (namespace, name):
                return release.key
    return ""


# Names and ports that somebody else may have


def check_ports(services: Iterable[Object], rendered: Sequence[Rendered]) -> Check:
    """Node ports are free or have been ours, and no two releases want the same."""
    holders: dict[int, str] = {}
    for service in services:
        ports = [port.get("nodePort") for port in _list(service, "spec", "ports")]
        for number in filter(None, [*ports, _get(service, "spec", "healthCheckNodePort")]):
            holders[number] = f"{_namespace(service)}/{_name(service)}"
    taken, odd, fine = [], [], []
    for release in rendered:
        for number, own in release.node_ports():
            if holders.setdefault(number, own) != own:
                taken.append(f"{number} belongs to Service {holders[number]}")
            elif number not in _NODE_PORTS:
                odd.append(str(number))
            fine.append(str(number))
    if taken:
        hint = "choose others in harbor.expose (httpPort, httpsPort), or values of the chart"
        return Check("node ports", "failed", f"taken: {_few(taken, '; ')}", hint)
    if odd:
        text = f"{', '.join(odd)}: not in {_NODE_PORTS[0]}-{_NODE_PORTS[-1]}"
        hint = "the API server refuses it unless its --service-node-port-range has it"
        return Check("node ports", "warning", text, hint)
    return Check("node ports", "ok", f"{', '.join(fine)} free or ours" if fine else "none needed")


def check_ingress(
    ingresses: Iterable[Object], classes: Iterable[Object], rendered: Sequence[Rendered]
) -> Check:
    """Hosts of Ingresses are nobody else's, and the IngressClass is there."""
    name = "ingress"
    hosts = {
        rule.get("host"): f"{_namespace(one)}/{_name(one)}"
        for one in ingresses
        for rule in _list(one, "spec", "rules")
    }
    known = {_name(one): one for one in classes}
    bad, unclear, fine = [], [], []
    for release in rendered:
        known |= {_name(one): one for one in release.of_kind("IngressClass")}
        default = _default(known.values())
        for one in release.of_kind("Ingress"):
            own = f"{release.namespace}/{_name(one)}"
            for rule in _list(one, "spec", "rules"):
                host = rule.get("host")
                if hosts.setdefault(host, own) != own:
                    bad.append(f"host {host} belongs to Ingress {hosts[host]}")
                fine.append(str(host))
            wanted = _get(one, "spec", "ingressClassName")
            if wanted and wanted not in known:
                bad.append(f"there is no IngressClass {wanted!r}")
            elif not (wanted or default or _annotation(one, "kubernetes.io/ingress.class")):
                unclear.append(f"{own} names no IngressClass, and none is the default")
    if bad:
        has = f"there is: {', '.join(sorted(known)) or 'no class'}"
        return Check(name, "failed", _few(list(dict.fromkeys(bad)), "; "), f"{has}; see expose")
    if unclear:
        hint = "no controller may take it: set harbor.expose.ingressClass"
        return Check(name, "warning", _few(unclear, "; "), hint)
    return Check(name, "ok", ", ".join(dict.fromkeys(fine)) or "none")


def check_objects(existing: Iterable[Sequence[str]], rendered: Sequence[Rendered]) -> Check:
    """No object has the place of a rendered one that is not the release's: Helm would refuse it.

    ``existing`` are kind, namespace ("" for none), name, and Helm's release and its namespace.
    """
    owners = {
        (kind, namespace, name): (release, of) for kind, namespace, name, release, of in existing
    }
    strange = []
    for release in rendered:
        for document in release.objects:
            kind, name = str(document.get("kind")), _name(document)
            if kind == _DEFINITION:
                continue  # what lies in a chart's crds/ belongs to no release
            places = [(kind, _namespace(document) or release.namespace, name), (kind, "", name)]
            for place in places:
                if place not in owners or _annotation(document, _HOOK):
                    continue
                if owners[place] != (release.name, release.namespace):
                    of = "/".join(reversed(owners[place])) if owners[place][0] else "nobody"
                    where = f" in {place[1]}" if place[1] else ""
                    strange.append(f"{kind} {name}{where} (release: {of})")
    if strange:
        hint = "Helm takes no object that another one made: rename the release, or delete them"
        return Check("objects in the way", "failed", _few(strange), hint)
    return Check("objects in the way", "ok", "none")


def check_releases(listed: Iterable[Object], rendered: Sequence[Rendered]) -> Check:
    """What Helm has under our names is of our charts; other releases of them are only named."""
    ours = {(one.namespace, one.name): one for one in rendered}
    wrong, others = [], []
    charts = {one.chart for one in rendered if one.chart}
    for found in listed:
        key = (str(found.get("namespace")), str(found.get("name")))
        text = str(found.get("chart"))
        chart = re.sub(r"-v?[0-9]+\.[0-9]+\.[0-9]+.*\Z", "", text)
        mine = ours.get(key)
        if mine is not None and mine.chart and chart != mine.chart:
            wrong.append(f"{mine.key} is of chart {text}, not of {mine.chart}")
        elif mine is None and chart in charts:
            others.append(f"{'/'.join(key)} ({text})")
    if wrong:
        hint = "give the release in site.yaml another name or namespace"
        return Check("other releases", "failed", _few(wrong, "; "), hint)
    there = [f"{one.key} ({one.found.get('chart')})" for one in rendered if one.found]
    text = f"ours: {', '.join(there)}" if there else "none of ours yet"
    return Check(
        "other releases", "ok", text + (f"; of the same chart: {_few(others)}" if others else "")
    )


def check_leftovers(existing: Iterable[Object], rendered: Sequence[Rendered]) -> Check:
    """No claim with the data of a former release waits for a new one that can't read it."""
    there = {(_namespace(claim), _name(claim)): claim for claim in existing}
    unread: list[str] = []
    used: list[str] = []
    for release in rendered:
        if release.found is not None:
            continue
        for name, _ in release.claims():
            if (release.namespace, name) in there:
                (used if release.keys_kept else unread).append(f"{release.namespace}/{name}")
    if unread:
        hint = "name the state folder of that release with --state, or delete the claims to begin "
        hint += "anew: what is in them is lost then"
        text = f"claims of a former release, whose secrets are not here: {_few(unread)}"
        return Check("leftovers", "failed", text, hint)
    if used:
        return Check("leftovers", "ok", f"data of a former release goes on: {_few(used)}")
    return Check("leftovers", "ok", "none")


# Rights


@dataclass(frozen=True)
class Resource:
    """What the API calls the objects of a kind."""

    group: str
    name: str
    namespaced: bool

    def __str__(self) -> str:
        return f"{self.name}.{self.group}".rstrip(".")


def read_resources(lists: Iterable[Object]) -> dict[tuple[str, str], Resource]:
    """Resources by apiVersion and kind, out of answers to ``GET /apis/GROUP/VERSION``."""
    found = {}
    for one in lists:
        version = str(one.get("groupVersion"))
        group = version.rpartition("/")[0]
        for entry in _list(one, "resources"):
            if "/" not in entry["name"]:
                resource = Resource(group, entry["name"], bool(entry.get("namespaced")))
                found[version, entry["kind"]] = resource
    return found


def check_kinds(api_versions: Collection[str], rendered: Sequence[Rendered]) -> Check:
    """The cluster serves each apiVersion, or a release brings its definition along.

    What a release brings is there for itself and for those after it.
    """
    brought: set[str] = set()
    missing: dict[str, None] = {}
    for release in rendered:
        brought |= {
            str(_get(document, "spec", "group"))
            for document in release.objects
            if document.get("kind") == _DEFINITION
        }
        missing |= {
            f"{document.get('kind')} ({document.get('apiVersion')})": None
            for document in release.objects
            if document.get("apiVersion") not in api_versions
            and str(document.get("apiVersion")).rpartition("/")[0] not in brought
        }
    if missing:
        hint = "install what defines them before (a release that does has to come earlier in "
        hint += "site.yaml), or leave out the values that ask for them"
        return Check("kinds", "failed", f"the cluster has no {_few(list(missing))}", hint)
    return Check("kinds", "ok", "the cluster serves all that is rendered")


def wanted_rights(
    resources: Mapping[tuple[str, str], Resource], rendered: Sequence[Rendered]
) -> tuple[dict[str, set[Resource]], set[Resource]]:
    """Resources that are made, by namespace, and those of the whole cluster."""
    inside: dict[str, set[Resource]] = {}
    outside = set()
    for release in rendered:
        own = inside.setdefault(release.namespace, {Resource("", "secrets", namespaced=True)})
        if release.found is None:
            outside.add(Resource("", "namespaces", namespaced=False))
        for document in release.objects:
            kind = (str(document.get("apiVersion")), str(document.get("kind")))
            resource = resources.get(kind)
            if resource and not resource.namespaced:
                outside.add(resource)
            elif resource:
                place = _namespace(document)
                (inside.setdefault(place, set()) if place else own).add(resource)
    return inside, outside


def check_rights(
    reviews: Mapping[str, Object],
    wanted: Mapping[str, Iterable[Resource]],
    allowed: Mapping[Resource, bool],
    *,
    who: str = "",
) -> Check:
    """The account may do what Helm does; ``reviews`` are SelfSubjectRulesReviews by namespace.

    ``allowed`` says of resources of the whole cluster whether they may be created.
    """
    missing = [f"create {resource}" for resource, may in allowed.items() if not may]
    incomplete = False
    for namespace, resources in wanted.items():
        status = _get(reviews.get(namespace) or {}, "status") or {}
        rules = _list(status, "resourceRules")
        lacking = sorted(
            f"{verb} {resource} in {namespace}"
            for resource in resources
            for verb in _VERBS
            if not any(_permits(rule, verb, resource) for rule in rules)
        )
        incomplete = incomplete or bool(lacking and status.get("incomplete"))
        missing += lacking
    account = who or "the account"
    if not missing:
        return Check("rights", "ok", f"{account} may make all that is rendered")
    text = f"{account} may not {_few(missing)}"
    hint = "`kubectl auth can-i --list` shows what it may; use an account with these rights"
    if incomplete and all(allowed.values()):
        # A webhook or the like decides here, and does not list what it allows.
        return Check("rights", "warning", f"{text}, as far as the cluster lists it", hint)
    return Check("rights", "failed", text, hint)


def _permits(rule: Object, verb: str, resource: Resource) -> bool:
    return not rule.get("resourceNames") and all(
        wanted in rule.get(key, ()) or "*" in rule.get(key, ())
        for key, wanted in (
            ("verbs", verb),
            ("apiGroups", resource.group),
            ("resources", resource.name),
        )
    )


# Clocks


def check_clocks(
    start: datetime,
    end: datetime,
    api: datetime | None,
    nodes: Iterable[Object],
    leases: Iterable[Object],
) -> Check:
    """The API server and the nodes have this machine's time, as far as a lease can tell.

    They were asked between ``start`` and ``end``. Certificates that are made here are valid from a
    day before now on, and what Harbor's core signs for its registry for some minutes only.
    """
    off: dict[str, timedelta] = {}
    if api is not None:
        off["the API server"] = _outside(api, start, end)
    renewed = {_name(lease): _get(lease, "spec", "renewTime") for lease in leases}
    for node in nodes:
        name = _name(node)
        if is_ready(node) and isinstance(renewed.get(name), str):
            # It was written some time ago: what is a little behind is on time.
            written = datetime.fromisoformat(renewed[name])
            off[name] = _outside(written, start - _RENEWED, end)
    worst = max((abs(span) for span in off.values()), default=timedelta())
    if not off:
        return Check("clocks", "warning", "neither the API server nor a node tells its time")
    wrong = [
        f"{name} is {_seconds(span)} {'ahead' if span > timedelta() else 'behind'}"
        for name, span in off.items()
        if abs(span) > _NOTED
    ]
    if not wrong:
        server, told = ("the API server and ", len(off) - 1) if api else ("", len(off))
        text = f"{server}{_nodes(told)} within {_NOTED.seconds} s of this machine"
        return Check("clocks", "ok", text)
    hint = "set the clocks (chrony or ntpd): certificates and tokens are not valid with these"
    state: State = "failed" if worst > _WRONG else "warning"
    return Check("clocks", state, f"seen from this machine {_few(wrong)}", hint)


def _outside(told: datetime, start: datetime, end: datetime) -> timedelta:
    """How far a time is before (negative) or after a span, nothing inside of it."""
    return min(told - start, timedelta()) + max(told - end, timedelta())


def _seconds(span: timedelta) -> str:
    seconds = int(abs(span).total_seconds())
    return f"{seconds} s" if seconds < 600 else f"{seconds // 60} min"  # noqa: PLR2004 - 10 minutes


# Pods that pulled an image and looked a name up


_NOT_PULLED = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "RegistryUnavailable")


def is_decided(pod: Object) -> bool:
    """Whether a pod has pulled its image and ended, or can't pull it."""
    return _get(pod, "status", "phase") in _ENDED or bool(_pull_problem(pod))


def _pull_problem(pod: Object) -> str:
    for status in _list(pod, "status", "containerStatuses"):
        waiting = _get(status, "state", "waiting") or {}
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
        statuses = _list(pod, "status", "containerStatuses")
        if not any(status.get("imageID") for status in statuses):
            bad[node] = _pull_problem(pod) or str(_get(pod, "status", "reason") or "no answer")
    if not bad:
        return Check(name, "ok", f"{_nodes(len(pods))} pulled {image}")
    listed = "; ".join(f"{node}: {reason}" for node, reason in list(bad.items())[:_SHOWN])
    hint = "is the seed registry served (`installer run` starts it), do nodes reach its address, "
    hint += "and does containerd have its hosts.toml?"
    return Check(name, "failed", f"{len(bad)} of {len(pods)} can't: {listed}", hint)


def check_lookup(host: str, pod: Object) -> Check:
    """A pod found the host of externalURL."""
    name = f"DNS in the cluster {host}"
    phase = _get(pod, "status", "phase")
    if phase == "Succeeded":
        return Check(name, "ok", f"pods find {host}")
    if problem := _pull_problem(pod):
        return Check(name, "warning", f"not known: {problem}")
    text = f"pods don't find {host}" if phase == "Failed" else f"not known: the pod is {phase}"
    hint = "nodes and replication need it: enter the host in the DNS that the cluster's asks"
    return Check(name, "warning", text, hint)


# Reading objects


def _get(value: Any, *path: str) -> Any:
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def _list(value: Any, *path: str) -> list[Any]:
    found = _get(value, *path)
    return found if isinstance(found, list) else []


def _name(document: Object) -> str:
    return str(_get(document, "metadata", "name") or "")


def _namespace(document: Object) -> str:
    return str(_get(document, "metadata", "namespace") or "")


def _annotation(document: Object, key: str) -> str:
    return str(_get(document, "metadata", "annotations", key) or "")


def _replicas(document: Object) -> int:
    if document.get("kind") not in ("Deployment", "StatefulSet", "ReplicaSet"):
        return 1
    given = _get(document, "spec", "replicas")
    return given if isinstance(given, int) else 1


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _few(texts: Sequence[str], between: str = ", ") -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return between.join(texts[:_SHOWN]) + more
