"""Bundles in parts: nobody joins them, and what is missing, swapped or damaged is named."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import ssl
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bundler.reuse import LocalBlobs
from bundler.target import Target, check_target, part_limit, partial_of
from installer.bundle.digest import Digest
from installer.bundle.parts import BundleFile, decode_index
from installer.errors import AirgapError, Corrupt, InvalidInput, TransferFailed
from installer.oci.bundle_store import BundleStore
from installer.serve import BundleServer
from tests.bundles import make_bundle, open_bundle
from tests.unit.test_build import CORE, EXTRA, Builder
from tests.unit.test_cli import run
from tests.upstream import Upstream
from tests.upstream.certificates import make_certificates
from tests.upstream.images import image, layer

if TYPE_CHECKING:
    import subprocess

MIB = 1024 * 1024
APP = image([layer(3 * MIB, "one"), layer(2 * MIB, "two")])


def split(whole: Path, folder: Path, size: int = MIB) -> Path:
    """Cut a bundle as the builder would; gives the index."""
    data = whole.read_bytes()
    target = Target(folder / whole.name, len(data), size)
    with target:
        target.open()
        target.reserve()
        for offset in range(0, len(data), 700_000):
            target.write(data[offset : offset + 700_000], offset)
        target.finish(Digest.of(b"bundle.json"))
    return target.result


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """The index of a bundle of about 5 MiB, in parts of just under 1 MiB; key beside it."""
    whole, pem = make_bundle(tmp_path / "app.tar", {"docker.io/demo/app:1": APP})
    folder = tmp_path / "disk"
    folder.mkdir()
    (folder / "release.pub").write_bytes(pem)
    return split(whole, folder)


def part(index: Path, number: int) -> Path:
    return index.with_name(f"app.tar.part{number:02}")


def verify(index: Path, name: str | None = None) -> subprocess.CompletedProcess[str]:
    words = ("verify", name or index.name, "--key", "release.pub")
    return run("installer", *words, cwd=index.parent)


def test_parts_are_smaller_than_asked_and_make_the_whole(index: Path, tmp_path: Path) -> None:
    found = decode_index(index.read_bytes(), "index")
    pieces = [index.with_name(p.name).read_bytes() for p in found.parts]
    assert b"".join(pieces) == (tmp_path / "app.tar").read_bytes()
    assert all(len(piece) < MIB for piece in pieces)
    assert [hashlib.sha256(p).hexdigest() for p in pieces] == [p.sha256 for p in found.parts]
    assert not list(index.parent.glob("*.partial"))
    assert part_limit(4 << 30) < 2**32  # the largest file of FAT32
    assert part_limit(4 << 30) % 512 == 0


@pytest.mark.parametrize("name", ["app.tar.parts.json", "app.tar.part01", "app.tar.part03"])
def test_every_part_and_the_index_name_the_bundle(index: Path, name: str) -> None:
    done = verify(index, name)
    assert done.returncode == 0, done.stderr


def test_content_that_spans_parts_is_read_and_served(index: Path) -> None:
    pem = (index.parent / "release.pub").read_bytes()
    certificates = make_certificates(index.parent)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates.certificate, certificates.key)
    client = ssl.create_default_context(cafile=certificates.ca)
    for server_tls in (None, tls):
        with (
            open_bundle(index, pem) as bundle,
            BundleServer(BundleStore(bundle), ("127.0.0.1", 0), tls=server_tls) as server,
        ):
            assert not bundle.verify_members(threads=2)
            for content in APP.everything:
                assert bundle.read(f"blobs/sha256/{content.digest[7:]}") == content.data
            for content in APP.blobs:
                url = f"{server.url}/v2/demo/app/blobs/{content.digest}"
                context = client if server_tls else None
                with urllib.request.urlopen(url, context=context) as got:  # noqa: S310 (our server)
                    assert got.read() == content.data


def test_a_missing_part_is_named(index: Path) -> None:
    part(index, 2).unlink()
    part(index, 4).unlink()
    done = verify(index)
    assert done.returncode == 2, done.stderr
    assert "app.tar.part02, app.tar.part04" in done.stderr


def test_a_part_without_its_index_says_what_to_copy(index: Path) -> None:
    index.unlink()
    done = verify(index, "app.tar.part01")
    assert done.returncode == 2, done.stderr
    assert "app.tar.parts.json" in done.stderr


@pytest.mark.parametrize(("one", "other"), [(2, 3), (1, 2)])
def test_swapped_parts_are_named(index: Path, one: int, other: int) -> None:
    kept = part(index, one).read_bytes()
    part(index, one).write_bytes(part(index, other).read_bytes())
    part(index, other).write_bytes(kept)
    done = verify(index)
    assert done.returncode == 4, done.stderr
    assert f"app.tar.part{one:02} has the content of app.tar.part{other:02}" in done.stderr


def test_a_damaged_part_is_named_with_what_it_holds(index: Path) -> None:
    data = bytearray(part(index, 3).read_bytes())
    data[500_000] ^= 1
    part(index, 3).write_bytes(data)
    done = verify(index)
    assert done.returncode == 4, done.stderr
    assert "part app.tar.part03 has digest" in done.stderr
    assert "app.tar.part02" not in done.stderr
    assert "blobs/sha256/" in done.stderr


@pytest.mark.parametrize("change", [-1, 1])
def test_a_part_of_another_size_is_named(index: Path, change: int) -> None:
    data = part(index, 2).read_bytes()
    part(index, 2).write_bytes(data[:change] if change < 0 else data + b"x")
    done = verify(index)
    assert done.returncode == 4, done.stderr
    assert "app.tar.part02" in done.stderr
    assert ("cut off" if change < 0 else "extended") in done.stderr


def test_parts_of_another_bundle_do_not_pass(index: Path, tmp_path: Path) -> None:
    other = image([layer(3 * MIB, "three"), layer(2 * MIB, "four")])
    (tmp_path / "app.tar").unlink()
    whole, _ = make_bundle(tmp_path / "app.tar", {"docker.io/demo/app:1": other})
    folder = tmp_path / "second"
    folder.mkdir()
    second = split(whole, folder)
    shutil.copy(part(second, 2), part(index, 2))
    done = verify(index)
    assert done.returncode == 4, done.stderr
    assert "app.tar.part02" in done.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parts": []}, "no parts"),
        ({"size": 7}, "add up"),
        ({"kind": "Bundle"}, "not an index"),
        ({"more": 1}, "not an index"),
        ({"bundle": "md5:1"}, "not an index"),
    ],
)
def test_an_index_that_makes_no_sense_is_refused(
    index: Path, change: dict[str, Any], words: str
) -> None:
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    done = verify(index)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr


@pytest.mark.parametrize("name", ["../app.tar", "/etc/passwd", "..", "", "a\0b"])
def test_an_index_can_not_point_elsewhere(index: Path, name: str) -> None:
    document = json.loads(index.read_text())
    document["parts"][1]["name"] = name
    with pytest.raises(InvalidInput, match="name"):
        decode_index(json.dumps(document).encode(), "index")


def test_what_is_in_parts_can_be_used_again(index: Path) -> None:
    found = LocalBlobs([index])
    for content in APP.blobs:
        place = found.find(Digest.parse(content.digest), len(content.data))
        assert place is not None
        assert b"".join(place.read()) == content.data


# Writing


def test_a_build_in_parts_is_the_same_bundle(tmp_path: Path) -> None:
    with Upstream(tmp_path, helm=False, scale=0.5) as upstream:
        builder = Builder(tmp_path, upstream)
        builder.spec["images"] = [CORE, EXTRA]
        assert builder.build().returncode == 0
        before = builder.served()
        (tmp_path / "parts.tar.part01").write_text("precious")
        refused = builder.build("--part-size", "1MiB", out="parts.tar")
        assert refused.returncode == 2, refused.stderr
        assert "parts.tar.part01" in refused.stderr
        (tmp_path / "parts.tar.part01").unlink()
        done = builder.build("--part-size", "1MiB", "--output=json", out="parts.tar")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["bundle"] == "parts.tar.parts.json"
        index = tmp_path / "parts.tar.parts.json"
        found = decode_index(index.read_bytes(), "index")
        assert found.bundle == told["digest"]
        joined = b"".join((tmp_path / p.name).read_bytes() for p in found.parts)
        assert joined[64 * 1024 :] == builder.out.read_bytes()[64 * 1024 :]
        assert builder.verify("parts.tar.parts.json").returncode == 0
        # Again, from the parts alone, into fewer of them: what is left over goes.
        shutil.rmtree(tmp_path / "cache")
        sent = builder.served()
        again = builder.build("--part-size=3MiB", "--reuse", index.name, out="parts.tar")
        assert again.returncode == 0, again.stderr
        assert builder.served() == sent > before
        fewer = decode_index(index.read_bytes(), "index")
        assert len(fewer.parts) < len(found.parts)
        there = {path.name for path in tmp_path.glob("parts.tar.part??")}
        assert there == {p.name for p in fewer.parts}
        assert not list(tmp_path.glob("*.partial*"))
        small = builder.build("--part-size", "1000", out="x.tar")
        assert small.returncode == 2
        assert "less than" in small.stderr


def test_a_stop_between_the_names_loses_nothing(tmp_path: Path) -> None:
    data = os.urandom(3 * MIB)

    def write(*, stop_after: int | None) -> Path:
        target = Target(tmp_path / "b.tar", len(data), MIB)
        check_target(target, b"")
        renames = 0
        replace = Path.replace

        def stopping(self: Path, to: Path) -> Path:
            nonlocal renames
            renames += 1
            if stop_after is not None and renames > stop_after:
                raise KeyboardInterrupt
            return replace(self, to)

        with target, pytest.MonkeyPatch.context() as patch:
            target.open()
            target.reserve()
            held = bytearray(len(data))
            done = 0
            while done < len(data):
                done += target.read_into(memoryview(held)[done:], done)
            # What an earlier run has written is still there, whatever names it had by then.
            assert bytes(held) in (data, bytes(len(data)))
            target.write(data, 0)
            patch.setattr(Path, "replace", stopping)
            target.finish(Digest.of(b""))
        return target.result

    for stop in range(4):
        with pytest.raises(KeyboardInterrupt):
            write(stop_after=stop)
        with pytest.raises(AirgapError):
            BundleFile(tmp_path / ("b.tar.part01" if stop else "b.tar"))
    with BundleFile(write(stop_after=None)) as file:
        assert not file.differing_parts()
        assert file.size == len(data)


class Recorder:
    """Calls that a power failure could fall between, in their order."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        fsync, replace, unlink = os.fsync, Path.replace, Path.unlink

        def synced(descriptor: int) -> None:
            name = Path(f"/proc/self/fd/{descriptor}").readlink().name
            self.calls.append(f"fsync {name}")
            fsync(descriptor)

        def replaced(path: Path, to: Path) -> Path:
            self.calls.append(f"rename {Path(to).name}")
            return replace(path, to)

        def unlinked(path: Path, *, missing_ok: bool = False) -> None:
            self.calls.append(f"unlink {path.name}")
            unlink(path, missing_ok=missing_ok)

        patch.setattr(os, "fsync", synced)
        patch.setattr(Path, "replace", replaced)
        patch.setattr(Path, "unlink", unlinked)


