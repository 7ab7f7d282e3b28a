"""Two sites from one file at the same time: what one does is nothing to the other."""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.site import images
from tests.site.network import NODE_IP
from tests.site.story import NEW, Story, told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tests.site.cluster import Cluster
    from tests.site.connected import Connected, Made
    from tests.site.network import Outbound

pytestmark = pytest.mark.site

RUNNING = set(images.HARBOR) - {"harbor-exporter"}


@dataclass
class Site(Story):
    """A site with a name and a volume of its own; the bundle's file is the same for both."""

    name: str = ""

    @property
    def address(self) -> str:
        return str(self.seed["serve"]["address"])

    def site(self, **release: Any) -> Path:
        path = super().site(**release)
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"name": self.name}))
        return path


@pytest.fixture(scope="module")
def sites(
    cluster: Cluster,
    before: Outbound,
    connected: Connected,
    bundles: Mapping[str, Made],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Site, Site]]:
    with ExitStack() as stack:
        made = []
        for name, port in (("plant", 30093), ("ship", 30094)):
            folder = tmp_path_factory.mktemp(name)
            address = f"{NODE_IP}:{port - 25000}"
            seed = {"serve": {"listen": address, "address": address, "service": "none"}}
            # A volume has no namespace: its name has to tell the sites apart.
            storage = {"hostPath": {"path": str(folder / "data"), "size": "1Gi"}}
            values = {"expose": {"type": "nodePort", "tls": {"enabled": False}}}
            release = {"harbor": {"storage": storage}, "values": values}
            site = Site(cluster, folder, before, name, port, seed=seed, release=release, name=name)
            made.append(stack.enter_context(told(site)))
        first, second = made
        first.carry("new", bundles["new"].path, connected.public_key)
        second.key.write_bytes(first.key.read_bytes())
        second.bundles["new"] = first.bundles["new"]
        yield first, second


def test_both_are_installed_at_the_same_time(
    sites: tuple[Site, Site], connected: Connected
) -> None:
    running = [
        subprocess.Popen(
            site.cluster._namespace.enter(site.argv("new")),
            env=site.cluster.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for site in sites
    ]
    for process in running:
        words, _ = process.communicate(timeout=600)
        assert process.returncode == 0, words
    for site in sites:
        assert site.revision_of("harbor") == ("1", "deployed", f"harbor-{NEW}")
        site.check_pods(site.address, NEW, connected.upstream, RUNNING)
        assert site.json("new")["changed"] == []
    first, second = sites
    kept = [json.loads((s.state / "secrets.json").read_text())["harbor"] for s in sites]
    assert not set(kept[0]["plant/harbor"].values()) & set(kept[1]["ship/harbor"].values()) - {
        "harbor_registry_user"
    }
    assert (first.cluster.certs_dir / first.address).is_dir()
    assert (first.cluster.certs_dir / second.address).is_dir()
    volumes = first.cluster.kubectl("get", "persistentvolumes", "--output=name")
    assert {"persistentvolume/plant-plant-harbor", "persistentvolume/ship-ship-harbor"} <= set(
        volumes.split()
    )


def test_one_goes_and_the_other_stays_as_it_is(
    sites: tuple[Site, Site], connected: Connected
) -> None:
    first, second = sites
    changed = first.uninstall("new")["changed"]
    assert {"uninstall:seed", "uninstall:plant/harbor"} <= set(changed)
    assert not (first.cluster.certs_dir / first.address).exists()
    assert (second.cluster.certs_dir / second.address).is_dir()
    assert second.json("new")["changed"] == []
    second.check_pods(second.address, NEW, connected.upstream, RUNNING)


def test_nothing_tried_to_leave(sites: tuple[Site, Site], tell: Callable[[str], None]) -> None:
    tell(sites[1].check_silence())
