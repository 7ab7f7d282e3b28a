"""Where hosts lead, by rule and by registries.yaml."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from installer.documents import read_document
from installer.errors import InvalidInput
from installer.oci.hosts import Endpoint, RegistryConfig, RegistryEntry, RegistryHosts

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("host", "api"),
    [
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("index.docker.io", "https://registry-1.docker.io/v2"),
        ("ghcr.io", "https://ghcr.io/v2"),
        ("harbor.corp:8443", "https://harbor.corp:8443/v2"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000/v2"),
        ("localhost:5000", "http://localhost:5000/v2"),
        ("[::1]:5000", "http://[::1]:5000/v2"),
        ("127.0.0.1.evil.example", "https://127.0.0.1.evil.example/v2"),
    ],
)
def test_hosts_without_an_entry(host: str, api: str) -> None:
    assert RegistryHosts().endpoints(host) == (Endpoint(api),)


@pytest.mark.parametrize(
    ("url", "api", "prefix"),
    [
        ("http://127.0.0.1:5001", "http://127.0.0.1:5001/v2", ""),
        ("https://mirror.corp.example/", "https://mirror.corp.example/v2", ""),
        ("https://mirror.corp.example/ghcr", "https://mirror.corp.example/ghcr/v2", ""),
        ("https://mirror.corp.example/a/ghcr/v2/", "https://mirror.corp.example/a/ghcr/v2", ""),
        ("https://harbor.corp/v2/ghcr", "https://harbor.corp/v2", "ghcr/"),
        ("https://harbor.corp/x/v2/a/b", "https://harbor.corp/x/v2", "a/b/"),
    ],
)
def test_forms_of_endpoints(url: str, api: str, prefix: str) -> None:
    assert Endpoint.parse(url) == Endpoint(api, prefix)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mirror.corp.example",
        "ftp://mirror",
        "https://",
        "https:///x",
        "https://a b",
        "https://a:99999",
        "https://a:0",
        "https://[::1",
        "https://a/../b",
        "https://a/x?y=z",
        "https://a#b",
        "https://a/%2e",
    ],
)
def test_what_is_no_endpoint(url: str) -> None:
    config = RegistryConfig(registries={"ghcr.io": RegistryEntry(endpoints=(url,))})
    with pytest.raises(InvalidInput, match=r"registries: ghcr\.io: "):
        RegistryHosts(config)


def test_a_password_in_an_endpoint_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidInput) as caught:
        Endpoint.parse("https://me:S3cret@mirror.example/x")
    assert "S3cret" not in f"{caught.value}{caught.value.hint}"


@pytest.mark.parametrize("host", ["https://ghcr.io", "ghcr.io/team", "a b", ""])
def test_what_is_no_host(host: str) -> None:
    with pytest.raises(InvalidInput, match="not a host"):
        RegistryHosts(RegistryConfig(registries={host: RegistryEntry()}))


def test_one_host_under_two_names() -> None:
    both = {"docker.io": RegistryEntry(), "index.docker.io": RegistryEntry()}
    with pytest.raises(InvalidInput, match="both listed"):
        RegistryHosts(RegistryConfig(registries=both))


def test_the_file_of_a_person(tmp_path: Path) -> None:
    path = tmp_path / "registries.yaml"
    path.write_text(
        "registries:\n"
        '  docker.io: {endpoints: ["http://127.0.0.1:5001", "https://hub.corp"]}\n'
        "  ghcr.io: {endpoints: [https://mirror.corp.example/ghcr], ca: ./corp-ca.pem}\n"
        "  quay.io: {ca: /etc/corp.pem}\n"
    )
    hosts = RegistryHosts(read_document(path, RegistryConfig), path.parent)
    assert [e.host for e in hosts.endpoints("docker.io")] == ["127.0.0.1:5001", "hub.corp"]
    assert hosts.endpoints("ghcr.io")[0].ca == tmp_path / "corp-ca.pem"
    assert hosts.endpoints("quay.io")[0].api == "https://quay.io/v2"
    assert str(hosts.endpoints("quay.io")[0].ca) == "/etc/corp.pem"
    assert hosts.endpoints("gcr.io")[0].ca is None


def test_unknown_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "registries.yaml"
    path.write_text("registries: {docker.io: {endpoint: [http://127.0.0.1:5001]}}\n")
    with pytest.raises(InvalidInput, match="endpoint"):
        read_document(path, RegistryConfig)


def test_how_a_host_is_reached(tmp_path: Path) -> None:
    (tmp_path / "registries.yaml").write_text(
        "registries:\n"
        "  ghcr.io: {cert: ./client.pem, key: ./client.key, proxy: 'http://proxy:3128'}\n"
        "  quay.io: {endpoints: ['https://a', 'https://b'], proxy: direct}\n"
    )
    config = read_document(tmp_path / "registries.yaml", RegistryConfig)
    hosts = RegistryHosts(config, tmp_path)
    (only,) = hosts.endpoints("ghcr.io")
    assert (only.cert, only.key) == (tmp_path / "client.pem", tmp_path / "client.key")
    assert only.proxy == "http://proxy:3128"
    assert [endpoint.proxy for endpoint in hosts.endpoints("quay.io")] == ["direct", "direct"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (RegistryEntry(key="a.key"), "`key` without `cert`"),
        (RegistryEntry(proxy="proxy:3128"), "not a proxy"),
        (RegistryEntry(proxy="http://proxy/path"), "not a proxy"),
        (RegistryEntry(proxy="http://["), "not a URL"),
        (RegistryEntry(proxy="http://me:secret@proxy"), "a user name or a password"),
    ],
)
def test_how_a_host_can_not_be_reached(entry: RegistryEntry, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        RegistryHosts(RegistryConfig({"ghcr.io": entry}))
    assert "secret" not in str(caught.value)
    assert "ghcr.io" in str(caught.value)
