"""The production site: two of everything, and each connection over TLS, from its first bundle on.

The shipped file with this cluster's addresses. What stands in: a folder of the node for the NFS
export (the kernel that this runs on need not have an NFS client), and Debian's HAProxy for the
ingress controller: it has the routes of the real Ingress and the certificate of the Secret that it
names, and it verifies Harbor's pods by the names of their Services, which ingress-nginx does not.
PostgreSQL and Redis are Debian's. The node has two cores, so that the pods request less of them.
"""

from __future__ import annotations

import base64
import json
import shutil
import ssl
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from installer.harbor.values import INTERNAL
from installer.site.authority import ensure_certificates, utc_now
from tests.integration.servers import free_port
from tests.programs import ProgramMissing
from tests.redis import LINES, Redis, redis_server
from tests.site import images
from tests.site.network import NODE_IP, SITE_NAMES
from tests.site.story import INSTALLER, NEW, OLD, connects, told

# `database` is a fixture: pytest finds it by its name here.
from tests.site.test_run_demo import (
    SEED,
    Demo,
    database,  # noqa: F401
)
from tests.upstream.certificates import make_certificates

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Mapping

    from tests.postgresql import Server
    from tests.site.cluster import Cluster
    from tests.site.connected import Connected, Made
    from tests.site.network import Outbound

pytestmark = pytest.mark.site

PRODUCTION = Path(__file__).parents[2] / "manifests" / "sites" / "production.yaml"
HOST = "harbor.site.test"
NAMESPACE = "prod"
KEY = f"{NAMESPACE}/harbor"
RUNNING = set(images.HARBOR) - {"harbor-db", "redis-photon", "nginx-photon"}
TWICE = ("core", "exporter", "jobservice", "portal", "registry")
DATABASE_PASSWORD = "of the role, 3 of a kind"
_ASK = """
import socket, ssl, sys
address, port, name, ca, path = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
with socket.create_connection((address, int(port)), timeout=20) as plain:
    with context.wrap_socket(plain, server_hostname=name) as tls:
        tls.sendall(f"GET {path} HTTP/1.0\\r\\nHost: {name}\\r\\n\\r\\n".encode())
        print(tls.makefile().readline().split()[1])
"""


