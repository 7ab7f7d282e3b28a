"""How a site is, asked of programs and servers that answer what real ones were seen to answer."""

from __future__ import annotations

import io
import json
import os
import ssl
import subprocess
import sys
import tarfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from installer.cli.status import exit_code
from installer.deploy.cluster import ClusterInfo
from installer.deploy.context import looking
from installer.deploy.release import HelmRelease
from installer.deploy.status import DEADLINE, look
from installer.deploy.status.certificate import certificate_line
from installer.deploy.status.cluster import differing
from installer.deploy.status.harbor import database_age
from installer.deploy.status.line import Line, Part, Status, ask_all
from installer.errors import DeploymentFailed
from installer.harbor.vulnerability_data import ScannerData
from installer.oci.platforms import own_platform
from installer.site import credentials
from installer.site.authority import ensure_certificates
from installer.site.harbor import VulnerabilityData
from installer.site.model import read_site
from installer.site.state import State
from tests.bundles import make_bundle, open_bundle
from tests.upstream.charts import HELM_CHART, HELM_CONFIG
from tests.upstream.images import Content, artefact, image, layer
from tests.upstream.server import Answer, LoopbackServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from installer.bundle.archive import VerifiedBundle
    from installer.deploy.context import Context
    from tests.upstream.server import Request

pytestmark = pytest.mark.skipif(own_platform() != "linux/amd64", reason="test tools are amd64's")

NOW = datetime.now(UTC)
CORE = image([layer(2000, "core")])
SECRET_KEYS: dict[str, Any] = {
    "externalURL": "",
    "secretKey": "not-a-secure-key",
    "harborAdminPassword": "Harbor12345",
    "core": {
        "image": {"repository": "goharbor/harbor-core", "tag": "v1"},
        **dict.fromkeys(("secret", "xsrfKey", "tokenKey", "tokenCert"), ""),
    },
    "jobservice": {"secret": ""},
    "registry": {
        "secret": "",
        "credentials": {"username": "", "password": "", "htpasswdString": ""},
    },
    "database": {"type": "internal", "internal": {"password": "changeit"}},
    "trivy": {"skipUpdate": False, "skipJavaDBUpdate": False, "offlineScan": False},
    "logLevel": "info",
    "proxy": {"httpProxy": ""},
}
"""Defaults of a chart with the keys of Harbor's that the installer fills."""
FAKE = """#!/bin/sh
# Gives what the test laid out for the words of the command, and notes that it was asked.
name={tool} limit=100000000 tail=100000
for word; do
  case "$word" in
    --previous=true) name="$name.previous" ;;
    --container=*) name="$name.${{word#*=}}" ;;
    --output=wide) name="$name.wide" ;;
    --limit-bytes=*) limit="${{word#*=}}" ;;
    --tail=*) tail="${{word#*=}}" ;;
    template) name=helm.template; break ;;
    -*|*/*|json) ;;
    *) name="$name.$word" ;;
  esac
done
echo "{tool} $*" >> {answers}/calls
if [ -f "{answers}/$name.sleep" ]; then sleep "$(cat "{answers}/$name.sleep")"; fi
if [ -f "{answers}/$name" ]; then tail -n "$tail" "{answers}/$name" | head -c "$limit"; exit; fi
echo "Error: {tool}: nothing answers to $name" >&2
exit 1
"""
PARTS = ("core", "database", "jobservice", "portal", "redis", "registry", "registryctl", "trivy")


def tool(content: str) -> Any:
    return artefact(
        Content("application/json", b"{}"), [Content("application/x", content.encode())]
    )


