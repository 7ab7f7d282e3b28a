"""A RegistryStore against a registry that misbehaves as networks, proxies and mirrors do."""

from __future__ import annotations

import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization

from installer.bundle.digest import Digest
from installer.errors import AirgapError, Corrupt, InvalidInput, NotFound, TransferFailed
from installer.oci.auth import Credentials
from installer.oci.graph import Descriptor
from installer.oci.hosts import Endpoint, RegistryConfig, RegistryEntry, RegistryHosts
from installer.oci.http import Client, Patience, Retry, Unavailable
from installer.oci.registry import RegistryStore
from installer.oci.store import read_all
from tests.upstream import images as made
from tests.upstream.certificates import make_certificates
from tests.upstream.registry import Login, Registry
from tests.upstream.server import Answer, Fault, LoopbackServer, Request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUICK = Patience(connect=2, read=1, attempts=3, backoff=0.01, longest=2)
LAYER = made.layer(3_000_000, "layer").content
IMAGE = made.image([made.layer(3_000_000, "layer")])
BLOB = Descriptor(LAYER.media_type, Digest.parse(LAYER.digest), len(LAYER.data))
PASSWORD = Login().password


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        registry.put("team/app", "v1", IMAGE)
        yield registry


@pytest.fixture
def store(registry: Registry) -> Iterator[RegistryStore]:
    with RegistryStore(registry.host, patience=QUICK) as store:
        yield store


def at(*urls: str, ca: Path | None = None, host: str = "docker.io") -> RegistryHosts:
    entry = RegistryEntry(endpoints=urls, ca=str(ca) if ca else "")
    return RegistryHosts(RegistryConfig(registries={host: entry}))


# Waiting and trying again


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_registry_is_asked_again(
    registry: Registry, store: RegistryStore, status: int
) -> None:
    registry.faults.append(Fault("manifests/v1", status=status, times=2))
    assert str(store.resolve("team/app", "v1").digest) == IMAGE.digest
    assert [line.status for line in registry.log] == [status, status, 200]


def test_retry_after_is_honoured(registry: Registry, store: RegistryStore) -> None:
    registry.faults.append(Fault("manifests/v1", status=429, headers={"Retry-After": "1"}, times=1))
    began = time.monotonic()
    store.resolve("team/app", "v1")
    assert 1 <= time.monotonic() - began < 1.9


def test_a_long_retry_after_is_told_and_not_waited_for(
    registry: Registry, store: RegistryStore
) -> None:
    registry.faults.append(Fault("manifests/v1", status=429, headers={"Retry-After": "3600"}))
    began = time.monotonic()
    with pytest.raises(Unavailable, match="429") as caught:
        store.resolve("team/app", "v1")
    assert time.monotonic() - began < 1
    assert "3600 s" in caught.value.hint
    assert len(registry.log) == 1


def test_attempts_are_bounded_and_the_registry_has_the_last_word(
    registry: Registry, store: RegistryStore
) -> None:
    body = b'{"errors":[{"code":"UNKNOWN","message":"disk\\u001b[31m on fire"}]}'
    registry.faults.append(Fault("manifests/v1", status=503, body=body))
    with pytest.raises(Unavailable, match=r"team/app:v1: HTTP 503: UNKNOWN \(disk.*on fire") as e:
        store.resolve("team/app", "v1")
    assert "\x1b" not in str(e.value)
    assert len(registry.log) == QUICK.attempts
    assert f"tried {QUICK.attempts} times" in str(e.value)


def test_a_dropped_request_is_sent_again(registry: Registry, store: RegistryStore) -> None:
    registry.faults.append(Fault("manifests/v1", drop=True, times=1))
    assert store.resolve("team/app", "v1").size


def test_a_silent_registry_is_given_up(registry: Registry, store: RegistryStore) -> None:
    registry.faults.append(Fault("manifests/v1", delay=30))
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"no answer.*tried 3 times"):
        store.resolve("team/app", "v1")
    assert time.monotonic() - began < QUICK.attempts * (QUICK.read + 1) + 2


