"""Fixtures of the site tier: one cluster, one upstream and its bundles for a whole session.

Two sessions don't meet, and so neither do two workers of pytest-xdist: each has its own network
namespace, cgroup and folders. A story is mostly waiting for probes, so that two at a time fit.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from tests import programs
from tests.site import build, requirements
from tests.site.cluster import Cluster
from tests.site.connected import Connected
from tests.site.upstream import Upstream, shared_charts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.site.connected import Made
    from tests.site.network import Outbound


_TOLD = "told"


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Have a sentence written at the end of the run, from whichever worker."""
    return partial(record_property, _TOLD)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.stats.get("passed", ()):
        for kind, sentence in report.user_properties:
            if kind == _TOLD:
                terminalreporter.write_line(sentence)


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


@pytest.fixture(scope="module")
def before(cluster: Cluster) -> Iterator[Outbound]:
    """Give what had tried to leave before a story; until its end nothing may.

    The cluster's own tests try on purpose: they are in a module that does not ask for this.
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
    _end_leftovers()
    return Path(tempfile.mkdtemp(prefix=f"site-{os.getpid()}-"))


def _end_leftovers() -> None:
    """End clusters whose session was killed: after Ctrl-C a worker gets ten seconds and no more."""
    with FileLock(programs.cache_folder() / ".locks" / "site.lock"):
        for record in Path(tempfile.gettempdir()).glob("site-*-*/processes.json"):
            if not Path("/proc", record.parent.name.split("-")[1]).exists():
                Cluster(record.parent).down()