@dataclass
class Production(Demo):
    """The shipped production site with this cluster's addresses; ``heard`` is all it printed."""

    redis: Redis = field(kw_only=True)
    heard: list[str] = field(default_factory=list)

    @property
    def password_file(self) -> Path:
        return self.folder / "harbor-db.password"

    @property
    def internal(self) -> Path:
        return self.state / "tls" / KEY / "internal"

    @property
    def configuration(self) -> Path:
        return self.folder / "ingress.cfg"

    def site(self, **release: Any) -> Path:
        document = yaml.safe_load(PRODUCTION.read_text())
        document["cluster"]["kubeconfig"] = str(self.cluster.kubeconfig)
        document["nodes"] = {"containerdCertsDir": str(self.cluster.certs_dir)}
        document["seed"]["serve"] |= {"listen": SEED, "address": SEED, "service": "none"}
        (harbor,) = document["releases"]
        harbor["namespace"] = self.namespace
        harbor["timeout"] = 300
        section = harbor["harbor"]
        section["externalURL"] = f"https://{HOST}"
        section["acceptance"] = False  # the stand-ins are no Harbor that can be used
        section["expose"]["ingressClass"] = NAMESPACE
        tls = self.folder / "tls"
        section["certificate"]["provided"] = {
            "certificate": str(tls / "server.pem"),
            "key": str(tls / "server.key"),
            "ca": str(tls / "ca.pem"),
        }
        section["storage"] = {"hostPath": {"path": str(self.volume), "size": "1Gi"}}
        section["database"] |= {
            "host": "postgresql.site.test",
            "port": self.database.port,
            "passwordFile": str(self.password_file),
            "ca": self.database.ca,
        }
        section["redis"] |= {
            "addresses": [f"redis.site.test:{self.redis.port}"],
            "passwordFile": str(self.redis.password_file),
            "ca": str(self.redis.folder / "tls" / "ca.pem"),
        }
        section |= release.pop("harbor", {})
        _lower(harbor["values"])
        if not release.pop("budgets", False):  # the chart before knows none
            for component in harbor["values"].values():
                component.pop("podDisruptionBudget", None)
        harbor["values"] |= release.pop("values", {})
        harbor |= release
        path = self.folder / "site.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def called(self, verb: str, bundle: str, *more: str, **release: Any) -> Any:
        """Run a command where the site's names are in /etc/hosts, in mounts of its own."""
        hosts = self.folder / "hosts"
        hosts.write_text(f"127.0.0.1 localhost\n{NODE_IP} {' '.join(SITE_NAMES)}\n")
        script = 'mount --bind "$0" /etc/hosts && exec "$@"'
        private = ["unshare", "--mount", "--propagation=private", "/bin/sh", "-c", script]
        argv = self.argv(bundle, *more, **release)
        return self.cluster.run(
            [*private, hosts, INSTALLER, verb, *argv[2:]], check=False, timeout=900
        )

    def run(self, bundle: str, *more: str, **release: Any) -> subprocess.CompletedProcess[str]:
        done: subprocess.CompletedProcess[str] = self.called("run", bundle, *more, **release)
        self.heard.append(done.stdout + done.stderr)
        return done

    def told_json(self, verb: str, bundle: str, *more: str, code: int = 0, **release: Any) -> Any:
        done = self.called(verb, bundle, "--output=json", *more, **release)
        assert done.returncode == code, done.stderr
        self.heard.append(done.stdout + done.stderr)
        return json.loads(done.stdout)

    def object(self, kind: str, name: str) -> dict[str, Any]:
        there = f"--namespace={self.namespace}"
        text = self.cluster.kubectl("get", kind, name, there, "--output=json")
        found: dict[str, Any] = json.loads(text)
        return found

    def names(self, kind: str) -> set[str]:
        there = f"--namespace={self.namespace}"
        listed = self.cluster.kubectl("get", kind, there, "--output=name").split()
        return {name.rpartition("/")[2] for name in listed}

    def secret(self, component: str) -> dict[str, bytes]:
        data = self.object("secret", f"harbor-internal-{component}-tls")["data"]
        return {key: base64.b64decode(text) for key, text in data.items()}

    def in_pod(self, component: str, *command: str) -> str:
        there = f"--namespace={self.namespace}"
        kind = "statefulset" if component == "trivy" else "deployment"
        return self.cluster.kubectl("exec", there, f"{kind}/harbor-{component}", "--", *command)

    def pods_of(self, component: str) -> set[str]:
        return {
            pod["metadata"]["uid"]
            for pod in self.settled_pods()
            if pod["metadata"]["labels"].get("component") == component
        }

    def ask(self, name: str, port: int, path: str, ca: Path, address: str = "") -> str:
        """Status of an HTTPS request to a Service, or to an address, verified by its name."""
        address = address or self.object("service", name)["spec"]["clusterIP"]
        argv = [sys.executable, "-c", _ASK, address, str(port), name, str(ca), path]
        return self.cluster.run(argv).stdout.strip()

    def health(self) -> str:
        return self.ask(HOST, 443, "/api/v2.0/health", self.folder / "tls" / "ca.pem", NODE_IP)


def _lower(value: Any) -> None:
    """Let pods request hardly any CPU: in the profile they are more than this node has."""
    if not isinstance(value, dict):
        return
    for key, child in value.items():
        if key == "requests":
            child["cpu"] = "10m"
        _lower(child)


