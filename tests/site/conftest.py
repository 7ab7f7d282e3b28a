"""Fixtures of the site tier: one cluster, one upstream and its bundles for a whole session."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import programs
from tests.site import build, requirements
from tests.site.cluster import Cluster
from tests.site.connected import Connected
from tests.site.upstream import Upstream, shared_charts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.site.connected import Made
    from tests.site.network import Outbound


@pytest.fixture
def cluster_folder() -> Path:
    """Folder for one cluster: short, because unix sockets lie below it; ``down`` removes it."""
    return _needs_cluster()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Give a Ready cluster without a registry; whoever deploys in it cleans up its namespace."""
    with Cluster(_needs_cluster()) as running:
        yield running


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    """Give a registry and a chart repository on loopback, outside the cluster's namespace."""
    if reason := requirements.for_upstream():
        pytest.skip(reason)
    charts = shared_charts()
    if charts is None:
        pytest.skip("no published charts: set AIRGAP_SHARED to the folder that has charts/")
    with Upstream(tmp_path_factory.mktemp("upstream"), charts) as running:
        yield running


@pytest.fixture(scope="session")
def connected(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Connected:
    """Give a connected host that has a key and reaches the upstream."""
    try:
        programs.helm(4)
        programs.helm(3)
        programs.kubectl()
    except programs.ProgramMissing as missing:
        pytest.skip(str(missing))
    return Connected(tmp_path_factory.mktemp("connected"), upstream)


@pytest.fixture(scope="session")
def bundles(connected: Connected) -> Mapping[str, Made]:
    """Give Harbor 2.14 (old) and 2.15 (new), and a later one without a profile (lacking)."""
    return {
        "old": connected.make("old", "2.14"),
        "new": connected.make("new", "2.15"),
        "lacking": connected.make("lacking", "2.15", profiles=["default"]),
    }


@pytest.fixture(scope="session")
def before(cluster: Cluster) -> Iterator[Outbound]:
    """Give what had tried to leave before the first story; from then on nothing may.

    The cluster's own tests try on purpose: they are in a module that comes before all stories.
    """
    counted = cluster.outbound()
    yield counted
    tried = cluster.outbound().since(counted)
    assert tried.attempts == 0, tried


def _needs_cluster() -> Path:
    if reason := requirements.for_cluster():
        pytest.skip(reason)
    try:
        build.programs()
    except build.BuildFailed as failure:  # no Go module proxy within reach, for one
        pytest.skip(str(failure))
    return Path(tempfile.mkdtemp(prefix="site-"))
