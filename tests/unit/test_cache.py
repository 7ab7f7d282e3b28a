from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from bundler.cache import BlobCache, read_chunks
from installer.bundle.digest import Digest
from installer.errors import Corrupt, TransferFailed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = bytes(range(256)) * 10_000
DIGEST = Digest.of(DATA)
PIECES = [DATA[:1000], b"", DATA[1000:]]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_what_was_put_is_found_by_its_digest(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "new" / "cache")
    assert cache.get(DIGEST) is None
    put = cache.put(iter(PIECES))
    assert (put.digest, put.size, put.path.read_bytes()) == (DIGEST, len(DATA), DATA)
    assert cache.get(DIGEST) == put
    assert files(tmp_path) == [DIGEST.hex]


def test_an_empty_blob(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    put = cache.put([])
    assert put.size == 0
    assert cache.get(Digest.of(b"")) == put


def test_another_digest_than_expected_leaves_nothing(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    with pytest.raises(Corrupt, match=r"the thing: digest is sha256:.* expected sha256:") as caught:
        cache.put([b"other"], expected=DIGEST, what="the thing")
    assert str(Digest.of(b"other")) in caught.value.message
    assert files(tmp_path) == []


def test_a_source_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield DATA
        raise OSError("cable")

    with pytest.raises(OSError, match="cable"):  # the source's own error, not one of the disk
        BlobCache(tmp_path).put(broken())
    assert files(tmp_path) == []


@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "empty"])
def test_a_damaged_blob_is_not_believed(tmp_path: Path, damage: str) -> None:
    cache = BlobCache(tmp_path)
    path = cache.put(PIECES).path
    flipped = bytes([DATA[0] ^ 1]) + DATA[1:]
    path.write_bytes({"flip": flipped, "cut": DATA[:-1], "grow": DATA + b"x", "empty": b""}[damage])
    assert cache.get(DIGEST) is None
    assert files(tmp_path) == []  # gone, so that it is fetched again
    cache.put(PIECES)
    assert cache.get(DIGEST) is not None


def test_reading_from_any_byte_on(tmp_path: Path) -> None:
    path = BlobCache(tmp_path).put(PIECES).path
    for start in (0, 1, 1 << 20, len(DATA) - 1, len(DATA), len(DATA) + 1):
        assert b"".join(read_chunks(path, start)) == DATA[start:]


def test_many_writers_of_the_same_blob(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda _: cache.put(PIECES), range(16)))
    assert {item.digest for item in done} == {DIGEST}
    assert files(tmp_path) == [DIGEST.hex]
    assert cache.get(DIGEST) is not None


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TransferFailed, match="file") as caught:
        BlobCache(tmp_path / "file").put([b"x"])
    assert "AIRGAP_CACHE_DIR" in caught.value.hint


def test_a_full_disk_is_told_apart_from_a_broken_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A real write that fails as on a full disk: the temporary file is swapped for /dev/full.
    monkeypatch.setattr(
        "tempfile.mkstemp",
        lambda **_: (os.open("/dev/full", os.O_WRONLY), str(tmp_path / "gone")),
    )
    with pytest.raises(TransferFailed, match="No space left"):
        BlobCache(tmp_path).put([b"x"])


def test_reading_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(TransferFailed, match="nothing-here"):
        list(read_chunks(tmp_path / "nothing-here"))
