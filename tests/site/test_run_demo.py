"""The demo site: HAProxy with a self-signed certificate, a shared volume, an external PostgreSQL.

All of it real but the volume: the kernel that this runs on need not have an NFS client, so that a
folder of the node stands behind the same PersistentVolume, claim and subPaths.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.integration.servers import free_port
from tests.postgresql import Server, as_postgres, initialised, postgresql
from tests.programs import ProgramMissing
from tests.site import images
from tests.site.network import NODE_IP, POD_NET
from tests.site.story import NEW, OLD, Story, connects, told
from tests.upstream.certificates import make_certificates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.site.cluster import Cluster
    from tests.site.connected import Connected, Made
    from tests.site.network import Outbound

pytestmark = pytest.mark.site

DEMO = Path(__file__).parents[2] / "manifests" / "sites" / "demo.yaml"
SEED = f"{NODE_IP}:5000"
URL = f"https://{NODE_IP}:8443"
RUNNING = set(images.HARBOR) - {"harbor-db"}
_ASK = """
import ssl, sys, urllib.request
context = ssl.create_default_context(cafile=sys.argv[2])
with urllib.request.urlopen(sys.argv[1], context=context, timeout=20) as answer:
    print(answer.status)
"""


@dataclass
class Demo(Story):
    """The shipped demo site with this cluster's addresses."""

    database: Server = field(kw_only=True)

    @property
    def volume(self) -> Path:
        return self.folder / "volume"

    @property
    def configuration(self) -> Path:
        return self.folder / "haproxy.cfg"

    def site(self, **release: Any) -> Path:
        document = yaml.safe_load(DEMO.read_text())
        document["cluster"]["kubeconfig"] = str(self.cluster.kubeconfig)
        document["nodes"]["containerdCertsDir"] = str(self.cluster.certs_dir)
        document["seed"]["serve"] |= {"address": SEED, "service": "none"}
        (harbor,) = document["releases"]
        harbor["namespace"] = self.namespace
        section = harbor["harbor"]
        section["externalURL"] = URL
        section["acceptance"] = False  # the stand-ins are no Harbor that can be used
        section["expose"]["httpPort"] = self.port
        section["storage"] = {"hostPath": {"path": str(self.volume), "size": "1Gi"}}
        section["database"] |= {
            "host": NODE_IP,
            "port": self.database.port,
            "ca": self.database.ca,
            "admin": {"username": "postgres", "passwordFile": self.database.admin.password_file},
        }
        section["loadBalancer"]["haproxy"] = {
            "nodes": [NODE_IP],
            "listen": f"{NODE_IP}:8443",
            "redirect": f"{NODE_IP}:8080",
            "service": False,
            "file": str(self.configuration),
        }
        harbor |= release
        path = self.folder / "site.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def get(self, path: str) -> str:
        ca = self.state / "tls" / self.namespace / "harbor" / "ca.crt"
        return self.cluster.run([sys.executable, "-c", _ASK, URL + path, str(ca)]).stdout.strip()


@pytest.fixture(scope="module")
def database(cluster: Cluster) -> Iterator[Server]:
    """Give the site's PostgreSQL, inside the namespace."""
    try:
        program = postgresql("postgres")
        with initialised() as folder:
            make_certificates(folder / "tls", [NODE_IP, "postgresql.site.test"])
            (folder / "data/pg_hba.conf").write_text(
                f"local all all trust\nhostssl all all {NODE_IP}/32 scram-sha-256\n"
                # Harbor's pods, and the one that dumps before an upgrade.
                f"hostssl registry harbor {POD_NET} scram-sha-256\n"
            )
            subprocess.run(["chown", "-R", "postgres:postgres", folder], check=True)
            server = Server(free_port(), folder)
            options = {
                "listen_addresses": NODE_IP,
                "port": str(server.port),
                "unix_socket_directories": str(folder),
                "ssl": "on",
                "ssl_cert_file": str(folder / "tls/server.pem"),
                "ssl_key_file": str(folder / "tls/server.key"),
            }
            command = as_postgres(program, "-D", folder / "data")
            command += [f"--{key}={text}" for key, text in options.items()]
            cluster.spawn("postgres", command)
            deadline = time.monotonic() + 30
            while connects(cluster, f"{NODE_IP}:{server.port}"):
                assert time.monotonic() < deadline, cluster.log("postgres").read_text()
                time.sleep(0.2)
            yield server
            cluster.stop("postgres")
    except ProgramMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def story(
    cluster: Cluster,
    before: Outbound,
    database: Server,
    connected: Connected,
    bundles: Mapping[str, Made],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Demo]:
    if shutil.which("haproxy", path="/usr/sbin") is None:
        pytest.skip("haproxy is missing: apt-get install haproxy")
    folder = tmp_path_factory.mktemp("demo")
    with told(
        Demo(cluster, folder, before, namespace="demo", port=30062, database=database)
    ) as story:
        for name in ("old", "new"):
            story.carry(name, bundles[name].path, connected.public_key)
        yield story
        cluster.stop("haproxy")
        volume = f"demo-{story.namespace}-harbor"
        cluster.kubectl("delete", "persistentvolume", volume, "--wait=false", "--ignore-not-found")