def test_a_registry_that_is_away_for_a_while_is_waited_for(registry: Registry) -> None:
    registry.faults.append(Fault("manifests/v1", status=502, times=9))
    now = [0.0]
    told: list[Retry] = []

    def sleep(seconds: float) -> None:
        now[0] += seconds

    patience = Patience(connect=2, read=1, attempts=3, outage=60, sleep=sleep, clock=lambda: now[0])
    with RegistryStore(registry.host, patience=patience, notice=told.append) as store:
        assert store.resolve("team/app", "v1").size
        assert 20 < now[0] < 90
        assert len(told) == 9
        assert all(retry.host == registry.host and "502" in retry.reason for retry in told)
        registry.faults.append(Fault("manifests/v1", status=502))
        with pytest.raises(Unavailable, match=r"502.*tried \d+ times in \d+ s"):
            store.resolve("team/app", "v1")


def test_a_clock_that_falls_short_of_the_outage_ends_the_waiting(registry: Registry) -> None:
    registry.faults.append(Fault("manifests/v1", status=502, times=99))
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += max(0.0, seconds - 1e-9)

    patience = Patience(connect=2, read=1, attempts=3, outage=60, sleep=sleep, clock=lambda: now[0])
    with (
        RegistryStore(registry.host, patience=patience) as store,
        pytest.raises(Unavailable, match="in 60 s"),
    ):
        store.resolve("team/app", "v1")
    assert len(registry.log) < 50


def test_nobody_listens(registry: Registry) -> None:
    host = registry.host
    registry.__exit__(None, None, None)
    try:
        with (
            RegistryStore(host, patience=QUICK) as store,
            pytest.raises(Unavailable, match="refused") as caught,
        ):
            store.resolve("team/app", "v1")
        assert "team/app:v1" in str(caught.value)
        assert "://" not in str(caught.value)
    finally:
        registry._thread = threading.Thread(target=int)
        registry._thread.start()


# Bodies


@pytest.mark.parametrize("no_range", [False, True])
def test_a_cut_body_goes_on_where_it_stopped(
    registry: Registry, store: RegistryStore, *, no_range: bool
) -> None:
    registry.faults.append(Fault("blobs/sha256", cut_after=1_500_000, times=1, no_range=no_range))
    if no_range:
        registry.faults.append(Fault("blobs/sha256", no_range=True))
    assert read_all(store, "team/app", BLOB) == LAYER.data
    first, second = registry.log
    assert first.range is None
    assert second.range
    assert second.range.startswith("bytes=1")
    assert second.status == (200 if no_range else 206)


def test_a_body_that_stalls_goes_on(registry: Registry, store: RegistryStore) -> None:
    registry.faults.append(Fault("blobs/sha256", stall_after=1_500_000, stall_for=20, times=1))
    assert read_all(store, "team/app", BLOB) == LAYER.data


def test_a_body_that_is_always_cut_ends(registry: Registry, store: RegistryStore) -> None:
    registry.faults.append(Fault("blobs/sha256", cut_after=0))
    with pytest.raises(TransferFailed, match=BLOB.digest.hex):
        read_all(store, "team/app", BLOB)
    assert len(registry.log) == QUICK.attempts


def test_a_cut_manifest_is_fetched_again(registry: Registry, store: RegistryStore) -> None:
    registry.faults.append(Fault("manifests/v1", cut_after=20, times=1))
    assert str(store.resolve("team/app", "v1").digest) == IMAGE.digest


@pytest.mark.parametrize("start", [0, 1000])
@pytest.mark.parametrize("body", [LAYER.data[:-1], LAYER.data + b"x", b""])
def test_a_short_or_long_body(
    registry: Registry, store: RegistryStore, body: bytes, start: int
) -> None:
    registry.faults.append(Fault("blobs/sha256", replace=body, no_range=True))
    with pytest.raises(Corrupt, match=BLOB.digest.hex):
        list(store.stream("team/app", BLOB, start))


def test_a_flipped_bit(registry: Registry, store: RegistryStore) -> None:
    registry.faults.append(Fault("blobs/sha256", flip_at=2_000_000))
    with pytest.raises(Corrupt, match="expected " + LAYER.digest):
        read_all(store, "team/app", BLOB)


