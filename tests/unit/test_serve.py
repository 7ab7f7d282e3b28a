"""The embedded registry over a real bundle and a real socket, with the plainest client there is."""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import socket
import ssl
import struct
import threading
import time
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from installer.bundle.digest import Digest
from installer.errors import (
    Corrupt,
    Interrupted,
    InvalidInput,
    NotFound,
    PreflightFailed,
    TransferFailed,
)
from installer.oci.bundle_store import BundleStore
from installer.serve import BundleServer, ContentCheck, connection, parse_listen, server
from tests.bundles import damage, make_bundle, open_bundle
from tests.upstream import images as made
from tests.upstream.certificates import make_certificates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from installer.bundle.archive import VerifiedBundle

LAYER = made.layer(300_000, "layer")
APP = made.image([LAYER, made.layer(1000, "small")])
OTHER = made.image([made.layer(1000, "other")], docker=False)
MULTI = made.index([APP, made.image([LAYER], platform="linux/arm64")])
CHART = made.artefact(
    made.Content("application/vnd.cncf.helm.config.v1+json", b'{"name":"harbor"}'),
    [made.Content("application/vnd.cncf.helm.chart.content.v1.tar+gzip", b"chart")],
)
EMPTY = made.Content(made.OCI_EMPTY, b"{}")
SIGNATURE = made.artefact(
    EMPTY,
    [made.Content("application/x", b"signature")],
    artifact_type="application/vnd.test.signature",
    subject=APP.top,
    annotations={"signed-by": "us"},
)
SBOM = made.artefact(
    EMPTY,
    [made.Content("application/x", b"sbom")],
    artifact_type="application/vnd.test.sbom",
    subject=APP.top,
)
IMAGES = {
    "docker.io/goharbor/app:v1": APP,
    "docker.io/goharbor/app:V2": OTHER,
    "docker.io/goharbor/app:v10": OTHER,
    "quay.io/goharbor/app:quay": OTHER,
    "docker.io/library/multi:latest": MULTI,
}


@dataclass
class Got:
    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        (error,) = self.json["errors"]
        assert error["message"]
        return str(error["code"])


