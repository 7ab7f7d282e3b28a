"""``installer status`` and ``installer support-bundle`` on a real Kubernetes.

One story again: a site that is well, then things go wrong one after the other.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import tarfile
import time
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.site.network import NODE_IP
from tests.site.story import INSTALLER, Story, connects, told
from tests.site.upstream import BUSYBOX

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tests.site.cluster import Cluster
    from tests.site.connected import Connected, Made
    from tests.site.network import Outbound

pytestmark = pytest.mark.site

SEED = f"{NODE_IP}:5000"
SILENT = 6555
LISTEN = f"""
import socket, time
server = socket.create_server(("{NODE_IP}", {SILENT}))
time.sleep(600)
"""
"""Takes connections and never says a word, like an API server behind a dead disk."""
LEAK = "echo first; echo {text}; echo {encoded}; echo last; sleep 600"


class Asked(Story):
    """A story with the words of the two commands."""

    def ask(self, bundle: str, *more: str, **release: Any) -> subprocess.CompletedProcess[str]:
        argv = [INSTALLER, "status", *self.argv(bundle, *more, **release)[2:]]
        return self.cluster.run(argv, check=False, timeout=70)

    def lines(self, bundle: str, code: int, **release: Any) -> dict[tuple[str, str], Any]:
        done = self.ask(bundle, "--output=json", **release)
        assert done.returncode == code, done.stdout + done.stderr
        return {(line["group"], line["name"]): line for line in json.loads(done.stdout)}

    def support(self, name: str) -> dict[str, str]:
        out = self.folder / name
        argv = [INSTALLER, "support-bundle", *self.argv("old")[2:], f"--out={out}"]
        done = self.cluster.run(argv, check=False, timeout=600)
        assert done.returncode == 0, done.stderr
        assert out.stat().st_mode & 0o777 == 0o600
        with tarfile.open(out) as tar:
            files = {m.name.partition("/")[2]: tar.extractfile(m) for m in tar}
            return {name: file.read().decode() for name, file in files.items() if file}

    def secrets(self) -> dict[str, str]:
        kept = json.loads((self.state / "secrets.json").read_text())["harbor"]
        found: dict[str, str] = kept[f"{self.namespace}/harbor"]
        return found


@pytest.fixture(scope="module")
def story(
    cluster: Cluster,
    before: Outbound,
    connected: Connected,
    bundles: Mapping[str, Made],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Asked]:
    folder = tmp_path_factory.mktemp("status")
    with told(Asked(cluster, folder, before, namespace="asked", port=30072)) as story:
        for name in ("old", "new"):
            story.carry(name, bundles[name].path, connected.public_key)
        yield story


def failed(lines: Mapping[tuple[str, str], Any]) -> set[tuple[str, str]]:
    return {key for key, line in lines.items() if line["state"] == "failed"}


def test_before_the_first_run_it_says_what_is_not_there(story: Asked) -> None:
    lines = story.lines("old", 8)
    assert failed(lines) == {
        ("seed registry", "answer"),
        ("release asked/harbor", "helm"),
        ("namespace asked", "pods"),
        ("harbor asked/harbor", "health"),
    }
    assert not story.state.exists()


def test_after_it_nothing_is_wrong(story: Asked) -> None:
    assert story.run("old").returncode == 0
    journal = story.events()
    lines = story.lines("old", 0)
    assert lines["release asked/harbor", "values"]["state"] == "ok"
    assert lines["release asked/harbor", "chart"]["text"] == "harbor-1.18.4, as in the bundle"
    assert lines["namespace asked", "pods"]["text"] == "8 of 8 ready"
    assert lines["namespace asked", "images"]["state"] == "ok"
    assert lines["seed registry", "certificate"]["text"].endswith(", trusted")
    assert lines["harbor asked/harbor", "registry"]["text"] == "healthy"
    warnings = {key for key, line in lines.items() if line["state"] == "warning"}
    assert {group for group, _ in warnings} == {"trivy"}  # the stand-in has no scanner to ask
    assert story.events() == journal


def test_what_a_run_would_change_is_a_warning(story: Asked) -> None:
    lines = story.lines("old", 0, values={"logLevel": "debug"})
    assert lines["release asked/harbor", "values"]["text"].endswith(": logLevel")
    lines = story.lines("new", 0)
    for key in ("bundle", "installed"), ("seed registry", "answer"), ("namespace asked", "images"):
        assert lines[key]["state"] == "warning"
    assert "the bundle has harbor-1.19.1" in lines["release asked/harbor", "chart"]["text"]


def test_the_support_bundle_has_everything_but_the_secrets(
    story: Asked, connected: Connected
) -> None:
    kept = story.secrets()
    password = kept["adminPassword"]
    leak = LEAK.format(
        text=password, encoded=base64.b64encode(f"admin:{password}".encode()).decode()
    )
    image = f"{SEED}/{BUSYBOX}@{connected.upstream.images[BUSYBOX]}"
    where = f"--namespace={story.namespace}"
    more = [f"--env=TOLD={kept['secretKey']}", f"--annotations=told={kept['coreSecret']}"]
    story.cluster.kubectl("run", "leaky", where, f"--image={image}", *more, "--", "sh", "-c", leak)
    story.cluster.kubectl("wait", "pod/leaky", where, "--for=condition=Ready", "--timeout=60s")
    story.cluster.kubectl(
        "annotate", "service", "harbor", where, f"told={kept['registryPassword']}"
    )
    found = story.support("support.tar.gz")
    story.cluster.kubectl("delete", "pod", "leaky", where, "--now")
    assert "missing.txt" not in found
    logs = [name for name in found if "/logs/" in name]
    assert len({name.split("/")[3] for name in logs}) == 9
    leaked = found["namespaces/asked/logs/leaky/leaky.log"]
    assert "first" in leaked
    assert "last" in leaked
    assert leaked.count("***") == 2
    for name, text in found.items():
        for field, secret in kept.items():
            if field in ("registryUser", "tokenCertificate"):
                continue
            encoded = base64.b64encode(secret.encode()).decode().rstrip("=")[:-1]
            for form in (secret, encoded, json.dumps(secret)[1:-1]):
                assert form not in text, (name, field)
        if name.endswith(".json"):
            json.loads(text)
    assert "harbor-core" in found["namespaces/asked/secrets.txt"]
    shown = list(yaml.safe_load_all(found["releases/asked.harbor/objects.yaml"]))
    assert {"Deployment", "StatefulSet", "Secret"} <= {one["kind"] for one in shown}
    assert json.loads(found["releases/asked.harbor/history.json"])[0]["status"] == "deployed"
    assert json.loads(found["versions.json"])["helm"].startswith("4.")


def test_a_seed_that_was_killed_is_failed(story: Asked) -> None:
    os.kill(json.loads((story.state / "seed" / "serve.pid").read_text())["pid"], signal.SIGKILL)
    assert "Connection refused" in connects(story.cluster, SEED)
    lines = story.lines("old", 8)
    assert failed(lines) == {("seed registry", "answer")}
    assert "installer run" in lines["seed registry", "answer"]["hint"]


def test_a_component_that_is_gone_is_failed(story: Asked) -> None:
    where = f"--namespace={story.namespace}"
    story.cluster.kubectl("scale", "deployment/harbor-core", where, "--replicas=0")
    story.cluster.kubectl("wait", "pod", where, "--selector=component=core", "--for=delete")
    found = failed(story.lines("old", 8))
    assert ("harbor asked/harbor", "health") in found
    story.cluster.kubectl("scale", "deployment/harbor-core", where, "--replicas=1")


def pointed_elsewhere(story: Asked, address: str) -> Path:
    away: Path = story.folder / "away.conf"
    text = story.cluster.kubeconfig.read_text()
    server = yaml.safe_load(text)["clusters"][0]["cluster"]["server"]
    away.write_text(text.replace(server, f"https://{address}"))
    return away


@pytest.mark.parametrize("silent", [False, True], ids=["refused", "silent"])
def test_a_cluster_that_is_away_costs_less_than_a_minute(story: Asked, *, silent: bool) -> None:
    away = pointed_elsewhere(story, f"{NODE_IP}:{SILENT}")
    argv = [INSTALLER, "status", *story.argv("old")[2:], "--output=json"]
    site = story.folder / "site.yaml"
    site.write_text(site.read_text().replace(str(story.cluster.kubeconfig), str(away)))
    if silent:
        story.cluster.spawn("silent", [sys.executable, "-c", LISTEN])
        while connects(story.cluster, f"{NODE_IP}:{SILENT}"):
            time.sleep(0.1)
    try:
        start = time.monotonic()
        done = story.cluster.run(argv, check=False, timeout=90)
        assert time.monotonic() - start < 60
    finally:
        if silent:
            story.cluster.stop("silent")
    assert done.returncode == 5, done.stdout + done.stderr
    lines = {(line["group"], line["name"]): line for line in json.loads(done.stdout)}
    assert {("cluster", "api"), ("release asked/harbor", "helm")} <= failed(lines)


def test_nothing_tried_to_leave(story: Asked, tell: Callable[[str], None]) -> None:
    tell(story.check_silence())
