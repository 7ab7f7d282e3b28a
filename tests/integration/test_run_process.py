"""``installer run`` as a process, with the real kubectl and Helm, up to where a cluster must work.

The API server is a small one that answers what is asked before the first change. What follows on a
real cluster is in tests/site.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from installer.deploy.check import RunningImages
from installer.deploy.kubectl import Kubectl
from installer.site.model import Cluster
from installer.site.state import State
from tests.bundles import damage, make_bundle, open_bundle
from tests.upstream.charts import archive, chart_artefact
from tests.upstream.images import Content, Image, artefact, image, layer
from tests.upstream.server import Answer, LoopbackServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration import servers
    from tests.upstream.server import Request

INSTALLER = Path(sys.executable).with_name("installer")
APP = image([layer(100, "app")])
NODE = {
    "metadata": {"name": "n1"},
    "status": {"nodeInfo": {"operatingSystem": "linux", "architecture": "amd64"}},
}
POD = {"name": "pods", "namespaced": True, "kind": "Pod", "verbs": ["get", "list"]}
NODES = {"name": "nodes", "namespaced": False, "kind": "Node", "verbs": ["get", "list"]}


class ApiServer(LoopbackServer):
    """The API server of a cluster with one node and the pods that a test says."""

    pods: list[dict[str, Any]]

    def kubeconfig(self) -> str:
        return kubeconfig(self.host)

    def answer(self, request: Request) -> Answer:
        documents: dict[str, Any] = {
            "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.4"},
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
            "/api/v1": {
                "kind": "APIResourceList",
                "groupVersion": "v1",
                "resources": [POD, NODES],
            },
            "/api/v1/nodes": {"kind": "NodeList", "apiVersion": "v1", "items": [NODE]},
            "/api/v1/namespaces/app/secrets": {
                "kind": "SecretList",
                "apiVersion": "v1",
                "items": [],
            },
            "/api/v1/namespaces/app/pods": {
                "kind": "PodList",
                "apiVersion": "v1",
                "items": self.pods,
            },
        }
        if request.path not in documents:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404}
            return Answer(404, {"Content-Type": "application/json"}, json.dumps(status).encode())
        body = json.dumps(documents[request.path]).encode()
        return Answer(200, {"Content-Type": "application/json"}, body)


def kubeconfig(api: str) -> str:
    cluster = {"name": "c", "cluster": {"server": f"http://{api}"}}
    context = {"name": "c", "context": {"cluster": "c", "user": ""}}
    document = {"clusters": [cluster], "contexts": [context], "current-context": "c"}
    return json.dumps({"apiVersion": "v1", "kind": "Config", **document})


@contextmanager
def silent() -> Iterator[str]:
    """Give host:port of somebody who takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def api() -> Iterator[ApiServer]:
    server = ApiServer()
    server.pods = []
    with server:
        yield server


def tool(path: Path) -> Image:
    content = Content("application/x-executable", path.read_bytes())
    return artefact(Content("application/json", b"{}"), [content])


JOB = """{{ if .Release.IsUpgrade }}
apiVersion: batch/v1
kind: Job
metadata: {name: migrate, annotations: {helm.sh/hook: pre-upgrade}}
spec: {template: {spec: {containers: [{name: c, image: "{{ .Values.migrate.image }}"}]}}}
{{ end }}
"""


def chart(values: dict[str, Any]) -> Image:
    """A chart whose only image is that of a hook before upgrades."""
    files = {
        "app/Chart.yaml": b"apiVersion: v2\nname: app\nversion: 1.0.0\nappVersion: '1'\n",
        "app/values.yaml": yaml.safe_dump(values).encode(),
        "app/templates/job.yaml": JOB.encode(),
        "app/templates/map.yaml": (
            b"kind: ConfigMap\napiVersion: v1\nmetadata: {name: m}\n"
            b"data: {proxy: '{{ .Values.proxy }}', port: '80'}\n"
        ),
    }
    return chart_artefact(archive(files), "1.0.0", "1")


