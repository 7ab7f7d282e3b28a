"""A registry or a web server that means harm, as the connected side meets it.

The server here knows no HTTP: it sends the bytes that an attack is made of, for as long as somebody
takes them.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import socketserver
import tarfile
import threading
from typing import TYPE_CHECKING, Any

import pytest

from bundler.cache import BlobCache
from bundler.sources import chart as charts
from bundler.sources import tool as tools
from bundler.sources import upstream as sources
from bundler.sources.upstream import Upstream
from bundler.spec_document import Chart, Tool
from installer.bundle.digest import Digest
from installer.errors import AirgapError, Corrupt, NotFound, TransferFailed
from installer.oci import registry as registry_module
from installer.oci.auth import Credentials
from installer.oci.graph import Descriptor
from installer.oci.hosts import RegistryHosts
from installer.oci.http import Patience
from installer.oci.registry import RegistryStore
from tests.upstream import images as made

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

QUICK = Patience(connect=2, read=2, attempts=2, backoff=0.01, longest=0.1)
IMAGE = made.image([made.layer(1000, "a")])
LAYER = IMAGE.blobs[-1]
BLOB = Descriptor(LAYER.media_type, Digest.parse(LAYER.digest), len(LAYER.data))
MEGABYTE = b"x" * (1 << 20)
METADATA = "http://169.254.169.254/latest/meta-data/iam/security-credentials/"


class _Talker(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, Hostile)
        head = b""
        while b"\r\n\r\n" not in head:
            piece = self.request.recv(65536)
            if not piece:
                return
            head += piece
        server.heads.append(head.decode())
        try:
            for piece in server.say(head.split(b" ")[1].decode()):
                self.request.sendall(piece)
                server.sent += len(piece)
        except OSError:
            return


class Hostile(socketserver.ThreadingTCPServer):
    """Answers each request with whatever ``say`` gives for its path, then closes."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, say: Callable[[str], Iterable[bytes]]) -> None:
        self.say = say
        self.heads: list[str] = []
        self.sent = 0
        super().__init__(("127.0.0.1", 0), _Talker)
        self.host = f"127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


def _answer(body: bytes = b"", status: str = "200 OK", **headers: Any) -> bytes:
    fields = {"Content-Length": len(body), "Connection": "close"} | {
        k.replace("_", "-"): v for k, v in headers.items()
    }
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode() + body


def _manifest(data: bytes = IMAGE.top.data, **headers: Any) -> bytes:
    return _answer(data, Content_Type=made.OCI_MANIFEST, **headers)


def _endless(head: bytes) -> Iterator[bytes]:
    return itertools.chain([head], itertools.repeat(MEGABYTE))