def start_haproxy(story: Demo) -> threading.Thread:
    """Do what the person does who is told to: start HAProxy when its configuration is there."""

    def wait() -> None:
        while not story.configuration.exists():
            time.sleep(0.2)
        command = ["haproxy", "-db", "-f", str(story.configuration)]
        story.cluster.spawn("haproxy", command)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_the_plan_names_every_part_and_touches_nothing(story: Demo) -> None:
    done = story.run("old", "--plan")
    assert done.returncode == 0, done.stderr
    for sentence in (
        f"Make a certificate for {URL}",
        "Prepare database registry for role harbor",
        "Give demo/harbor the volume",
        "Install or upgrade demo/harbor to harbor 1.18.4",
    ):
        assert sentence in done.stdout, done.stdout
    assert not story.state.exists()
    assert not story.volume.exists()
    assert not story.configuration.exists()
    assert story.database.run("SELECT count(*) FROM pg_roles WHERE rolname = 'harbor'") == [[0]]


def test_it_installs_with_all_its_parts(story: Demo, connected: Connected) -> None:
    started = start_haproxy(story)
    report = story.json("old")
    started.join(10)
    assert report["changed"] == [
        "verify", "tools", "seed", "certificate:demo/harbor", "nodes", "secrets:demo/harbor",
        "database:demo/harbor", "companion:demo/harbor", "release:demo/harbor",
        "loadbalancer:demo/harbor", "health:demo/harbor",
    ]  # fmt: skip
    assert story.revision_of("harbor") == ("1", "deployed", f"harbor-{OLD}")
    story.check_pods(SEED, OLD, connected.upstream, RUNNING)


def test_each_component_has_its_folder(story: Demo) -> None:
    owners = {path.name: path.stat().st_uid for path in story.volume.iterdir()}
    wanted = {"registry": 10000, "jobservice": 10000, "trivy": 10000, "redis": 999, "database": 999}
    assert owners == wanted
    mounted = {
        (volume["persistentVolumeClaim"]["claimName"], mount["subPath"])
        for pod in story.pods()
        for volume in pod["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
        for container in pod["spec"]["containers"]
        for mount in container["volumeMounts"]
        if mount["name"] == volume["name"] and "subPath" in mount
    }
    assert mounted == {
        ("harbor-data", name) for name in ("registry", "jobservice", "redis", "trivy")
    }


def test_the_database_is_harbors(story: Demo) -> None:
    assert story.database.owner("registry") == "harbor"
    secret = story.cluster.kubectl(
        "get", "secret", "harbor-core", f"--namespace={story.namespace}", "--output=yaml"
    )
    assert "POSTGRESQL_PASSWORD" in secret


def test_people_reach_it_through_haproxy(story: Demo) -> None:
    assert story.get("/api/v2.0/health") == "200"
    hosts = story.cluster.certs_dir / f"{NODE_IP}:8443"
    assert (hosts / "ca.crt").read_bytes() == (
        story.state / "tls" / story.namespace / "harbor" / "ca.crt"
    ).read_bytes()


def test_a_second_run_changes_nothing(story: Demo) -> None:
    # Secrets that are only needed once may be gone.
    password = Path(story.database.admin.password_file)
    kept = password.read_bytes()
    password.unlink()
    try:
        assert story.json("old")["changed"] == []
    finally:
        password.write_bytes(kept)


def test_the_next_bundle_upgrades_what_changed(story: Demo, connected: Connected) -> None:
    report = story.json("new")
    assert "release:demo/harbor" in report["changed"]
    assert not {"certificate:demo/harbor", "database:demo/harbor"} & set(report["changed"])
    assert story.revision_of("harbor") == ("2", "deployed", f"harbor-{NEW}")
    story.check_pods(SEED, NEW, connected.upstream, RUNNING)
    assert story.get("/api/v2.0/health") == "200"
    assert story.json("new")["changed"] == []


def test_nothing_tried_to_leave(story: Demo, tell: Callable[[str], None]) -> None:
    tell(story.check_silence())