class Carried:
    """A disk with bundles and a site.yaml, and the installer to run on them."""

    def __init__(self, folder: Path, helm: Path, kubectl: Path) -> None:
        self.folder = folder
        self.state = State(folder / "state")
        self._tools = {"helm": tool(helm), "kubectl": tool(kubectl)}

    def bundle(self, serial: int = 1, *, migrate: str = "docker.io/demo/app:1") -> Path:
        values = {"migrate": {"image": migrate}, "proxy": ""}
        path, pem = make_bundle(
            self.folder / f"{serial}.tar",
            {"docker.io/demo/app:1": APP},
            charts={"app:1.0.0": chart(values)},
            tools=self._tools,
            serial=serial,
        )
        (self.folder / "key.pub").write_bytes(pem)
        return path

    def site(self, api: str, seed: dict[str, Any], **more: Any) -> None:
        (self.folder / "kubeconfig").write_text(kubeconfig(api))
        site = {
            "apiVersion": "site/v1", "kind": "Site", "name": "s", "seed": seed,
            "cluster": {"kubeconfig": "kubeconfig"}, "releases": [{"chart": "app"}], **more,
        }  # fmt: skip
        (self.folder / "site.yaml").write_text(json.dumps(site))

    def command(self, verb: str, bundle: Path, *options: str, key: str = "key.pub") -> list[str]:
        words = [str(INSTALLER), verb, str(bundle), "--key", key, "--site", "site.yaml"]
        return [*words, "--state", str(self.state.folder), *options]

    def run(
        self, verb: str, bundle: Path, *options: str, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(verb, bundle, *options),
            cwd=self.folder,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


@pytest.fixture
def carried(tmp_path: Path, helm: Path, kubectl: Path) -> Carried:
    return Carried(tmp_path, helm, kubectl)


def push_to(host: str, **more: str) -> dict[str, Any]:
    return {"push": {"registry": host, "plainHTTP": True, **more}}


# Interruption


def interrupt(carried: Carried, bundle: Path, when: Callable[[], bool]) -> str:
    """Send SIGINT once it is time; gives what the installer said."""
    process = subprocess.Popen(
        carried.command("run", bundle), cwd=carried.folder, stderr=subprocess.PIPE, text=True
    )
    with process:
        end = time.monotonic() + 60
        while not when():
            assert time.monotonic() < end
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "interrupted" in said
    return said


def test_ctrl_c_while_the_cluster_is_asked_leaves_nothing(carried: Carried) -> None:
    bundle = carried.bundle()
    with silent() as host:
        carried.site(host, push_to("127.0.0.1:1"))
        interrupt(carried, bundle, lambda: asked(host))
    assert not carried.state.folder.exists()


def test_ctrl_c_in_a_step_is_noted_and_the_state_stays_good(
    carried: Carried, api: ApiServer
) -> None:
    bundle = carried.bundle()
    with silent() as host:
        carried.site(api.host, push_to(host))
        said = interrupt(carried, bundle, lambda: asked(host))
        assert "interrupted during: Push the bundle's content" in said
        assert [(line.event, line.step) for line in carried.state.journal.lines()] == [
            ("run", ""), ("started", "verify"), ("done", "verify"), ("started", "tools"),
            ("done", "tools"), ("interrupted", "seed"),
        ]  # fmt: skip
        with carried.state.held():
            pass
        again = interrupt(carried, bundle, lambda: asked(host, count=2))
    assert "in step seed: going on from there" in again


def asked(host: str, count: int = 1) -> bool:
    """Whether somebody has connected to the address, ``count`` times in all."""
    port = f":{int(host.rpartition(':')[2]):04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return (
        sum(line.split()[1].endswith(port) and line.split()[3] != "0A" for line in lines) >= count
    )


# Serials


def test_a_damaged_newer_bundle_does_not_lock_out_the_good_one(
    carried: Carried, api: ApiServer, docker_registry: servers.DockerRegistry
) -> None:
    good, newer = carried.bundle(1), carried.bundle(2)
    carried.site(api.host, push_to(docker_registry.host))
    with open_bundle(newer, (carried.folder / "key.pub").read_bytes()) as opened:
        damage(newer, opened, APP.blobs[-1].digest, at=50)
    done = carried.run("run", newer)
    assert done.returncode == 4, done.stderr
    assert carried.run("run", good, "--plan").returncode == 0
    # Helm asks this API server in vain: what came before has been done.
    assert carried.run("run", good).returncode == 7
    assert carried.state.serials.highest == {"stable": 1}


