"""One bundle with cert-manager and Harbor: releases in order, and a certificate that is issued.

cert-manager's chart is the published one with its real CRDs, hooks and RBAC; its five images are
stand-ins that answer the chart's probes, so that its webhook is switched off by the chart's own
values and its controllers' work is done by a small signer of the tests (tests/site/signer.py).
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import yaml

from installer.deploy.cert_manager import chart_values
from installer.site.authority import ensure_certificates, utc_now
from installer.site.harbor import CertManager, Harbor
from tests import programs
from tests.site import images
from tests.site.network import NODE_IP
from tests.site.signer import Signer
from tests.site.story import NEW, Story, told
from tests.upstream.certificates import make_certificates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.site.cluster import Cluster
    from tests.site.connected import Connected
    from tests.site.network import Outbound

pytestmark = pytest.mark.site

VERSION = "v1.21.1"
SEED = f"{NODE_IP}:5000"
NAMESPACE = "issued"
KEY = f"{NAMESPACE}/harbor"
URL = f"https://{NODE_IP}:30043"
BALANCED = f"https://{NODE_IP}:8444"
COMPANION = Path(__file__).parents[2] / "manifests" / "companion"
# The webhook's stand-in answers no reviews: no namespace is asked about.
SILENT = {
    "webhook": {
        "validatingWebhookConfiguration": {
            "namespaceSelector": {
                "matchExpressions": [
                    {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["none"]}
                ]
            }
        }
    }
}
_ASK = """
import ssl, sys, urllib.request
context = ssl.create_default_context(cafile=sys.argv[2])
with urllib.request.urlopen(sys.argv[1], context=context, timeout=20) as answer:
    print(answer.status)
"""
_SHOW = "import ssl, sys; print(ssl.get_server_certificate((sys.argv[1], int(sys.argv[2]))))"


def standins() -> dict[str, images.Image]:
    """Make the images that the chart names: Debian's busybox answers their probes."""
    answers = images.layer({"www/livez": b"ok", "www/healthz": b"ok"})
    (shell,) = images.busybox().layers

    def made(name: str, *entrypoint: str) -> images.Image:
        own = images.layer({f"etc/{name}": f"stands for {name}\n".encode()})
        return images.image([shell, answers, own], entrypoint, user="65532:65532")

    serve = "trap 'exit 0' TERM; httpd -f -h /www -p {} & wait"
    return {
        "cert-manager-controller": made("controller", "/bin/sh", "-c", serve.format(9403)),
        "cert-manager-cainjector": made("cainjector", "/bin/sh", "-c", serve.format(9403)),
        "cert-manager-webhook": made("webhook", "/bin/sh", "-c", serve.format(6080)),
        "cert-manager-startupapicheck": made("startupapicheck", "/bin/true"),
        "cert-manager-acmesolver": made("acmesolver", "/bin/false"),
    }


@dataclass
class Issued(Story):
    """A site with cert-manager, then Harbor; ``balanced`` puts HAProxy before it."""

    balanced: bool = False

    @property
    def configuration(self) -> Path:
        return self.folder / "haproxy.cfg"

    def site(self, **release: Any) -> Path:
        path = super().site()
        document = yaml.safe_load(path.read_text())
        (harbor,) = document["releases"]
        harbor["values"] = {"persistence": {"enabled": False}}
        harbor["harbor"] = {
            "externalURL": BALANCED if self.balanced else URL,
            "acceptance": False,  # the stand-ins are no Harbor that can be used
            "expose": {"httpPort": 30042, "httpsPort": 30043},
            "certificate": {"certManager": {"selfSigned": {}, "names": ["harbor.plant.test"]}},
        }
        if self.balanced:
            haproxy = {
                "nodes": [NODE_IP],
                "listen": f"{NODE_IP}:8444",
                "redirect": "",
                "stats": "",
                "service": False,
                "file": str(self.configuration),
            }
            harbor["harbor"]["loadBalancer"] = {"haproxy": haproxy}
        harbor["timeout"] = 240
        other = {"chart": "cert-manager", "profile": "cert-manager", "values": SILENT}
        order = release.pop("order", ("cert-manager", "harbor"))
        both = {"cert-manager": other, "harbor": harbor | release}
        document["releases"] = [both[name] for name in order]
        path.write_text(yaml.safe_dump(document))
        return path

    @property
    def ca(self) -> Path:
        return self.state / "tls" / self.namespace / "harbor" / "cert-manager" / "ca.crt"

    def get(self, url: str) -> str:
        return self.cluster.run([sys.executable, "-c", _ASK, url, str(self.ca)]).stdout.strip()

    def shown(self) -> str:
        """Give the certificate that is served, as PEM."""
        deadline = time.monotonic() + 30
        while True:  # the node's rules lag behind a pod that was restarted
            done = self.cluster.run(
                [sys.executable, "-c", _SHOW, NODE_IP, "30043"], check=time.monotonic() > deadline
            )
            if done.returncode == 0:
                return done.stdout
            time.sleep(0.5)

    def secret(self, name: str) -> dict[str, bytes]:
        text = self.cluster.kubectl(
            "get", "secret", name, f"--namespace={self.namespace}", "--output=json"
        )
        return {key: base64.b64decode(data) for key, data in json.loads(text)["data"].items()}


