"""What networks do to a build: a real docker-registry behind a proxy of ours that misbehaves.

Each fault either passes unseen, or ends in one error that names host, artefact and what was tried.
Then the unfinished file stays, and a build after it has what that one had. Time is injected.
"""

from __future__ import annotations

import http.client
import random
import threading
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from bundler.build import Manner, build, plan
from bundler.cache import BlobCache
from bundler.lock import Lock
from bundler.sources.image import lock_image
from bundler.sources.upstream import Upstream
from installer.bundle.digest import Digest
from installer.errors import AirgapError, Corrupt, NotFound, TransferFailed
from installer.keys import generate
from installer.oci.hosts import RegistryConfig, RegistryEntry, RegistryHosts
from installer.oci.http import Patience, Retry
from installer.oci.reference import Reference
from tests.bundles import open_bundle
from tests.contract.stores import _fill as fill_registry
from tests.integration import servers
from tests.programs import ProgramMissing
from tests.upstream.images import image, layer
from tests.upstream.server import Answer, LoopbackServer, Request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
IMAGE = image([layer(5 * MIB, "large"), layer(300_000, "small")])
LARGE = IMAGE.blobs[-2]
SMALL = IMAGE.blobs[-1]
HOST = "registry.example"
_PASSED_ON = ("Accept", "Content-Type")
_PASSED_BACK = ("Content-Type", "Docker-Content-Digest")


_PATIENCE = Patience(connect=2, read=0.5, attempts=4, backoff=0.5, outage=60)


class Proxy(LoopbackServer):
    """Passes requests on to a registry; with ``uses_left`` it wants a token that is not used up."""

    def __init__(self, registry: str) -> None:
        super().__init__()
        self._registry = registry
        self.uses_left: dict[str, int] | None = None
        self.tokens_given = 0

    def answer(self, request: Request) -> Answer:
        if request.path == "/token":
            return self._token()
        if self.uses_left is not None:
            token = (request.headers.get("Authorization") or "").removeprefix("Bearer ")
            with self.lock:
                left = self.uses_left.get(token, 0)
                self.uses_left[token] = left - 1
            if left <= 0:
                challenge = f'Bearer realm="{self.url}/token",service="test"'
                return Answer(401, {"WWW-Authenticate": challenge})
        connection = http.client.HTTPConnection(self._registry, timeout=20)
        headers = {n: v for n in _PASSED_ON if (v := request.headers.get(n))}
        connection.request(request.method, request.path, headers=headers)
        with connection.getresponse() as got:
            kept = {n: v for n in _PASSED_BACK if (v := got.getheader(n))}
            body, status = got.read(), got.status
        connection.close()
        return Answer(status, kept, body, ranged=status == 200)

    def _token(self) -> Answer:
        with self.lock:
            assert self.uses_left is not None
            self.tokens_given += 1
            self.uses_left[f"token-{self.tokens_given}"] = 2
            body = f'{{"token": "token-{self.tokens_given}", "expires_in": 300}}'
        return Answer(200, {"Content-Type": "application/json"}, body.encode())


@dataclass
class Builder:
    """One lock, built as often as wanted; the clock is ours, and sleeping takes no time."""

    folder: Path
    proxy: Proxy
    lock: Lock
    now: float = 0.0
    pace: float = 0.0
    slept: list[float] = field(default_factory=list)
    told: list[Retry] = field(default_factory=list)
    patience: Patience = _PATIENCE

    def __post_init__(self) -> None:
        self.key, _ = generate(b"words")
        self.endpoints = [self.proxy.url]
        self._lock = threading.Lock()

    @property
    def out(self) -> Path:
        return self.folder / "out.tar"

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.slept.append(seconds)
            self.now += seconds

    def clock(self) -> float:
        """What was slept, and ``pace`` seconds for each that really passes."""
        return self.now + self.pace * time.monotonic()

    def build(self) -> int:
        """Build; gives the bytes that were fetched."""
        entry = RegistryEntry(endpoints=tuple(self.endpoints))
        patience = replace(self.patience, sleep=self.sleep, clock=self.clock)
        with Upstream(
            RegistryHosts(RegistryConfig({HOST: entry})),
            BlobCache(self.folder / "cache"),
            self.folder,
            patience=patience,
            notice=self.told.append,
        ) as upstream:
            prepared = plan(self.lock, upstream)
            done = build(
                self.lock, upstream, self.key, self.out, prepared=prepared, manner=Manner(threads=2)
            )
        with open_bundle(self.out, self.key.public_pem()) as bundle:
            assert not bundle.verify_members(threads=2)
        return done.filled.fetched

    def assert_unfinished(self) -> None:
        assert not self.out.exists()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    context = servers.docker_registry(tmp_path_factory.mktemp("registry") / "docker-registry")
    try:
        found = context.__enter__()
    except ProgramMissing as missing:
        pytest.skip(str(missing))
    try:
        fill_registry(f"{found.url}/v2/demo/app", "1", IMAGE)
        yield found.url.removeprefix("http://")
    finally:
        context.__exit__(None, None, None)


