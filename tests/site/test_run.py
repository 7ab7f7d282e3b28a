"""``installer run`` from the file to a working Harbor, on a real Kubernetes without a route out.

The tests of this module are one story, in the order in which they stand: the site of one test is
the one that the test before left behind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
import requests

from tests import programs
from tests.bundles import make_bundle
from tests.site import images
from tests.site.network import NODE_IP
from tests.site.story import INSTALLER, NEW, OLD, Story, connects, told
from tests.site.upstream import BUSYBOX
from tests.upstream.images import Content, artefact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tests.site.cluster import Cluster
    from tests.site.connected import Connected, Made
    from tests.site.network import Outbound
    from tests.upstream.images import Image

pytestmark = pytest.mark.site

SHORT = 20
"""Seconds after which Helm gives up where it is meant to."""
SEED = f"{NODE_IP}:5000"
RUNNING = set(images.HARBOR) - {"harbor-exporter"}


def tool(path: Path) -> Image:
    content = Content("application/x-executable", path.read_bytes())
    return artefact(Content("application/json", b"{}"), [content])


@pytest.fixture(scope="module")
def story(
    cluster: Cluster,
    before: Outbound,
    connected: Connected,
    bundles: Mapping[str, Made],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Story]:
    with told(Story(cluster, tmp_path_factory.mktemp("serve"), before)) as story:
        for name, made in bundles.items():
            story.carry(name, made.path, connected.public_key)
        # bundler makes none for an architecture that Harbor has no images for
        make_bundle(
            story.folder / "arm.tar",
            {},
            tools={"helm": tool(programs.helm()), "kubectl": tool(programs.kubectl())},
            serial=bundles["lacking"].lock["serial"] + 1,
            platforms=("linux/arm64",),
            key=connected.private_key(),
        )
        story.bundles["arm"] = story.folder / "arm.tar"
        yield story


def test_the_connected_side_is_out_of_reach(story: Story, connected: Connected) -> None:
    for url in (connected.upstream.registry.url, connected.upstream.charts_url):
        assert requests.get(url, timeout=10).ok
        assert "Connection refused" in connects(story.cluster, url.removeprefix("http://"))


def test_the_carried_file_is_verified(story: Story, bundles: Mapping[str, Made]) -> None:
    for name in ("old", "new", "lacking"):
        command = [INSTALLER, "verify", str(story.bundles[name])]
        done = story.cluster.run([*command, f"--key={story.key}", "--output=json"])
        said = json.loads(done.stdout)
        assert said["verified"] is True
        assert said["digest"] == bundles[name].built["digest"]
        assert said["serial"] == bundles[name].lock["serial"]


def test_a_cluster_that_is_away_changes_nothing(story: Story) -> None:
    away = story.folder / "away.conf"
    away.write_text(story.cluster.kubeconfig.read_text().replace(":6443", ":6444"))
    argv = story.argv("old")
    site = story.folder / "site.yaml"
    site.write_text(site.read_text().replace(str(story.cluster.kubeconfig), str(away)))
    done = story.cluster.run(argv, check=False)
    assert done.returncode == 5, done.stderr
    assert "can't be reached" in done.stderr
    assert not story.state.exists()


def test_a_bundle_for_other_machines_changes_nothing(story: Story) -> None:
    done = story.run("arm")
    assert done.returncode == 5, done.stderr
    assert not story.state.exists()


def test_the_plan_touches_nothing(story: Story) -> None:
    done = story.run("old", "--plan")
    assert done.returncode == 0, done.stderr
    assert "to do    Install or upgrade harbor/harbor to harbor 1.18.4" in done.stdout
    assert not story.state.exists()
    assert not list(story.cluster.certs_dir.glob(f"{NODE_IP}*"))
    namespaces = story.cluster.kubectl("get", "namespaces", "--output=name")
    assert f"namespace/{story.namespace}\n" not in namespaces


def test_an_image_that_is_missing_changes_nothing(story: Story) -> None:
    done = story.run("lacking")
    assert done.returncode == 5, done.stderr
    assert "goharbor/nginx-photon:v2.15.1" in done.stderr
    assert "Deployment/harbor-nginx" in done.stderr
    assert not story.state.exists()


def test_a_release_that_does_not_start_says_why(story: Story) -> None:
    lost = {"portal": {"nodeSelector": {"no.such/node": "x"}}}
    done = story.run("old", values=lost, timeout=SHORT)
    assert done.returncode == 7, done.stdout + done.stderr
    assert "harbor-portal" in done.stderr
    assert "Unschedulable" in done.stderr
    assert story.revision() == ("1", "failed", "harbor-1.18.4")
    assert story.events()[-1] == ("failed", "release:harbor/harbor")


def test_killed_in_the_middle_and_run_again_it_finishes(story: Story) -> None:
    argv = story.cluster._namespace.enter(story.argv("old"))
    with subprocess.Popen(
        argv,
        env=story.cluster.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        end = time.monotonic() + 120
        before = story.revision()
        while story.revision() == before or "pending" not in story.revision()[1]:
            assert running.poll() is None
            assert time.monotonic() < end
        os.kill(running.pid, signal.SIGKILL)
    assert running.returncode == -signal.SIGKILL
    assert story.events()[-1] == ("started", "release:harbor/harbor")
    report = story.json("old")
    assert report["changed"][0] == "release:harbor/harbor"
    assert story.revision()[1:] == ("deployed", "harbor-1.18.4")


def test_what_runs_is_the_bundles_and_ready(story: Story, connected: Connected) -> None:
    assert len(story.settled_pods()) == 8
    story.check_pods(SEED, OLD, connected.upstream, RUNNING)


def test_a_second_run_changes_nothing_and_says_so(story: Story) -> None:
    before = story.revision(), len(story.events())
    report = story.json("old")
    assert report["changed"] == []
    assert story.revision() == before[0]
    assert len(story.events()) == before[1] + 1  # that there was a run
    done = story.run("old")
    assert done.stdout.startswith("nothing to do")
    assert "nothing to do" in story.run("old", "--plan").stdout


def test_secrets_are_the_sites_and_nowhere_to_be_read(story: Story) -> None:
    kept = json.loads((story.state / "secrets.json").read_text())["harbor"]["harbor/harbor"]
    values = story.helm("get", "values", "harbor")
    assert values["secretKey"] == kept["secretKey"]
    done = story.run("old")
    for secret in kept.values():
        assert secret == "harbor_registry_user" or secret not in done.stdout + done.stderr
    assert (story.state / "work").stat().st_mode & 0o777 == 0o700
    for path in story.state.rglob("*"):
        if path.is_relative_to(story.state / "work"):
            continue  # kubectl chooses modes of its own for what it caches there
        assert not path.lstat().st_mode & 0o077 or path.suffix == ".crt", path
        if path.suffix in (".log", ".jsonl"):
            assert kept["adminPassword"] not in path.read_text()


def test_a_seed_registry_that_was_killed_comes_back(story: Story, connected: Connected) -> None:
    serving = json.loads((story.state / "seed" / "serve.pid").read_text())["pid"]
    os.kill(serving, signal.SIGKILL)
    end = time.monotonic() + 20
    while "Connection refused" not in connects(story.cluster, SEED):
        assert time.monotonic() < end
    before = story.revision()
    done = story.run("old")
    assert done.returncode == 0, done.stderr
    assert f"done     Serve the bundle to the nodes at {SEED}, in the background" in done.stderr
    assert done.stderr.count("  done  ") == 1
    assert "already  Install or upgrade harbor/harbor to harbor 1.18.4" in done.stderr
    assert story.events()[-1] == ("done", "seed")
    assert story.revision() == before
    assert story.json("old")["changed"] == []
    # the nodes pull from it again, what no pod had before
    image = f"{SEED}/{BUSYBOX}@{connected.upstream.images[BUSYBOX]}"
    wanted = f"--namespace={story.namespace}"
    story.cluster.kubectl("run", "extra", wanted, f"--image={image}", "--", "sleep", "600")
    story.cluster.kubectl("wait", "pod/extra", wanted, "--for=condition=Ready", "--timeout=60s")
    story.cluster.kubectl("delete", "pod", "extra", wanted, "--now")


def test_ended_in_an_upgrade_and_run_again_it_finishes(story: Story) -> None:
    changed = {"logLevel": "debug"}
    argv = story.cluster._namespace.enter(story.argv("old", values=changed))
    with subprocess.Popen(
        argv, env=story.cluster.environment, stderr=subprocess.PIPE, text=True
    ) as running:
        while story.revision()[1] != "pending-upgrade":
            assert running.poll() is None
        running.terminate()
        _, words = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "it goes on where it stopped" in words
    assert story.events()[-1] == ("interrupted", "release:harbor/harbor")
    done = story.run("old", values=changed)
    assert done.returncode == 0, done.stderr
    assert "in step release:harbor/harbor: going on from there" in done.stderr
    assert story.revision()[1] == "deployed"


def test_the_next_bundle_upgrades_and_keeps_the_secrets(story: Story, connected: Connected) -> None:
    before = (story.state / "secrets.json").read_bytes()
    report = story.json("new")
    assert "release:harbor/harbor" in report["changed"]
    assert story.revision()[1:] == ("deployed", "harbor-1.19.1")
    assert (story.state / "secrets.json").read_bytes() == before
    story.check_pods(SEED, NEW, connected.upstream, RUNNING)
    assert story.json("new")["changed"] == []


def test_the_bundle_before_is_refused_but_on_purpose(
    story: Story, bundles: Mapping[str, Made]
) -> None:
    done = story.run("old")
    assert done.returncode == 3, done.stderr
    assert f"already seen {bundles['new'].lock['serial']}" in done.stderr
    planned = story.run("old", "--plan", "--allow-downgrade=drill")
    # The bundle may be older, but Harbor's database doesn't go back by itself.
    assert planned.returncode == 5, planned.stderr
    assert "installer undo" in planned.stderr


def test_a_state_that_was_lost_comes_back_from_the_cluster(story: Story) -> None:
    kept = (story.state / "secrets.json").read_bytes()
    before = story.revision()
    (story.state / "secrets.json").rename(story.folder / "secrets.json")
    planned = story.json("new", "--plan")["steps"]
    (said,) = [step["details"] for step in planned if step["step"] == "secrets:harbor/harbor"]
    assert "taken back" in said[0]
    assert not (story.state / "secrets.json").exists()
    report = story.json("new")
    assert report["changed"] == ["secrets:harbor/harbor"]
    assert (story.state / "secrets.json").read_bytes() == kept
    assert story.revision() == before
    show = ["site", "secrets", "adminPassword", f"--site={story.site()}", f"--state={story.state}"]
    shown = story.cluster.run([INSTALLER, *show]).stdout
    assert shown.strip() == json.loads(kept)["harbor"]["harbor/harbor"]["adminPassword"]


def test_secrets_that_are_lost_are_not_made_up(story: Story) -> None:
    place = ("secret", "harbor-kept-secrets", "--namespace=harbor")
    kept = (story.state / "secrets.json").read_bytes()
    story.cluster.kubectl("delete", *place)
    (story.state / "secrets.json").unlink()
    done = story.run("new")
    assert done.returncode == 5, done.stderr
    assert "neither" in done.stderr
    assert "has its secrets" in done.stderr
    (story.state / "secrets.json").write_bytes(kept)
    (story.state / "secrets.json").chmod(0o600)
    assert story.json("new")["changed"] == ["secrets:harbor/harbor"]


def test_nothing_tried_to_leave(story: Story, tell: Callable[[str], None]) -> None:
    tell(story.check_silence())