@pytest.fixture(scope="module")
def pushed(connected: Connected) -> dict[str, str]:
    """Digest of each of cert-manager's images, which are upstream now, by its name."""
    return {
        name: connected.upstream.push(f"jetstack/{name}:{VERSION}", image)
        for name, image in standins().items()
    }


@pytest.fixture(scope="module")
def story(
    cluster: Cluster,
    before: Outbound,
    connected: Connected,
    pushed: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Issued]:
    assert pushed
    also = {"cert-manager": {"version": VERSION, "values": {"crds": {"enabled": True}}}}
    made = connected.make("both", "2.15", also=also)
    folder = tmp_path_factory.mktemp("issued")
    with told(Issued(cluster, folder, before, namespace=NAMESPACE, port=30042)) as story:
        story.carry("both", made.path, connected.public_key)
        try:
            yield story
        finally:
            cluster.stop("issued-haproxy")
            remove_cert_manager(cluster)


def remove_cert_manager(cluster: Cluster) -> None:
    """Leave the shared cluster as it was: what has no namespace, too."""
    for kind in (
        "validatingwebhookconfiguration", "mutatingwebhookconfiguration", "clusterrole",
        "clusterrolebinding", "customresourcedefinition",
    ):  # fmt: skip
        cluster.kubectl(
            "delete", kind, "--selector=app.kubernetes.io/instance=cert-manager", "--wait=false"
        )
    for kind in ("role", "rolebinding"):
        cluster.kubectl(
            "delete", kind, "--selector=app.kubernetes.io/instance=cert-manager",
            "--namespace=kube-system",
        )  # fmt: skip
    cluster.kubectl("delete", "namespace", "cert-manager", "--ignore-not-found", "--wait=false")


@pytest.fixture(scope="module")
def signer(story: Issued) -> Iterator[Signer]:
    with Signer(story.cluster, story.namespace) as running:
        yield running


def test_the_bundle_has_the_images_of_both_charts(story: Issued, pushed: dict[str, str]) -> None:
    done = story.run("both", "--plan", "--output=json")
    assert done.returncode == 0, done.stderr
    assert not story.state.exists()
    assert f"release:{KEY}" in done.stdout
    assert len(pushed) == 5


@pytest.mark.parametrize("order", [("harbor",), ("harbor", "cert-manager")])
def test_without_cert_manager_before_it_nothing_is_done(
    story: Issued, order: tuple[str, ...]
) -> None:
    done = story.run("both", order=order)
    assert done.returncode == 5, done.stderr
    assert "cert-manager.io/v1" in done.stderr
    assert not story.state.exists()


def test_an_issuer_that_does_not_sign_is_named(story: Issued) -> None:
    done = story.run("both", timeout=15)
    assert done.returncode == 7, done.stderr
    words = " ".join(done.stderr.split())
    assert f"has issued no certificate for {URL}" in words
    assert "certificate harbor-own-ca: cert-manager has said nothing of it yet" in words


def test_the_next_run_goes_on_where_it_stopped(
    story: Issued, signer: Signer, connected: Connected
) -> None:
    report = story.json("both")
    assert "release:cert-manager/cert-manager" not in report["changed"]
    done = [step for event, step in story.events() if event == "done"]
    steps = [name for name in done if not name.startswith(("images:", "health:"))]
    assert steps == [
        "verify", "tools", "seed", "nodes", "release:cert-manager/cert-manager",
        f"secrets:{KEY}", f"companion:{KEY}", f"certificate:{KEY}", f"nodes:{KEY}",
        f"release:{KEY}",
    ], (report, signer.failures[-3:])  # fmt: skip
    assert story.revision_of("harbor") == ("1", "deployed", f"harbor-{NEW}")
    wanted = set(images.HARBOR) - {"harbor-exporter"}
    story.check_pods(SEED, NEW, connected.upstream, wanted)


def test_all_of_cert_managers_images_come_from_the_seed(
    story: Issued, pushed: dict[str, str]
) -> None:
    text = story.cluster.kubectl("get", "pods", "--namespace=cert-manager", "--output=json")
    running, arguments = {}, []
    for pod in json.loads(text)["items"]:
        for part in pod["spec"]["containers"]:
            image, _, digest = part["image"].partition("@")
            running[image] = digest
            arguments += part["args"]
        for part in pod["status"]["containerStatuses"]:
            assert part["ready"], part
    path = f"{SEED}/jetstack"
    assert running == {
        f"{path}/{name}:{VERSION}": pushed[name]
        for name in ("cert-manager-controller", "cert-manager-cainjector", "cert-manager-webhook")
    }
    solver = "cert-manager-acmesolver"
    wanted = f"--acme-http01-solver-image={path}/{solver}:{VERSION}@{pushed[solver]}"
    assert wanted in arguments