BLOBS: dict[str, tuple[Callable[[], Iterable[bytes]], type[AirgapError], str]] = {
    "body without end, without a length": (
        lambda: _endless(_answer(Content_Length=None)), Corrupt, "more than 10263 bytes"
    ),
    "body without end in chunks": (
        lambda: itertools.chain(
            [_answer(Content_Length=None, Transfer_Encoding="chunked")],
            itertools.repeat(b"100000\r\n" + MEGABYTE + b"\r\n"),
        ),
        Corrupt,
        "more than 10263 bytes",
    ),
    "length that is larger": (
        lambda: _endless(_answer(Content_Length=10**15)), Corrupt, "10+ bytes instead of"
    ),
    "length that is negative": (
        lambda: _endless(_answer(Content_Length=-1)), Corrupt, "-1 bytes instead of"
    ),
    "length of 10,000 digits": (
        lambda: _endless(_answer(Content_Length="9" * 10_000)), Corrupt, "9+ bytes instead of"
    ),
    "length that is right, and too little": (
        lambda: [_answer(Content_Length=BLOB.size), b"x"], TransferFailed, "broke off|ended after"
    ),
    "length that is right, and other bytes": (
        lambda: [_answer(b"x" * BLOB.size)], Corrupt, "digest is"
    ),
    "compressed against the question": (
        lambda: [_answer(gzip.compress(LAYER.data), Content_Encoding="gzip")], Corrupt, "instead of"
    ),
    "header without end": (
        lambda: itertools.chain([b"HTTP/1.1 200 OK\r\nX: "], itertools.repeat(MEGABYTE)),
        TransferFailed,
        "127.0.0.1",
    ),
    "headers without end": (
        lambda: itertools.chain([b"HTTP/1.1 200 OK\r\n"], itertools.repeat(b"X: y\r\n" * 10_000)),
        TransferFailed,
        "127.0.0.1",
    ),
    "not HTTP": (lambda: _endless(b"SSH-2.0-OpenSSH\r\n"), TransferFailed, "127.0.0.1"),
    "redirect to a file": (
        lambda: [_answer(status="302 Found", Location="file:///etc/shadow")],
        TransferFailed,
        "without a usable Location",
    ),
    "redirect to another protocol": (
        lambda: [_answer(status="307 T", Location="gopher://127.0.0.1:25/_HELO")],
        TransferFailed,
        "without a usable Location",
    ),
    "redirect to nowhere": (
        lambda: [_answer(status="302 Found")], TransferFailed, "without a usable Location"
    ),
    "redirect to an address that is none": (
        lambda: [_answer(status="302 Found", Location="http://[::1")], TransferFailed, "Location"
    ),
    "redirect in a circle": (
        lambda: [_answer(status="302 Found", Location="?again")], TransferFailed, "HTTP 302"
    ),
    "error without end": (
        lambda: _endless(_answer(status="500 Broken", Content_Length=None)), TransferFailed, "500"
    ),
    "error that writes to the terminal": (
        lambda: [
            _answer(b'{"errors":[{"code":"\\u001b]0;x","message":"\\u001b[2J\\n"}]}', "403 No")
        ],
        TransferFailed,
        r"^[^\x1b]*$",
    ),
}  # fmt: skip


@pytest.mark.parametrize("attack", BLOBS)
def test_blobs(attack: str) -> None:
    say, error, words = BLOBS[attack]
    with (
        Hostile(lambda _: say()) as server,
        RegistryStore(server.host, patience=QUICK) as store,
        pytest.raises(error, match=words),
    ):
        for _ in store.fetch("team/app", BLOB):
            pass
    assert server.sent < 200 << 20


MANIFESTS: dict[str, tuple[Callable[[], Iterable[bytes]], type[AirgapError], str]] = {
    "without end": (lambda: _endless(_answer(Content_Length=None)), Corrupt, "more than 4194304"),
    "larger than allowed": (
        lambda: [_manifest(b'{"a":"' + MEGABYTE * 5 + b'"}')], Corrupt, "more than 4194304"
    ),
    "another digest in the header": (
        lambda: [_manifest(Docker_Content_Digest=Digest.of(b"x"))], Corrupt, "digest"
    ),
    "nested without end": (lambda: [_manifest(b"[" * 1_000_000)], Corrupt, "not a manifest"),
    "Docker's first schema": (lambda: [_manifest(b'{"schemaVersion":1}')], TransferFailed, "1,"),
}  # fmt: skip


@pytest.mark.parametrize("attack", MANIFESTS)
def test_manifests(attack: str) -> None:
    say, error, words = MANIFESTS[attack]
    with (
        Hostile(lambda _: say()) as server,
        RegistryStore(server.host, patience=QUICK) as store,
        pytest.raises(error, match=words),
    ):
        store.resolve("team/app", "v1")


def test_a_list_of_tags_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_MAX_PAGES", 50)
    numbers = itertools.count()

    def say(_: str) -> Iterable[bytes]:
        following = f'</v2/team/app/tags/list?last={next(numbers)}>; rel="next"'
        return [_answer(b'{"tags":["a"]}', Link=following)]

    with Hostile(say) as server, RegistryStore(server.host, patience=QUICK) as store:
        assert set(store.tags("team/app")) == {"a"}
    assert len(server.heads) == 50


