"""Fixtures for real peers: what is missing skips, and says what to install.

Servers that start in a moment are new for each test; the Docker Engine and containerd run once per
session. Everything collected in this folder is marked ``integration``.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from tests import programs
from tests.integration import servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)


def _or_skip(make: Callable[[], T]) -> T:
    try:
        return make()
    except programs.ProgramMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def make_docker_registry(tmp_path: Path) -> Iterator[Callable[..., servers.DockerRegistry]]:
    """Start empty docker-registries; takes the options of servers.docker_registry."""
    started = 0
    with ExitStack() as stack:

        def make(**options: object) -> servers.DockerRegistry:
            nonlocal started
            started += 1
            context = servers.docker_registry(tmp_path / f"docker-registry-{started}", **options)  # type: ignore[arg-type]
            return _or_skip(lambda: stack.enter_context(context))

        yield make


@pytest.fixture
def docker_registry(
    make_docker_registry: Callable[..., servers.DockerRegistry],
) -> servers.DockerRegistry:
    """An empty docker-registry without TLS or login."""
    return make_docker_registry()


@pytest.fixture(scope="session")
def docker() -> Iterator[servers.Docker]:
    """A Docker Engine of our own; remove what a test loads."""
    with ExitStack() as stack:
        yield _or_skip(lambda: stack.enter_context(servers.dockerd()))


@pytest.fixture(scope="session")
def containerd() -> Iterator[servers.Containerd]:
    """A containerd of our own; remove what a test imports."""
    with ExitStack() as stack:
        yield _or_skip(lambda: stack.enter_context(servers.containerd()))


@pytest.fixture(scope="session")
def skopeo() -> Callable[..., str]:
    """Give servers.skopeo, where it is installed."""
    _or_skip(lambda: servers.debian("skopeo"))
    return servers.skopeo


@pytest.fixture(scope="session")
def openssl() -> Path:
    return _or_skip(lambda: servers.debian("openssl"))


@pytest.fixture(scope="session")
def helm() -> Path:
    return _or_skip(programs.helm)


@pytest.fixture(scope="session")
def helm3() -> Path:
    return _or_skip(lambda: programs.helm(3))


@pytest.fixture(scope="session")
def kubectl() -> Path:
    return _or_skip(programs.kubectl)


@pytest.fixture(scope="session")
def trivy() -> Path:
    return _or_skip(programs.trivy)


@pytest.fixture(scope="session")
def oras() -> Path:
    return _or_skip(lambda: programs.go_program("oras"))


@pytest.fixture(scope="session")
def crane() -> Path:
    return _or_skip(lambda: programs.go_program("crane"))


@pytest.fixture(scope="session")
def cosign() -> Path:
    return _or_skip(lambda: programs.go_program("cosign"))


@pytest.fixture(scope="session")
def conformance() -> Path:
    """Find the OCI distribution-spec's conformance suite."""
    return _or_skip(lambda: programs.go_program("conformance"))