def test_harbor_shows_what_was_issued_and_nodes_know_its_authority(story: Issued) -> None:
    assert story.get(f"{URL}/api/v2.0/health") == "200"
    secret = story.secret("harbor-issued-tls")
    assert story.ca.read_bytes() == secret["ca.crt"]
    told_ca = story.cluster.certs_dir / f"{NODE_IP}:30043" / "ca.crt"
    assert told_ca.read_bytes() == secret["ca.crt"]
    # Only the authority, which is public, is on this machine's disk.
    kept = [path.read_bytes() for path in story.state.rglob("*") if path.is_file()]
    assert not any(secret["tls.key"] in data for data in kept)


def test_a_second_run_changes_nothing(story: Issued) -> None:
    assert story.json("both")["changed"] == []


def test_what_is_renewed_is_shown_after_the_next_run(story: Issued, signer: Signer) -> None:
    before = story.shown()
    signer.renew("harbor-issued-tls")
    assert story.shown() == before
    # Health is waited for when new pods have just come.
    assert set(story.json("both")["changed"]) - {f"health:{KEY}"} == {f"proxy:{KEY}"}
    renewed = story.secret("harbor-issued-tls")["tls.crt"].decode()
    assert story.shown().split() == renewed.split()
    assert story.shown() != before
    assert story.json("both")["changed"] == []


@pytest.mark.parametrize("kind", ["issuer", "ca", "appRole", "kubernetes"])
def test_the_api_server_takes_the_objects_of_every_issuer(
    story: Issued, tmp_path: Path, kind: str
) -> None:
    tls = make_certificates(tmp_path)
    (tmp_path / "secret-id").write_text("the secret id")
    vault = {"address": "https://vault.test:8200", "role": "harbor", "ca": str(tls.ca)}
    ensure_certificates(tmp_path, "plant", ["h.test"], utc_now())
    pair = (("certificate", "crt"), ("key", "key"))
    sections: dict[str, Any] = {
        "issuer": {"issuer": {"name": "theirs", "kind": "ClusterIssuer"}},
        "ca": {"ca": {name: str(tmp_path / f"ca.{end}") for name, end in pair}},
        "appRole": {
            "vault": vault
            | {"appRole": {"roleId": "r", "secretIdFile": str(tmp_path / "secret-id")}}
        },
        "kubernetes": {"vault": vault | {"namespace": "ns1", "kubernetes": {"role": "r"}}},
    }
    section = msgspec.convert(sections[kind], CertManager)
    values = tmp_path / "values.yaml"
    harbor = Harbor("https://harbor.plant.test")
    values.write_text(yaml.safe_dump({"certificate": chart_values(harbor, section, "dry")}))
    helm: list[str | Path] = [
        programs.helm(4),
        "template",
        "dry-companion",
        COMPANION,
        f"--values={values}",
    ]
    objects = story.cluster.run([*helm, f"--namespace={story.namespace}"]).stdout
    said = story.cluster.kubectl(
        "create", "--dry-run=server", "--validate=strict", "--filename=-", stdin=objects
    )
    assert "certificate.cert-manager.io/dry-issued-tls created (server dry run)" in said


def test_haproxy_gets_what_was_issued_and_what_is_renewed(
    story: Issued, signer: Signer, tell: Callable[[str], None]
) -> None:
    if shutil.which("haproxy", path="/usr/sbin") is None:
        pytest.skip("haproxy is missing: apt-get install haproxy")
    story.balanced = True
    started = threading.Thread(target=start_haproxy, args=[story])
    started.start()
    report = story.json("both")
    started.join(10)
    assert f"loadbalancer:{KEY}" in report["changed"], signer.failures[-3:]
    assert f"certificate:{KEY}" not in report["changed"]
    (pem,) = story.folder.glob("harbor-*.pem")
    secret = story.secret("harbor-issued-tls")
    assert secret["tls.key"].strip() in pem.read_bytes()
    assert pem.stat().st_mode & 0o777 == 0o600
    assert story.get(f"{BALANCED}/api/v2.0/health") == "200"
    assert story.json("both")["changed"] == []
    signer.renew("harbor-issued-tls")
    assert story.json("both")["changed"] == [f"loadbalancer:{KEY}"]
    renewed = story.secret("harbor-issued-tls")["tls.crt"]
    assert renewed != secret["tls.crt"]
    assert pem.read_bytes().startswith(renewed.strip())
    tell(story.check_silence())


def start_haproxy(story: Issued) -> None:
    """Do what the person does who is told to: start HAProxy when its configuration is there."""
    while not story.configuration.exists():
        time.sleep(0.2)
    time.sleep(0.5)
    story.cluster.spawn("issued-haproxy", ["haproxy", "-db", "-f", str(story.configuration)])