@pytest.mark.parametrize("status", ["301 M", "302 Found", "303 S", "307 T", "308 P"])
def test_a_login_does_not_follow_to_the_metadata_service(status: str) -> None:
    """It is led to another host that takes the place of the cloud's own address."""
    with Hostile(lambda _: [_answer(b"secret")]) as metadata:

        def say(path: str) -> Iterable[bytes]:
            if "blobs" not in path or "Authorization" not in registry.heads[-1]:
                return [_answer(status="401 U", WWW_Authenticate='Basic realm="a"')]
            return [_answer(status=status, Location=f"http://{metadata.host}/latest/meta-data/")]

        login = Credentials("robot", "very-secret")
        with (
            Hostile(say) as registry,
            RegistryStore(registry.host, None, login, patience=QUICK) as store,
            pytest.raises(Corrupt),
        ):
            list(store.fetch("team/app", BLOB))
    assert any("Authorization: Basic" in head for head in registry.heads)
    assert metadata.heads
    assert not any("authorization" in head.lower() for head in metadata.heads)


@pytest.mark.parametrize("realm", ["file:///etc/passwd", "ftp://x/", "", "http://[", "x" * 70_000])
def test_a_token_service_that_is_none(realm: str) -> None:
    challenge = f'Bearer realm="{realm}",service="x"'
    with (
        Hostile(lambda _: [_answer(status="401 U", WWW_Authenticate=challenge)]) as server,
        RegistryStore(server.host, None, Credentials("a", "b"), patience=QUICK) as store,
        pytest.raises(TransferFailed) as caught,
    ):
        store.resolve("team/app", "v1")
    assert len(str(caught.value)) < 1000


TOKENS = {
    "no token": b"{}",
    "a line break in it": b'{"token":"a\\r\\nX: y"}',
    "nested without end": b"[" * 1_000_000,
    "not UTF-8": b'{"token":"\xff"}',
    "of another kind": b'{"token":5}',
    "a life without end": b'{"token":"","expires_in":1e999}',
    "two megabytes": b'{"token":"' + MEGABYTE * 2 + b'"}',
}


@pytest.mark.parametrize("name", TOKENS)
def test_tokens(name: str) -> None:
    def say(path: str) -> Iterable[bytes]:
        if path.startswith("/token"):
            return [_answer(TOKENS[name])]
        realm = f'Bearer realm="http://{server.host}/token"'
        return [_answer(status="401 U", WWW_Authenticate=realm)]

    with Hostile(say) as server, RegistryStore(server.host, patience=QUICK) as store:
        with pytest.raises((TransferFailed, Corrupt)) as caught:
            store.resolve("team/app", "v1")
        assert len(str(caught.value)) < 1000


# Web servers


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 4 << 20)
    monkeypatch.setattr(tools, "MAX_FILE_BYTES", 4 << 20)
    monkeypatch.setattr(Upstream.file, "__defaults__", (None, 4 << 20))
    monkeypatch.setattr(charts, "_MAX_INDEX_NODES", 50_000)
    return tmp_path


def _harbor(server: Hostile) -> Chart:
    return Chart(name="harbor", source=f"http://{server.host}/charts", version="1.2.3")


def _helm(server: Hostile) -> Tool:
    return Tool(name="helm", source=f"http://{server.host}/helm", sha256="0" * 64)


def _index(**entry: object) -> bytes:
    versions = [{"version": "1.2.3", "urls": ["harbor.tgz"]} | entry]
    return _answer(json.dumps({"apiVersion": "v1", "entries": {"harbor": versions}}).encode())


