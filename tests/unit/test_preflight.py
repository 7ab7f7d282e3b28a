"""Each check of the preflight on answers as the API gives them; quantities by their laws."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from installer.deploy.preflight.conflicts import (
    check_ingress,
    check_kinds,
    check_objects,
    check_ports,
    check_releases,
)
from installer.deploy.preflight.gather import gather
from installer.deploy.preflight.nodes import check_capacity, check_clocks, check_disk, check_nodes
from installer.deploy.preflight.objects import Rendered
from installer.deploy.preflight.pods import check_lookup, check_pulls, is_decided
from installer.deploy.preflight.quantities import amount, pod_requests, quantity
from installer.deploy.preflight.rights import Resource, check_rights, read_resources, wanted_rights
from installer.deploy.preflight.storage import check_leftovers, check_storage, maker_of_secret
from installer.deploy.preflight.verdict import Check, refusal
from installer.errors import DeploymentFailed, InvalidInput, PreflightFailed
from installer.harbor.api import HarborRefused

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def node(name: str = "n1", *, arch: str = "amd64", ready: str = "True", **more: Any) -> Any:
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {key: more[key] for key in ("taints", "unschedulable") if key in more},
        "status": {
            "nodeInfo": {"operatingSystem": "linux", "architecture": arch},
            "allocatable": more.get("free", {"cpu": "4", "memory": "8Gi", "pods": "110"}),
            "conditions": [{"type": "Ready", "status": ready}],
        },
    }


def container(**requests: str) -> dict[str, Any]:
    return {"name": "c", "resources": {"requests": requests}}


def pod(node: str, namespace: str = "other", labels: Any = None, **requests: str) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "namespace": namespace, "labels": labels or {}},
        "spec": {"nodeName": node, "containers": [container(**requests)]},
        "status": {"phase": "Running"},
    }


def thing(kind: str, name: str, api: str = "v1", **more: Any) -> dict[str, Any]:
    metadata = {"name": name} | more.pop("metadata", {})
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **more}


def deployment(name: str = "core", replicas: int = 1, **spec: Any) -> dict[str, Any]:
    pods = {"containers": [container(**spec.pop("requests", {}))], **spec}
    return thing(
        "Deployment", name, "apps/v1", spec={"replicas": replicas, "template": {"spec": pods}}
    )


def service(name: str, port: int, **metadata: str) -> dict[str, Any]:
    ports = [{"port": 80, "nodePort": port}, {"port": 81}]
    return thing("Service", name, metadata=metadata, spec={"ports": ports})


def rendered(*objects: Any, **more: Any) -> Rendered:
    return Rendered("harbor", "harbor", "harbor", objects, **more)


# Quantities


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("250m", "0.25"), (1000, "1000"), (0.5, "0.5"), ("512Mi", str(512 * 2**20)), ("1E", "1e18"),
        ("1E3", "1000"), ("1e-3", "0.001"), (".5Gi", str(2**29)), ("-1", "-1"), ("5.", "5"),
        ("100n", "1e-7"),
    ],
)  # fmt: skip
def test_quantities(text: object, number: str) -> None:
    assert quantity(text) == Decimal(number)


@pytest.mark.parametrize(
    "text", ["", "Mi", "1 Gi", "1KI", "0x1", "1e999999999", "٣", "1Gi\n", None]
)
def test_what_is_no_quantity_is_refused(text: object) -> None:
    with pytest.raises(InvalidInput, match="not a quantity"):
        quantity(text)


NUMBERS = st.integers(0, 10**6)


@given(NUMBERS, NUMBERS)
def test_quantities_add_up_in_any_unit(first: int, second: int) -> None:
    assert quantity(f"{first}m") + quantity(f"{second}m") == quantity(f"{first + second}m")
    assert quantity(f"{first}Mi") * 1024 == quantity(f"{first}Gi")
    assert quantity(f"{first}k") == quantity(first * 1000)
    assert (quantity(f"{first}Ki") < quantity(f"{second}Ki")) == (first < second)


@given(st.text(max_size=12))
def test_no_text_breaks_a_quantity(text: str) -> None:
    with suppress(InvalidInput):
        assert quantity(text).is_finite()


@given(st.decimals(0, 10**6, places=3))
def test_what_is_written_for_people_is_read_back(value: Decimal) -> None:
    shown = amount("cpu", value).removeprefix("cpu ")
    assert abs(quantity(shown) - value) <= Decimal("0.005")


def test_a_pod_requests_what_its_containers_do_or_a_larger_init_container() -> None:
    spec = {
        "containers": [container(cpu="100m"), {"resources": {"limits": {"cpu": "1"}}}, {}],
        "initContainers": [container(cpu="2", memory="1Gi"), container(cpu="200m")],
    }
    assert pod_requests(spec) == {"cpu": Decimal(2), "memory": Decimal(2**30)}


# Nodes


def test_nodes() -> None:
    good = check_nodes([node(), node("n2")], ["linux/amd64"])
    assert (good.state, good.text) == ("ok", "2 for linux/amd64")
    assert check_nodes([node(arch="arm")], ["linux/arm/v7"]).state == "ok"
    other = check_nodes([node(arch="arm64")], ["linux/amd64"])
    assert (other.state, other.error) == ("failed", PreflightFailed)
    assert "n1 is linux/arm64" in other.text
    cordoned = check_nodes([node(unschedulable=True)], ["linux/amd64"])
    assert cordoned.text == "the cluster has no node that takes pods"
    away = check_nodes([node(), node("n2", ready="Unknown")], ["linux/amd64"])
    assert (away.state, away.text) == ("warning", "2 for linux/amd64; not ready: n2")
    assert check_nodes([node(ready="False")], ["linux/amd64"]).state == "failed"


def test_a_pod_that_fits_on_no_node() -> None:
    big = rendered(deployment(requests={"cpu": "1000"}), deployment("small"))
    found = check_capacity([node(), node("n2")], [], [big])
    assert found.state == "failed"
    assert "no node has room for core (cpu 1000): 2 pods request cpu 1000;" in found.text
    assert "free on 2 nodes: cpu 8, memory 16.0 GiB, pods 220" in found.text


def test_replicas_that_fit_one_by_one_but_not_together() -> None:
    three = rendered(deployment(replicas=3, requests={"memory": "5Gi"}))
    assert check_capacity([node(n) for n in "abc"], [], [three]).state == "ok"
    assert check_capacity([node(n) for n in "ab"], [], [three]).state == "failed"


def test_what_others_request_is_taken_and_what_is_ours_will_be_free() -> None:
    wanted = [rendered(deployment(requests={"cpu": "3"}))]
    theirs = [pod("n1", cpu="2")]
    assert check_capacity([node()], theirs, wanted).state == "failed"
    ended = [{**theirs[0], "status": {"phase": "Succeeded"}}]
    assert check_capacity([node()], ended, wanted).state == "ok"
    for label in ("release", "app.kubernetes.io/instance"):
        ours = [pod("n1", "harbor", {label: "harbor"}, cpu="2")]
        assert check_capacity([node()], ours, wanted).state == "ok"
    same_name = [pod("n1", "other", {"release": "harbor"}, cpu="2")]
    assert check_capacity([node()], same_name, wanted).state == "failed"


def test_a_node_takes_only_so_many_pods() -> None:
    full = node(free={"cpu": "64", "pods": "2"})
    assert check_capacity([full], [pod("n1")], [rendered(deployment())]).state == "ok"
    two = [rendered(deployment(replicas=2))]
    assert check_capacity([full], [pod("n1")], two).state == "failed"


def test_an_error_that_takes_more_than_words_is_raised_as_what_it_is_a_kind_of() -> None:
    refused = HarborRefused("GET", "https://harbor/api", 404, "no such thing", hint="look")
    raised = refusal([Check.refused("Harbor", refused)])
    assert type(raised) is DeploymentFailed
    assert (raised.message, raised.hint) == (refused.message, "look")


def test_taints_keep_pods_away_that_do_not_tolerate_them() -> None:
    taint = {"key": "control-plane", "value": "yes", "effect": "NoSchedule"}
    nodes = [node(taints=[taint])]
    assert check_capacity(nodes, [], [rendered(deployment())]).state == "failed"
    for toleration in (
        {"operator": "Exists"},
        {"key": "control-plane", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "control-plane", "value": "yes"},
    ):
        wanted = rendered(deployment(tolerations=[toleration]))
        assert check_capacity(nodes, [], [wanted]).state == "ok"
    for toleration in ({"key": "control-plane", "value": "no"}, {"key": "b", "operator": "Exists"}):
        wanted = rendered(deployment(tolerations=[toleration]))
        assert check_capacity(nodes, [], [wanted]).state == "failed"
    soft = [node(taints=[taint | {"effect": "PreferNoSchedule"}])]
    assert check_capacity(soft, [], [rendered(deployment())]).state == "ok"


def test_a_selector_that_no_node_has_is_a_warning() -> None:
    wanted = rendered(deployment(nodeSelector={"disk": "ssd"}))
    found = check_capacity([node()], [], [wanted])
    assert found.state == "warning"
    assert "no node has the labels for core (disk=ssd)" in found.text
    here = rendered(deployment(nodeSelector={"kubernetes.io/hostname": "n1"}))
    assert check_capacity([node()], [], [here]).state == "ok"


def test_nodes_that_do_not_say_what_they_have() -> None:
    wanted = rendered(deployment(requests={"cpu": "1"}))
    assert check_capacity([node(free={})], [pod("n1")], [wanted]).state == "warning"


def test_hooks_need_no_room() -> None:
    hook = thing(
        "Job", "migrate", "batch/v1",
        metadata={"annotations": {"helm.sh/hook": "pre-upgrade"}},
        spec={"template": {"spec": {"containers": [container(cpu="99")]}}},
    )  # fmt: skip
    assert check_capacity([node()], [], [rendered(hook)]).state == "ok"


def test_disk() -> None:
    gib = 2**30
    summary = {"node": {"fs": {"availableBytes": 9 * gib}, "runtime": {"imageFs": {}}}}
    assert check_disk({"n1": summary}, 3 * gib).state == "ok"
    short = {"node": {"runtime": {"imageFs": {"availableBytes": 8 * gib}}}}
    found = check_disk({"n1": summary, "n2": short}, 3 * gib)
    assert (found.state, found.text) == (
        "warning", "images may take 9.0 GiB on a node: n2 has 8.0 GiB",
    )  # fmt: skip
    assert check_disk({}, gib).state == "warning"


# Volumes


def claim(name: str, **spec: Any) -> dict[str, Any]:
    return thing("PersistentVolumeClaim", name, metadata={"namespace": "harbor"}, spec=spec)


def storage_class(name: str, **annotations: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "annotations": annotations}}


DEFAULT = storage_class("usual", **{"storageclass.kubernetes.io/is-default-class": "true"})


def test_a_storage_class_that_is_not_there() -> None:
    wanted = rendered(claim("data", storageClassName="fast"))
    found = check_storage([storage_class("slow")], [], [wanted])
    assert found.state == "failed"
    assert found.text == "there is no StorageClass 'fast', which claim data names"
    assert "there is: slow" in found.hint
    assert check_storage([storage_class("fast")], [], [wanted]).state == "ok"
    # A claim that is there has its volume.
    assert check_storage([], [claim("data")], [wanted]).state == "ok"


def test_a_claim_without_a_class_takes_the_default() -> None:
    wanted = rendered(claim("data"))
    assert check_storage([storage_class("slow")], [], [wanted]).state == "failed"
    assert check_storage([DEFAULT], [], [wanted]).state == "ok"
    static = rendered(claim("data", storageClassName="", volumeName="pv"))
    assert check_storage([], [], [static]).state == "ok"


def stateful(replicas: int = 2) -> dict[str, Any]:
    spec = {"replicas": replicas, "volumeClaimTemplates": [{"metadata": {"name": "d"}, "spec": {}}]}
    return thing("StatefulSet", "db", "apps/v1", spec=spec | {"template": {"spec": {}}})


def test_claims_of_stateful_sets_count() -> None:
    assert [name for name, _ in rendered(stateful()).claims()] == ["d-db-0", "d-db-1"]
    assert check_storage([], [], [rendered(stateful())]).state == "failed"
    there = [claim("d-db-0"), claim("d-db-1")]
    assert check_storage([], there, [rendered(stateful())]).state == "ok"


def test_a_claim_that_pods_mount_is_there_or_is_made() -> None:
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "given"}}]
    wanted = rendered(deployment(volumes=volumes))
    found = check_storage([DEFAULT], [], [wanted])
    assert found.text == "there is no claim given, which core mounts"
    assert check_storage([], [claim("given")], [wanted]).state == "ok"
    companion = Rendered("harbor", "c", "", (claim("given", storageClassName=""),))
    assert check_storage([], [], [companion, wanted]).state == "ok"


def named(name: str, *objects: dict[str, Any]) -> Rendered:
    return Rendered("harbor", name, "", objects)


def test_a_storage_class_comes_with_an_earlier_release() -> None:
    driver = named("driver", thing("StorageClass", "nfs-csi", "storage.k8s.io/v1"))
    wanted = named("harbor", claim("data", storageClassName="nfs-csi"))
    assert check_storage([], [], [driver, wanted]).state == "ok"
    found = check_storage([], [], [wanted, driver])
    assert found.state == "failed"
    assert found.text.endswith("names, before release harbor/driver brings it")
    unnamed = named("harbor", claim("data"))
    assert check_storage([], [], [driver, unnamed]).state == "failed"
    usual = thing("StorageClass", "usual", metadata=DEFAULT["metadata"])
    assert check_storage([], [], [named("driver", usual), unnamed]).state == "ok"


def test_a_claim_comes_with_an_earlier_release() -> None:
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "given"}}]
    wanted = named("harbor", deployment(volumes=volumes))
    before = named("data", claim("given", storageClassName="", volumeName="pv"))
    assert check_storage([], [], [before, wanted]).state == "ok"
    assert check_storage([], [], [wanted, before]).state == "failed"


def test_a_claim_that_is_there_can_not_be_changed() -> None:
    there = [claim("data", storageClassName="old", accessModes=["ReadWriteOnce"])]
    same = rendered(claim("data", storageClassName="old", accessModes=["ReadWriteOnce"]))
    assert check_storage([], there, [same]).state == "ok"
    shared = rendered(claim("data", storageClassName="old", accessModes=["ReadWriteMany"]))
    found = check_storage([], there, [shared])
    assert found.state == "failed"
    assert "harbor/data is there with accessModes ['ReadWriteOnce'], and ['ReadWriteM" in found.text
    other = rendered(claim("data", storageClassName="new", accessModes=["ReadWriteOnce"]))
    assert "storageClassName old, and new" in check_storage([], there, [other]).text
    assert check_storage([], there, [rendered(claim("data"))]).state == "ok"


def test_pods_of_several_nodes_can_not_share_a_volume_of_one() -> None:
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]

    def two(mode: str, replicas: int = 2) -> Rendered:
        made = claim("data", storageClassName="fast", accessModes=[mode])
        return rendered(made, deployment(replicas=replicas, volumes=volumes))

    fast = [storage_class("fast")]
    found = check_storage(fast, [], [two("ReadWriteOnce")], nodes=2)
    assert found.state == "warning"
    assert found.text == "2 pods mount claim data, which is ReadWriteOnce"
    assert "accessMode: ReadWriteMany" in found.hint
    assert check_storage(fast, [], [two("ReadWriteOnce")], nodes=1).state == "ok"
    assert check_storage(fast, [], [two("ReadWriteOnce", 1)], nodes=2).state == "ok"
    assert check_storage(fast, [], [two("ReadWriteMany")], nodes=2).state == "ok"


def test_a_secret_comes_with_an_earlier_release() -> None:
    secret = thing("Secret", "tls")
    assert maker_of_secret([named("pki", secret)], "harbor", "tls") == "harbor/pki"
    assert maker_of_secret([named("pki", secret)], "other", "tls") == ""
    elsewhere = thing("Secret", "tls", metadata={"namespace": "other"})
    assert maker_of_secret([named("pki", elsewhere)], "other", "tls") == "harbor/pki"


def test_a_folder_of_the_node_is_not_the_other_nodes_folder() -> None:
    wanted = [rendered(thing("PersistentVolume", "v", spec={"hostPath": {"path": "/x"}}))]
    assert check_storage([], [], wanted).state == "ok"
    assert check_storage([], [], wanted, nodes=2).state == "warning"


def test_claims_of_a_former_release() -> None:
    there = [claim("d-db-0")]
    lost = check_leftovers(there, [rendered(stateful(), keys_kept=False)])
    assert lost.state == "failed"
    assert "harbor/d-db-0" in lost.text
    assert check_leftovers(there, [rendered(stateful())]).state == "ok"
    running = rendered(stateful(), keys_kept=False, found={"name": "harbor"})
    assert check_leftovers(there, [running]).text == "none"
    assert check_leftovers([], [rendered(stateful(), keys_kept=False)]).state == "ok"


# What others may have


def test_a_node_port_of_somebody_else() -> None:
    wanted = [rendered(service("harbor", 30002))]
    taken = check_ports([service("web", 30002, namespace="shop")], wanted)
    assert taken.state == "failed"
    assert taken.text == "taken: 30002 belongs to Service shop/web"
    ours = service("harbor", 30002, namespace="harbor")
    assert check_ports([ours], wanted).text == "30002 free or ours"
    health = service("lb", 31000, namespace="shop")
    health["spec"]["healthCheckNodePort"] = 30002
    assert check_ports([health], wanted).state == "failed"


def test_two_releases_that_want_the_same_node_port() -> None:
    second = Rendered("b", "harbor", "harbor", (service("harbor", 30002),))
    found = check_ports([], [rendered(service("harbor", 30002)), second])
    assert found.text == "taken: 30002 belongs to Service harbor/harbor"


def test_a_node_port_out_of_the_usual_range_is_a_warning() -> None:
    assert check_ports([], [rendered(service("harbor", 8443))]).state == "warning"
    assert check_ports([], [rendered()]).text == "none needed"


def ingress(name: str, host: str, class_name: str = "", **metadata: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {"rules": [{"host": host}]}
    if class_name:
        spec["ingressClassName"] = class_name
    return thing("Ingress", name, "networking.k8s.io/v1", metadata=metadata, spec=spec)


def test_ingress() -> None:
    nginx = {"metadata": {"name": "nginx"}}
    wanted = [rendered(ingress("harbor", "h.example", "nginx"))]
    assert check_ingress([], [nginx], wanted).state == "ok"
    assert "no IngressClass 'nginx'" in check_ingress([], [], wanted).text
    other = ingress("web", "h.example", namespace="shop")
    taken = check_ingress([other], [nginx], wanted)
    assert (taken.state, taken.text) == ("failed", "host h.example belongs to Ingress shop/web")
    ours = ingress("harbor", "h.example", namespace="harbor")
    assert check_ingress([ours], [nginx], wanted).state == "ok"
    unnamed = [rendered(ingress("harbor", "h.example"))]
    assert check_ingress([], [nginx], unnamed).state == "warning"
    nginx["metadata"]["annotations"] = {"ingressclass.kubernetes.io/is-default-class": "true"}  # type: ignore[assignment]  # an object of the API
    assert check_ingress([], [nginx], unnamed).state == "ok"
    brought = named("web", thing("IngressClass", "nginx", "networking.k8s.io/v1"))
    assert check_ingress([], [], [brought, *wanted]).state == "ok"
    assert check_ingress([], [], [*wanted, brought]).state == "failed"


def test_objects_that_are_not_the_releases_own() -> None:
    wanted = [rendered(thing("ConfigMap", "m"), thing("PersistentVolume", "v"))]
    ours = ["ConfigMap", "harbor", "m", "harbor", "harbor"]
    elsewhere = ["ConfigMap", "other", "m", "", ""]
    assert check_objects([ours, elsewhere], wanted).state == "ok"
    found = check_objects([["PersistentVolume", "", "v", "old", "harbor"]], wanted)
    assert found.state == "failed"
    assert found.text == "PersistentVolume v (release: harbor/old)"
    definition = [rendered(thing("CustomResourceDefinition", "d"))]
    known = [["CustomResourceDefinition", "", "d", "", ""]]
    assert check_objects(known, definition).state == "ok"
    found = check_objects([["ConfigMap", "harbor", "m", "", ""]], wanted)
    assert found.text == "ConfigMap m in harbor (release: nobody)"


def test_releases() -> None:
    def listed(namespace: str, name: str, chart: str) -> dict[str, str]:
        return {"namespace": namespace, "name": name, "chart": chart}

    wanted = [rendered()]
    assert check_releases([listed("harbor", "harbor", "harbor-1.18.4")], wanted).state == "ok"
    wrong = check_releases([listed("harbor", "harbor", "harbor-lite-1.2.3")], wanted)
    assert (wrong.state, wrong.text) == (
        "failed", "harbor/harbor is of chart harbor-lite-1.2.3, not of harbor",
    )  # fmt: skip
    others = [listed("b", "harbor", "harbor-1.19.0-rc.1+x"), listed("b", "web", "web-1.0.0")]
    found = check_releases(others, wanted)
    assert found.state == "ok"
    assert found.text.endswith("of the same chart: b/harbor (harbor-1.19.0-rc.1+x)")


# Rights


LISTS = [
    {
        "groupVersion": "v1",
        "resources": [
            {"name": "configmaps", "kind": "ConfigMap", "namespaced": True},
            {"name": "persistentvolumes", "kind": "PersistentVolume", "namespaced": False},
            {"name": "pods/log", "kind": "Pod", "namespaced": True},
        ],
    },
    {
        "groupVersion": "apps/v1",
        "resources": [{"name": "deployments", "kind": "Deployment", "namespaced": True}],
    },
]
ALL = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}
VOLUMES = Resource("", "persistentvolumes", namespaced=False)
NAMESPACES = Resource("", "namespaces", namespaced=False)


def review(*rules: Any, incomplete: bool = False) -> dict[str, Any]:
    return {"harbor": {"status": {"resourceRules": list(rules), "incomplete": incomplete}}}


def test_which_rights_are_wanted() -> None:
    resources = read_resources(LISTS)
    assert ("v1", "Pod") not in resources
    wanted = [rendered(deployment(), thing("PersistentVolume", "v"))]
    inside, outside = wanted_rights(resources, wanted)
    assert {str(one) for one in inside["harbor"]} == {"secrets", "deployments.apps"}
    assert outside == {VOLUMES, NAMESPACES}
    again = [rendered(deployment(), found={"name": "harbor"})]
    assert wanted_rights(resources, again)[1] == set()


def test_rights() -> None:
    wanted = {"harbor": {Resource("apps", "deployments", namespaced=True)}}
    may = check_rights(review(ALL), wanted, {NAMESPACES: True}, who="admin")
    assert (may.state, may.text) == ("ok", "admin may make all that is rendered")
    verbs = ["get", "create", "patch"]
    some = {"verbs": verbs, "apiGroups": ["apps"], "resources": ["deployments"]}
    lacking = check_rights(review(some), wanted, {NAMESPACES: False}, who="ops")
    assert lacking.state == "failed"
    assert lacking.text == "ops may not create namespaces, delete deployments.apps in harbor"
    named = {**some, "verbs": ["*"], "resourceNames": ["one"]}
    assert check_rights(review(named), wanted, {}).state == "failed"
    unlisted = check_rights(review(some, incomplete=True), wanted, {})
    assert unlisted.state == "warning"
    assert check_rights({}, wanted, {}).state == "failed"


def test_kinds_that_the_cluster_does_not_serve() -> None:
    monitor = thing("ServiceMonitor", "m", "monitoring.coreos.com/v1")
    found = check_kinds(["v1"], [rendered(monitor, thing("ConfigMap", "m"))])
    assert found.state == "failed"
    assert found.text == "the cluster has no ServiceMonitor (monitoring.coreos.com/v1)"
    definition = thing(
        "CustomResourceDefinition", "d", "apiextensions.k8s.io/v1",
        spec={"group": "monitoring.coreos.com"},
    )  # fmt: skip
    served = ["v1", "apiextensions.k8s.io/v1"]
    assert check_kinds(served, [rendered(definition), rendered(monitor)]).state == "ok"
    late = check_kinds(served, [rendered(monitor), rendered(definition)])
    assert late.state == "failed"
    assert "earlier in site.yaml" in late.hint


# Clocks


def lease(name: str, ahead: float) -> dict[str, Any]:
    at = NOW + timedelta(seconds=ahead)
    return {
        "metadata": {"name": name},
        "spec": {"renewTime": at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")},
    }


@pytest.mark.parametrize(
    ("ahead", "state"),
    [(0, "ok"), (-80, "ok"), (20, "ok"), (40, "warning"), (-99, "warning"), (400, "failed"),
     (-86400, "failed")],
)  # fmt: skip
def test_the_clock_of_a_node(ahead: float, state: str) -> None:
    found = check_clocks(NOW, NOW, NOW, [node()], [lease("n1", ahead)])
    assert found.state == state, found.text


def test_other_clocks() -> None:
    behind = check_clocks(NOW, NOW, NOW - timedelta(hours=2), [], [])
    assert (behind.state, behind.text) == (
        "failed", "seen from this machine the API server is 120 min behind",
    )  # fmt: skip
    assert check_clocks(NOW, NOW, None, [node()], []).state == "warning"
    # Whoever was asked for long has not been late.
    slow = check_clocks(NOW, NOW + timedelta(minutes=9), NOW, [node()], [lease("n1", 500)])
    assert slow.text == "the API server and 1 node within 30 s of this machine"
    # Of a node that is away the lease is old.
    gone = check_clocks(NOW, NOW, NOW, [node(ready="Unknown")], [lease("n1", -9999)])
    assert gone.state == "ok"


# Pods that pull


def pulled(phase: str = "Failed", image_id: str = "", **state: Any) -> dict[str, Any]:
    status = {"imageID": image_id, "state": state}
    return {"status": {"phase": phase, "containerStatuses": [status]}}


REFUSED = {"reason": "ErrImagePull", "message": "dial tcp 10.0.0.5:5000:\n connection refused"}


def test_pulls() -> None:
    good = pulled(image_id="seed/app@sha256:1", terminated={"reason": "StartError"})
    bad = pulled("Pending", waiting=REFUSED)
    assert check_pulls({"n1": good}, "app").state == "ok"
    found = check_pulls({"n1": good, "n2": bad, "n3": {}}, "app")
    assert found.state == "failed"
    assert found.text.startswith("2 of 3 can't: n2: ErrImagePull: dial tcp 10.0.0.5:5000: conn")
    assert found.text.endswith("n3: no answer")
    assert is_decided(good)
    assert is_decided(bad)
    assert not is_decided(pulled("Pending", waiting={"reason": "ContainerCreating"}))


def test_lookups() -> None:
    assert check_lookup("h", pulled("Succeeded")).state == "ok"
    assert check_lookup("h", pulled("Failed")).text == "pods don't find h"
    assert "ErrImagePull" in check_lookup("h", pulled("Pending", waiting=REFUSED)).text
    assert check_lookup("h", {}).state == "warning"


# All of them together


def test_one_failed_check_is_raised_as_what_it_is() -> None:
    bad = Check.refused("site.yaml", InvalidInput("no such file", hint="look"))
    error = refusal([Check("a", "ok", ""), bad, Check("b", "warning", "hm")])
    assert isinstance(error, InvalidInput)
    assert (error.message, error.hint) == ("no such file", "look")
    assert refusal([Check("a", "ok", ""), Check("b", "warning", "")]) is None


def test_several_failed_checks_are_one_error_of_the_first_ones_kind() -> None:
    bad = Check.refused("values", InvalidInput("tsl", hint="tls?"))
    error = refusal([Check("nodes", "failed", "none", "add one"), bad])
    assert type(error) is PreflightFailed
    assert error.message == (
        "2 checks failed:\n  nodes: none\n    -> add one\n  values: tsl\n    -> tls?"
    )


def test_what_is_asked_side_by_side_is_answered_or_refused() -> None:
    def refuse() -> str:
        raise DeploymentFailed("away")

    def break_off() -> str:
        raise ConnectionResetError(104, "Connection reset by peer")

    stuck = threading.Event()
    start = time.monotonic()
    found = gather(
        {"a": lambda: "yes", "b": refuse, "c": break_off, "d": lambda: str(stuck.wait(30))}, 0.5
    )
    stuck.set()
    assert time.monotonic() - start < 5
    assert found["a"] == "yes"
    assert [str(found[key]) for key in "bcd"] == [
        "away", "Connection reset by peer", "no answer within 0 s",
    ]  # fmt: skip
    with pytest.raises(ZeroDivisionError):
        gather({"a": lambda: 1 // 0})
