"""Whatever stops a run, the next one finishes: kills at each step, power, API server, disk.

One site, one chain of accidents: what one leaves behind is what the next one finds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.site import images
from tests.site.network import NODE_IP
from tests.site.story import NEW, OLD, Story, told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.site.cluster import Cluster
    from tests.site.connected import Connected, Made
    from tests.site.network import Outbound

pytestmark = pytest.mark.site

NAMESPACE = "chaos"
RELEASE = f"release:{NAMESPACE}/harbor"
SEED = f"{NODE_IP}:5092"
RUNNING = set(images.HARBOR) - {"harbor-exporter"}
DISK = 320 << 20
"""Bytes for the state: tools, charts, kubectl's cache; more than that is what a full disk lacks."""
AWAY = 60
"""Seconds without an API server."""


class Chaos(Story):
    """The state lies on a small disk of its own."""

    def changes(self) -> list[str]:
        changed: list[str] = self.json("old")["changed"]
        return changed

    def lines(self) -> list[tuple[str, str]]:
        """The journal while somebody writes to it: whole lines only."""
        path = self.state / "journal.jsonl"
        text = path.read_text() if path.exists() else ""
        found = [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]
        return [(line["event"], line.get("step", "")) for line in found]

    @contextmanager
    def running(self, *argv: str) -> Iterator[subprocess.Popen[str]]:
        """A command that somebody ends, with everything that it started but the seed registry."""
        with subprocess.Popen(
            self.cluster._namespace.enter(argv),
            env=self.cluster.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def until(self, process: subprocess.Popen[str], steps: set[str]) -> str:
        """Wait until one of these steps begins; which one, "" if the command ended before."""
        before, end = len(self.lines()), time.monotonic() + 240
        while process.poll() is None:
            for event, step in self.lines()[before:]:
                if event == "started" and step in steps:
                    return step
            assert time.monotonic() < end
            time.sleep(0.001)
        return ""

    def secrets(self) -> bytes:
        return (self.state / "secrets.json").read_bytes()

    def statuses(self) -> set[str]:
        """Helm's words on the revisions of the release."""
        text = self.cluster.kubectl(
            "get", "secrets", f"--namespace={self.namespace}", "--selector=owner=helm,name=harbor",
            "--output=json",
        )  # fmt: skip
        items: list[dict[str, Any]] = json.loads(text)["items"]
        latest = max(items, key=lambda one: int(one["metadata"]["labels"]["version"]), default=None)
        return {latest["metadata"]["labels"]["status"]} if latest else set()

    def hold(self, finalizers: list[str]) -> None:
        """Keep one of the release's objects from going, or let it go."""
        patch = json.dumps({"metadata": {"finalizers": finalizers}})
        wanted = ("configmap", "harbor-core", f"--namespace={self.namespace}")
        self.cluster.kubectl("patch", *wanted, "--type=merge", f"--patch={patch}")

    def state_is_whole(self) -> None:
        """Every file that the state keeps can be read: there is no half of one."""
        for path in self.state.glob("*.json"):
            json.loads(path.read_bytes())
        assert not list(self.state.glob("*.part*"))


@pytest.fixture(scope="module")
def story(
    cluster: Cluster,
    before: Outbound,
    connected: Connected,
    bundles: Mapping[str, Made],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Chaos]:
    serve = {"listen": SEED, "address": SEED, "service": "none"}
    folder = tmp_path_factory.mktemp("chaos")
    made = Chaos(cluster, folder, before, namespace=NAMESPACE, port=30092, seed={"serve": serve})
    made.state.mkdir(mode=0o700)
    small = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=700", "none", str(made.state)]
    subprocess.run(small, check=True)
    try:
        with told(made) as story:
            for name, bundle in bundles.items():
                story.carry(name, bundle.path, connected.public_key)
            yield story
    finally:
        subprocess.run(["umount", "--lazy", str(made.state)], check=True)


def test_killed_at_each_step_and_run_again_it_finishes(story: Chaos, connected: Connected) -> None:
    planned = [one["step"] for one in story.json("old", "--plan")["steps"] if not one["done"]]
    killed, kept = [], None
    for index in range(len(planned)):
        with story.running(*story.argv("old")) as process:
            step = story.until(process, set(planned[index:]))
            process.send_signal(signal.SIGKILL)
            process.wait(10)
        killed += [step] if step else []
        if (story.state / "secrets.json").exists():
            kept = kept or story.secrets()
            assert story.secrets() == kept
    # A quick step may be done before it is seen to begin; the kill comes in the next one then.
    assert {"verify", RELEASE} <= set(killed), killed
    assert len(set(killed)) >= 5, killed
    report = story.json("old")
    assert story.secrets() == kept
    assert story.revision()[1:] == ("deployed", f"harbor-{OLD}"), (killed, report)
    story.check_pods(SEED, OLD, connected.upstream, RUNNING)
    assert story.changes() == []
    story.state_is_whole()


def test_only_one_works_and_the_api_server_may_be_away(story: Chaos) -> None:
    kept, changed = story.secrets(), {"logLevel": "debug"}
    with story.running(*story.argv("old", values=changed)) as process:
        assert story.until(process, {RELEASE}) == RELEASE
        second = story.run("old", values=changed)
        assert second.returncode == 5, second.stderr
        assert f"process {process.pid}" in second.stderr
        assert "works on this site" in second.stderr
        story.cluster.stop("apiserver")
        time.sleep(AWAY)
        story.cluster.start("apiserver")
        story.cluster.wait_for_api()
        words, _ = process.communicate(timeout=300)
    assert process.returncode in (0, 5, 6, 7, 8), words
    assert "Traceback" not in words
    done = story.run("old", values=changed)
    assert done.returncode == 0, words + done.stderr
    assert story.revision()[1] == "deployed"
    assert story.secrets() == kept
    assert story.json("old", values=changed)["changed"] == []


def test_a_full_disk_is_told_and_nothing_is_half(story: Chaos) -> None:
    kept, changed = story.secrets(), {"logLevel": "warning"}
    filler = story.state / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"\0" * 65536)
        with filler.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"\0")

    fill()
    refused = story.run("old", values=changed)
    assert refused.returncode in (5, 6), refused.stderr
    assert "Traceback" not in refused.stderr
    assert str(story.state) in refused.stderr
    filler.unlink()
    with story.running(*story.argv("old", values=changed)) as process:
        assert story.until(process, {RELEASE}) == RELEASE
        fill()
        words, _ = process.communicate(timeout=300)
    assert process.returncode == 6, words
    assert "Traceback" not in words
    assert "No space left" in words
    filler.unlink()
    story.state_is_whole()
    assert story.secrets() == kept
    done = story.run("old", values=changed)
    assert done.returncode == 0, done.stderr
    assert story.json("old", values=changed)["changed"] == []