INDEXES: dict[str, tuple[Callable[[], Iterable[bytes]], str]] = {
    "URL of a file": (lambda: [_index(urls=["file:///etc/shadow"])], "names a file address"),
    "URL of another protocol": (lambda: [_index(urls=["gopher://x/y"])], "gopher address"),
    "URL with a password": (lambda: [_index(urls=["http://a:b@127.0.0.1/x"])], "carries a user"),
    "URL that is none": (lambda: [_index(urls=["http://[::1"])], "names a"),
    "URLs that are no list": (lambda: [_index(urls="harbor.tgz")], "has no URL"),
    "URLs of another kind": (lambda: [_index(urls=[{"a": "b"}])], "has no URL"),
    "digest that is none": (lambda: [_index(digest="../../x")], "not a sha256 digest"),
    "entries that are a number": (lambda: [_answer(b"entries: 5")], "not a chart repository"),
    "chart that is a number": (lambda: [_answer(b"entries: {harbor: 5}")], "no chart of that name"),
    "aliases that explode": (
        lambda: [
            _answer(
                b"a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
                + b"".join(
                    b"a%d: &a%d [%s]\n" % (n, n, b",".join([b"*a%d" % (n - 1)] * 10))
                    for n in range(1, 12)
                )
                + b"entries: *a11\n"
            )
        ],
        "aliases that expand|too large",
    ),
    "nested without end": (lambda: [_answer(b"[" * 100_000)], "nested deeper"),
    "tag that makes objects": (
        lambda: [_answer(b"entries: !!python/object/apply:os.system [id]")], "is not allowed"
    ),
    "not UTF-8": (lambda: [_answer(b"\xff\xfe\x00")], "not UTF-8"),
    "empty": (lambda: [_answer(b"")], "not a chart repository"),
}  # fmt: skip


@pytest.mark.parametrize("attack", INDEXES)
def test_indexes(attack: str, folder: Path) -> None:
    say, words = INDEXES[attack]
    with (
        Hostile(lambda _: say()) as server,
        Upstream(RegistryHosts(), BlobCache(folder), folder, patience=QUICK) as upstream,
        pytest.raises(AirgapError, match=words),
    ):
        charts.lock_chart(upstream, _harbor(server), {})


def _left_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_chart_without_end_does_not_fill_the_disk(folder: Path) -> None:
    def say(path: str) -> Iterable[bytes]:
        return [_index()] if path.endswith(".yaml") else _endless(_answer(Content_Length=None))

    with (
        Hostile(say) as server,
        Upstream(RegistryHosts(), BlobCache(folder), folder, patience=QUICK) as upstream,
        pytest.raises(Corrupt, match="more than 20971520 bytes"),
    ):
        charts.lock_chart(upstream, _harbor(server), {})
    assert server.sent < 100 << 20
    assert _left_in(folder) == []


def test_a_tool_without_end_does_not_fill_the_disk(folder: Path) -> None:
    with (
        Hostile(lambda _: _endless(_answer(Content_Length=None))) as server,
        Upstream(RegistryHosts(), BlobCache(folder), folder, patience=QUICK) as upstream,
        pytest.raises(Corrupt, match="more than 4194304 bytes"),
    ):
        tools.lock_tool(upstream, "linux/amd64", _helm(server))
    assert _left_in(folder) == []


def test_an_archive_that_unpacks_without_end_does_not_fill_the_disk(folder: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz", compresslevel=1) as tar:
        member = tarfile.TarInfo("helm")
        member.size = 64 << 20
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    (folder / "helm.tgz").write_bytes(content.getvalue())
    cache = BlobCache(folder / "cache")
    wanted = Tool(name="helm", source="helm.tgz", member="helm")
    with (
        Upstream(RegistryHosts(), cache, folder, patience=QUICK) as upstream,
        pytest.raises(Corrupt, match="more than 4194304 bytes"),
    ):
        tools.lock_tool(upstream, "linux/amd64", wanted)
    assert _left_in(folder / "cache") == []


def test_a_published_checksum_without_end(folder: Path) -> None:
    with (
        Hostile(lambda _: _endless(_answer(Content_Length=None))) as server,
        Upstream(RegistryHosts(), BlobCache(folder), folder, patience=QUICK) as upstream,
        pytest.raises(Corrupt, match=r"over \d+ bytes"),
    ):
        tools._published(upstream, f"http://{server.host}/sums", "http://x/helm", "tool helm")


def test_what_is_not_there() -> None:
    with (
        Hostile(lambda _: [_answer(status="404 Not Found")]) as server,
        RegistryStore(server.host, patience=QUICK) as store,
        pytest.raises(NotFound),
    ):
        store.resolve("team/app", "v1")