def serve_ingress(story: Production) -> threading.Thread:
    """Do what a controller does when the Ingress comes: route by it, with the Secret it names."""

    def wait() -> None:
        while "harbor-ingress" not in story.names("ingress"):
            time.sleep(0.5)
        ingress = story.object("ingress", "harbor-ingress")["spec"]
        assert ingress["ingressClassName"] == NAMESPACE
        ((host,), secret) = ingress["tls"][0]["hosts"], ingress["tls"][0]["secretName"]
        data = story.object("secret", secret)["data"]
        pem = story.folder / "ingress.pem"
        pem.touch(mode=0o600)
        pem.write_bytes(b"".join(base64.b64decode(data[key]) for key in ("tls.crt", "tls.key")))
        (rule,) = ingress["rules"]
        assert rule["host"] == host == HOST
        lines = [
            "resolvers default", " nameserver unused 127.0.0.1:53",  # else it takes resolv.conf's
            "defaults", " mode http", " timeout connect 5s", " timeout client 30s",
            " timeout server 30s",
            "frontend f", f" bind {NODE_IP}:443 ssl crt {pem}",
        ]  # fmt: skip
        backends = []
        longest = sorted(rule["http"]["paths"], key=lambda p: len(p["path"]), reverse=True)
        for one in longest:
            service = one["backend"]["service"]
            name, port = service["name"], service["port"]["number"]
            lines.append(f" use_backend {name} if {{ path_beg {one['path']} }}")
            address = story.object("service", name)["spec"]["clusterIP"]
            verified = f"ssl verify required ca-file {story.internal}/ca.crt verifyhost {name}"
            backends += [f"backend {name}", f" server s {address}:{port} {verified}"]
        text = "\n".join([*lines, *dict.fromkeys(backends)]) + "\n"
        story.configuration.write_text(text)
        story.cluster.spawn("ingress", ["haproxy", "-db", "-f", str(story.configuration)])

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def redis(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """Give the site's Redis, inside the namespace: a password and TLS, as the profile has it."""
    folder = tmp_path_factory.mktemp("redis")
    tls = make_certificates(folder / "tls", ["redis.site.test"])
    lines = (*LINES, "tls-auth-clients no")
    try:
        redis_server()
    except ProgramMissing as missing:
        pytest.skip(str(missing))
    server = Redis(folder, NODE_IP, free_port(), lines, tls)
    cluster.spawn("redis", server.command())
    deadline = time.monotonic() + 30
    while connects(cluster, server.address):
        assert time.monotonic() < deadline, cluster.log("redis").read_text()
        time.sleep(0.2)
    yield server
    cluster.stop("redis")


@pytest.fixture(scope="module")
def story(
    cluster: Cluster,
    before: Outbound,
    database: Server,  # noqa: F811 (the fixture above)
    redis: Redis,
    connected: Connected,
    bundles: Mapping[str, Made],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Production]:
    if shutil.which("haproxy", path="/usr/sbin") is None:
        pytest.skip("haproxy is missing: apt-get install haproxy")
    folder = tmp_path_factory.mktemp("production")
    made = Production(cluster, folder, before, namespace=NAMESPACE, database=database, redis=redis)
    make_certificates(folder / "tls", [HOST])
    made.password_file.touch(mode=0o600)
    made.password_file.write_text(f"{DATABASE_PASSWORD}\n")
    # What those do who run PostgreSQL: the role owns the database.
    database.run(f"CREATE ROLE harbor LOGIN PASSWORD '{DATABASE_PASSWORD}'")
    database.run("CREATE DATABASE registry OWNER harbor")
    kind = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IngressClass",
        "metadata": {"name": NAMESPACE},
        "spec": {"controller": "site.test/haproxy"},
    }
    with told(made) as story:
        cluster.kubectl("create", "--filename=-", stdin=json.dumps(kind))
        for name in ("old", "new"):
            story.carry(name, bundles[name].path, connected.public_key)
        yield story
        cluster.stop("ingress")
        cluster.kubectl("delete", "ingressclass", NAMESPACE)
        volume = f"production-{NAMESPACE}-harbor"
        cluster.kubectl("delete", "persistentvolume", volume, "--wait=false", "--ignore-not-found")