def test_a_node_that_loses_power_in_an_upgrade(story: Chaos, connected: Connected) -> None:
    kept = story.secrets()
    with story.running(*story.argv("new")) as process:
        assert story.until(process, {RELEASE}) == RELEASE
        time.sleep(3)  # some of it has happened then
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
    serving = json.loads((story.state / "seed" / "serve.pid").read_text())["pid"]
    os.kill(serving, signal.SIGKILL)
    story.cluster.reboot()
    report = story.json("new")
    assert {"seed", RELEASE} <= set(report["changed"]), report
    assert story.revision()[1:] == ("deployed", f"harbor-{NEW}")
    assert story.secrets() == kept
    story.check_pods(SEED, NEW, connected.upstream, RUNNING)
    assert story.json("new")["changed"] == []


def test_a_killed_uninstall_is_no_dead_end_for_a_run(story: Chaos, connected: Connected) -> None:
    kept = story.secrets()
    story.hold(["site.test/held"])  # Helm waits for this object until it is killed
    with story.running(*story.command("uninstall", "new", "--yes")) as process:
        end = time.monotonic() + 120
        while story.statuses() != {"uninstalling"}:
            assert process.poll() is None
            assert time.monotonic() < end
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
    assert story.statuses() == {"uninstalling"}
    story.hold([])
    done = story.run("new")
    assert done.returncode == 0, done.stderr
    assert story.json("new")["changed"] == []
    assert story.revision()[1:] == ("deployed", f"harbor-{NEW}")
    assert story.secrets() == kept
    story.check_pods(SEED, NEW, connected.upstream, RUNNING)


def test_nothing_tried_to_leave(story: Chaos, tell: Callable[[str], None]) -> None:
    tell(story.check_silence())