def test_a_manifest_that_differs_from_its_header(registry: Registry, store: RegistryStore) -> None:
    registry.faults.append(Fault("manifests/v1", replace=b'{"schemaVersion":2,"layers":[]}'))
    with pytest.raises(Corrupt, match="expected " + IMAGE.digest):
        store.resolve("team/app", "v1")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"<html>log in", Corrupt),
        (b"[" * 100_000, Corrupt),
        (b'{"schemaVersion":1}', AirgapError),
        (b" " * (5 << 20), Corrupt),
    ],
)
def test_what_is_no_manifest(body: bytes, error: type[AirgapError]) -> None:
    class Portal(LoopbackServer):
        def answer(self, request: Request) -> Answer:
            del request
            return Answer(200, {"Content-Type": "text/html"}, body)

    with (
        Portal() as portal,
        RegistryStore(portal.host, patience=QUICK) as store,
        pytest.raises(error, match="team/app"),
    ):
        store.resolve("team/app", "v1")


@pytest.mark.parametrize("wrong", ["bytes 0-2999/3000", "bytes 5-/x", "", "bytes 1001-3/*"])
def test_a_wrong_content_range(registry: Registry, store: RegistryStore, wrong: str) -> None:
    headers = {"Content-Range": wrong}
    registry.faults.append(Fault("blobs/sha256", status=206, headers=headers, body=b"x"))
    with pytest.raises(TransferFailed, match="asked for bytes 1000-"):
        list(store.stream("team/app", BLOB, 1000))


# Who is told what


@pytest.mark.parametrize("bearer", [True, False])
def test_login(*, bearer: bool) -> None:
    with Registry(login=Login(bearer=bearer)) as registry:
        registry.put("team/app", "v1", IMAGE)
        credentials = Credentials("robot", PASSWORD)
        with RegistryStore(registry.host, None, credentials, patience=QUICK) as store:
            root = store.resolve("team/app", "v1")
            read_all(store, "team/app", BLOB)
            store.push("team/new", BLOB, lambda: [LAYER.data])
            store.push("team/third", BLOB, list, mount_from="team/new")
            assert store.exists("team/third", BLOB)
            assert str(root.digest) == IMAGE.digest


@pytest.mark.parametrize("bearer", [True, False])
@pytest.mark.parametrize("credentials", [None, Credentials("robot", "Wr0ngS3cret")])
def test_a_missing_or_wrong_login(credentials: Credentials | None, *, bearer: bool) -> None:
    with (
        Registry(login=Login(bearer=bearer)) as registry,
        RegistryStore(registry.host, None, credentials, patience=QUICK) as store,
        pytest.raises(TransferFailed, match="401") as caught,
    ):
        store.resolve("team/app", "v1")
    assert "log in" in caught.value.hint
    assert "Wr0ngS3cret" not in f"{caught.value}{caught.value.hint}{credentials!r}{store!r}"


def test_one_client_pulls_two_repositories_with_a_token_each() -> None:
    with Registry(login=Login(anonymous_pull=True)) as registry:
        for name in ("team/app", "team/two"):
            registry.put(name, "v1", IMAGE)
        with RegistryStore(registry.host, patience=QUICK) as store:
            for _ in range(2):
                for name in ("team/app", "team/two"):
                    assert read_all(store, name, BLOB) == LAYER.data
        asked = [line for line in registry.log if line.target.startswith("/token")]
        assert len(asked) == 2
        assert sum(line.status == 401 for line in registry.log) == 1


def test_threads_share_one_token() -> None:
    with Registry(login=Login()) as registry:
        registry.put("team/app", "v1", IMAGE)
        credentials = Credentials("robot", PASSWORD)
        with (
            RegistryStore(registry.host, None, credentials, patience=QUICK) as store,
            ThreadPoolExecutor(4) as pool,
        ):
            list(pool.map(lambda _: store.exists("team/app", BLOB), range(40)))
        assert sum(line.target.startswith("/token") for line in registry.log) == 1


def test_a_token_is_renewed_before_it_expires_and_after_it_was_revoked() -> None:
    with Registry(login=Login(lifetime=1)) as registry:
        registry.put("team/app", "v1", IMAGE)
        credentials = Credentials("robot", PASSWORD)
        with RegistryStore(registry.host, None, credentials, patience=QUICK) as store:
            assert store.exists("team/app", BLOB)
            time.sleep(1.1)
            assert store.exists("team/app", BLOB)
            assert [line.status for line in registry.log].count(401) == 1
            registry._tokens.clear()
            assert store.exists("team/app", BLOB)
            assert [line.status for line in registry.log].count(401) == 2


