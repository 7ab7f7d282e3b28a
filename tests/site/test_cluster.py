"""The cluster is what the other site tests take it for: real, cut off, counting, and gone after."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.site import images, registry
from tests.site.build import KUBERNETES
from tests.site.cluster import Cluster, ClusterFailed, CommandFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.site

REGISTRY = "registry.site.test:5000"
CONNECT = "import socket; socket.create_connection(('192.0.2.1', 443), timeout=5)"  # RFC 5737
POD = """
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: IMAGE
    command: [sh, -c, "mkdir /www && hostname > /www/index.html && exec httpd -f -p 8080 -h /www"]
    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 31080}]
"""


@pytest.fixture(scope="module")
def image(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Reference of busybox in a registry in the namespace, known to containerd by hosts.toml."""
    storage = tmp_path_factory.mktemp("registry")
    with registry.Registry(storage) as outside:  # filled on loopback, then served inside
        digest = images.push_image(outside.url, "test/busybox", "1", images.busybox())
    address = f"{cluster.node_ip}:5000"
    configuration = storage / "inside.yml"
    configuration.write_text(registry.configuration_text(storage, address))
    cluster.spawn("registry", ["docker-registry", "serve", configuration])
    folder = cluster.certs_dir / REGISTRY
    folder.mkdir()
    (folder / "hosts.toml").write_text(
        f'server = "http://{address}"\n'
        f'[host."http://{address}"]\ncapabilities = ["pull", "resolve"]\n'
    )
    yield f"{REGISTRY}/test/busybox@{digest}"
    cluster.stop("registry")


@pytest.fixture(scope="module")
def pod(cluster: Cluster, image: str) -> Iterator[str]:
    manifests = POD.replace("IMAGE", image)
    cluster.kubectl("apply", "--filename=-", stdin=manifests)
    cluster.kubectl("wait", "--for=condition=Ready", "pod/web", "--timeout=60s")
    yield "web"
    cluster.kubectl("delete", "--filename=-", "--wait", stdin=manifests)


def test_the_node_is_ready_and_is_the_version_that_was_built(cluster: Cluster) -> None:
    (node,) = json.loads(cluster.kubectl("get", "nodes", "--output=json"))["items"]
    conditions = {one["type"]: one["status"] for one in node["status"]["conditions"]}
    assert conditions["Ready"] == "True"
    assert node["status"]["nodeInfo"]["kubeletVersion"] == f"v{KUBERNETES}"


def test_there_is_no_way_out(cluster: Cluster) -> None:
    assert cluster.run(["ip", "route", "show", "default"]).stdout == ""
    assert cluster.run(["ip", "-6", "route", "show", "default"]).stdout == ""
    with pytest.raises(CommandFailed, match="Network is unreachable"):
        cluster.run([sys.executable, "-c", CONNECT])


def test_a_pod_is_pulled_through_hosts_toml(cluster: Cluster, pod: str, image: str) -> None:
    status = json.loads(cluster.kubectl("get", "pod", pod, "--output=json"))["status"]
    digest = image.partition("@")[2]
    assert status["containerStatuses"][0]["imageID"].endswith(digest)


@pytest.mark.parametrize("host", ["127.0.0.1", "NODE"])
def test_a_node_port_answers(cluster: Cluster, pod: str, host: str) -> None:
    address = host.replace("NODE", cluster.node_ip)
    assert _get(cluster, f"http://{address}:31080/") == f"{pod}\n"


def test_a_pod_finds_a_service_and_the_site_by_name(cluster: Cluster, pod: str) -> None:
    service = cluster.kubectl("get", "service", "web", "--output=jsonpath={.spec.clusterIP}")
    assert service in _in_pod(cluster, pod, "nslookup", "web.default.svc.cluster.local")
    assert cluster.node_ip in _in_pod(cluster, pod, "nslookup", "harbor.site.test")


def test_nothing_is_counted_while_nothing_tries(cluster: Cluster, pod: str) -> None:
    before = cluster.outbound()
    _get(cluster, f"http://{cluster.node_ip}:31080/")
    _in_pod(cluster, pod, "nslookup", "web.default.svc.cluster.local")
    assert cluster.outbound().since(before).attempts == 0


def test_a_connect_from_the_node_is_counted(cluster: Cluster) -> None:
    before = cluster.outbound()
    cluster.run([sys.executable, "-c", CONNECT], check=False)
    tried = cluster.outbound().since(before)
    assert tried.from_node >= 1
    assert tried.attempts >= 1


def test_a_connect_from_a_pod_is_counted_with_its_destination(cluster: Cluster, pod: str) -> None:
    before = cluster.outbound()
    with pytest.raises(CommandFailed, match="Network is unreachable"):
        _in_pod(cluster, pod, "wget", "-q", "-O", "-", "http://192.0.2.1/")
    tried = cluster.outbound().since(before)
    assert tried.from_pods >= 1
    assert tried.destinations["192.0.2.1"] >= 1


def test_a_pull_that_no_mirror_answers_is_counted(cluster: Cluster) -> None:
    before = cluster.outbound()
    cluster.kubectl("run", "lost", "--image=docker.io/library/busybox:1", "--restart=Never")
    try:
        state = "--for=jsonpath={.status.containerStatuses[0].state.waiting.reason}"
        cluster.kubectl("wait", "pod/lost", f"{state}=ErrImagePull", "--timeout=30s")
    finally:
        cluster.kubectl("delete", "pod", "lost", "--now")
    tried = cluster.outbound().since(before)
    # containerd asks the host's DNS server: either on a network that is not here, or on loopback
    assert tried.from_node + tried.lookups >= 1


def test_a_name_outside_is_refused_and_noted(cluster: Cluster, pod: str) -> None:
    before = cluster.outbound()
    with pytest.raises(CommandFailed):
        _in_pod(cluster, pod, "nslookup", "ghcr.io.")
    assert set(cluster.outbound().since(before).names) == {"ghcr.io"}


def test_down_leaves_nothing_even_from_another_process(cluster_folder: Path) -> None:
    started = Cluster(cluster_folder)
    try:
        started.up()
        inside = started._namespace.processes()
        assert len(inside) >= 8
    finally:
        command = [sys.executable, "-m", "tests.site.cluster", f"--folder={cluster_folder}", "down"]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
        started.down()  # a second time does no harm, and reaps this process's children
    _assert_gone(started)
    assert not [pid for pid in inside if _runs(pid)]


def test_down_cleans_up_after_a_failed_up(cluster_folder: Path) -> None:
    failing = Cluster(cluster_folder)
    try:
        with pytest.raises(ClusterFailed, match="not ready in time"):
            failing.up(seconds=0.5)
    finally:
        failing.down()
    _assert_gone(failing)


def _assert_gone(cluster: Cluster) -> None:
    assert not cluster.folder.exists()
    assert not Path("/run/netns", cluster.name).exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"*/{cluster.name}"))
    assert str(cluster.folder) not in Path("/proc/self/mounts").read_text()


def _runs(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def _in_pod(cluster: Cluster, pod: str, *command: str) -> str:
    return cluster.kubectl("exec", pod, "--", *command)


def _get(cluster: Cluster, url: str) -> str:
    """Fetch by busybox; kube-proxy takes a moment to write the rules for a new Service."""
    for _ in range(20):
        done = cluster.run(["busybox", "wget", "-q", "-O", "-", url], check=False)
        if done.returncode == 0:
            return done.stdout
        time.sleep(0.5)
    raise AssertionError(f"{url}: {done.stderr}")