def test_the_order_that_a_power_failure_meets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for size, expected in (
        (None, ["fsync b.tar.partial", "rename b.tar", "fsync folder"]),
        (
            2 * MIB,
            [
                "fsync b.tar.part01.partial",
                "fsync b.tar.part02.partial",
                "fsync b.tar.parts.json.partial",
                "unlink b.tar.parts.json",
                "rename b.tar.part01",
                "rename b.tar.part02",
                "fsync folder",
                "rename b.tar.parts.json",
                "fsync folder",
            ],
        ),
    ):
        with Target(folder / "b.tar", 3 * MIB, size) as target:
            target.open()
            target.reserve()
            with monkeypatch.context() as patch:
                recorder = Recorder(patch)
                target.finish(Digest.of(b""))
        assert recorder.calls == expected


def test_all_blocks_are_taken_at_once(tmp_path: Path) -> None:
    with Target(tmp_path / "b.tar", 5 * MIB) as target:
        target.open()
        target.reserve()
        assert partial_of(tmp_path / "b.tar").stat().st_blocks * 512 >= 5 * MIB
        assert target.taken() >= 5 * MIB


def test_a_disk_that_fills_up_meanwhile_is_found_and_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with Target(tmp_path / "b.tar", 5 * MIB) as target:
        target.open()
        with pytest.raises(TransferFailed, match="No space left"):
            target.reserve()
    assert partial_of(tmp_path / "b.tar").stat().st_blocks == 0


def test_a_file_system_that_promises_nothing_is_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    with Target(tmp_path / "b.tar", 5 * MIB) as target:
        target.open()
        target.reserve()
        target.write(b"x", 5 * MIB - 1)
    assert partial_of(tmp_path / "b.tar").stat().st_size == 5 * MIB


def test_too_many_parts(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="too many"):
        Target(tmp_path / "b.tar", 10**12, MIB)


def test_a_closed_file_reads_nothing(index: Path) -> None:
    file = BundleFile(index)
    file.close()
    with pytest.raises(OSError, match="closed"):
        file.read(1, 0)
    part(index, 1).write_bytes(b"")
    with pytest.raises(Corrupt, match="part01"):
        BundleFile(index)
