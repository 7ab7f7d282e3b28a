"""A bundle that carries Helm 3 installs as well, and the next one is a delta that stands on it.

The profile is the one that has metrics: with the exporter all ten of Harbor's images run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import programs
from tests.site import images
from tests.site.connected import sha256
from tests.site.network import NODE_IP
from tests.site.story import NEW, OLD, Story, told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.site.cluster import Cluster
    from tests.site.connected import Connected
    from tests.site.network import Outbound

pytestmark = pytest.mark.site

SEED = f"{NODE_IP}:5001"


@pytest.fixture(scope="module")
def story(
    cluster: Cluster,
    before: Outbound,
    connected: Connected,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Story]:
    seed = {"serve": {"listen": SEED, "address": SEED, "tls": False, "service": "none"}}
    with told(
        Story(
            cluster,
            tmp_path_factory.mktemp("helm3"),
            before,
            namespace="harbor-helm3",
            port=30022,
            helm_major=3,
            seed=seed,
            release={"profile": "metrics"},
        )
    ) as story:
        old = connected.make("helm3-old", "2.14", helm=3)
        delta = connected.make("helm3-delta", "2.15", helm=3, since=old)
        for name, made in (("old", old), ("delta", delta)):
            story.carry(name, made.path, connected.public_key)
        # tools, the database and the layers that both releases have: all but some kilobytes
        assert story.bundles["delta"].stat().st_size < story.bundles["old"].stat().st_size / 10
        yield story


def base(story: Story) -> str:
    return f"--base={story.bundles['old']}"


def test_helm_3_installs(story: Story, connected: Connected) -> None:
    report = story.json("old")
    assert "release:harbor-helm3/harbor" in report["changed"]
    assert sha256(story.state / "tools" / "helm") == sha256(programs.helm(3))
    assert story.revision() == ("1", "deployed", f"harbor-{OLD}")
    story.check_pods(SEED, OLD, connected.upstream, set(images.HARBOR))


def test_a_second_run_changes_nothing(story: Story) -> None:
    assert story.json("old")["changed"] == []
    assert story.revision()[0] == "1"


def test_a_delta_alone_changes_nothing(story: Story, connected: Connected) -> None:
    before = story.revision(), story.events(), sorted(story.state.rglob("*"))
    done = story.run("delta")
    assert done.returncode == 5, done.stderr
    assert f"{story.bundles['delta']} is a delta" in done.stderr
    assert "needed by goharbor/harbor-core:v2.15.1" in done.stderr
    assert "--base" in done.stderr
    assert (story.revision(), story.events(), sorted(story.state.rglob("*"))) == before
    story.check_pods(SEED, OLD, connected.upstream, set(images.HARBOR))


def test_it_upgrades_from_the_delta_and_its_base(story: Story, connected: Connected) -> None:
    assert "release:harbor-helm3/harbor" in story.json("delta", base(story))["changed"]
    assert story.revision()[1:] == ("deployed", f"harbor-{NEW}")
    story.check_pods(SEED, NEW, connected.upstream, set(images.HARBOR))
    assert story.json("delta", base(story))["changed"] == []


def test_it_goes(story: Story) -> None:
    told = story.uninstall("delta", base(story))
    assert "uninstall:harbor-helm3/harbor" in told["changed"]
    assert story.helm("list") == []
    assert story.pods() == []
    assert (story.state / "secrets.json").exists()


def test_nothing_tried_to_leave(story: Story, tell: Callable[[str], None]) -> None:
    tell(story.check_silence())