@pytest.fixture
def builder(registry: str, tmp_path: Path) -> Iterator[Builder]:
    with Proxy(registry) as proxy:
        hosts = RegistryHosts(RegistryConfig({HOST: RegistryEntry(endpoints=(proxy.url,))}))
        with Upstream(hosts, BlobCache(tmp_path / "locking"), tmp_path) as upstream:
            locked = lock_image(upstream, Reference.parse(f"{HOST}/demo/app:1"), ["linux/amd64"])
        lock = Lock(
            api_version="bundle/v1",
            kind="BundleLock",
            name="test",
            channel="stable",
            serial=1,
            created=datetime(2026, 1, 1, tzinfo=UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            spec_digest=str(Digest.of(b"")),
            platforms=("linux/amd64",),
            blobs=locked.blobs,
            images=(locked.entry,),
        )
        proxy.log.clear()
        yield Builder(tmp_path, proxy, lock)


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429, "times": 2},
        {"status": 429, "headers": {"Retry-After": "7"}, "times": 1},
        {"status": 500, "times": 2},
        {"status": 502, "times": 2},
        {"status": 503, "times": 3},
        {"drop": True, "times": 2},
        {"cut_after": 2 * MIB, "times": 1},
        {"cut_after": MIB, "times": 3},
        {"cut_after": 0, "times": 1},
        {"stall_after": MIB, "stall_for": 3, "times": 1},
        {"delay": 3, "times": 1},
        {"replace": LARGE.data[:-1], "times": 1},
        {"replace": LARGE.data + b"more", "times": 1},
        {"flip_at": 3 * MIB, "times": 1},
    ],
    ids=str,
)
def test_a_fault_that_passes(builder: Builder, fault: dict[str, Any]) -> None:
    builder.proxy.fail(LARGE.digest, method="GET", **fault)
    builder.build()
    sent = builder.proxy.bytes_sent
    if "flip_at" in fault:  # all of it again, and no more
        assert sent <= 2 * len(LARGE.data) + len(SMALL.data) + 10_000
    elif "replace" not in fault:
        # What had come is not sent again: but for what was on its way when the line was cut.
        assert sent <= len(LARGE.data) + len(SMALL.data) + 10_000 + 3 * MIB
    if fault.get("headers"):
        assert max(builder.slept) >= 7
    if fault.get("status") or fault.get("stall_after"):
        assert builder.told
        assert {retry.host for retry in builder.told} == {HOST}
        assert all("demo/app" in retry.reason for retry in builder.told)


def test_a_body_that_hardly_comes_is_asked_for_again(builder: Builder) -> None:
    builder.pace = 100  # a minute is 0.6 s, and 2,000 bytes a second are 20
    builder.patience = replace(builder.patience, read=20)
    builder.proxy.fail(LARGE.digest, method="GET", bytes_per_second=2000, times=1)
    builder.build()
    assert builder.proxy.count("GET", LARGE.digest) == 2
    (retry,) = builder.told
    assert "less than 1024 bytes a second" in retry.reason


def test_a_body_that_never_comes_any_quicker(builder: Builder) -> None:
    builder.pace = 100
    builder.patience = replace(builder.patience, read=20)
    builder.proxy.fail(LARGE.digest, method="GET", bytes_per_second=2000)
    with pytest.raises(TransferFailed, match=r"less than 1024 bytes a second.*tried 4 times"):
        builder.build()
    builder.assert_unfinished()


