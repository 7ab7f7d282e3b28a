"""The other seed: a registry that the site has, with TLS of the site's own authority, is filled.

The release lives in another namespace than the chart's name and uses a profile of the bundle.
"""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

import pytest

from tests.site import images, registry
from tests.site.network import NODE_IP
from tests.site.story import NEW, Story, connects, told
from tests.upstream.certificates import make_certificates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tests.site.cluster import Cluster
    from tests.site.connected import Connected, Made
    from tests.site.network import Outbound

pytestmark = pytest.mark.site

REGISTRY = f"{NODE_IP}:5443"
PREFIX = f"{REGISTRY}/airgap"


class SiteRegistry:
    """The site's ``docker-registry``, inside the namespace."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self._storage = folder / "storage"
        certificates = make_certificates(folder / "tls", [NODE_IP])
        self.ca = certificates.ca
        self._configuration = folder / "registry.yml"
        self._configuration.write_text(registry.configuration_text(folder, REGISTRY, certificates))
        self.start()

    def start(self) -> None:
        argv = ["docker-registry", "serve", str(self._configuration)]
        self._cluster.spawn("site-registry", argv)
        deadline = time.monotonic() + 20
        while connects(self._cluster, REGISTRY):
            assert time.monotonic() < deadline, self._cluster.log("site-registry").read_text()

    def stop(self) -> None:
        self._cluster.stop("site-registry")

    def lose_everything(self) -> None:
        """Come back empty, as after the loss of a disk."""
        self.stop()
        shutil.rmtree(self._storage)
        self.start()

    def content(self) -> dict[str, str]:
        """Digest of every repository:tag, as it lies on the disk."""
        repositories = self._storage / "docker" / "registry" / "v2" / "repositories"
        return {
            f"{link.parents[4].relative_to(repositories)}:{link.parents[1].name}": link.read_text()
            for link in repositories.rglob("_manifests/tags/*/current/link")
        }


@pytest.fixture(scope="module")
def site_registry(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SiteRegistry]:
    running = SiteRegistry(cluster, tmp_path_factory.mktemp("site-registry"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def story(
    cluster: Cluster,
    before: Outbound,
    site_registry: SiteRegistry,
    connected: Connected,
    bundles: Mapping[str, Made],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Story]:
    with told(
        Story(
            cluster,
            tmp_path_factory.mktemp("push"),
            before,
            namespace="registry",
            port=30012,
            seed={"push": {"registry": PREFIX, "ca": str(site_registry.ca)}},
            release={"profile": "nodeport", "values": {"persistence": {"enabled": False}}},
        )
    ) as story:
        story.carry("new", bundles["new"].path, connected.public_key)
        yield story


def test_it_installs_from_the_sites_registry(story: Story, connected: Connected) -> None:
    report = story.json("new")
    wanted = ["verify", "tools", "seed", "nodes", "secrets:registry/harbor"]
    assert report["changed"][: len(wanted)] == wanted
    assert "were there" in report["notes"]["seed"]
    assert story.revision() == ("1", "deployed", f"harbor-{NEW}")
    story.check_pods(PREFIX, NEW, connected.upstream, set(images.HARBOR) - {"harbor-exporter"})


def test_the_registry_has_all_of_the_bundle(
    site_registry: SiteRegistry, bundles: Mapping[str, Made]
) -> None:
    made = bundles["new"]
    carried = {**made.digests("images"), **made.digests("databases")}
    wanted = {f"airgap/{name.partition('/')[2]}": digest for name, digest in carried.items()}
    tools = {tool["name"]: tool["digest"] for tool in made.lock["tools"]}
    wanted |= {f"airgap/tools/{name}:linux-amd64": tool for name, tool in tools.items()}
    wanted[f"airgap/charts/harbor:{NEW}"] = made.digests("charts")["harbor"]
    assert site_registry.content() == wanted


def test_a_second_run_changes_nothing(story: Story, site_registry: SiteRegistry) -> None:
    before = story.revision(), site_registry.content(), len(story.events())
    assert story.json("new")["changed"] == []
    assert story.run("new").stdout.startswith("nothing to do")
    after = story.revision(), site_registry.content(), len(story.events())
    assert after == (*before[:2], before[2] + 2)  # that there were two runs


def test_a_registry_that_lost_everything_is_filled_again(
    story: Story, site_registry: SiteRegistry
) -> None:
    content = site_registry.content()
    site_registry.lose_everything()
    assert story.json("new")["changed"] == ["seed"]
    assert site_registry.content() == content
    assert story.revision()[0] == "1"


def test_a_registry_that_is_away_is_named(story: Story, site_registry: SiteRegistry) -> None:
    site_registry.stop()
    try:
        done = story.run("new")
        assert done.returncode == 6, done.stderr
        assert REGISTRY in done.stderr
        assert story.events()[-1] == ("failed", "seed")
    finally:
        site_registry.start()
    assert story.json("new")["changed"] == []


def test_nothing_tried_to_leave(story: Story, tell: Callable[[str], None]) -> None:
    tell(story.check_silence())