def test_an_older_bundle_is_refused_or_recorded_once_it_was_verified(
    carried: Carried, api: ApiServer, docker_registry: servers.DockerRegistry
) -> None:
    old, new = carried.bundle(1), carried.bundle(2)
    carried.site(api.host, push_to(docker_registry.host))
    assert carried.run("run", new).returncode == 7
    assert carried.state.serials.highest == {"stable": 2}
    assert carried.run("run", old).returncode == 3
    for _ in range(2):  # the second time every byte has been verified already
        assert carried.run("run", old, "--allow-downgrade", "2 is broken").returncode == 7
    lines = carried.state.journal.lines()
    assert [line.text for line in lines if line.event == "downgrade"] == ["2 is broken"] * 2
    events = [(line.event, line.step) for line in lines]
    assert events.index(("downgrade", "")) > len(events) - 1 - events[::-1].index(
        ("done", "verify")
    )


# What is refused before the first change


def refused(carried: Carried, code: int, words: str) -> None:
    done = carried.run("run", carried.folder / "1.tar")
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert not carried.state.folder.exists()


def test_an_image_that_only_an_upgrade_needs_is_missed_in_time(
    carried: Carried, api: ApiServer
) -> None:
    bundle = carried.bundle(migrate="docker.io/demo/other:1")
    carried.site(api.host, push_to("127.0.0.1:1"))
    refused(carried, 5, "demo/other:1 (Job/migrate")
    assert carried.run("render", bundle).returncode == 5


def test_a_folder_of_containerd_that_is_not_there(carried: Carried, api: ApiServer) -> None:
    carried.bundle()
    carried.site(api.host, push_to("127.0.0.1:1"), nodes={"containerdCertsDir": "none"})
    refused(carried, 2, "nodes.containerdCertsDir: ")


def test_a_password_file_that_is_no_text(carried: Carried, api: ApiServer) -> None:
    carried.bundle()
    (carried.folder / "word").write_bytes(b"\xff\xfe")
    carried.site(api.host, push_to("127.0.0.1:1", username="u", passwordFile="word"))
    refused(carried, 2, "word: not UTF-8 text")


def test_a_port_on_which_another_program_listens(carried: Carried, api: ApiServer) -> None:
    carried.bundle()
    with silent() as host:
        carried.site(api.host, {"serve": {"listen": host, "address": host, "service": "none"}})
        refused(carried, 5, f"seed.serve.listen: {host}: Address already in use")


# The machine


@pytest.fixture
def noexec(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "noexec"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "noexec,size=500m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root, and the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_tools_run_where_tmp_is_mounted_noexec(
    carried: Carried, api: ApiServer, noexec: Path
) -> None:
    bundle = carried.bundle()
    carried.site(api.host, push_to("127.0.0.1:1"))
    done = carried.run("run", bundle, "--plan", TMPDIR=str(noexec))
    assert done.returncode == 0, done.stderr
    assert not carried.state.folder.exists()
    assert not [path for path in carried.folder.iterdir() if path.name.startswith("harbor-airgap")]


def test_a_state_folder_mounted_noexec_is_refused(
    carried: Carried, api: ApiServer, noexec: Path
) -> None:
    bundle = carried.bundle()
    carried.site(api.host, push_to("127.0.0.1:1"))
    carried.state = State(noexec / "state")
    refused(carried, 5, "mounted with noexec")
    done = carried.run("run", bundle, "--plan", TMPDIR=str(noexec))
    assert done.returncode == 5
    assert "TMPDIR" in done.stderr


