"""``python -m tests.bench.trust``: what it costs to know that a bundle is what was signed.

Bundles are made from the format alone: one of incompressible content, one of 5 GB with hardly any
members, one of very many small members. Content is checked on one core and on two, against openssl
over the same file and against hashlib over memory, which is the most that this machine can do.
Figures are the best of several runs, wall clock and CPU time: what disturbs only makes them longer.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from installer.bundle.archive import UnverifiedBundle
from installer.bundle.digest import Digest
from installer.bundle.layout import BLOCK, layout
from installer.bundle.manifest import SIGNATURE_AREA, Manifest, Member, encode
from installer.bundle.signature import encode_area
from installer.bundle.trust import KeyTrust
from installer.keys import SigningKey, generate
from tests.bench.account import forget

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MIB = 1 << 20
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def write(path: Path, key: SigningKey, contents: Sequence[bytes | int]) -> None:
    """Sign and write a bundle; a number stands for that many bytes of hole, which is no content."""
    members = []
    for number, content in enumerate(contents):
        data = content if isinstance(content, bytes) else b"%d" % number
        digest = Digest.of(data)
        size = len(content) if isinstance(content, bytes) else content
        members.append(Member(digest.blob_path, size, digest.hex))
    manifest = Manifest(
        api_version="bundle/v1", kind="Bundle", name="bench", channel="stable", serial=1,
        created="2026-01-01T00:00:00Z", platforms=("linux/amd64",),
        signature_area=SIGNATURE_AREA, members=tuple(members),
    )  # fmt: skip
    payload = encode(manifest)
    places = layout(manifest, len(payload))
    with path.open("wb") as file:
        file.truncate(places.size)
        area = encode_area([key.sign(payload)], Digest.of(payload), SIGNATURE_AREA)
        os.pwrite(file.fileno(), area, 0)
        os.pwrite(file.fileno(), payload, SIGNATURE_AREA + BLOCK)
        for offset, frame, _ in places.frames():
            os.pwrite(file.fileno(), frame, offset)
        for entry, content in zip(places.entries, contents, strict=True):
            if isinstance(content, bytes):
                os.pwrite(file.fileno(), content, entry.offset)


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def best(
    runs: int, action: Callable[[], object], before: Callable[[], object] = lambda: None
) -> str:
    """Seconds of the best of several runs, by the wall and of CPU time, children included."""
    found = []
    for _ in range(runs):
        before()
        cpu, wall = _cpu(), time.perf_counter()
        action()
        found.append((time.perf_counter() - wall, _cpu() - cpu))
    wall, cpu = (min(column) for column in zip(*found, strict=True))
    return f"{wall:8.3f} s wall {cpu:8.3f} s CPU"


def content(folder: Path, key: SigningKey, size: int, runs: int) -> None:
    """Every byte of a bundle, on one core and two, warm and cold."""
    path, public = folder / "content.tar", folder / "release.pub"
    public.write_bytes(key.public_pem())
    blocks = [
        hashlib.shake_128(b"%d" % n).digest(16 * MIB) for n in range(max(2, size // 16 // MIB))
    ]
    write(path, key, blocks)
    data = blocks[0] * 4
    verify = [sys.executable, "-c", "from installer.cli import main; main()"]
    verify += ["verify", str(path), "--key", str(public)]
    openssl = ["openssl", "dgst", "-sha256", str(path)]
    cores = sorted(os.sched_getaffinity(0))[:2]

    def run(command: list[str], count: int) -> Callable[[], object]:
        pinned = ["taskset", "-c", ",".join(map(str, cores[:count])), *command]
        return lambda: subprocess.run(pinned, check=True, capture_output=True)

    def memory(threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(
                pool.map(
                    lambda _: hashlib.sha256(data).digest(), range(path.stat().st_size // len(data))
                )
            )

    print(f"content: {path.stat().st_size / 1e6:,.0f} MB")
    for name, action in (
        ("hashlib over memory, 1 thread", lambda: memory(1)),
        ("hashlib over memory, 2 threads", lambda: memory(2)),
        ("openssl dgst -sha256", run(openssl, 1)),
        ("installer verify, 1 core", run(verify, 1)),
        ("installer verify, 2 cores", run(verify, 2)),
    ):
        print(f"  {name:40} {best(runs, action)}", flush=True)
    for name, action in (
        ("openssl dgst -sha256, cold", run(openssl, 1)),
        ("installer verify, 1 core, cold", run(verify, 1)),
        ("installer verify, 2 cores, cold", run(verify, 2)),
    ):
        print(f"  {name:40} {best(runs, action, lambda: forget(path))}", flush=True)
    path.unlink()


def first_byte(folder: Path, key: SigningKey, name: str, contents: Sequence[bytes | int]) -> None:
    """The signature alone, and all that comes before content may be used."""
    path, trust = folder / "members.tar", KeyTrust(key.public, "release.pub")
    write(path, key, contents)

    def signature() -> None:
        with UnverifiedBundle(path) as unverified:
            unverified.check_signature(trust)

    def whole() -> None:
        with UnverifiedBundle(path) as unverified:
            unverified.verify(trust, NOW).close()

    print(f"{name}: {path.stat().st_size / 1e6:,.0f} MB, {len(contents):,} members")
    for label, action, runs in (
        ("signature, checks (1) and (2)", signature, 20),
        ("opened, checks (1) to (5)", whole, 5),
    ):
        print(f"  {label:40} {best(runs, action)}", flush=True)
    path.unlink()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.trust", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small: whether it runs")
    parser.add_argument(
        "--folder", type=Path, default=Path("build"), help="on the disk that is meant"
    )
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    key = generate(b"bench")[0]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        few, many = (100, 1000) if options.quick else (500, 100_000)
        first_byte(folder, key, "5 GB, few members", [5_000_000_000 // few] * few)
        first_byte(folder, key, "many members", [b"%d" % number for number in range(many)])
        content(folder, key, (64 if options.quick else 1024) * MIB, 1 if options.quick else 5)


if __name__ == "__main__":
    main()