def packaged(version: str) -> Any:
    """A chart named harbor, as small as can be."""
    files = {
        "Chart.yaml": {"apiVersion": "v2", "name": "harbor", "version": version},
        "values.yaml": SECRET_KEYS,
    }
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, document in files.items():
            data = yaml.safe_dump(document).encode()
            member = tarfile.TarInfo(f"harbor/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    chart = Content(HELM_CHART, stream.getvalue())
    return artefact(Content(HELM_CONFIG, b"{}"), [chart])


class Reached(LoopbackServer):
    """Harbor and the seed registry at once."""

    health: dict[str, Any]
    seed: dict[str, Any]
    status: int = 200

    def answer(self, request: Request) -> Answer:
        said = self.health if request.path == "/api/v2.0/health" else self.seed
        return Answer(self.status, {}, json.dumps(said).encode())


@dataclass
class FakeSite:
    """A site in a folder: a bundle with programs that answer from files, and a state."""

    folder: Path
    bundle: VerifiedBundle
    server: Reached
    tls: bool = False
    released: dict[str, Any] = field(default_factory=dict)
    seed: dict[str, Any] = field(default_factory=dict)

    @property
    def answers(self) -> Path:
        return self.folder / "answers"

    @property
    def state(self) -> State:
        return State(self.folder / "state")

    @property
    def site_file(self) -> Path:
        return self.folder / "site.yaml"

    def write_site(self) -> None:
        where = {"listen": "127.0.0.1:1", "address": self.server.host, "tls": self.tls}
        harbor = {"externalURL": self.server.url}
        if self.tls:
            harbor["ca"] = str(self.folder / "state/seed/ca.crt")
        release = {"chart": "harbor", "harbor": harbor, "values": {}, **self.released}
        document = {
            "apiVersion": "site/v1",
            "kind": "Site",
            "name": "s",
            "cluster": {"kubeconfig": "kubeconfig"},
            "seed": self.seed or {"serve": {**where, "service": "none"}},
            "releases": [release],
        }
        self.site_file.write_text(yaml.safe_dump(document))

    def say(self, words: str, answer: Any) -> None:
        """What a program answers to these words."""
        if isinstance(answer, bytes):
            data = answer
        else:
            data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        (self.answers / words.replace(" ", ".")).write_bytes(data)

    def silence(self, words: str) -> None:
        (self.answers / words.replace(" ", ".")).unlink()

    def calls(self) -> list[str]:
        path = self.answers / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @contextmanager
    def context(self) -> Iterator[Context]:
        with looking(self.bundle, read_site(self.site_file), self.state) as context:
            yield context

    def status(self, deadline: float = DEADLINE) -> Status:
        with self.context() as context:
            return look(context, NOW, deadline=deadline)

    def install(self) -> None:
        """Make it look as after a run."""
        self.write_site()
        state, manifest = self.state, self.bundle.manifest
        digest = str(self.bundle.digest)
        with state.held():
            state.record(manifest)
            state.journal.append("run", bundle=digest, text="test serial 1")
            state.journal.append("started", bundle=digest, step="seed")
            state.journal.append("done", bundle=digest, step="seed")
            if credentials.kept(state, "harbor/harbor") is None:
                credentials.keep(state, "harbor/harbor", credentials.generate())
        self.say("kubectl version", {"serverVersion": {"gitVersion": "v1.34.4"}})
        self.say("kubectl get nodes", {"items": [node("n1")]})
        self.say("kubectl api-versions", "v1\napps/v1\n")
        self.say("kubectl get pods", {"items": [pod("harbor-core-1")]})
        self.say("kubectl get events", {"items": []})
        self.say("helm version {{.Version}}", "v4.0.0")
        self.say(
            "helm list harbor 0",
            [
                {
                    "name": "harbor",
                    "namespace": "harbor",
                    "revision": "3",
                    "updated": "2026-11-24 03:04:06.5 +0000 UTC",
                    "status": "deployed",
                    "chart": "harbor-1.0.0",
                }
            ],
        )
        self.say("helm get values harbor harbor", self.values())
        release = {"charts": {"harbor/harbor": self.bundle.manifest.charts[0].sha256}}
        (self.folder / "state/releases.json").write_text(json.dumps(release))
        self.server.health = {
            "status": "healthy",
            "components": [{"name": name, "status": "healthy"} for name in PARTS],
        }
        self.server.seed = {"status": "ok", "bundles": [self.served()], "check": {"failed": []}}

    def served(self) -> dict[str, Any]:
        return {"name": "test", "serial": 1, "digest": str(self.bundle.digest)}

    def values(self) -> dict[str, Any]:
        with self.context() as context:
            release = context.site.releases[0]
            kept = credentials.kept(context.state, "harbor/harbor")
            return HelmRelease(context, ClusterInfo("", ()), release).values(kept)


def node(name: str, ready: str = "True") -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    }


