"""One isolated site from its first bundle on, as the tests of a module tell it.

A story has its own folder, namespace, node port and state; the cluster is shared. What it knows of
the cluster it asks the cluster itself (kubectl, Helm, the kernel's counters), never the product.
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from installer.deploy import daemon
from tests import programs
from tests.site.network import NODE_IP
from tests.site.upstream import HARBOR

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Mapping

    from tests.site.cluster import Cluster
    from tests.site.network import Outbound
    from tests.site.upstream import Upstream

_CONNECT = """
import socket, sys
socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5).close()
"""
_LEAVING = 60
INSTALLER = str(Path(sys.executable).with_name("installer"))
MINIMAL = Path(__file__).parents[2] / "manifests" / "sites" / "minimal.yaml"
OLD, NEW = HARBOR
"""Versions of Harbor's chart."""


@dataclass
class Story:
    """One site and the bundles that reach it; ``port`` is Harbor's node port.

    ``before`` is what had tried to leave the namespace when the story began, ``helm_major`` the
    version of the bundles' Helm. ``seed`` replaces the example site's, ``release`` keys of its
    Harbor.
    """

    cluster: Cluster
    folder: Path
    before: Outbound
    namespace: str = "harbor"
    port: int = 30002
    helm_major: int = 4
    seed: Mapping[str, Any] = field(default_factory=dict)
    release: Mapping[str, Any] = field(default_factory=dict)
    bundles: dict[str, Path] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def key(self) -> Path:
        return self.folder / "release.pub"

    def carry(self, name: str, made: Path, public_key: Path) -> None:
        """Bring a bundle and, on another way, the public key to the site."""
        self.bundles[name] = self.folder / f"{name}.tar"
        shutil.copyfile(made, self.bundles[name])
        shutil.copyfile(public_key, self.key)

    def site(self, **release: Any) -> Path:
        """Write the example site for this cluster; ``release`` changes Harbor's release."""
        document = yaml.safe_load(MINIMAL.read_text())
        document["cluster"]["kubeconfig"] = str(self.cluster.kubeconfig)
        document["nodes"]["containerdCertsDir"] = str(self.cluster.certs_dir)
        serve = document["seed"]["serve"]
        serve["address"] = f"{NODE_IP}:{serve['address'].rpartition(':')[2]}"
        serve["service"] = "none"  # a service of this machine would not be in the namespace
        document["seed"] = dict(self.seed) or document["seed"]
        harbor = (
            document["releases"][0] | {"namespace": self.namespace} | copy.deepcopy(self.release)
        )
        document["releases"] = [harbor]
        harbor["harbor"]["externalURL"] = f"http://{NODE_IP}:{self.port}"
        harbor["harbor"]["acceptance"] = False  # the stand-ins are no Harbor that can be used
        ports = {"ports": {"http": {"nodePort": self.port}}}
        harbor["values"].setdefault("expose", {})["nodePort"] = ports
        harbor["values"] |= release.pop("values", {})
        harbor |= release
        path = self.folder / "site.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def argv(self, bundle: str, *more: str, **release: Any) -> list[str]:
        return self.command("run", bundle, *more, **release)

    def command(self, verb: str, bundle: str, *more: str, **release: Any) -> list[str]:
        return [
            INSTALLER,
            verb,
            str(self.bundles[bundle]),
            f"--key={self.key}",
            f"--site={self.site(**release)}",
            f"--state={self.state}",
            *more,
        ]

    def run(self, bundle: str, *more: str, **release: Any) -> subprocess.CompletedProcess[str]:
        return self.cluster.run(self.argv(bundle, *more, **release), check=False, timeout=900)

    def json(self, bundle: str, *more: str, **release: Any) -> dict[str, Any]:
        done = self.run(bundle, "--output=json", *more, **release)
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def uninstall(self, bundle: str, *more: str) -> dict[str, Any]:
        """Take it away; what was changed and what remains."""
        argv = self.command("uninstall", bundle, "--yes", "--output=json", *more)
        done = self.cluster.run(argv, check=False, timeout=600)
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def helm(self, *arguments: str) -> Any:
        argv: list[str | Path] = [
            programs.helm(self.helm_major),
            *arguments,
            f"--namespace={self.namespace}",
            "--output=json",
        ]
        return json.loads(self.cluster.run(argv).stdout)

    def revision(self) -> tuple[str, str, str]:
        """Revision, status and chart of Harbor's release."""
        return self.revision_of("harbor")

    def revision_of(self, release: str) -> tuple[str, str, str]:
        """The same of another release."""
        (found,) = [one for one in self.helm("list") if one["name"] == release]
        return found["revision"], found["status"], found["chart"]

    def pods(self) -> list[dict[str, Any]]:
        text = self.cluster.kubectl("get", "pods", f"--namespace={self.namespace}", "--output=json")
        items: list[dict[str, Any]] = json.loads(text)["items"]
        return items

    def settled_pods(self) -> list[dict[str, Any]]:
        """Pods once those that are being deleted are gone; an upgrade leaves some behind."""
        deadline = time.monotonic() + _LEAVING
        while True:
            pods = self.pods()
            leaving = [
                pod["metadata"]["name"] for pod in pods if "deletionTimestamp" in pod["metadata"]
            ]
            if not leaving:
                return pods
            assert time.monotonic() < deadline, leaving
            time.sleep(0.2)

    def events(self) -> list[tuple[str, str]]:
        lines = (self.state / "journal.jsonl").read_text().splitlines()
        return [(line["event"], line.get("step", "")) for line in map(json.loads, lines)]

    def check_pods(self, prefix: str, chart: str, upstream: Upstream, names: set[str]) -> None:
        """Assert that every pod is Ready and runs exactly what upstream has, from the seed.

        ``prefix`` is how the site names the seed registry, ``chart`` the chart's version, ``names``
        are Harbor's images that have to run.
        """
        tag = f":v{HARBOR[chart]}"
        running = set()
        for pod in self.settled_pods():
            conditions = {one["type"]: one["status"] for one in pod["status"]["conditions"]}
            assert conditions["Ready"] == "True", pod["metadata"]["name"]
            asked = {
                part["name"]: part["image"]
                for kind in ("initContainers", "containers")
                for part in pod["spec"].get(kind, ())
            }
            for kind in ("initContainerStatuses", "containerStatuses"):
                for part in pod["status"].get(kind, ()):
                    image, _, digest = asked.pop(part["name"]).partition("@")
                    assert image.startswith(f"{prefix}/goharbor/"), image
                    reference = image.removeprefix(f"{prefix}/")
                    assert digest == upstream.images[reference]
                    assert part["imageID"].rpartition("@")[2] == digest
                    assert reference.endswith(tag), reference
                    running.add(reference.removeprefix("goharbor/").removesuffix(tag))
            assert not asked, f"{pod['metadata']['name']}: no status of {asked}"
        assert running == names

    def check_silence(self) -> str:
        """Assert that nothing tried to leave since the story began; a sentence about it."""
        tried = self.cluster.outbound().since(self.before)
        assert tried.attempts == 0, tried
        return (
            f"nothing tried to leave in the story of {self.namespace}: "
            f"{tried.from_node} connects of the node and {tried.from_pods} packets of pods without "
            f"a route, {len(tried.destinations)} addresses outside, {tried.lookups} lookups past "
            f"the cluster's DNS, {len(tried.names)} names outside"
        )


S = TypeVar("S", bound=Story)


@contextmanager
def told(story: S) -> Iterator[S]:
    """Tell a story; at the end its namespace, seed registry and hosts.toml go.

    The namespace goes in the background: no other story uses its name or its node port.
    """
    cluster = story.cluster
    hosts = set(cluster.certs_dir.iterdir())
    try:
        yield story
    finally:
        daemon.stop(story.state / "seed" / "serve.pid")
        cluster.kubectl(
            "delete", "namespace", story.namespace, "--ignore-not-found", "--wait=false"
        )
        for path in set(cluster.certs_dir.iterdir()) - hosts:
            shutil.rmtree(path)


def connects(cluster: Cluster, address: str) -> str:
    """Connect to host:port from within the namespace; the error's line, "" when it works."""
    done = cluster.run([sys.executable, "-c", _CONNECT, *address.split(":")], check=False)
    return done.stderr.strip().rpartition("\n")[2]
