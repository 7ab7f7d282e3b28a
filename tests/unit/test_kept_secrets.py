"""Harbor's secrets, here and in the cluster; and the commands that show them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import yaml
from click.testing import CliRunner, Result

from installer.cli import cli
from installer.deploy.kept_secrets import KeepSecrets
from installer.errors import AirgapError, DeploymentFailed, InvalidInput, PreflightFailed
from installer.site import credentials
from installer.site.model import read_site
from installer.site.private import read_secret
from installer.site.section import check_paths
from installer.site.state import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from installer.site.credentials import HarborSecrets

MINIMAL = Path(__file__).parents[2] / "manifests" / "sites" / "minimal.yaml"
KEY = "harbor/harbor"


class FakeCluster:
    """One Secret, and whether Helm has the release: as much of a cluster as is asked."""

    def __init__(self) -> None:
        self.secret: str = ""
        self.installed = False
        self.commands: list[tuple[str, ...]] = []

    def run(self, *arguments: str) -> str:
        self.commands.append(arguments)
        if arguments[:2] == ("create", "namespace"):
            raise DeploymentFailed("kubectl create: Error from server (AlreadyExists): it exists")
        assert arguments[:2] == ("get", "secret")
        return self.secret

    def stream(self, *arguments: str, feed: Iterable[bytes], timeout: float) -> Iterator[bytes]:
        del timeout
        self.commands.append(arguments)
        self.secret = b"".join(feed).decode()
        yield b"applied"

    def releases(self, namespace: str) -> list[dict[str, Any]]:
        return [{"name": "harbor", "namespace": namespace}] if self.installed else []

    def put(self, secrets: HarborSecrets | bytes) -> None:
        data = secrets if isinstance(secrets, bytes) else msgspec.json.encode(secrets)
        self.secret = json.dumps({"data": {"secrets.json": base64.b64encode(data).decode()}})


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = State(tmp_path / "state")
    with state.held():
        yield state


def step(cluster: FakeCluster, state: State) -> KeepSecrets:
    (release,) = read_site(MINIMAL).releases

    def make() -> HarborSecrets:
        kept = credentials.kept(state, KEY)
        if kept is None:
            credentials.keep(state, KEY, credentials.generate())
        return credentials.kept(state, KEY) or credentials.generate()

    context: Any = SimpleNamespace(kubectl=cluster, helm=cluster, state=state)
    return KeepSecrets(context, release, make)


def test_what_is_made_is_in_both_places(cluster: FakeCluster, state: State) -> None:
    keep = step(cluster, state)
    keep.preflight()
    assert not keep.check()
    assert not keep.are_known()
    assert keep.details() == []
    assert keep.apply() == ""
    assert keep.check()
    assert keep.found() == credentials.kept(state, KEY)
    kept = credentials.kept(state, KEY)
    assert kept is not None
    said = " ".join(" ".join(command) for command in cluster.commands)
    assert not any(secret in said for secret in kept.texts() if secret)


def test_a_lost_folder_is_filled_from_the_cluster(cluster: FakeCluster, state: State) -> None:
    made = credentials.generate()
    cluster.put(made)
    cluster.installed = True
    keep = step(cluster, state)
    keep.preflight()
    assert keep.are_known()
    (told,) = keep.details()
    assert "taken back" in told
    assert "taken back" in keep.apply()
    assert keep.details() == []
    assert credentials.kept(state, KEY) == made
    assert keep.check()


def test_an_older_site_gets_its_copy(cluster: FakeCluster, state: State) -> None:
    made = credentials.generate()
    credentials.keep(state, KEY, made)
    cluster.installed = True
    keep = step(cluster, state)
    keep.preflight()
    assert not keep.check()
    keep.apply()
    assert keep.found() == made


def test_secrets_that_are_nowhere_are_not_made_up(cluster: FakeCluster, state: State) -> None:
    cluster.installed = True
    with pytest.raises(PreflightFailed, match="nor Secret harbor/harbor-kept-secrets has its"):
        step(cluster, state).apply()
    assert credentials.kept(state, KEY) is None


def test_of_two_none_is_chosen(cluster: FakeCluster, state: State) -> None:
    credentials.keep(state, KEY, credentials.generate())
    cluster.put(credentials.generate())
    before = cluster.secret
    with pytest.raises(PreflightFailed, match="other secrets") as refused:
        step(cluster, state).apply()
    assert cluster.secret == before
    assert "secretKey" not in refused.value.message + refused.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"data": null}',
        '{"data": {"other": "e30="}}',
        '{"data": {"secrets.json": "?"}}',
        '{"data": {"secrets.json": "e30="}}',
        '{"data": {"secrets.json": 7}}',
        json.dumps({"data": {"secrets.json": base64.b64encode(b"\xff" * 900_000).decode()}}),
    ],
)
def test_somebody_elses_secret_is_refused(cluster: FakeCluster, state: State, text: str) -> None:
    cluster.secret = text
    with pytest.raises(PreflightFailed, match="not what the installer wrote"):
        step(cluster, state).preflight()


# Shown on request


def ask(folder: Path, *arguments: str, **harbors: str) -> Result:
    document = yaml.safe_load(MINIMAL.read_text())
    (release,) = document["releases"]
    document["releases"] = [
        release | {"namespace": name} for name in (harbors.values() or ["harbor"])
    ]
    (folder / "site.yaml").write_text(yaml.safe_dump(document))
    options = [f"--site={folder / 'site.yaml'}", f"--state={folder / 'state'}"]
    return CliRunner().invoke(cli, ["site", "secrets", *arguments, *options])


def test_the_admin_password_alone_is_printed(tmp_path: Path, state: State) -> None:
    made = credentials.generate()
    credentials.keep(state, KEY, made)
    shown = ask(tmp_path, "adminPassword")
    assert (shown.exit_code, shown.output) == (0, f"{made.admin_password}\n")
    assert json.loads(ask(tmp_path, "adminPassword", "--output=json").output) == {
        "release": KEY,
        "adminPassword": made.admin_password,
    }
    assert state.journal.lines() == []


def test_the_list_shows_no_secret(tmp_path: Path, state: State) -> None:
    made = credentials.generate()
    credentials.keep(state, KEY, made)
    for options in ((), ("--output=json",)):
        shown = ask(tmp_path, *options).output
        assert "databasePassword" in shown
        assert not any(secret in shown for secret in made.texts() if secret)


def refused(result: Result) -> AirgapError:
    assert isinstance(result.exception, AirgapError), result.output
    return result.exception


def test_what_is_not_there_is_named(tmp_path: Path, state: State) -> None:
    assert "has no secrets of harbor/harbor" in refused(ask(tmp_path)).message
    credentials.keep(state, KEY, credentials.generate())
    for name in ("adminpassword", "registryUser", "__class__"):
        assert name in refused(ask(tmp_path, name)).message
    several = refused(ask(tmp_path, "adminPassword", one="a", two="b"))
    assert "--release takes one of a/harbor, b/harbor" in several.hint
    unknown = refused(ask(tmp_path, "adminPassword", "--release=c/harbor", one="a", two="b"))
    assert "c/harbor" in unknown.message


# Out of the environment


def test_a_variable_stands_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = yaml.safe_load(MINIMAL.read_text())
    document["cluster"]["kubeconfig"] = str(MINIMAL)
    document["nodes"]["containerdCertsDir"] = str(tmp_path)
    document["releases"][0]["harbor"]["redis"] = {
        "addresses": ["redis.site.example:6379"],
        "passwordFile": "env:REDIS_WORD",
    }
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(document))
    site = read_site(tmp_path / "site.yaml")
    harbor = site.releases[0].harbor
    assert harbor is not None
    assert harbor.redis is not None
    assert harbor.redis.password_file == "env:REDIS_WORD"
    with pytest.raises(InvalidInput, match="no such variable"):
        check_paths(site)
    with pytest.raises(InvalidInput, match="no such variable"):
        read_secret(Path(harbor.redis.password_file))
    monkeypatch.setenv("REDIS_WORD", "wörd")
    check_paths(site)
    assert read_secret(Path(harbor.redis.password_file)) == "wörd"