@dataclass
class Client:
    """One kept connection."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        if self.tls:
            self.http: http.client.HTTPConnection = http.client.HTTPSConnection(
                self.host, self.port, timeout=10, context=self.tls
            )
        else:
            self.http = http.client.HTTPConnection(self.host, self.port, timeout=10)

    def __call__(
        self, path: str, method: str = "GET", *, body: bytes | None = None, **headers: str
    ) -> Got:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.http.request(method, path, headers=named, body=body)
        answer = self.http.getresponse()
        return Got(answer.status, dict(answer.getheaders()), answer.read())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VerifiedBundle]:
    path, pem = make_bundle(
        tmp_path_factory.mktemp("serve") / "bundle.tar",
        IMAGES,
        charts={"harbor:1.18.4+up": CHART},
        databases={"ghcr.io/aquasecurity/trivy-db:2": OTHER},
        tools={"helm": OTHER},
        files={"Runbook.pdf": OTHER},
        referrers=[SIGNATURE, SBOM],
    )
    with open_bundle(path, pem) as opened:
        yield opened


@pytest.fixture(scope="module")
def served(bundle: VerifiedBundle) -> Iterator[BundleServer]:
    with BundleServer(BundleStore(bundle), ("127.0.0.1", 0)) as running:
        yield running


@pytest.fixture
def get(served: BundleServer) -> Iterator[Client]:
    client = Client(*served.address)
    yield client
    client.http.close()


def blob(image: made.Image, number: int = 1) -> str:
    return f"/v2/goharbor/app/blobs/{image.blobs[number].digest}"


# Content


def test_version_check(get: Client) -> None:
    for path in ("/v2/", "/v2"):
        got = get(path)
        assert (got.status, got.json) == (200, {})
        assert got.headers["Docker-Distribution-Api-Version"] == "registry/2.0"


@pytest.mark.parametrize(
    ("repository", "tag", "image"),
    [
        ("goharbor/app", "v1", APP),
        ("docker.io/goharbor/app", "v1", APP),
        ("quay.io/goharbor/app", "quay", OTHER),
        ("library/multi", "latest", MULTI),
        ("charts/harbor", "1.18.4_up", CHART),
        ("aquasecurity/trivy-db", "2", OTHER),
        ("tools/helm", "linux-amd64", OTHER),
        ("files/runbook.pdf", "latest", OTHER),
    ],
)
def test_manifests_by_tag_and_digest(
    get: Client, repository: str, tag: str, image: made.Image
) -> None:
    for version in (tag, image.digest, image.digest.replace(":", "%3A")):
        got = get(f"/v2/{repository}/manifests/{version}", Accept="application/x-nobody-has-it")
        assert got.status == 200
        assert got.body == image.top.data
        assert got.headers["Content-Type"] == image.top.media_type
        assert got.headers["Docker-Content-Digest"] == image.digest
        assert got.headers["ETag"] == f'"{image.digest}"'
        head = get(f"/v2/{repository}/manifests/{version}", "HEAD")
        assert (head.status, head.body) == (200, b"")
        assert head.headers == {**got.headers, "Content-Length": str(len(got.body))}


def test_manifests_below_an_index(get: Client) -> None:
    for child in MULTI.manifests:
        got = get(f"/v2/library/multi/manifests/{child.digest}")
        assert (got.body, got.headers["Content-Type"]) == (child.data, child.media_type)


def test_blobs(get: Client) -> None:
    for content in (*APP.blobs, *MULTI.blobs):
        got = get(f"/v2/goharbor/app/blobs/{content.digest}")
        assert (got.status, got.body) == (200, content.data)
        assert got.headers["Docker-Content-Digest"] == content.digest
        assert got.headers["Accept-Ranges"] == "bytes"
        head = get(f"/v2/goharbor/app/blobs/{content.digest}", "HEAD")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["Content-Length"] == str(len(content.data))


def test_an_etag_that_is_known_saves_the_body(get: Client) -> None:
    for path, digest in (
        (blob(APP), APP.blobs[1].digest),
        ("/v2/goharbor/app/manifests/v1", APP.digest),
    ):
        got = get(path, If_None_Match=f'"{digest}"')
        assert (got.status, got.body) == (304, b"")
        assert get(path, If_None_Match='"sha256:other"').status == 200


SIZE = len(LAYER.content.data)


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=5-99", 5, 99),
        ("bytes=1000-", 1000, SIZE - 1),
        ("bytes=-7", SIZE - 7, SIZE - 1),
        (f"bytes=-{SIZE * 2}", 0, SIZE - 1),
        (f"bytes=10-{SIZE * 2}", 10, SIZE - 1),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE - 1),
    ],
)
def test_ranges(get: Client, wanted: str, first: int, last: int) -> None:
    got = get(blob(APP, 1), Range=wanted)
    assert got.status == 206
    assert got.headers["Content-Range"] == f"bytes {first}-{last}/{SIZE}"
    assert got.body == LAYER.content.data[first : last + 1]


@pytest.mark.parametrize("wanted", [f"bytes={SIZE}-", "bytes=-0", f"bytes={SIZE}-{SIZE + 5}"])
def test_ranges_outside(get: Client, wanted: str) -> None:
    got = get(blob(APP), Range=wanted)
    assert (got.status, got.headers["Content-Range"]) == (416, f"bytes */{SIZE}")
    assert get("/v2/").status == 200


@pytest.mark.parametrize(
    "wanted", ["bytes=9-5", "bytes=0-1,5-6", "lines=0-1", "bytes=a-b", "bytes=-", "bytes=٣-", ""]
)
def test_ranges_that_are_none_give_all(get: Client, wanted: str) -> None:
    encoded = wanted.encode().decode("iso-8859-1")
    got = get(blob(APP), Range=encoded)
    assert (got.status, got.body) == (200, LAYER.content.data)


def test_a_range_of_something_else_gives_all(get: Client) -> None:
    right = f'"{APP.blobs[1].digest}"'
    assert get(blob(APP), Range="bytes=0-1", If_Range='"older"').status == 200
    assert get(blob(APP), Range="bytes=0-1", If_Range=right).status == 206
    assert get(blob(APP), "HEAD", Range="bytes=0-1").status == 200


def test_mirror_namespaces_tell_hosts_apart(get: Client) -> None:
    def status(query: str) -> int:
        return get(f"/v2/goharbor/app/manifests/{query}", "HEAD").status

    assert status("v1?ns=docker.io") == status("v1?ns=registry-1.docker.io") == 200
    assert status("v1?ns=quay.io") == 404
    assert status("quay?ns=quay.io") == 200
    assert status("quay?ns=docker.io") == 404
    assert status("v1?ns=seed.site.example:5000") == 200
    assert get(f"{blob(APP)}?ns=docker.io").body == LAYER.content.data


# Lists


def test_tags_in_pages(get: Client) -> None:
    path = "/v2/goharbor/app/tags/list"
    assert get(path).json == {"name": "goharbor/app", "tags": ["quay", "v1", "v10", "V2"]}
    assert get("/v2/docker.io/goharbor/app/tags/list").json["tags"] == ["v1", "v10", "V2"]
    seen: list[str] = []
    following = f"{path}?n=3"
    while following:
        got = get(following)
        seen += got.json["tags"]
        link = got.headers.get("Link", "")
        assert not link or link.endswith('>; rel="next"')
        following = link.partition(">")[0].removeprefix("<")
    assert seen == ["quay", "v1", "v10", "V2"]
    assert get(f"{path}?n=0").json["tags"] == []
    assert get(f"{path}?last=v1").json["tags"] == ["v10", "V2"]
    assert get(f"{path}?last=zzz").json["tags"] == []
    assert "Link" not in get(f"{path}?n=4").headers


def test_catalogue_in_pages(get: Client) -> None:
    everything = [
        "aquasecurity/trivy-db",
        "charts/harbor",
        "files/runbook.pdf",
        "goharbor/app",
        "library/multi",
        "tools/helm",
    ]
    assert get("/v2/_catalog").json == {"repositories": everything}
    got = get("/v2/_catalog?n=2&last=charts/harbor")
    assert got.json["repositories"] == everything[2:4]
    assert got.headers["Link"] == '</v2/_catalog?n=2&last=goharbor%2Fapp>; rel="next"'


@pytest.mark.parametrize("number", ["x", "-1", "1e3", "", "9" * 5000])
def test_pages_of_no_number(get: Client, number: str) -> None:
    got = get(f"/v2/_catalog?n={number}")
    assert (got.status, got.code) == (400, "PAGINATION_NUMBER_INVALID")


def test_referrers(get: Client) -> None:
    path = f"/v2/goharbor/app/referrers/{APP.digest}"
    got = get(path)
    assert got.headers["Content-Type"] == made.OCI_INDEX
    assert "OCI-Filters-Applied" not in got.headers
    listed = {entry["digest"]: entry for entry in got.json["manifests"]}
    assert set(listed) == {SIGNATURE.digest, SBOM.digest}
    assert listed[SIGNATURE.digest] == {
        "mediaType": made.OCI_MANIFEST,
        "digest": SIGNATURE.digest,
        "size": len(SIGNATURE.top.data),
        "artifactType": "application/vnd.test.signature",
        "annotations": {"signed-by": "us"},
    }
    got = get(f"{path}?artifactType=application/vnd.test.sbom")
    assert [entry["digest"] for entry in got.json["manifests"]] == [SBOM.digest]
    assert got.headers["OCI-Filters-Applied"] == "artifactType"
    assert get(f"/v2/goharbor/app/manifests/{SBOM.digest}").body == SBOM.top.data


@pytest.mark.parametrize("repository", ["goharbor/app", "no/such"])
def test_no_referrers_is_an_empty_index(get: Client, repository: str) -> None:
    got = get(f"/v2/{repository}/referrers/sha256:{'0' * 64}")
    assert got.status == 200
    assert got.json == {"schemaVersion": 2, "mediaType": made.OCI_INDEX, "manifests": []}


# Refusals

NOBODY = f"sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v2/no/such/manifests/v1", 404, "NAME_UNKNOWN"),
        ("/v2/no/such/tags/list", 404, "NAME_UNKNOWN"),
        (f"/v2/no/such/blobs/{NOBODY}", 404, "NAME_UNKNOWN"),
        ("/v2/goharbor/app/manifests/v9", 404, "MANIFEST_UNKNOWN"),
        ("/v2/goharbor/app/manifests/.INVALID", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/goharbor/app/manifests/{NOBODY}", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/goharbor/app/manifests/{LAYER.content.digest}", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/goharbor/app/manifests/sha512:{'0' * 128}", 404, "MANIFEST_UNKNOWN"),
        ("/v2/goharbor/app/manifests/sha256:12", 400, "DIGEST_INVALID"),
        (f"/v2/goharbor/app/blobs/{NOBODY}", 404, "BLOB_UNKNOWN"),
        (f"/v2/goharbor/app/blobs/sha512:{'0' * 128}", 404, "BLOB_UNKNOWN"),
        ("/v2/goharbor/app/blobs/latest", 400, "DIGEST_INVALID"),
        (f"/v2/goharbor/app/blobs/sha256:{'A' * 64}", 400, "DIGEST_INVALID"),
        ("/v2/goharbor/app/referrers/latest", 400, "DIGEST_INVALID"),
        ("/v2/GoHarbor/app/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/../../etc/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/a%00b/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/a%ff/manifests/v1", 400, "NAME_INVALID"),
        (f"/v2/{'a' * 300}/manifests/v1", 400, "NAME_INVALID"),
        (f"/v2/{'a' * 9000}/manifests/v1", 414, "NAME_INVALID"),
        (f"/v2/_catalog?{'a=b&' * 50}", 400, "NAME_INVALID"),
        ("/", 404, "NOT_FOUND"),
        ("/bundle.json", 404, "NOT_FOUND"),
        ("/v2/goharbor/app/tags/other", 404, "NOT_FOUND"),
        ("/v2/goharbor/app/blobs/../../../etc/passwd", 404, "NOT_FOUND"),
    ],
)
def test_errors(get: Client, path: str, status: int, code: str) -> None:
    got = get(path)
    assert (got.status, got.code) == (status, code)
    assert got.headers["Content-Type"] == "application/json"
    head = get(path, "HEAD")
    assert (head.status, head.body) == (status, b"")
    assert get("/v2/").status == 200, "the connection goes on"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/goharbor/app/blobs/uploads/"),
        ("PUT", "/v2/goharbor/app/manifests/v1"),
        ("PATCH", "/v2/goharbor/app/blobs/uploads/1"),
        ("DELETE", "/v2/goharbor/app/manifests/v1"),
        ("OPTIONS", "/v2/"),
    ],
)
def test_read_only(get: Client, method: str, path: str) -> None:
    for body in (b"", b"x" * 200_000):
        got = get(path, method, body=body)
        assert (got.status, got.code) == (405, "UNSUPPORTED")
        assert got.headers["Allow"] == "GET, HEAD"
    assert get("/v2/").status == 200


# Damage


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., tuple[BundleServer, Client]]]:
    """Serve a bundle of its own, damaged before or not."""
    started: list[tuple[BundleServer, Client, VerifiedBundle]] = []

    def start(
        *, damaged: str = "", at: int = 0, check: bool = False, images: Any = None
    ) -> tuple[BundleServer, Client]:
        path, pem = make_bundle(tmp_path / f"{len(started)}.tar", images or IMAGES)
        opened = open_bundle(path, pem)
        running = BundleServer(BundleStore(opened), ("127.0.0.1", 0))
        if damaged:
            damage(path, opened, damaged, at=at)
        if not check:
            running.check.start = lambda: None  # type: ignore[method-assign]
        running.start()
        started.append((running, Client(*running.address), opened))
        return started[-1][:2]

    yield start
    for running, client, opened in started:
        client.http.close()
        running.stop()
        opened.close()


def test_a_damaged_blob_never_leaves(
    serve: Callable[..., tuple[BundleServer, Client]], caplog: pytest.LogCaptureFixture
) -> None:
    _, get = serve(damaged=LAYER.content.digest, at=SIZE - 1)
    for wanted in ("", "bytes=0-9", ""):
        got = get(blob(APP), Range=wanted)
        assert (got.status, got.code) == (500, "BLOB_CORRUPT")
        assert LAYER.content.data[:10] not in got.body
    assert get(blob(APP), "HEAD").status == 500
    assert get(blob(APP, 0)).body == APP.blobs[0].data, "the rest is still served"
    told = [r.message for r in caplog.records if r.levelno == logging.ERROR]
    assert LAYER.content.digest in told[0]
    health = get("/healthz")
    assert (health.status, health.json["status"]) == (503, "corrupt")
    assert LAYER.content.digest in health.json["check"]["failed"][0]


def test_a_manifest_damaged_later_is_not_served(
    serve: Callable[..., tuple[BundleServer, Client]],
) -> None:
    _, get = serve(damaged=APP.digest)
    assert get("/v2/goharbor/app/manifests/v1").status == 500
    assert get("/v2/goharbor/app/manifests/V2").status == 200


def test_a_manifest_damaged_before_refuses_the_bundle(tmp_path: Path) -> None:
    path, pem = make_bundle(tmp_path / "bundle.tar", IMAGES)
    with open_bundle(path, pem) as opened:
        damage(path, opened, MULTI.manifests[1].digest)
        with pytest.raises(Corrupt, match=Digest.parse(MULTI.manifests[1].digest).hex):
            BundleStore(opened)


def test_the_background_finds_damage_that_nobody_asked_for(
    serve: Callable[..., tuple[BundleServer, Client]],
) -> None:
    running, get = serve(damaged=LAYER.content.digest, check=True)
    deadline = time.monotonic() + 10
    while running.check.progress.state != "done":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    health = get("/healthz").json
    assert health["check"]["checkedBytes"] == health["check"]["totalBytes"] > SIZE
    assert health["check"]["state"] == "done"
    assert [LAYER.content.digest in sentence for sentence in health["check"]["failed"]] == [True]
    assert get(blob(APP), "HEAD").status == 500


def test_a_file_cut_off_while_it_is_served(
    serve: Callable[..., tuple[BundleServer, Client]], caplog: pytest.LogCaptureFixture
) -> None:
    data = made.layer(30_000_000, "cut off")
    image = made.image([data])
    running, _ = serve(images={"docker.io/goharbor/app:v1": image})
    opened = running.check._order[0][0]
    place = opened.find(Digest.parse(data.content.digest).blob_path)
    assert place
    with socket.create_connection(running.address, timeout=10) as client:
        client.sendall(f"GET {blob(image)} HTTP/1.1\r\n\r\n".encode())
        got = client.recv(1000)  # the rest is more than fits between the two sides
        with opened.path.open("r+b") as file:
            file.truncate(place.offset + 20_000_000)
        while piece := client.recv(1_000_000):
            got += piece
    assert got.partition(b"\r\n\r\n")[2] == data.content.data[:20_000_000]
    assert "the file ends" in caplog.text
    client_of_the_rest = Client(*running.address)
    assert client_of_the_rest(blob(image)).code == "BLOB_CORRUPT"
    client_of_the_rest.http.close()


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("check", [True, False], ids=["checked", "on demand"])
def test_what_is_written_after_the_check_is_not_sent(
    serve: Callable[..., tuple[BundleServer, Client]],
    caplog: pytest.LogCaptureFixture,
    check: bool,  # noqa: FBT001 (a parameter of the test)
) -> None:
    running, get = serve(check=check)
    if check:
        _wait(lambda: bool(get("/healthz").json["check"]["state"] == "done"))
    assert get(blob(APP)).body == LAYER.content.data
    opened = running.check._order[0][0]
    damage(opened.path, opened, LAYER.content.digest, at=1000)
    if check:  # nobody has asked for the blob yet
        health = get("/healthz").json
        assert (health["status"], health["check"]["state"]) != ("ok", "done")
    for wanted in ("", "bytes=0-9"):
        got = get(blob(APP), Range=wanted)
        assert (got.status, got.code) == (500, "BLOB_CORRUPT")
    assert get(blob(APP), "HEAD").status == 500
    assert get(blob(APP, 0)).body == APP.blobs[0].data, "the rest is still served"
    assert "written to while it is served" in caplog.text
    health = get("/healthz")
    assert (health.status, health.json["status"]) == (503, "corrupt")
    damage(opened.path, opened, LAYER.content.digest, at=1000)  # flips the bit back
    assert get(blob(APP)).body == LAYER.content.data
    assert get("/healthz").status == 200
    if check:
        _wait(lambda: bool(get("/healthz").json["check"]["state"] == "done"))
        progress = running.check.progress
        assert progress.checked_bytes == progress.total_bytes


def test_a_verdict_over_a_file_that_changed_meanwhile_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, pem = make_bundle(tmp_path / "bundle.tar", IMAGES)
    with open_bundle(path, pem) as opened:
        entry = opened.find(Digest.parse(LAYER.content.digest).blob_path)
        assert entry
        real = opened.chunks

        def interrupted(*arguments: Any) -> Iterator[bytes]:
            yield from real(*arguments)
            damage(path, opened, LAYER.content.digest)

        check = ContentCheck([opened])
        with monkeypatch.context() as patch:
            patch.setattr(opened, "chunks", interrupted)
            with pytest.raises(TransferFailed, match="written to"):
                check.ensure(opened, entry)
        with pytest.raises(Corrupt):
            check.ensure(opened, entry)


def test_copies_of_a_bundle_are_judged_apart(tmp_path: Path) -> None:
    path, pem = make_bundle(tmp_path / "one.tar", IMAGES)
    copy = tmp_path / "two.tar"
    copy.write_bytes(path.read_bytes())
    with open_bundle(path, pem) as one, open_bundle(copy, pem) as two:
        damage(copy, two, LAYER.content.digest)
        check = ContentCheck([one, two])
        name = Digest.parse(LAYER.content.digest).blob_path
        for _ in range(2):
            for opened in (one, two):
                entry = opened.find(name)
                assert entry
                with nullcontext() if opened is one else pytest.raises(Corrupt):
                    check.ensure(opened, entry)
        assert len(check.progress.failed) == 1


def test_healthz_of_a_good_bundle(get: Client, bundle: VerifiedBundle) -> None:
    got = get("/healthz")
    assert (got.status, got.json["status"]) == (200, "ok")
    assert got.json["bundles"] == [
        {"name": "test", "channel": "stable", "serial": 1, "digest": str(bundle.digest)}
    ]
    assert got.json["missing"] == 0


# Several bundles


def test_the_higher_serial_has_the_tag(tmp_path: Path) -> None:
    name = "docker.io/goharbor/app:v1"
    base, pem = make_bundle(tmp_path / "base.tar", {name: APP, "docker.io/only/base:1": APP})
    delta, _ = make_bundle(
        tmp_path / "delta.tar",
        {name: MULTI},
        serial=2,
        omit=[LAYER.content.digest, MULTI.manifests[0].digest],
    )
    with open_bundle(base, pem) as first, open_bundle(delta, pem) as second:
        alone = BundleStore(second)
        assert {str(m.digest) for m in alone.missing} == {
            LAYER.content.digest,
            MULTI.manifests[0].digest,
        }
        with pytest.raises(NotFound):
            alone.resolve("goharbor/app", MULTI.manifests[0].digest)
        for order in ((first, second), (second, first)):
            store = BundleStore(*order)
            assert store.missing == ()
            assert str(store.resolve("goharbor/app", "v1").digest) == MULTI.digest
            assert str(store.resolve("only/base", "1").digest) == APP.digest
            assert str(store.resolve("goharbor/app", APP.digest).digest) == APP.digest
            assert store.repositories == ("goharbor/app", "only/base")
            assert store.hosts == ("docker.io",)


# The wire


def raw(address: tuple[str, int], sent: bytes) -> bytes:
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(sent)
        pieces = []
        while piece := connection.recv(65536):
            pieces.append(piece)
        return b"".join(pieces)


def test_a_tls_client_on_the_plain_port_is_told(served: BundleServer) -> None:
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(400)
    assert raw(served.address, hello) == b"HTTP/1.0 400 Bad Request\r\n\r\n"
    context = ssl.create_default_context()
    with (
        socket.create_connection(served.address, timeout=10) as connection,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(connection, server_hostname="localhost")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /v2/ HTTP/1.0\r\n\r\n", 200),
        (b"GET /v2/ HTTP/1.1\r\nConnection: close\r\n\r\n", 200),
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"GET /v2/\r\n\r\n", 400),
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET http://[/v2/ HTTP/1.0\r\n\r\n", 400),
        (b"GET http://seed.example/v2/ HTTP/1.0\r\n\r\n", 200),
        (b"GET /v2/ HTTP/9.9\r\n\r\n", 505),
        (b"BREW /v2/ HTTP/1.1\r\nConnection: close\r\n\r\n", 405),
        (b"PUT /v2/x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", 405),
        (b"GET /v2/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz", 200),
        (b"GET /v2/ HTTP/1.1\nConnection:close\n\n", 200),
    ],
)
def test_heads(served: BundleServer, sent: bytes, status: int) -> None:
    answer = raw(served.address, sent)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1 ") == 1, "what follows a body is not taken for a request"


@pytest.mark.parametrize(
    "fields",
    [
        "Content-Length: 25\r\nContent-Length: 0",
        "Content-Length: 0\r\nContent-Length: 0",
        "Content-Length : 25",
        "Content-Length: +25",
        "Content-Length: 0, 25",
        "Content-Length: 0x19",
        "Content-Length: ٢٥",
        "Content-Length:",
        "Content-Length: 0\r\n 25",
        "Transfer-Encoding : chunked",
        "no colon\r\nContent-Length: 25",
        ": no name\r\nContent-Length: 25",
        " folded: first\r\nContent-Length: 25",
        "X: y\r\n Content-Length: 25",
        "X: y\r\r\nContent-Length: 25",
        "X: y\rContent-Length: 25",
        "X: y\0\r\nContent-Length: 25",
        "From somebody\r\nContent-Length: 25",
        "X: y\r\nFrom Content-Length: 25",
    ],
)
def test_heads_that_can_be_read_two_ways(served: BundleServer, fields: str) -> None:
    inner = b"GET /healthz HTTP/1.0\r\n\r\n"
    assert len(inner) == 25
    answer = raw(served.address, b"GET /v2/ HTTP/1.1\r\n" + fields.encode() + b"\r\n\r\n" + inner)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_length_of_nothing_keeps_the_connection(served: BundleServer) -> None:
    one = b"GET /v2/ HTTP/1.1\r\nContent-Length: 0 \r\nX: \xe9\t\r\n\r\n"
    answer = raw(served.address, one + b"GET /v2/ HTTP/1.0\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 ") == 2


@pytest.mark.parametrize("size", [100, 33_000])
def test_a_client_that_breaks_off_is_no_error(
    served: BundleServer, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    with socket.create_connection(served.address, timeout=10) as client:
        client.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * size)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    _wait(lambda: not served._listener._open)
    assert caplog.text == ""


def test_requests_in_one_piece_are_answered_in_order(served: BundleServer) -> None:
    one = b"GET /v2/_catalog?n=1 HTTP/1.1\r\n\r\n"
    last = b"GET /v2/nope HTTP/1.1\r\nConnection: close\r\n\r\n"
    answer = raw(served.address, one + one + last)
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.count(b"HTTP/1.1 404 Not Found") == 1


def test_log_lines_can_not_be_forged(
    served: BundleServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="installer.serve.access"):
        raw(served.address, b"GET /\x1b[31m\xe9\x7fv2 HTTP/1.0\r\n\r\n")
    text = "".join(record.getMessage() for record in caplog.records)
    assert "404" in text or "400" in text
    assert text.isascii()
    assert text.isprintable()


@pytest.mark.parametrize("sent", [b"", b"GET /v2/ HTT", b"GET /v2/ HTTP/1.1\r\nX: "])
def test_clients_that_stay_silent_are_let_go(
    monkeypatch: pytest.MonkeyPatch, served: BundleServer, sent: bytes
) -> None:
    monkeypatch.setattr(connection, "IDLE_SECONDS", 0.2)
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    start = time.monotonic()
    assert raw(served.address, sent) == b""
    assert time.monotonic() - start < 5


def test_a_client_that_takes_nothing_is_let_go(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[..., tuple[BundleServer, Client]]
) -> None:
    monkeypatch.setattr(connection, "STALL_SECONDS", 0.3)
    big = made.image([made.layer(30_000_000, "stalled")])
    running, _ = serve(images={"docker.io/goharbor/app:v1": big})
    with socket.create_connection(running.address, timeout=10) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(f"GET {blob(big)} HTTP/1.1\r\n\r\n".encode())
        deadline = time.monotonic() + 10
        while not running._listener._open:
            time.sleep(0.01)
        while running._listener._open:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_too_many_connections_are_turned_away(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[..., tuple[BundleServer, Client]]
) -> None:
    image = made.image([made.layer(30_000_000, "busy")])
    running, _ = serve(images={"docker.io/goharbor/app:v1": image})
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 1)
    with socket.create_connection(running.address, timeout=10) as busy:
        busy.sendall(f"GET {blob(image)} HTTP/1.0\r\n\r\n".encode())
        got = busy.recv(1000)  # the rest is more than fits between the two sides
        assert raw(running.address, b"") == b""
        while piece := busy.recv(1_000_000):
            got += piece
    assert got.endswith(image.blobs[1].data), "the busy one was left alone"
    _wait(lambda: raw(running.address, b"GET /v2/ HTTP/1.0\r\n\r\n") != b"")


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_the_longest_idle_makes_room(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    bundle: VerifiedBundle,
    caplog: pytest.LogCaptureFixture,
    tls: bool,  # noqa: FBT001 (a parameter of the test)
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 3)
    certificates = make_certificates(tmp_path / "tls")
    trusting = ssl.create_default_context(cafile=str(certificates.ca)) if tls else None
    context = certificates.context() if tls else None
    running = BundleServer(BundleStore(bundle), ("127.0.0.1", 0), tls=context)
    with running, ExitStack() as stack:

        def client() -> Client:
            made = Client(*running.address, tls=trusting)
            stack.callback(made.http.close)
            assert made("/v2/").status == 200
            return made

        def all_idle(count: int) -> None:
            """Wait: an answer is there before its connection counts as idle again."""
            _wait(lambda: len(running._listener._idle) == count)

        first = client()
        all_idle(1)
        second = client()
        all_idle(2)
        silent = stack.enter_context(socket.create_connection(running.address, timeout=5))
        all_idle(3)
        assert first("/v2/").status == 200
        all_idle(3)
        client()  # second was idle longest, then the one that never said a word
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            second("/v2/")
        _wait(lambda: len(running._listener._open) == 3)
        all_idle(3)
        client()
        assert silent.recv(1) == b""
        assert first("/v2/").status == 200
        _wait(lambda: len(running._listener._open) == 3)
    assert caplog.text == ""


def test_many_clients_at_once_get_the_right_bytes(
    serve: Callable[..., tuple[BundleServer, Client]],
) -> None:
    images = {
        f"docker.io/goharbor/app:{n}": made.image([made.layer(3_000_000, f"l{n}")])
        for n in range(4)
    }
    running, _ = serve(images=images, check=True)
    wrong: list[str] = []

    def pull() -> None:
        client = Client(*running.address)
        for image in images.values():
            for content in image.blobs:
                body = client(f"/v2/goharbor/app/blobs/{content.digest}").body
                if f"sha256:{hashlib.sha256(body).hexdigest()}" != content.digest:
                    wrong.append(content.digest)
        client.http.close()

    threads = [threading.Thread(target=pull) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_tls(tmp_path: Path, bundle: VerifiedBundle) -> None:
    certificates = make_certificates(tmp_path / "tls")
    trusting = ssl.create_default_context(cafile=str(certificates.ca))
    store = BundleStore(bundle)
    with BundleServer(store, ("127.0.0.1", 0), tls=certificates.context()) as running:
        assert running.url.startswith("https://127.0.0.1:")
        get = Client(*running.address, tls=trusting)
        assert get(blob(APP)).body == LAYER.content.data
        assert get(blob(APP), Range="bytes=5-9").body == LAYER.content.data[5:10]
        assert get("/v2/goharbor/app/manifests/v1").body == APP.top.data
        got = get("/v2/x", "PUT", body=b"x")
        assert got.status == 405
        get.http.close()
        with suppress(ConnectionResetError):
            assert b"HTTP/1.1 200" not in raw(running.address, b"GET /v2/ HTTP/1.0\r\n\r\n")


# Start and end


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:5000", ("127.0.0.1", 5000)),
        ("[::1]:0", ("::1", 0)),
        ("seed.example:443", ("seed.example", 443)),
    ],
)
def test_listen_addresses(text: str, expected: tuple[str, int]) -> None:
    assert parse_listen(text) == expected


@pytest.mark.parametrize("text", ["", "5000", ":5000", "::1:5000", "a:b", "a:65536", "a:-1", "a:٣"])
def test_listen_addresses_that_are_none(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_listen(text)


def test_other_machines_need_tls_or_a_word(bundle: VerifiedBundle) -> None:
    everyone = "0.0.0.0"  # noqa: S104 (refused before it is bound)
    with pytest.raises(InvalidInput, match="no TLS") as refused:
        BundleServer(BundleStore(bundle), (everyone, 0))
    assert "--plain-http" in refused.value.hint
    for address in (everyone, "::", "192.0.2.1"):
        with pytest.raises(InvalidInput):
            server.refuse_open_door(address, tls=False, plain_http=False)
        server.refuse_open_door(address, tls=True, plain_http=False)
        server.refuse_open_door(address, tls=False, plain_http=True)
    for address in ("127.0.0.1", "127.8.9.10", "::1"):
        server.refuse_open_door(address, tls=False, plain_http=False)


def test_a_port_that_is_taken(bundle: VerifiedBundle, served: BundleServer) -> None:
    with pytest.raises(PreflightFailed, match="can't listen"):
        BundleServer(BundleStore(bundle), served.address)


def test_ipv6(bundle: VerifiedBundle) -> None:
    try:
        running = BundleServer(BundleStore(bundle), ("::1", 0))
    except PreflightFailed:
        pytest.skip("this machine has no IPv6 loopback")
    with running:
        assert running.authority == f"[::1]:{running.address[1]}"
        client = Client(*running.address)
        assert client("/v2/").status == 200
        client.http.close()


def test_stop_ends_open_connections(tmp_path: Path) -> None:
    path, pem = make_bundle(tmp_path / "bundle.tar", IMAGES)
    with open_bundle(path, pem) as opened:
        running = BundleServer(BundleStore(opened), ("127.0.0.1", 0))
        running.start()
        client = Client(*running.address)
        assert client("/v2/").status == 200
        start = time.monotonic()
        running.stop()
        assert time.monotonic() - start < 5
        assert not running._listener._open
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            client(blob(APP))
        client.http.close()


# The check


def test_one_hash_for_many_who_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, pem = make_bundle(tmp_path / "bundle.tar", IMAGES)
    with open_bundle(path, pem) as opened:
        entry = opened.find(Digest.parse(LAYER.content.digest).blob_path)
        assert entry
        real, read = opened.chunks, []

        def slow(*arguments: Any) -> Iterator[bytes]:
            read.append(arguments)
            time.sleep(0.2)
            yield from real(*arguments)

        monkeypatch.setattr(opened, "chunks", slow)
        check = ContentCheck([opened])
        waiting = [threading.Thread(target=check.ensure, args=(opened, entry)) for _ in range(6)]
        for thread in waiting:
            thread.start()
        for thread in waiting:
            thread.join()
        assert len(read) == 1
        check.ensure(opened, entry)
        assert len(read) == 1


def test_the_background_steps_aside_for_clients(tmp_path: Path) -> None:
    images = {
        f"docker.io/big/b:{n}": made.image([made.layer(4_000_000, f"b{n}")]) for n in range(3)
    }
    path, pem = make_bundle(tmp_path / "bundle.tar", images)
    with open_bundle(path, pem) as opened:
        check = ContentCheck([opened])
        with check._turn:
            check._urgent = 1
        check.start()
        time.sleep(0.2)
        assert check.progress.checked_bytes == 0
        with check._turn:
            check._urgent = 0
            check._turn.notify_all()
        deadline = time.monotonic() + 10
        while check.progress.state != "done":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert check.progress.checked_bytes == check.progress.total_bytes
        check.stop()


def test_the_background_goes_on_with_what_a_client_waits_for(tmp_path: Path) -> None:
    path, pem = make_bundle(tmp_path / "bundle.tar", IMAGES)
    with open_bundle(path, pem) as opened:
        check = ContentCheck([opened])
        entry = check._order[0][1]
        with check._turn:  # as if a client's other blob had come in the middle of this one
            check._urgent = 1
            check._hashing.add((opened, entry.member.path))
        paused = threading.Thread(
            target=check._step_aside,
            args=((opened, entry.member.path), 0),
            daemon=True,
        )
        paused.start()
        waiting = threading.Thread(target=check.ensure, args=(opened, entry), daemon=True)
        waiting.start()
        paused.join(5)
        assert not paused.is_alive()
        with check._turn:
            check._urgent = 0
            check._verdicts[opened, entry.member.path] = None
            check._turn.notify_all()
        waiting.join(5)
        assert not waiting.is_alive()
        check.stop()


def test_nothing_is_hashed_after_stop(bundle: VerifiedBundle) -> None:
    entry = bundle.find(Digest.parse(LAYER.content.digest).blob_path)
    assert entry
    check = ContentCheck([bundle])
    check.stop()
    with pytest.raises(Interrupted):
        check.ensure(bundle, entry)
