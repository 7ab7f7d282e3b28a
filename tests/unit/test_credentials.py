"""Logins come from where `docker login` puts them, helpers included, and go nowhere else."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest

from bundler.credentials import RegistryLogins
from installer.errors import InvalidInput, TransferFailed
from installer.oci.auth import Credentials
from installer.oci.http import Patience
from installer.oci.registry import RegistryStore
from tests.upstream.images import image, layer
from tests.upstream.registry import Login, Registry

if TYPE_CHECKING:
    from pathlib import Path

QUICK = Patience(connect=2, read=2, attempts=2, backoff=0.01)


def write(folder: Path, **content: object) -> RegistryLogins:
    (folder / "config.json").write_text(json.dumps(content))
    return RegistryLogins([folder / "config.json"])


def auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def test_no_config_is_anonymous(tmp_path: Path) -> None:
    assert RegistryLogins([tmp_path / "none"])("ghcr.io") is None


def test_auths(tmp_path: Path) -> None:
    logins = write(
        tmp_path,
        auths={"ghcr.io": auth("me:token:x"), "https://index.docker.io/v1/": auth("hub:pw")},
    )
    assert logins("ghcr.io") == Credentials("me", "token:x")
    assert logins("registry-1.docker.io") == Credentials("hub", "pw")
    assert logins("quay.io") is None


def test_a_credential_helper_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-test"
    helper.write_text(
        '#!/bin/sh\nread host\necho "{\\"ServerURL\\": \\"$host\\", '
        '\\"Username\\": \\"helped\\", \\"Secret\\": \\"s\\"}"\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    logins = write(tmp_path, credHelpers={"ghcr.io": "test"})
    assert logins("ghcr.io") == Credentials("helped", "s")


def test_a_broken_helper_is_told(tmp_path: Path) -> None:
    logins = write(tmp_path, credHelpers={"ghcr.io": "none-such"})
    with pytest.raises(InvalidInput, match="no login for ghcr"):
        logins("ghcr.io")


@pytest.mark.parametrize("bearer", [False, True])
def test_a_private_registry_is_read_with_it(tmp_path: Path, bearer: bool) -> None:  # noqa: FBT001 (a parameter of the test)
    private = image([layer(1000, "private")])
    with Registry(login=Login("me", "pw", bearer=bearer)) as registry:
        registry.put("team/app", "v1", private)
        logins = write(tmp_path, auths={registry.host: auth("me:pw")})
        with RegistryStore(registry.host, credentials=logins, patience=QUICK) as store:
            assert str(store.resolve("team/app", "v1").digest) == private.digest
        with RegistryStore(registry.host, patience=QUICK) as store, pytest.raises(TransferFailed):
            store.resolve("team/app", "v1")


def test_the_first_file_that_has_one(tmp_path: Path) -> None:
    first, second = tmp_path / "docker.json", tmp_path / "auth.json"
    first.write_text(json.dumps({"auths": {"ghcr.io": auth("docker:pw")}}))
    second.write_text(
        json.dumps({"auths": {"ghcr.io": auth("podman:pw"), "quay.io": auth("podman:pw")}})
    )
    logins = RegistryLogins([tmp_path / "none", first, second])
    assert logins("ghcr.io") == Credentials("docker", "pw")
    assert logins("quay.io") == Credentials("podman", "pw")


def test_a_login_for_a_part_of_a_registry_is_not_for_all_of_it(tmp_path: Path) -> None:
    logins = write(tmp_path, auths={"quay.io/team": auth("team:pw"), "ghcr.io/v2/": auth("me:pw")})
    assert logins("quay.io") is None
    assert logins("ghcr.io") == Credentials("me", "pw")


@pytest.mark.parametrize("text", ["[]", "{", '{"auths": {"ghcr.io": {"auth": "c2VjcmV0"}}}'])
def test_a_broken_file_is_told_without_its_content(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InvalidInput, match=r"config\.json: no login") as caught:
        RegistryLogins([tmp_path / "config.json"])("ghcr.io")
    assert "secret" not in str(caught.value)


def test_an_identity_token_is_given_to_the_token_service_only(tmp_path: Path) -> None:
    private = image([layer(1000, "private")])
    with Registry(login=Login(identity_token="refresh", lifetime=1)) as registry:
        registry.put("team/app", "v1", private)
        logins = write(tmp_path, auths={registry.host: {"identitytoken": "refresh"}})
        found = logins(registry.host)
        assert found == Credentials("", "", "refresh")
        assert "refresh" not in repr(found)
        with RegistryStore(registry.host, credentials=logins, patience=QUICK) as store:
            assert str(store.resolve("team/app", "v1").digest) == private.digest
            with registry.lock:
                registry._tokens.clear()  # expired half-way
            store.resolve("team/app", "v1")
        asked = [entry for entry in registry.log if entry.method == "POST"]
        assert [entry.target for entry in asked] == ["/token", "/token"]
        wrong = Credentials("", "", "other")
        with (
            RegistryStore(registry.host, credentials=wrong, patience=QUICK) as store,
            pytest.raises(TransferFailed, match="token service: HTTP 401"),
        ):
            store.resolve("team/app", "v1")