def test_a_server_without_ranges_sends_only_that_blob_again(builder: Builder) -> None:
    builder.proxy.fail(LARGE.digest, cut_after=2 * MIB, times=1, no_range=True)
    builder.proxy.fail(LARGE.digest, no_range=True)
    builder.build()
    assert builder.proxy.count("GET", SMALL.digest) == 1
    assert builder.proxy.count("GET", LARGE.digest) == 2


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ({"status": 503}, TransferFailed, r"HTTP 503.*tried \d+ times in \d+ s"),
        ({"status": 429}, TransferFailed, r"HTTP 429.*tried \d+ times"),
        ({"status": 429, "headers": {"Retry-After": "3600"}}, TransferFailed, r"HTTP 429"),
        ({"delay": 2}, TransferFailed, r"no answer.*tried \d+ times"),
        ({"stall_after": MIB, "stall_for": 2}, TransferFailed, r"broke off.*|ended after"),
        ({"flip_at": 77}, Corrupt, r"digest sha256:[0-9a-f]{64}, the lock says"),
        ({"replace": b"<html>please log in</html>"}, Corrupt, r"bytes instead of"),
        ({"status": 404}, NotFound, r"HTTP 404"),
        ({"status": 403}, TransferFailed, r"HTTP 403"),
    ],
    ids=str,
)
def test_a_fault_that_stays(
    builder: Builder, fault: dict[str, Any], kind: type[AirgapError], words: str
) -> None:
    if "stall_after" in fault:  # each time at the same place of the blob
        builder.proxy.fail(LARGE.digest, method="GET", stall_after=MIB, stall_for=2, times=1)
        fault = {"delay": 2}
        words = "no answer"
    builder.patience = replace(builder.patience, outage=20)
    builder.proxy.fail(LARGE.digest, method="GET", **fault)
    with pytest.raises(kind, match=rf"(?s){HOST}/demo/app@sha256.*{words}"):
        builder.build()
    assert sum(builder.slept) < 120
    builder.assert_unfinished()
    assert builder.out.with_name("out.tar.partial").exists()
    # It is mended: what the first run had is not fetched again.
    builder.proxy.faults.clear()
    small = builder.proxy.count("GET", SMALL.digest)
    builder.build()
    assert builder.proxy.count("GET", SMALL.digest) - small <= (
        0 if kind is not TransferFailed else 1
    )


def test_a_host_that_is_down_for_half_a_minute(builder: Builder) -> None:
    fault = builder.proxy.fail("/v2/", drop=True)
    sleep = builder.sleep

    def until_it_is_back(seconds: float) -> None:
        sleep(seconds)
        if builder.now > 30:
            builder.proxy.faults.clear()

    builder.sleep = until_it_is_back  # type: ignore[method-assign]
    builder.build()
    assert fault.hits > 3
    assert 30 < builder.now < 120
    assert builder.told


def test_all_that_is_gone_after_locking_is_named_together(builder: Builder) -> None:
    for blob in (LARGE, SMALL):
        builder.proxy.fail(f"blobs/{blob.digest}", status=404)
    with pytest.raises(NotFound, match="2 artefacts could not be fetched") as gone:
        builder.build()
    for blob in (LARGE, SMALL):
        assert blob.digest[:19] in gone.value.message
    assert "lock again" in gone.value.hint
    builder.assert_unfinished()


def test_tokens_that_expire_half_way(builder: Builder) -> None:
    builder.proxy.uses_left = {}
    builder.proxy.fail(LARGE.digest, method="GET", cut_after=MIB, times=3)
    builder.build()
    assert builder.proxy.tokens_given > 2


def test_a_name_that_nobody_knows(builder: Builder) -> None:
    builder.endpoints = ["http://no-such-host.invalid"]
    with pytest.raises(TransferFailed, match=r"tried \d+ times") as unknown:
        builder.build()
    assert "DNS" in unknown.value.hint
    assert HOST in unknown.value.message


def test_plain_http_where_tls_is_spoken_to(builder: Builder) -> None:
    builder.endpoints = [builder.proxy.url.replace("http://", "https://")]
    with pytest.raises(TransferFailed) as refused:
        builder.build()
    assert "http://" in refused.value.hint
    assert not builder.slept


def test_another_mirror_has_it(builder: Builder) -> None:
    builder.endpoints = ["http://127.0.0.1:9", builder.proxy.url]
    builder.build()
    assert not any(seconds > 1 for seconds in builder.slept)


def test_cut_at_many_places(builder: Builder) -> None:
    """Whatever the place, only what was on its way comes again, and the bundle is the same."""
    places = random.Random(7)
    builder.patience = replace(builder.patience, attempts=1, outage=0)
    before = builder.proxy.bytes_sent
    rounds = 12
    for _ in range(rounds):
        builder.proxy.faults.clear()
        builder.proxy.fail(LARGE.digest, method="GET", cut_after=places.randrange(MIB // 2))
        with pytest.raises(TransferFailed):
            builder.build()
        builder.assert_unfinished()
    builder.proxy.faults.clear()
    builder.build()
    sent = builder.proxy.bytes_sent - before
    manifests = (rounds + 1) * 4_000
    assert sent <= len(LARGE.data) + len(SMALL.data) + manifests + rounds * MIB
    first = builder.out.read_bytes()[65536:]
    builder.out.unlink()
    builder.build()
    assert builder.out.read_bytes()[65536:] == first