def pod(name: str, **container: Any) -> dict[str, Any]:
    ready = container.pop("ready", True)
    digest = container.pop("digest", CORE.digest)
    running = {
        "name": "core",
        "imageID": f"reg:5000/goharbor/harbor-core@{digest}",
        "restartCount": 0,
        **container,
    }
    return {
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "core"}]},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [running],
        },
    }


@contextmanager
def fake_site(folder: Path, *, tls: bool = False) -> Iterator[FakeSite]:
    """Give a site that was installed and where nothing is wrong."""
    answers = folder / "answers"
    answers.mkdir()
    (folder / "kubeconfig").write_text("{}")
    path, pem = make_bundle(
        folder / "b.tar",
        {"docker.io/goharbor/harbor-core:v1": CORE},
        charts={"harbor:1.0.0": packaged("1.0.0")},
        tools={name: tool(FAKE.format(tool=name, answers=answers)) for name in ("helm", "kubectl")},
    )
    (folder / "release.pub").write_bytes(pem)
    context = None
    if tls:
        with State(folder / "state").held():
            seed = State(folder / "state").subfolder("seed")
            ensure_certificates(seed, "seed registry of s", ["127.0.0.1"], NOW)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(seed / "tls.crt", seed / "tls.key")
    with open_bundle(path, pem) as opened, Reached(tls=context) as server:
        site = FakeSite(folder, opened, server, tls)
        site.install()
        yield site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[FakeSite]:
    with fake_site(tmp_path) as made:
        yield made


def line(found: Status, group: str, name: str) -> Line:
    (one,) = [n for n in found.lines if (n.group, n.name) == (group, name)]
    return one


def bad(found: Status) -> dict[tuple[str, str], str]:
    return {(n.group, n.name): n.state for n in found.lines if n.state != "ok"}


# All is well


def test_a_site_where_nothing_is_wrong(tmp_path: Path) -> None:
    with fake_site(tmp_path, tls=True) as site:
        before = {path: path.stat().st_mtime_ns for path in site.state.folder.rglob("*")}
        found = site.status()
        after = {path: path.stat().st_mtime_ns for path in site.state.folder.rglob("*")}
    assert set(bad(found)) == {("trivy", "trivy-db"), ("trivy", "harbor/harbor")}
    assert exit_code(found) == 0
    assert after == before
    names = [(n.group, n.name) for n in found.lines]
    assert len(set(names)) == len(names)
    for part in PARTS:
        assert line(found, "harbor harbor/harbor", part).text == "healthy"
    certificate = line(found, "harbor harbor/harbor", "certificate")
    assert "CN=seed registry of s, trusted" in certificate.text
    assert "36" in line(found, "seed registry", "certificate").text.partition(" days left")[0]
    assert (
        "revision 3, 2026-11-24 03:04:06 UTC" in line(found, "release harbor/harbor", "helm").text
    )
    assert line(found, "namespace harbor", "images").text == "all 1 are of the bundle"
    kept = credentials.kept(site.state, "harbor/harbor")
    assert kept is not None
    told = repr(found)
    assert not any(secret in told for secret in kept.texts() if secret)


def run(site: FakeSite, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from installer.cli import main; main()",
            *more[:1],
            str(site.bundle.path),
            f"--key={site.folder / 'release.pub'}",
            f"--site={site.site_file}",
            f"--state={site.state.folder}",
            *more[1:],
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        stdin=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "HOME": str(site.folder)},
        cwd=Path(__file__).parents[2],
    )