def test_preflight_asks_each_that_harbor_needs(story: Production) -> None:
    checks = {c["name"]: c for c in story.told_json("preflight", "old")["checks"]}
    redis = f"redis.site.test:{story.redis.port}"
    assert checks[f"Redis {redis} {KEY}"]["text"] == f"{redis} answers over TLS"
    for name in (f"database {KEY}", f"internal TLS {KEY}", "ingress", f"DNS {KEY}"):
        assert checks[name]["state"] == "ok", checks[name]
    assert not story.state.exists()


def test_preflight_refuses_a_redis_that_harbor_could_not_use(story: Production) -> None:
    address = f"redis.site.test:{story.redis.port}"
    ours = {"addresses": [address], "passwordFile": str(story.redis.password_file), "tls": True}
    other = str(story.folder / "tls" / "ca.pem")
    password = {
        "passwordFile": str(story.password_file),
        "ca": str(story.redis.folder / "tls/ca.pem"),
    }
    story.password_file.write_text("guessed\n")
    try:
        for section, words in (
            (ours | {"ca": other}, "its certificate is refused: "),
            (ours | password, "WRONGPASS"),
        ):
            found = story.told_json("preflight", "old", code=5, harbor={"redis": section})
            (check,) = [c for c in found["checks"] if c["name"] == f"Redis {address} {KEY}"]
            assert check["state"] == "failed"
            assert words in check["text"]
    finally:
        story.password_file.write_text(f"{DATABASE_PASSWORD}\n")


def test_certificates_are_the_sections_or_a_persons_own(story: Production) -> None:
    both = story.run("old", "--plan", values={"internalTLS": {"certSource": "auto"}})
    assert both.returncode == 2, both.stderr
    assert "values: internalTLS.certSource: the installer fills it" in both.stderr


def test_it_installs(story: Production, connected: Connected) -> None:
    started = serve_ingress(story)
    report = story.json("old")
    started.join(10)
    assert report["changed"][:8] == [
        "verify", "tools", "seed", "nodes", f"secrets:{KEY}", f"internal-tls:{KEY}",
        f"companion:{KEY}", f"release:{KEY}",
    ]  # fmt: skip
    assert story.revision_of("harbor") == ("1", "deployed", f"harbor-{OLD}")
    story.check_pods(SEED, OLD, connected.upstream, RUNNING)
    counted = {component: len(story.pods_of(component)) for component in (*TWICE, "trivy")}
    assert counted == dict.fromkeys(TWICE, 2) | {"trivy": 1}
    assert story.names("services") >= {f"harbor-{one}" for one in INTERNAL}


def test_each_component_has_a_certificate_of_its_own(story: Production) -> None:
    roots = {story.secret(component)["ca.crt"] for component in INTERNAL}
    assert len(roots) == 1
    root = x509.load_pem_x509_certificate(roots.pop())
    keys = set()
    for component in INTERNAL:
        data = story.secret(component)
        leaf = x509.load_pem_x509_certificate(data["tls.crt"])
        leaf.verify_directly_issued_by(root)
        key = serialization.load_pem_private_key(data["tls.key"], None)
        assert key.public_key() == leaf.public_key()
        keys.add(data["tls.key"])
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert f"harbor-{component}" in names.get_values_for_type(x509.DNSName)
        purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert {one.dotted_string[-1] for one in purposes} == {"1", "2"}  # server and client
        mounted = f"/etc/harbor/ssl/{component}"
        for name in ("tls.crt", "tls.key", "ca.crt"):
            assert story.in_pod(component, "cat", f"{mounted}/{name}").encode() == data[name]
    assert len(keys) == len(INTERNAL)
    outside = story.object("secret", "harbor-external-tls")["data"]["tls.crt"]
    with pytest.raises(ValueError, match=r"(?i)issuer|subject"):
        x509.load_pem_x509_certificate(base64.b64decode(outside)).verify_directly_issued_by(root)