def test_the_registry_is_not_asked_through_a_proxy(
    carried: Carried, api: ApiServer, docker_registry: servers.DockerRegistry
) -> None:
    bundle = carried.bundle()
    carried.site(api.host, push_to(docker_registry.host))
    done = carried.run("run", bundle, HTTP_PROXY="http://127.0.0.1:1", NO_PROXY="", no_proxy="")
    assert done.returncode == 7, done.stderr
    assert ("done", "seed") in [(e.event, e.step) for e in carried.state.journal.lines()]


def test_a_key_that_can_be_read_only_once(carried: Carried, api: ApiServer) -> None:
    bundle = carried.bundle()
    carried.site(api.host, push_to("127.0.0.1:1"))
    read, write = os.pipe()
    os.write(write, (carried.folder / "key.pub").read_bytes())
    os.close(write)
    try:
        done = subprocess.run(
            carried.command("run", bundle, "--plan", key=f"/dev/fd/{read}"),
            cwd=carried.folder, pass_fds=[read], capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        os.close(read)
    assert done.returncode == 0, done.stderr


# Rendering for people


def test_render_counts_images_of_both_renderings_and_shows_no_login(
    carried: Carried, api: ApiServer
) -> None:
    bundle = carried.bundle()
    values = {"proxy": "http://ops:pw@proxy:3128"}
    carried.site(api.host, push_to("reg.site:5000"), releases=[{"chart": "app", "values": values}])
    done = carried.run("render", bundle)
    assert done.returncode == 0, done.stderr
    assert "1 objects; all 1 images" in done.stderr
    assert f"reg.site:5000/demo/app:1@{APP.digest}" in done.stderr
    (shown,) = yaml.safe_load_all(done.stdout)
    assert shown["data"]["port"] == "80"
    assert "ops" not in done.stdout
    assert "pw@" not in done.stdout
    assert not carried.state.folder.exists()


# What runs


def pod(phase: str = "Running", *, ready: bool = True, **status: Any) -> dict[str, Any]:
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    return {
        "kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p", "namespace": "app"},
        "spec": {"containers": [{"name": "c", "image": "x"}]},
        "status": {"phase": phase, "conditions": [condition], **status},
    }  # fmt: skip


def ran(image_id: str, name: str = "c") -> list[dict[str, Any]]:
    return [{"name": name, "imageID": image_id}]


GOOD = f"reg.site:5000/demo/app@{APP.digest}"
EVIL = f"docker.io/evil/app@sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("pods", "words"),
    [
        ([pod(containerStatuses=ran(GOOD))], ""),
        ([pod(containerStatuses=ran(EVIL))], "p: container c runs docker.io/evil"),
        ([pod()], "p: container c runs nothing yet"),
        ([pod("Pending", ready=False, containerStatuses=ran(""))], "runs nothing yet"),
        ([pod(ready=False, containerStatuses=ran(GOOD))], "p: not ready"),
        ([pod(containerStatuses=ran(GOOD), initContainerStatuses=ran(EVIL, "i"))], "container i "),
        (
            [pod(containerStatuses=ran(GOOD), ephemeralContainerStatuses=ran(EVIL, "debug"))],
            "container debug runs docker.io/evil",
        ),
        ([pod("Succeeded", ready=False, containerStatuses=ran(GOOD))], ""),
        ([pod("Succeeded", ready=False, containerStatuses=ran(EVIL))], "can be deleted"),
        ([pod("Failed", ready=False, containerStatuses=ran(EVIL))], "docker.io/evil"),
        ([pod("Failed", ready=False)], ""),  # evicted before it ran
        ([], ""),  # its chart has nothing that runs
    ],
)
def test_every_container_of_every_pod_is_looked_at(
    tmp_path: Path, kubectl: Path, api: ApiServer, pods: list[dict[str, Any]], words: str
) -> None:
    api.pods = pods
    (tmp_path / "k").write_text(api.kubeconfig())
    path, pem = make_bundle(tmp_path / "b.tar", {"docker.io/demo/app:1": APP})
    client = Kubectl(kubectl, Cluster(str(tmp_path / "k")), tmp_path / "cache")
    with open_bundle(path, pem) as bundle:
        step = RunningImages("app", bundle, client, [])
        assert step.check() == (not words)
        assert words in "\n".join(step.problems())
