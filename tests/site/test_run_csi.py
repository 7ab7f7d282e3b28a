"""One bundle with Harbor and a CSI driver: Harbor's volumes are of a class that comes before it.

csi-driver-nfs is the published chart, its images are stand-ins that answer the chart's probes. The
kernel need not have an NFS client: a small provisioner of the tests (tests/site/provisioner.py)
makes folders of the node where the driver's would make folders of an export.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.site import images
from tests.site.network import NODE_IP
from tests.site.provisioner import Provisioner
from tests.site.story import INSTALLER, NEW, Story, told
from tests.site.test_run_cert_manager import VERSION as CERT_MANAGER
from tests.site.test_run_cert_manager import standins as cert_manager_images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.site.cluster import Cluster
    from tests.site.connected import Connected
    from tests.site.network import Outbound

pytestmark = pytest.mark.site

SEED = f"{NODE_IP}:5000"
NAMESPACE = "stored"
KEY = f"{NAMESPACE}/harbor"
DRIVER = "csi-driver-nfs/csi-driver-nfs"
CLASS, PROVISIONER = "nfs-csi", "nfs.csi.k8s.io"
IMAGES = {
    "csi-node-driver-registrar": "v2.17.0",
    "csi-provisioner": "v6.3.0",
    "csi-resizer": "v2.2.0",
    "csi-snapshotter": "v8.6.0",
    "livenessprobe": "v2.19.0",
    "nfsplugin": "v4.13.4",
    "snapshot-controller": "v8.6.0",
}
CLAIMS = {
    "harbor-registry": ["ReadWriteMany"],
    "harbor-jobservice": ["ReadWriteMany"],
    "database-data-harbor-database-0": ["ReadWriteOnce"],
    "data-harbor-redis-0": ["ReadWriteOnce"],
    "data-harbor-trivy-0": ["ReadWriteOnce"],
}
# Answers the probe at the address that its arguments give; without one it only waits.
_ANSWER = """
trap 'exit 0' TERM
for word; do
  case "$word" in *-http-endpoint=localhost:*) httpd -f -h /www -p 127.0.0.1:${word##*:} & ;; esac
done
while :; do sleep 1; done
"""


def standins() -> dict[str, images.Image]:
    """Make the images that the chart names."""
    answers = images.layer({"www/healthz": b"ok"})
    (shell,) = images.busybox().layers
    return {
        f"sig-storage/{name}:{tag}": images.image(
            [shell, answers, images.layer({f"etc/{name}": f"stands for {name}\n".encode()})],
            ["/bin/sh", "-c", _ANSWER, name],
        )
        for name, tag in IMAGES.items()
    }


@dataclass
class Stored(Story):
    """A site with csi-driver-nfs, then Harbor in volumes of its class."""

    @property
    def kubelet(self) -> Path:
        """What the driver takes for the kubelet's folder; below the cluster's, which cleans up."""
        return self.cluster.folder / "driver"

    def site(self, **release: Any) -> Path:
        path = super().site()
        document = yaml.safe_load(path.read_text())
        (harbor,) = document["releases"]
        order = release.pop("order", ("driver", "harbor"))
        of_driver = release.pop("driver", {})
        storage = {"storageClass": CLASS, "accessMode": "ReadWriteMany"}
        harbor["harbor"] |= {
            "expose": {"httpPort": self.port, "httpsPort": self.port + 1},
            "storage": release.pop("storage", storage),
        }
        harbor["values"] = {"registry": {"replicas": 2}}
        driver = {
            "chart": "csi-driver-nfs",
            "profile": "csi-driver-nfs",
            "values": {
                **of_driver,
                "kubeletDir": str(self.kubelet),
                "storageClass": {
                    "create": True,
                    "name": CLASS,
                    "parameters": {"server": "10.55.0.9", "share": "/srv/nfs/harbor"},
                    "mountOptions": ["hard", "nfsvers=4.1"],
                },
            },
        }
        both = {"driver": driver, "harbor": harbor | release}
        document["releases"] = [both[name] for name in order]
        path.write_text(yaml.safe_dump(document))
        return path

    def do(self, verb: str, *more: str) -> Any:
        argv = [INSTALLER, verb, *self.argv("platform", *more, "--output=json")[2:]]
        done = self.cluster.run(argv, check=False, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def claims(self) -> dict[str, dict[str, Any]]:
        text = self.cluster.kubectl(
            "get", "persistentvolumeclaims", f"--namespace={self.namespace}", "--output=json"
        )
        return {one["metadata"]["name"]: one for one in json.loads(text)["items"]}


@pytest.fixture(scope="module")
def pushed(connected: Connected) -> dict[str, str]:
    """Digest of each of the driver's images, which are upstream now."""
    for name, image in cert_manager_images().items():
        connected.upstream.push(f"jetstack/{name}:{CERT_MANAGER}", image)
    return {name: connected.upstream.push(name, image) for name, image in standins().items()}


@pytest.fixture(scope="module")
def story(
    cluster: Cluster,
    before: Outbound,
    connected: Connected,
    pushed: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stored]:
    assert pushed
    made = connected.make("platform", "2.15", product="harbor-platform")
    folder = tmp_path_factory.mktemp("stored")
    with told(Stored(cluster, folder, before, namespace=NAMESPACE, port=30052)) as story:
        story.carry("platform", made.path, connected.public_key)
        # A kubelet's folder is a shared mount, where systemd runs; the driver's pods ask for one.
        for name in ("pods", "plugins_registry"):
            (story.kubelet / name).mkdir(parents=True)
        subprocess.run(["mount", "--bind", story.kubelet, story.kubelet], check=True)
        subprocess.run(["mount", "--make-shared", story.kubelet], check=True)
        try:
            yield story
        finally:
            remove_driver(cluster)


def remove_driver(cluster: Cluster) -> None:
    """Leave the shared cluster as it was, also when the story ended early."""
    for kind, name in (("csidriver", PROVISIONER), ("storageclass", CLASS)):
        cluster.kubectl("delete", kind, name, "--ignore-not-found")
    for kind in ("clusterrole", "clusterrolebinding"):
        cluster.kubectl("delete", kind, "--selector=app.kubernetes.io/instance=csi-driver-nfs")
    cluster.kubectl("delete", "namespace", "csi-driver-nfs", "--ignore-not-found", "--wait=false")


@pytest.fixture(scope="module")
def provisioner(story: Stored) -> Iterator[Provisioner]:
    with Provisioner(story.cluster, PROVISIONER, story.folder / "export") as running:
        yield running


def test_a_class_that_comes_too_late_or_never_is_refused(story: Stored) -> None:
    late = story.run("platform", order=("harbor", "driver"))
    assert late.returncode == 5, late.stderr
    assert f"before release {DRIVER} brings it" in " ".join(late.stderr.split())
    never = story.run("platform", order=("harbor",))
    assert never.returncode == 5, never.stderr
    assert f"there is no StorageClass '{CLASS}'" in " ".join(never.stderr.split())
    assert not story.state.exists()


def test_preflight_knows_what_comes_before_harbor(story: Stored) -> None:
    checks = {one["name"]: one for one in story.do("preflight")["checks"]}
    assert checks["storage"]["state"] == "ok", checks["storage"]
    assert checks["storage"]["text"] == f"{len(CLAIMS)} claims, 0 of them are there"
    assert {one["state"] for one in checks.values()} <= {"ok", "warning"}
    warned = [name for name, one in checks.items() if one["state"] == "warning"]
    assert warned == ["insecure settings"]  # externalURL is http here


def test_the_driver_comes_first_and_harbor_has_its_volumes(
    story: Stored, provisioner: Provisioner, connected: Connected
) -> None:
    report = story.json("platform", timeout=300)
    steps = [name for name in report["changed"] if not name.startswith(("images:", "health:"))]
    assert steps == [
        "verify", "tools", "seed", "nodes", f"release:{DRIVER}", f"secrets:{KEY}",
        f"companion:{KEY}", f"release:{KEY}",
    ], (report, provisioner.failures[-3:])  # fmt: skip
    looked = {*report["changed"], *report["unchanged"]}
    assert {f"images:{NAMESPACE}", "images:csi-driver-nfs"} <= looked
    assert story.revision() == ("1", "deployed", f"harbor-{NEW}")
    wanted = set(images.HARBOR) - {"harbor-exporter"}
    story.check_pods(SEED, NEW, connected.upstream, wanted)
    found = story.claims()
    assert {name: one["spec"]["accessModes"] for name, one in found.items()} == CLAIMS
    for claim in found.values():
        assert claim["spec"]["storageClassName"] == CLASS
        assert claim["status"]["phase"] == "Bound"
        assert claim["metadata"]["annotations"]["volume.kubernetes.io/storage-provisioner"] == (
            PROVISIONER
        )
    assert {one["metadata"]["name"] for one in provisioner.volumes()} == {
        claim["spec"]["volumeName"] for claim in found.values()
    }


def test_all_of_the_drivers_images_come_from_the_seed(
    story: Stored, pushed: dict[str, str]
) -> None:
    text = story.cluster.kubectl("get", "pods", "--namespace=csi-driver-nfs", "--output=json")
    running: dict[str, set[str]] = {}
    for pod in json.loads(text)["items"]:
        (owner,) = pod["metadata"]["ownerReferences"]
        for part in pod["spec"]["containers"]:
            image, _, digest = part["image"].partition("@")
            assert digest == pushed[image.removeprefix(f"{SEED}/")]
            running.setdefault(owner["kind"], set()).add(image.rpartition("/")[2].partition(":")[0])
        for part in pod["status"]["containerStatuses"]:
            assert part["ready"], part
    both = {"nfsplugin", "livenessprobe"}
    assert running == {
        "DaemonSet": {*both, "csi-node-driver-registrar"},
        "ReplicaSet": {*both, "csi-provisioner", "csi-resizer"},
    }


def test_a_second_run_changes_nothing_and_the_site_is_well(story: Stored) -> None:
    assert story.json("platform")["changed"] == []
    lines = story.do("status")
    assert [one for one in lines if one["state"] == "failed"] == []


def test_the_driver_is_upgraded_alone_and_harbors_pods_stay(story: Stored) -> None:
    before = {pod["metadata"]["uid"] for pod in story.settled_pods()}
    changed = story.json("platform", driver={"controller": {"logLevel": 4}})["changed"]
    assert set(changed) - {"images:csi-driver-nfs"} == {f"release:{DRIVER}"}
    assert {pod["metadata"]["uid"] for pod in story.settled_pods()} == before
    # Back again, as the other tests have it.
    assert f"release:{DRIVER}" in story.json("platform")["changed"]


def test_what_a_claim_can_not_become_is_refused_before(story: Stored) -> None:
    done = story.run("platform", storage={"storageClass": CLASS})
    assert done.returncode == 5, done.stderr
    words = " ".join(done.stderr.split())
    assert f"claim {KEY}-registry is there with accessModes ['ReadWriteMany']" in words
    assert story.revision()[:2] == ("1", "deployed")


def test_uninstalled_in_reverse_order_the_data_stays_and_is_taken_over(
    story: Stored, provisioner: Provisioner, connected: Connected
) -> None:
    before = {name: one["metadata"]["uid"] for name, one in story.claims().items()}
    kept = story.folder / "export" / f"{NAMESPACE}-harbor-registry" / "kept.txt"
    kept.write_text("pushed by somebody")
    told_of = story.do("uninstall", "--yes")
    releases = [name for name in told_of["changed"] if name.count(":") == 1 and "/" in name]
    assert releases == [
        f"uninstall:{KEY}", f"uninstall:{KEY}-companion", f"uninstall:{DRIVER}",
    ]  # fmt: skip
    assert story.helm("list") == []
    assert {name: one["metadata"]["uid"] for name, one in story.claims().items()} == before
    assert {f"{NAMESPACE}/{name}" for name in before} == {
        row["where"] for row in told_of["remains"] if row["what"] == "claim"
    }
    report = story.json("platform", timeout=300)
    assert {f"release:{DRIVER}", f"release:{KEY}"} <= set(report["changed"])
    assert {name: one["metadata"]["uid"] for name, one in story.claims().items()} == before
    assert kept.read_text() == "pushed by somebody"
    assert provisioner.deleted == []
    story.check_pods(SEED, NEW, connected.upstream, set(images.HARBOR) - {"harbor-exporter"})


def test_when_told_the_driver_deletes_the_data_before_it_goes(
    story: Stored, provisioner: Provisioner, tell: Callable[[str], None]
) -> None:
    volumes = {claim["spec"]["volumeName"] for claim in story.claims().values()}
    changed = story.do("uninstall", "--yes", "--delete-data")["changed"]
    order = [f"uninstall:{KEY}", f"uninstall:data:{KEY}", f"uninstall:{DRIVER}"]
    assert [name for name in changed if name in order] == order
    assert story.claims() == {}
    # Without the driver nobody would: its provisioner looks for the driver first.
    assert provisioner.volumes() == []
    assert set(provisioner.deleted) == volumes
    assert list((story.folder / "export").iterdir()) == []
    for kind in ("csidrivers", "storageclasses"):
        assert story.cluster.kubectl("get", kind, "--output=name") == ""
    tell(story.check_silence())