def test_each_component_is_reached_over_tls_by_its_services_name(story: Production) -> None:
    ca = story.internal / "ca.crt"
    asked = {
        ("core", 443): "/api/v2.0/ping",
        ("jobservice", 443): "/api/v1/stats",
        ("portal", 443): "/",
        ("registry", 5443): "/",
        ("registry", 8443): "/api/health",
        ("trivy", 8443): "/probe/healthy",
    }
    for (component, port), path in asked.items():
        assert story.ask(f"harbor-{component}", port, path, ca) == "200", component
        ports = {p["port"] for p in story.object("service", f"harbor-{component}")["spec"]["ports"]}
        assert not {80, 8080, 5000} & ports
    core = dict(
        line.partition("=")[::2]
        for line in story.in_pod("core", "cat", "/proc/1/environ").split("\0")
    )
    assert core["INTERNAL_TLS_ENABLED"] == "true"
    urls = {key: text for key, text in core.items() if key.endswith("_URL") and "harbor-" in text}
    assert len(urls) > 5
    assert all(text.startswith("https://") for text in urls.values()), urls
    assert core["_REDIS_URL_CORE"].startswith("rediss://")
    assert core["POSTGRESQL_SSLMODE"] == "verify-full"
    given = story.in_pod("core", "cat", "/harbor_cust_cert/custom-ca.crt")
    assert given.count("BEGIN CERTIFICATE") == 3  # PostgreSQL's, Redis' and the seed registry's


def test_people_and_nodes_reach_it_through_the_ingress(story: Production) -> None:
    assert story.health() == "200"
    ca = story.folder / "tls" / "ca.pem"
    assert story.ask(HOST, 443, "/", ca, NODE_IP) == "200"
    hosts = story.cluster.certs_dir / HOST
    assert ssl.PEM_cert_to_DER_cert((hosts / "ca.crt").read_text()) == ssl.PEM_cert_to_DER_cert(
        ca.read_text()
    )


def test_status_says_how_long_the_certificates_last(story: Production) -> None:
    lines = {(one["group"], one["name"]): one for one in story.told_json("status", "old")}
    found = lines[f"release {KEY}", "internal TLS"]
    assert found["state"] == "ok"
    days = int(found["text"].split()[0])
    assert 3640 <= days <= 3650
    assert not [one for one in lines.values() if one["state"] == "failed"]


def test_a_second_run_changes_nothing(story: Production) -> None:
    assert story.json("old")["changed"] == []


def test_a_certificate_that_ends_soon_is_renewed_and_its_pods_restart(story: Production) -> None:
    kept = {component: story.secret(component) for component in INTERNAL}
    pods = {component: story.pods_of(component) for component in (*TWICE, "trivy")}
    for end in ("crt", "key"):
        (story.internal / f"core.{end}").unlink()
    hosts = ("harbor-core", "localhost", "127.0.0.1")
    soon = timedelta(days=100)
    ensure_certificates(
        story.internal, "-", hosts, utc_now(), validity=soon, name="core", mutual=True
    )
    lines = story.told_json("status", "old")
    (line,) = [one for one in lines if one["name"] == "internal TLS"]
    assert (line["state"], line["text"].split()[0]) == ("warning", "98")
    report = story.json("old")
    assert report["changed"] == [f"internal-tls:{KEY}", f"companion:{KEY}", f"release:{KEY}"]
    renewed = {component: story.secret(component) for component in INTERNAL}
    assert {one for one in INTERNAL if renewed[one] != kept[one]} == {"core"}
    assert renewed["core"]["ca.crt"] == kept["core"]["ca.crt"]
    new = {component: story.pods_of(component) for component in (*TWICE, "trivy")}
    # The exporter is core's client, with core's certificate.
    assert {one for one in new if not new[one] & pods[one]} == {"core", "exporter"}
    assert {one for one in new if new[one] == pods[one]} == {
        "jobservice", "portal", "registry", "trivy",
    }  # fmt: skip
    assert story.health() == "200"
    assert story.json("old")["changed"] == []


