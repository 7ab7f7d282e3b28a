"""Nodes for what was rendered: of the right platform, with room, with clocks that agree.

Where a judgement can only guess (affinities, quotas, admission) it says ok: the scheduler has the
last word, and a run must not be refused for a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from installer.deploy.preflight.objects import Rendered, list_at, name_of, namespace_of, value_at
from installer.deploy.preflight.quantities import amounts_text, gib, pod_requests, quantity, sum_of
from installer.deploy.preflight.verdict import Check, State, few

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from installer.deploy.preflight.objects import Object
    from installer.deploy.preflight.quantities import Amounts

ENDED = ("Succeeded", "Failed")
_RENEWED = timedelta(seconds=60)
"""A node renews its lease every ten seconds; a busy one is late."""
_NOTED, _WRONG = timedelta(seconds=30), timedelta(minutes=5)


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
        info = value_at(node, "status", "nodeInfo") or {}
        platform = f"{info.get('operatingSystem')}/{info.get('architecture')}"
        if not any(p == platform or p.startswith(f"{platform}/") for p in platforms):
            other[name_of(node)] = platform
    if other:
        listed = ", ".join(f"{name} is {platform}" for name, platform in sorted(other.items()))
        return Check(
            "nodes",
            "failed",
            f"the bundle is for {', '.join(platforms)}, but {listed}",
            "build the bundle for these platforms, or cordon these nodes",
        )
    away = sorted(name_of(node) for node in able if not is_ready(node))
    text = f"{len(able)} for {', '.join(platforms)}"
    if away:
        text += f"; not ready: {few(away)}"
        state: State = "failed" if len(away) == len(able) else "warning"
        return Check("nodes", state, text, "`kubectl describe node` says why")
    return Check("nodes", "ok", text)


def is_ready(node: Object) -> bool:
    """Whether a node is Ready, or says nothing about it."""
    conditions = {c.get("type"): c.get("status") for c in list_at(node, "status", "conditions")}
    return bool(conditions.get("Ready", "True") == "True")


def takes_pods(node: Object) -> bool:
    """Whether nobody has taken it out of service (``kubectl cordon``)."""
    return not value_at(node, "spec", "unschedulable")


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
    free = sum_of([room.free for room in rooms])
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
            homeless.append(f"{of} ({amounts_text(requests) or 'any'})")
            continue
        best = max(fitting, key=lambda room: _weight(room.free))
        best.take(requests)
    shown: Amounts = {key: free[key] for key in ("cpu", "memory", "pods") if key in free}
    asked = amounts_text(sum_of(requests for requests, _, _ in sized))
    text = (
        f"{len(wanted)} pods request {asked or 'nothing'}; "
        f"free on {nodes_text(len(rooms))}: {amounts_text(shown)}"
    )
    if homeless:
        what = few(list(dict.fromkeys(homeless)))
        hint = "lower resources.requests or replicas in values, or make room on the nodes"
        return Check(name, "failed", f"no node has room for {what}: {text}", hint)
    if lost:
        hint = "label a node, or change nodeSelector in values"
        return Check(name, "warning", f"no node has the labels for {few(lost)}: {text}", hint)
    return Check(name, "ok", text)


@dataclass
class _Room:
    """What is left on a node."""

    free: Amounts
    labels: Mapping[str, str]
    taints: list[Object]

    def takes(self, requests: Amounts, spec: Object) -> bool:
        tolerations = list_at(spec, "tolerations")
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
            has = value_at(node, "status", "allocatable") or {}
            rooms[name_of(node)] = _Room(
                {key: quantity(value) for key, value in has.items()},
                value_at(node, "metadata", "labels") or {},
                [
                    t
                    for t in list_at(node, "spec", "taints")
                    if t.get("effect") != "PreferNoSchedule"
                ],
            )
    ours = {(release.namespace, release.name) for release in rendered}
    for pod in pods:
        room = rooms.get(value_at(pod, "spec", "nodeName") or "")
        labels = value_at(pod, "metadata", "labels") or {}
        of = {labels.get("app.kubernetes.io/instance"), labels.get("release")}
        mine = any((namespace_of(pod), name) in ours for name in of)
        if room and room.free and not mine and value_at(pod, "status", "phase") not in ENDED:
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


def check_disk(summaries: Mapping[str, Object], size: int) -> Check:
    """Kubelets' file systems have room for the bundle's content (bytes), packed and unpacked."""
    short, least = [], None
    for node, summary in summaries.items():
        free = [
            system["availableBytes"]
            for system in (
                value_at(summary, "node", "fs"),
                value_at(summary, "node", "runtime", "imageFs"),
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
        text = f"images may take {gib(3 * size)} on a node: {few(short)}"
        return Check("disk", "warning", text, "make room below /var/lib of the node's runtime")
    return Check("disk", "ok", f"at least {gib(least)} free, images take up to {gib(3 * size)}")


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
    renewed = {name_of(lease): value_at(lease, "spec", "renewTime") for lease in leases}
    for node in nodes:
        name = name_of(node)
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
        text = f"{server}{nodes_text(told)} within {_NOTED.seconds} s of this machine"
        return Check("clocks", "ok", text)
    hint = "set the clocks (chrony or ntpd): certificates and tokens are not valid with these"
    state: State = "failed" if worst > _WRONG else "warning"
    return Check("clocks", state, f"seen from this machine {few(wrong)}", hint)


def _outside(told: datetime, start: datetime, end: datetime) -> timedelta:
    """How far a time is before (negative) or after a span, nothing inside of it."""
    return min(told - start, timedelta()) + max(told - end, timedelta())


def _seconds(span: timedelta) -> str:
    seconds = int(abs(span).total_seconds())
    return f"{seconds} s" if seconds < 600 else f"{seconds // 60} min"  # noqa: PLR2004 - 10 minutes


def nodes_text(count: int) -> str:
    """Write a number of nodes for people."""
    return "1 node" if count == 1 else f"{count} nodes"