def test_the_command_prints_a_table_or_a_list_and_its_code_says_the_rest(site: FakeSite) -> None:
    done = run(site, "status")
    assert done.returncode == 0, done.stderr
    assert "release harbor/harbor" in done.stdout
    assert "failed: 0" in done.stdout
    done = run(site, "status", "--output=json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert {tuple(entry) for entry in said} == {("group", "name", "state", "text", "hint")}
    assert {entry["state"] for entry in said} == {"ok", "warning"}
    site.server.health = {"status": "unhealthy", "components": []}
    assert run(site, "status").returncode == 8
    site.silence("kubectl version")
    done = run(site, "status", "--output=json")
    assert done.returncode == 5
    assert "failed" in {entry["state"] for entry in json.loads(done.stdout)}


# The cluster


def test_a_cluster_that_is_away_is_a_line_and_nothing_more_is_asked_of_it(site: FakeSite) -> None:
    site.silence("kubectl version")
    found = site.status()
    assert exit_code(found) == 5
    assert not found.reachable
    assert "nothing answers to kubectl.version" in line(found, "cluster", "api").text
    assert line(found, "release harbor/harbor", "helm").state == "failed"
    assert line(found, "harbor harbor/harbor", "health").state == "ok"
    assert not [call for call in site.calls()[-1:] if call.startswith("helm")]


def test_an_api_server_without_its_etcd_is_away_as_well(site: FakeSite) -> None:
    site.silence("kubectl get nodes")
    assert exit_code(site.status()) == 5


def test_what_does_not_answer_in_time_is_a_line(site: FakeSite) -> None:
    site.say("kubectl version.sleep", "4")
    start = time.monotonic()
    found = site.status(deadline=1.5)
    assert time.monotonic() - start < 3.5
    assert exit_code(found) == 5
    assert line(found, "cluster", "api").text == "no answer within 2 s"
    assert line(found, "harbor harbor/harbor", "health").state == "ok"


def test_one_release_that_cannot_be_asked_leaves_the_others(site: FakeSite) -> None:
    site.silence("helm list harbor 0")
    found = site.status()
    assert bad(found)["release harbor/harbor", "helm"] == "failed"
    assert line(found, "namespace harbor", "pods").state == "ok"
    assert exit_code(found) == 8


@pytest.mark.parametrize(
    ("status", "words"),
    [("failed", "helm history"), ("pending-upgrade", "installer run"), ("", "installer run")],
)
def test_a_release_that_is_not_deployed(site: FakeSite, status: str, words: str) -> None:
    entry = json.loads((site.answers / "helm.list.harbor.0").read_text())[0]
    site.say("helm list harbor 0", [{**entry, "status": status}] if status else [])
    found = line(site.status(), "release harbor/harbor", "helm")
    assert found.state == "failed"
    assert words in found.hint


def test_values_that_differ_are_named_and_not_shown(site: FakeSite) -> None:
    changed = site.values() | {"logLevel": "Geheim1", "secretKey": "Geheim2", "core": None}
    site.say("helm get values harbor harbor", changed)
    found = site.status()
    one = line(found, "release harbor/harbor", "values")
    assert one.state == "warning"
    assert one.text.endswith(": core, logLevel, secretKey")
    assert "Geheim" not in repr(found)


def test_another_chart_is_said_whether_its_version_tells_or_not(site: FakeSite) -> None:
    (site.folder / "state/releases.json").write_text('{"charts": {"harbor/harbor": "00"}}')
    found = line(site.status(), "release harbor/harbor", "values")
    assert (found.state, "another content" in found.text) == ("warning", True)
    entry = json.loads((site.answers / "helm.list.harbor.0").read_text())[0]
    site.say("helm list harbor 0", [{**entry, "chart": "harbor-0.9.0"}])
    found = line(site.status(), "release harbor/harbor", "chart")
    assert found.text == "harbor-0.9.0; the bundle has harbor-1.0.0"
    assert found.state == "warning"


def test_a_state_without_the_secrets_is_not_the_right_one(site: FakeSite) -> None:
    (site.folder / "state/secrets.json").unlink()
    found = line(site.status(), "release harbor/harbor", "values")
    assert found.state == "failed"
    assert "--state" in found.hint


@pytest.mark.parametrize(
    ("wanted", "there", "keys"),
    [
        ({"a": 1, "b": {"c": None}}, {"a": 1, "b": {}}, []),
        ({"a": None}, {}, []),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, ["a"]),
        ({"a": 1}, {"b": 1}, ["a", "b"]),
        ({"a": {}}, {}, ["a"]),
    ],
)
def test_a_null_is_nothing(wanted: dict[str, Any], there: dict[str, Any], keys: list[str]) -> None:
    assert differing(wanted, there) == keys