def test_the_next_bundle_upgrades_and_brings_disruption_budgets(
    story: Production, connected: Connected
) -> None:
    kept = {component: story.secret(component) for component in INTERNAL}
    early = story.run("old", "--plan", budgets=True)
    assert early.returncode == 2
    assert "podDisruptionBudget: harbor 1.18.4 has no such value" in early.stderr
    report = story.json("new", budgets=True)
    assert {f"snapshot:{KEY}", f"release:{KEY}"} <= set(report["changed"])
    assert f"internal-tls:{KEY}" not in report["changed"]
    assert story.revision_of("harbor")[1:] == ("deployed", f"harbor-{NEW}")
    story.check_pods(SEED, NEW, connected.upstream, RUNNING)
    assert {component: story.secret(component) for component in INTERNAL} == kept
    budgets = json.loads(
        story.cluster.kubectl("get", "pdb", f"--namespace={NAMESPACE}", "--output=json")
    )["items"]
    assert {one["metadata"]["name"] for one in budgets} == {f"harbor-{one}" for one in TWICE}
    deadline = time.monotonic() + 30
    for one in budgets:  # it counts the pods that its selector really finds
        name = one["metadata"]["name"]
        while story.object("pdb", name)["status"]["currentHealthy"] != 2:
            assert time.monotonic() < deadline, story.object("pdb", name)
            time.sleep(0.5)
        assert story.object("pdb", name)["status"]["disruptionsAllowed"] == 1
    assert story.health() == "200"
    assert story.json("new", budgets=True)["changed"] == []


def test_undo_returns_to_what_was(story: Production, connected: Connected) -> None:
    # As a person stands there: site.yaml is the one of the upgrade.
    report = story.told_json("undo", "old", "--yes", budgets=True)
    assert {f"restore:{KEY}", f"back:{KEY}"} <= set(report["changed"])
    assert story.revision_of("harbor")[1:] == ("deployed", f"harbor-{OLD}")
    story.check_pods(SEED, OLD, connected.upstream, RUNNING)
    assert story.names("pdb") == set()
    assert story.health() == "200"
    assert story.json("old", "--allow-downgrade=undone")["changed"] == []


def test_uninstall_keeps_the_data(story: Production) -> None:
    (story.volume / "registry" / "kept.txt").write_text("pushed by somebody")
    keys = {path.name: path.read_bytes() for path in story.internal.iterdir()}
    report = story.told_json("uninstall", "old", "--yes")
    assert {f"uninstall:{KEY}", f"uninstall:{KEY}-companion"} <= set(report["changed"])
    assert story.helm("list") == []
    assert story.pods() == []
    assert not [name for name in story.names("secrets") if "internal" in name]
    assert story.object("pvc", "harbor-data")["status"]["phase"] == "Bound"
    assert (story.volume / "registry" / "kept.txt").read_text() == "pushed by somebody"
    assert story.database.owner("registry") == "harbor"
    assert {path.name: path.read_bytes() for path in story.internal.iterdir()} == keys


def test_no_key_is_readable_and_none_was_told(story: Production) -> None:
    made = [path for path in story.state.rglob("*.key") if path.is_file()]
    assert {path.name for path in made} >= {"ca.key", *(f"{one}.key" for one in INTERNAL)}
    assert {path.stat().st_mode & 0o777 for path in made} == {0o600}
    said = "\n".join(story.heard) + (story.state / "journal.jsonl").read_text()
    assert len(story.heard) > 10
    secret = [DATABASE_PASSWORD, story.redis.password_file.read_text().strip()]
    secret += [line for path in made for line in path.read_text().splitlines()[1:-1]]
    assert not [word for word in secret if word in said]


def test_nothing_tried_to_leave(story: Production, tell: Callable[[str], None]) -> None:
    tell(story.check_silence())