class Elsewhere(LoopbackServer):
    """Gives the layer to whoever asks."""

    def answer(self, request: Request) -> Answer:
        del request
        return Answer(200, {}, LAYER.data, ranged=True)


@pytest.mark.parametrize("bearer", [True, False])
def test_authorization_does_not_follow_a_redirect_to_another_host(*, bearer: bool) -> None:
    with Registry(login=Login(bearer=bearer)) as registry, Elsewhere() as storage:
        registry.put("team/app", "v1", IMAGE)
        credentials = Credentials("robot", PASSWORD)
        with RegistryStore(registry.host, None, credentials, patience=QUICK) as store:
            assert store.exists("team/app", BLOB)
            target = f"{storage.url}/bucket?X-Signature=secret"
            registry.faults.append(Fault("blobs/", status=307, headers={"Location": target}))
            assert read_all(store, "team/app", BLOB) == LAYER.data
            assert b"".join(store.stream("team/app", BLOB, 1000)) == LAYER.data[1000:]
            assert [(line.authorized, line.range) for line in storage.log] == [
                (False, None),
                (False, "bytes=1000-"),
            ]
            storage.faults.append(Fault("bucket", status=403))
            with pytest.raises(TransferFailed, match="403") as caught:
                read_all(store, "team/app", BLOB)
            assert storage.host in str(caught.value)
            assert "secret" not in str(caught.value)


def test_redirects_end(registry: Registry, store: RegistryStore) -> None:
    registry.faults.append(Fault("manifests/", status=302, headers={"Location": "?again"}))
    with pytest.raises(TransferFailed, match="302"):
        store.resolve("team/app", "v1")
    assert len(registry.log) < 10