# Pods


def test_pods_that_are_not_ready_say_what_troubles_them(site: FakeSite) -> None:
    waiting = {"state": {"waiting": {"reason": "ImagePullBackOff"}}, "image": "x/y:1"}
    ended = pod("job") | {"status": {"phase": "Succeeded"}}
    leaving = pod("old", ready=False)
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    pods = [pod("good"), pod("bad", ready=False, imageID="", **waiting), ended, leaving]
    site.say("kubectl get pods", {"items": pods})
    found = line(site.status(), "namespace harbor", "pods")
    assert found.state == "failed"
    assert found.text == "1 of 2 ready; not ready: bad"
    assert "ImagePullBackOff" in found.hint


def test_no_pod_is_wrong_only_where_there_must_be_one(site: FakeSite) -> None:
    site.say("kubectl get pods", {"items": []})
    target = f"{site.server.host}/goharbor/harbor-core:v1@{CORE.digest}"
    template = {"spec": {"containers": [{"name": "core", "image": target}]}}
    workload = {"kind": "Deployment", "metadata": {"name": "c"}, "spec": {"template": template}}
    site.say("helm.template", workload)
    assert line(site.status(), "namespace harbor", "pods").state == "failed"
    site.say("helm.template", "kind: ConfigMap\nmetadata: {name: c}\n")
    assert line(site.status(), "namespace harbor", "pods").state == "ok"


