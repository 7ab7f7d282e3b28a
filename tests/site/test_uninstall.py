"""The demo site is taken away and brought back: its data is what it was, with Helm 4 and 3."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from installer.deploy import daemon
from tests.site.network import NODE_IP
from tests.site.story import OLD, connects, told

# `database` is a fixture: pytest finds it by its name here.
from tests.site.test_run_demo import (
    RUNNING,
    SEED,
    Demo,
    database,  # noqa: F401
    start_haproxy,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.postgresql import Server
    from tests.site.cluster import Cluster
    from tests.site.connected import Connected, Made
    from tests.site.network import Outbound

pytestmark = pytest.mark.site

RELEASE, COMPANION = "uninstall:gone/harbor", "uninstall:gone/harbor-companion"


class Gone(Demo):
    """The demo site with the words to take it away."""

    @property
    def kept(self) -> Any:
        return self.volume / "registry" / "kept.txt"

    def object(self, kind: str, name: str) -> dict[str, Any]:
        text = self.cluster.kubectl(
            "get", kind, name, f"--namespace={self.namespace}", "--output=json"
        )
        found: dict[str, Any] = json.loads(text)
        return found

    def names(self, kind: str) -> list[str]:
        return self.cluster.kubectl(
            "get", kind, f"--namespace={self.namespace}", "--output=name"
        ).split()

    def volume_is(self, phase: str) -> str:
        """Wait until the volume is in a phase; its uid."""
        deadline = time.monotonic() + 30
        while True:
            found = self.object("persistentvolume", f"demo-{self.namespace}-harbor")
            if found["status"]["phase"] == phase:
                return str(found["metadata"]["uid"])
            assert time.monotonic() < deadline, found
            time.sleep(0.2)

    def volumes(self) -> list[tuple[str, str, str]]:
        """Kind, uid and phase of claim and volume."""
        found = [
            self.object("persistentvolumeclaim", "harbor-data"),
            self.object("persistentvolume", f"demo-{self.namespace}-harbor"),
        ]
        return [(one["kind"], one["metadata"]["uid"], one["status"]["phase"]) for one in found]


@pytest.fixture(scope="module")
def story(
    cluster: Cluster,
    before: Outbound,
    database: Server,  # noqa: F811 (the fixture above)
    connected: Connected,
    bundles: Mapping[str, Made],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gone]:
    if shutil.which("haproxy", path="/usr/sbin") is None:
        pytest.skip("haproxy is missing: apt-get install haproxy")
    folder = tmp_path_factory.mktemp("gone")
    with told(
        Gone(cluster, folder, before, namespace="gone", port=30032, database=database)
    ) as story:
        story.carry("old", bundles["old"].path, connected.public_key)
        three = connected.make("three", "2.14", helm=3)
        story.carry("three", three.path, connected.public_key)
        started = start_haproxy(story)
        report = story.json("old")
        started.join(10)
        assert "release:gone/harbor" in report["changed"]
        story.kept.write_text("pushed by somebody")
        yield story
        cluster.stop("haproxy")
        volume = f"demo-{story.namespace}-harbor"
        cluster.kubectl("delete", "persistentvolume", volume, "--wait=false", "--ignore-not-found")


def test_without_a_terminal_it_only_shows_what_it_would_do(story: Gone) -> None:
    before = story.events()
    done = story.cluster.run(story.command("uninstall", "old"), check=False)
    assert done.returncode == 2, done.stderr
    assert "add --yes" in done.stderr
    assert "to do    Uninstall the release gone/harbor\n" in done.stderr
    assert "to do    Uninstall the release gone/harbor-companion\n" in done.stderr
    assert "stays    claim gone/harbor-data" in done.stderr
    assert story.events() == before
    assert {entry["status"] for entry in story.helm("list")} == {"deployed"}


def test_killed_in_the_middle_and_run_again_it_finishes(story: Gone) -> None:
    before = story.volumes()
    argv = story.cluster._namespace.enter(story.command("uninstall", "old", "--yes"))
    with subprocess.Popen(
        argv,
        env=story.cluster.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        end = time.monotonic() + 120
        while story.names("deployments"):
            assert running.poll() is None
            assert time.monotonic() < end
        os.kill(running.pid, signal.SIGKILL)
    assert {entry["status"] for entry in story.helm("list")} == {"deployed"}
    assert story.events()[-1] == ("started", RELEASE)
    told = story.uninstall("old")
    assert [name for name in told["changed"] if name in (RELEASE, COMPANION)] == [
        RELEASE, COMPANION,
    ]  # fmt: skip
    assert story.helm("list") == []
    assert story.pods() == []
    assert [phase for _, _, phase in story.volumes()] == ["Bound", "Bound"]
    assert story.volumes() == before


def test_nothing_serves_and_nothing_points_to_it(story: Gone) -> None:
    assert daemon.running(story.state / "seed" / "serve.pid") is None
    assert "Connection refused" in connects(story.cluster, SEED)
    assert not (story.cluster.certs_dir / SEED).exists()
    assert not (story.cluster.certs_dir / f"{NODE_IP}:8443").exists()


def test_what_remains_is_listed_and_is_there(story: Gone) -> None:
    told = story.uninstall("old")
    assert told["changed"] == []
    remains = {(row["what"], row["where"]): row["note"] for row in told["remains"]}
    assert ("claim", "gone/harbor-data") in remains
    assert str(story.volume) in remains["volume", "demo-gone-harbor"]
    assert ("stored data", f"{story.volume} on the node") in remains
    sql = remains["database", f"registry at {NODE_IP}:{story.database.port}"]
    assert 'DROP DATABASE "registry"; DROP ROLE "harbor";' in sql
    assert ("HAProxy", str(story.configuration)) in remains
    assert ("state", str(story.state)) in remains
    assert "persistentvolumeclaim/harbor-data" in remains["namespace", "gone"]
    assert remains["namespace", "gone"].count("secret/") == 1
    assert ("secrets", "Secret gone/harbor-kept-secrets") in remains
    assert (story.state / "secrets.json").stat().st_size
    assert story.database.owner("registry") == "harbor"
    assert story.kept.read_text() == "pushed by somebody"


def test_a_run_with_helm_3_takes_over_what_helm_4_left(story: Gone, connected: Connected) -> None:
    before, secrets = story.volumes(), (story.state / "secrets.json").read_bytes()
    report = story.json("three")
    assert {"seed", "nodes", "companion:gone/harbor", "release:gone/harbor"} <= set(
        report["changed"]
    )
    assert "certificate:gone/harbor" not in report["changed"]
    assert story.volumes() == before
    assert (story.state / "secrets.json").read_bytes() == secrets
    story.check_pods(SEED, OLD, connected.upstream, RUNNING)
    assert story.get("/api/v2.0/health") == "200"
    assert story.kept.read_text() == "pushed by somebody"
    assert story.json("three")["changed"] == []


def test_a_volume_whose_claim_was_deleted_is_freed_by_the_command_that_is_told(
    story: Gone,
) -> None:
    assert RELEASE in story.uninstall("three")["changed"]
    assert story.pods() == []
    before = story.volume_is("Bound")
    claim = ("persistentvolumeclaim", "harbor-data", f"--namespace={story.namespace}")
    story.cluster.kubectl("delete", *claim)
    assert story.volume_is("Released") == before
    (row,) = [row for row in story.uninstall("three")["remains"] if row["what"] == "volume"]
    kubectl, *command = shlex.split(row["note"].split("`")[1])
    assert kubectl == "kubectl"
    story.cluster.kubectl(*command)
    assert story.volume_is("Available") == before


def test_helm_4_takes_over_what_helm_3_left(
    story: Gone, connected: Connected, bundles: Mapping[str, Made]
) -> None:
    before = story.volume_is("Available")
    story.carry("four", bundles["old"].path, connected.public_key)
    story.json("four", "--allow-downgrade=it is the one with Helm 4")
    assert story.volume_is("Bound") == before
    story.check_pods(SEED, OLD, connected.upstream, RUNNING)
    assert story.kept.read_text() == "pushed by somebody"


def test_data_in_the_cluster_goes_when_told(story: Gone) -> None:
    told = story.uninstall("old", "--delete-data")
    assert "uninstall:data:gone/harbor" in told["changed"]
    assert story.names("persistentvolumeclaims") == []
    assert f"demo-{story.namespace}" not in story.cluster.kubectl(
        "get", "persistentvolumes", "--output=name"
    )
    remains = {(row["what"], row["where"]) for row in told["remains"]}
    assert ("stored data", f"{story.volume} on the node") in remains
    assert not any(what == "secrets" for what, _ in remains)
    assert (story.state / "secrets.json").stat().st_size
    assert story.kept.read_text() == "pushed by somebody"
    assert story.database.owner("registry") == "harbor"
    assert story.uninstall("old", "--delete-data")["changed"] == []


def test_nothing_tried_to_leave(story: Gone, tell: Callable[[str], None]) -> None:
    tell(story.check_silence())