def test_netrc_is_not_read(
    registry: Registry, store: RegistryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    store.resolve("team/app", "v1")
    assert not registry.log[0].authorized


def test_a_proxy_from_the_environment_is_used(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{registry.host}")
    monkeypatch.setenv("no_proxy", "")
    hosts = at("http://registry.invalid", host="registry.invalid")
    with RegistryStore("registry.invalid", hosts, patience=QUICK) as store:
        assert str(store.resolve("team/app", "v1").digest) == IMAGE.digest
    assert registry.log[0].target.startswith("http://registry.invalid/v2/")


# TLS


def test_a_registry_with_its_own_authority(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    with Registry(tls=certificates.context()) as registry:
        registry.put("team/app", "v1", IMAGE)
        hosts = at(registry.url, ca=certificates.ca)
        with RegistryStore("docker.io", hosts, patience=QUICK) as store:
            assert store.resolve("team/app", "v1").size
        with RegistryStore("docker.io", at(registry.url), patience=QUICK) as store:
            with pytest.raises(TransferFailed, match="CERTIFICATE_VERIFY_FAILED") as caught:
                store.resolve("team/app", "v1")
            assert "`ca`" in caught.value.hint


def test_https_to_a_registry_without_it(registry: Registry) -> None:
    url = registry.url.replace("http:", "https:")
    with (
        RegistryStore("docker.io", at(url), patience=QUICK) as store,
        pytest.raises(TransferFailed) as caught,
    ):
        store.resolve("team/app", "v1")
    assert "http://" in caught.value.hint


def test_a_client_certificate_is_shown_to_who_asks(tmp_path: Path) -> None:
    own = make_certificates(tmp_path)
    context = own.context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(own.ca)
    with Registry(tls=context) as registry:
        registry.put("team/app", "v1", IMAGE)
        files = {"ca": str(own.ca), "cert": str(own.certificate), "key": str(own.key)}
        hosts = RegistryHosts(
            RegistryConfig({"docker.io": RegistryEntry(endpoints=(registry.url,), **files)})
        )
        with RegistryStore("docker.io", hosts, patience=QUICK) as store:
            assert store.resolve("team/app", "v1").size
        with (
            RegistryStore("docker.io", at(registry.url, ca=own.ca), patience=QUICK) as store,
            pytest.raises(TransferFailed),
        ):
            store.resolve("team/app", "v1")


def test_client_certificates_that_are_none(tmp_path: Path) -> None:
    own, other = make_certificates(tmp_path / "a"), make_certificates(tmp_path / "b")
    secret = tmp_path / "encrypted.key"
    secret.write_bytes(
        serialization.load_pem_private_key(own.key.read_bytes(), None).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"passphrase"),
        )
    )
    for cert, key, message in (
        (own.certificate, other.key, "MISMATCH"),
        (own.certificate, tmp_path / "none", "no file .*none"),
        (tmp_path / "none", None, "no file .*none"),
        (own.certificate, secret, "and its key"),
    ):
        endpoint = Endpoint("https://a/v2", cert=cert, key=key)
        with pytest.raises(InvalidInput, match=message):
            Client("docker.io", endpoint)


def test_a_proxy_of_the_configuration_goes_before_the_environment(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")

    def through(proxy: str, url: str) -> RegistryHosts:
        entry = RegistryEntry(endpoints=(url,), proxy=proxy)
        return RegistryHosts(RegistryConfig({"registry.invalid": entry}))

    there = through(f"http://{registry.host}", "http://registry.invalid")
    with RegistryStore("registry.invalid", there, patience=QUICK) as store:
        assert store.resolve("team/app", "v1").size
    assert registry.log[0].target.startswith("http://registry.invalid/v2/")
    with RegistryStore("registry.invalid", through("direct", registry.url)) as store:
        assert store.resolve("team/app", "v1").size


def test_a_ca_file_that_is_missing_or_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no CA file .*no-such"):
        RegistryStore("docker.io", at("https://a", ca=tmp_path / "no-such"))
    for content in (b"", b"hello", b"-----BEGIN CERTIFICATE-----\nAAAA\n"):
        (tmp_path / "ca.pem").write_bytes(content)
        with pytest.raises(InvalidInput, match="no certificate in"):
            RegistryStore("docker.io", at("https://a", ca=tmp_path / "ca.pem"))


def test_storage_with_a_certificate_of_another_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, public = make_certificates(tmp_path / "own"), make_certificates(tmp_path / "public")
    own.ca.write_bytes("Zürich\n".encode() + own.ca.read_bytes())
    with Registry(tls=own.context()) as registry, Elsewhere(tls=public.context()) as storage:
        registry.put("team/app", "v1", IMAGE)
        registry.faults.append(Fault("blobs/", status=307, headers={"Location": storage.url}))
        hosts = at(registry.url, storage.url, ca=own.ca)
        with (
            RegistryStore("docker.io", hosts, patience=QUICK) as store,
            pytest.raises(TransferFailed, match="CERTIFICATE_VERIFY_FAILED"),
        ):
            read_all(store, "team/app", BLOB)
        # What the machine trusts is trusted as well, and the registry's own authority everywhere.
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(public.ca))
        with RegistryStore("docker.io", hosts, patience=QUICK) as store:
            assert read_all(store, "team/app", BLOB) == LAYER.data
        # At a site it is the only one, whatever the machine or Python trust.
        monkeypatch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", str(public.ca))
        with (
            RegistryStore("docker.io", hosts, patience=QUICK, environment=False) as store,
            pytest.raises(TransferFailed, match="CERTIFICATE_VERIFY_FAILED"),
        ):
            read_all(store, "team/app", BLOB)
        with RegistryStore(
            "docker.io", at(storage.url), patience=QUICK, environment=False
        ) as store:
            store.exists("team/app", BLOB)  # without one they count
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        moved = {"Location": f"{registry.url}{registry.log[-1].target}"}
        storage.faults.append(Fault("", status=307, headers=moved))
        both = tmp_path / "both.pem"
        both.write_bytes(own.ca.read_bytes() + public.ca.read_bytes())
        with RegistryStore("docker.io", at(registry.url, ca=both), patience=QUICK) as store:
            assert store.resolve("team/app", "v1").size


def test_a_redirect_from_https_to_http_is_refused(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    with Registry(tls=certificates.context()) as registry, Elsewhere() as storage:
        registry.faults.append(Fault("blobs/", status=307, headers={"Location": storage.url}))
        hosts = at(registry.url, ca=certificates.ca)
        with (
            RegistryStore("docker.io", hosts, patience=QUICK) as store,
            pytest.raises(TransferFailed, match="https to plain http"),
        ):
            read_all(store, "team/app", BLOB)
        assert not storage.log


# Endpoints


def test_the_second_endpoint_serves_what_the_first_cannot(registry: Registry) -> None:
    with Registry() as mirror:
        hosts = at(mirror.url, registry.url)
        with RegistryStore("docker.io", hosts, patience=QUICK) as store:
            assert str(store.resolve("team/app", "v1").digest) == IMAGE.digest
            assert store.exists("team/app", BLOB)
            assert not store.exists("team/app", Descriptor("x/y", Digest.of(b"?"), 1))
            mirror.faults.append(Fault("", status=500))
            assert read_all(store, "team/app", BLOB) == LAYER.data
            before = len(mirror.log)
            assert read_all(store, "team/app", BLOB) == LAYER.data
            assert len(mirror.log) == before  # it is left alone for a while


def test_an_endpoint_that_is_down_is_passed_over(registry: Registry) -> None:
    with Registry() as gone:
        down = gone.url
    with RegistryStore("docker.io", at(down, registry.url), patience=QUICK) as store:
        assert str(store.resolve("team/app", "v1").digest) == IMAGE.digest
        with pytest.raises(NotFound, match=r"docker\.io/team/app:v9"):
            store.resolve("team/app", "v9")


@pytest.mark.parametrize("form", ["{root}/ghcr", "{root}/ghcr/v2"])
def test_a_path_prefix(form: str) -> None:
    with Registry(prefix="/ghcr", login=Login(anonymous_pull=True)) as registry:
        registry.put("team/app", "v1", IMAGE)
        root = registry.url.removesuffix("/ghcr")
        with RegistryStore("ghcr.io", at(form.format(root=root), host="ghcr.io")) as store:
            store.resolve("team/app", "v1")
            assert read_all(store, "team/app", BLOB) == LAYER.data


def test_a_prefix_of_repositories_as_in_a_proxy_project() -> None:
    with Registry(login=Login()) as registry:
        registry.put("ghcr/team/app", "v1", IMAGE)
        hosts = at(f"{registry.url}/v2/ghcr", host="ghcr.io")
        with RegistryStore("ghcr.io", hosts, Credentials("robot", PASSWORD)) as store:
            store.resolve("team/app", "v1")
            store.push("team/new", BLOB, list, mount_from="team/app")
            assert store.tags("team/app") == ("v1",)
        assert LAYER.digest in registry.repositories["ghcr/team/new"].blobs


def test_credentials_are_looked_up_by_the_host_that_is_spoken_to() -> None:
    asked = []
    with Registry() as registry:

        def find(host: str) -> None:
            asked.append(host)

        RegistryStore("docker.io", at(registry.url, "https://hub.example"), find).close()
        assert asked == [registry.host, "hub.example"]


# Pushing


def test_a_push_is_repeated_with_new_content(registry: Registry, store: RegistryStore) -> None:
    data = made.random_bytes(2_000_000, "push")
    blob = Descriptor("x/y", Digest.of(data), len(data))
    registry.faults += [
        Fault("uploads/$", method="POST", status=429, headers={"Retry-After": "0"}, times=1),
        Fault("uploads/", method="PUT", status=503, times=1),
    ]
    opened = 0

    def content() -> Iterator[bytes]:
        nonlocal opened
        opened += 1
        yield data[:1_000_000]
        yield data[1_000_000:]

    store.push("team/new", blob, content)
    assert opened == 2
    assert read_all(store, "team/new", blob) == data


def test_an_error_of_the_source_is_told_as_it_is(registry: Registry, store: RegistryStore) -> None:
    def content() -> Iterator[bytes]:
        yield b"ab"
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        store.push("team/new", Descriptor("x/y", Digest.of(b"abcd"), 4), content)
    assert "team/new" not in registry.repositories or not registry.repositories["team/new"].blobs


def test_the_last_chunk_is_kept_back_until_the_digest_holds(
    registry: Registry, store: RegistryStore
) -> None:
    with pytest.raises(Corrupt):
        store.push("team/new", Descriptor("x/y", Digest.of(b"right"), 5), lambda: [b"wro", b"ng"])
    assert all(line.received < 5 for line in registry.log)
    assert not registry.blobs.keys() & {str(Digest.of(b"wrong")), str(Digest.of(b"wro"))}


def test_half_a_blob_on_the_other_side_does_not_count(
    registry: Registry, store: RegistryStore
) -> None:
    registry.blobs[LAYER.digest] = LAYER.data[:1000]
    assert not store.exists("team/app", BLOB)
    store.push("team/app", BLOB, lambda: [LAYER.data])
    assert read_all(store, "team/app", BLOB) == LAYER.data


def test_a_registry_that_keeps_half_a_blob_is_not_believed() -> None:
    class Distribution(Registry):
        """Takes an upload and leaves the file that it has, as distribution 2.8 does."""

        def _store(self, name: str, digest: str, data: bytes) -> Answer:
            old = self.blobs.get(digest)
            answer = super()._store(name, digest, data)
            self.blobs[digest] = data if old is None else old
            return answer

    with Distribution() as registry:
        registry.put("team/app", "v1", IMAGE)
        registry.blobs[LAYER.digest] = LAYER.data[:1000]
        with (
            RegistryStore(registry.host, patience=QUICK) as store,
            pytest.raises(Corrupt, match="keeps 1000 bytes"),
        ):
            store.push("team/app", BLOB, lambda: [LAYER.data])


def test_a_refused_manifest_says_why(store: RegistryStore) -> None:
    top = Descriptor(IMAGE.top.media_type, Digest.parse(IMAGE.digest), len(IMAGE.top.data))
    with pytest.raises(TransferFailed, match="MANIFEST_BLOB_UNKNOWN"):
        store.push("team/new", top, lambda: [IMAGE.top.data])


# Lists


def test_tags_over_several_pages(registry: Registry, store: RegistryStore) -> None:
    wanted = tuple(sorted(f"v{number}" for number in range(2500)))
    registry.repositories["team/app"].tags = dict.fromkeys(wanted, IMAGE.digest)
    assert store.tags("team/app") == wanted
    assert len(registry.log) == 3
    with pytest.raises(NotFound, match="team/none"):
        store.tags("team/none")


@pytest.mark.parametrize("api", [True, False])
def test_referrers_from_the_api_or_from_the_tag(
    registry: Registry, store: RegistryStore, *, api: bool
) -> None:
    if not api:
        registry.faults.append(Fault("/referrers/", status=404))
    digest = Digest.parse(IMAGE.digest)
    assert store.referrers("team/app", digest) == ()
    signatures = [
        made.artefact(
            made.Content("application/x-key", b"{}"),
            [made.Content("text/plain", b"%d" % number)],
            artifact_type="application/x-sig",
            subject=IMAGE.top,
        )
        for number in range(2)
    ]
    if not api:  # such a registry does not tell that it knows a subject
        registry._check_manifest = lambda *_: None  # type: ignore[method-assign]
    for signature in signatures:
        for content in signature.everything:
            pushed = Descriptor(content.media_type, Digest.parse(content.digest), len(content.data))
            store.push("team/app", pushed, lambda content=content: [content.data])  # type: ignore[misc]
    found = {str(referrer.digest) for referrer in store.referrers("team/app", digest)}
    assert found == {signature.digest for signature in signatures}
    tag = "sha256-" + digest.hex
    assert (tag in registry.repositories["team/app"].tags) is not api


@pytest.mark.parametrize("name", ["../x", "a/../b", "a//", "A", "a?b", "a%2e", ""])
def test_what_is_no_repository(store: RegistryStore, name: str) -> None:
    with pytest.raises(InvalidInput, match="not a repository"):
        store.resolve(name, "v1")


@pytest.mark.parametrize("version", ["../x", "a/b", "a?b", "", "sha512:00", "sha256:xy"])
def test_what_is_no_version(store: RegistryStore, version: str) -> None:
    with pytest.raises(InvalidInput):
        store.resolve("team/app", version)