@pytest.mark.parametrize(("hours", "state"), [(1, "warning"), (25, "ok")])
def test_restarts_count_while_they_are_new(site: FakeSite, hours: int, state: str) -> None:
    ended = (NOW - timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")
    last = {"terminated": {"finishedAt": ended, "reason": "OOMKilled"}}
    pods = [pod("harbor-core-1", restartCount=7, lastState=last)]
    site.say("kubectl get pods", {"items": pods})
    found = line(site.status(), "namespace harbor", "restarts")
    assert found.state == state
    assert found.text.startswith("7 since")
    assert ("harbor-core-1 (OOMKilled)" in found.text) == (state == "warning")


def test_an_image_of_somebody_else_is_wrong_unless_another_bundle_was_used(site: FakeSite) -> None:
    site.say("kubectl get pods", {"items": [pod("p", digest=f"sha256:{'0' * 64}")]})
    found = line(site.status(), "namespace harbor", "images")
    assert found.state == "failed"
    assert f"harbor-core@sha256:{'0' * 64}" in found.text
    with site.state.held():
        site.state.journal.append("run", bundle="sha256:" + "1" * 64)
    assert line(site.status(), "namespace harbor", "images").state == "warning"


def test_a_node_that_is_not_ready(site: FakeSite) -> None:
    site.say("kubectl get nodes", {"items": [node("n1"), node("n2", "Unknown")]})
    found = line(site.status(), "cluster", "nodes")
    assert (found.state, found.text) == ("failed", "1 of 2 ready; not ready: n2")


# The bundle, the journal, the databases


def test_the_history_of_the_site_is_told(site: FakeSite) -> None:
    state = site.state
    with state.held():
        state.write("serials.json", msgspec.structs.replace(state.serials, highest={"stable": 9}))
        state.journal.append("run", bundle="sha256:" + "1" * 64, text="test serial 9")
        state.journal.append("failed", step="release:harbor/harbor", text="no room\nsecond line")
    found = site.status()
    assert line(found, "bundle", "serial").text == "this site has seen serial 9"
    assert "sha256:111111111111" in line(found, "bundle", "installed").text
    last = line(found, "journal", "last run")
    assert last.state == "warning"
    assert "in step release:harbor/harbor" in last.text
    failure = line(found, "journal", "last failure")
    assert failure.text.endswith("failed in step release:harbor/harbor no room")


def test_a_state_that_is_not_there_knows_of_nothing(site: FakeSite) -> None:
    with looking(site.bundle, read_site(site.site_file), State(site.folder / "no")) as context:
        found = look(context, NOW)
    assert line(found, "journal", "last run").state == "warning"
    assert line(found, "bundle", "installed").state == "warning"
    assert not (site.folder / "no").exists()


def test_a_damaged_journal_is_a_line(site: FakeSite) -> None:
    (site.folder / "state/journal.jsonl").write_text("{}x\n{}\n")
    found = site.status()
    assert "not a line of a journal" in line(found, "journal", "last run").text
    assert exit_code(found) == 8


@pytest.mark.parametrize(
    ("days", "state"), [(3, "ok"), (15, "warning"), (61, "failed"), (None, "failed")]
)
def test_the_scanner_says_how_old_its_database_is(days: int | None, state: str) -> None:
    data = ScannerData("Trivy", None if days is None else NOW - timedelta(days=days))
    found = database_age("harbor/harbor", data, VulnerabilityData(), NOW)
    assert found.state == state
    assert ("no vulnerability database" if days is None else f"{days} days old") in found.text


def test_a_scanner_that_can_not_be_asked_is_a_warning(site: FakeSite) -> None:
    assert line(site.status(), "trivy", "harbor/harbor").state == "warning"


def test_a_bundle_without_a_database_matters_to_trivy_only(site: FakeSite) -> None:
    assert line(site.status(), "trivy", "trivy-db").state == "warning"
    site.released = {"values": {"trivy": {"enabled": False}}}
    site.write_site()
    assert not [n for n in site.status().lines if n.group == "trivy"]


# What is served


def test_a_seed_that_is_away_or_serves_another_bundle(site: FakeSite) -> None:
    other = site.served() | {"digest": f"sha256:{'2' * 64}"}
    site.server.seed = {"bundles": [other], "check": {"failed": ["blob x differs"]}}
    found = site.status()
    assert line(found, "seed registry", "answer").state == "warning"
    assert "sha256:222222222222" in line(found, "seed registry", "answer").text
    assert "blob x differs" in line(found, "seed registry", "content").text
    site.server.seed = {"hello": "world"}
    assert "not our registry" in line(site.status(), "seed registry", "answer").text


@pytest.mark.parametrize(
    ("fault", "name", "state", "words"),
    [
        ({"status": 404, "path": "/manifests/"}, "content", "warning", "lacks something"),
        ({"status": 404, "path": "/v2/$"}, "answer", "failed", "HTTP 404"),
        ({"drop": True, "path": ""}, "answer", "failed", ""),
    ],
)
def test_a_registry_of_the_site(
    site: FakeSite, fault: dict[str, Any], name: str, state: str, words: str
) -> None:
    site.seed = {"push": {"registry": f"{site.server.host}/airgap", "plainHTTP": True}}
    site.write_site()
    site.server.fail(**fault)
    found = line(site.status(), "seed registry", name)
    assert (found.state, words in found.text) == (state, True), found


def test_an_external_database_that_is_away_says_why(site: FakeSite) -> None:
    (site.folder / "pw").write_text("Geheim123\n")
    database = {"host": "database.invalid", "passwordFile": "pw", "sslMode": "disable"}
    site.released = {"harbor": {"externalURL": site.server.url, "database": database}}
    site.write_site()
    found = site.status()
    one = line(found, "harbor harbor/harbor", "database:external")
    assert one.state == "failed"
    assert "database.invalid" in one.text
    assert "Geheim" not in repr(found)


def test_nobody_there_is_told_in_few_words(tmp_path: Path) -> None:
    with fake_site(tmp_path) as site:
        site.server.fail("", drop=True)
        found = site.status()
        assert line(found, "seed registry", "answer").state == "failed"
        health = line(found, "harbor harbor/harbor", "health")
    assert health.state == "failed"
    assert "object at" not in health.text


def test_each_component_that_is_ill_is_named(site: FakeSite) -> None:
    site.server.health["status"] = "unhealthy"
    site.server.health["components"][2] |= {"status": "unhealthy", "error": "refused"}
    found = site.status()
    assert line(found, "harbor harbor/harbor", "jobservice").text == "unhealthy refused"
    assert {name for group, name in bad(found) if group.startswith("harbor")} == {
        "health",
        "jobservice",
    }
    assert exit_code(found) == 8
    site.server.status = 502
    assert "HTTP 502" in line(site.status(), "harbor harbor/harbor", "health").text


def certificate_until(folder: Path, end: datetime) -> ssl.SSLContext:
    """A server's certificate that its own authority signed; ``folder/ca.crt`` is that."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "plant authority")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - timedelta(days=900))
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost")]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / "ca.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "tls.key").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.crt", folder / "tls.key")
    return context


@pytest.mark.parametrize(
    ("days", "host", "ca", "state", "words"),
    [
        (400, "localhost", "ca.crt", "ok", "issued by CN=plant authority, trusted"),
        (29, "localhost", "ca.crt", "warning", "days left"),
        (-2, "localhost", "ca.crt", "failed", "it ended 1 day ago"),
        (400, "127.0.0.1", "ca.crt", "failed", "not trusted: IP address mismatch"),
        (400, "localhost", "", "failed", "not trusted: self-signed certificate"),
        (400, "localhost", "none.crt", "failed", "not trusted: "),
    ],
)
def test_a_certificate_as_it_is_really_served(
    tmp_path: Path, days: int, host: str, ca: str, state: str, words: str
) -> None:
    tls = certificate_until(tmp_path, NOW + timedelta(days=days, hours=1))
    server = Reached(tls=tls)
    server.health = server.seed = {}
    with server:
        port = int(server.host.rpartition(":")[2])
        path = str(tmp_path / ca) if ca else ""
        found = certificate_line("harbor x", host, port, path, NOW)
        server.errors.clear()  # that a client hangs up is what is tested
    assert (found.state, words in found.text) == (state, True), found


def test_a_port_without_tls_or_without_anybody(tmp_path: Path) -> None:
    server = Reached()
    server.health = server.seed = {}
    with server:
        host, _, port = server.host.partition(":")
        found = certificate_line("harbor x", host, int(port), "", NOW)
        assert found.state == "failed"
    found = certificate_line("harbor x", host, int(port), str(tmp_path), NOW)
    assert "refused" in found.text


# Side by side


def test_parts_are_asked_at_once_and_shown_in_order() -> None:
    def slow(name: str) -> Iterator[Line]:
        time.sleep(0.3)
        yield Line("g", name, "ok", "")

    def broken() -> Iterator[Line]:
        yield Line("g", "before", "ok", "")
        raise DeploymentFailed("gone\naway", hint="look")

    start = time.monotonic()
    parts = [Part("g", n, lambda n=n: slow(n)) for n in "abcd"]  # type: ignore[misc]
    found = list(ask_all([*parts, Part("g", "e", broken)], 10))
    assert time.monotonic() - start < 1.1
    assert [n.name for n in found] == ["a", "b", "c", "d", "before", "e"]
    assert found[-1] == Line("g", "e", "failed", "gone away", "look")


def test_a_defect_is_not_swallowed() -> None:
    def defect() -> Iterator[Line]:
        raise KeyError("x")

    with pytest.raises(KeyError):
        list(ask_all([Part("g", "n", defect)], 10))
