"""The file changes between check and use, and links are planted where something will be written.

The descriptor is held, so another file under the path is nothing; what is written into the file
itself is found when it is used, since each byte that is used is hashed on its way.
"""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from bundler.cache import BlobCache
from installer.bundle.archive import UnverifiedBundle, VerifiedBundle
from installer.bundle.digest import Digest
from installer.bundle.trust import KeyTrust
from installer.errors import AirgapError, Corrupt, InvalidInput
from installer.site.private import private_folder, write_file
from tests.attacks.mutants import LAYER, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

GOOD = sample()
EVIL = sample(serial=9)
NOW = datetime(2026, 6, 1, tzinfo=UTC)
CONTENT = b"layer one " * 300


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "harbor.tar"
    path.write_bytes(GOOD.data)
    return path


@pytest.fixture
def verified(path: Path) -> Iterator[VerifiedBundle]:
    with UnverifiedBundle(path) as unverified:
        bundle = unverified.verify(KeyTrust(GOOD.key.public, "release.pub"), NOW)
    with bundle:
        assert bundle.verify_members(threads=1) == []
        yield bundle


def _another_file(path: Path) -> None:
    path.with_name("evil.tar").write_bytes(EVIL.data)
    path.with_name("evil.tar").rename(path)


def _a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def _gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("swap", [_another_file, _a_link, _gone])
def test_another_file_under_the_path_is_nothing(
    swap: Callable[[Path], None], path: Path, verified: VerifiedBundle
) -> None:
    swap(path)
    assert verified.read(LAYER) == CONTENT
    assert verified.verify_members(threads=2) == []


def test_a_link_that_is_turned_while_the_file_is_opened(path: Path, tmp_path: Path) -> None:
    """Opened once: all that is checked and used is one file, whichever the link led to."""
    evil, link = tmp_path / "evil.tar", tmp_path / "link"
    evil.write_bytes(EVIL.data)
    link.symlink_to(path)
    with UnverifiedBundle(link) as unverified:
        link.unlink()
        link.symlink_to(evil)
        bundle = unverified.verify(KeyTrust(GOOD.key.public, "release.pub"), NOW)
    with bundle:
        assert bundle.manifest.serial == GOOD.manifest.serial
        assert bundle.verify_members(threads=1) == []


def _write(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


CHANGES: dict[str, Callable[[Path], object]] = {
    "first byte": lambda p: _write(p, GOOD.offset(LAYER) + 512, b"L"),
    "last byte": lambda p: _write(p, GOOD.offset(LAYER) + 512 + len(CONTENT) - 1, b"!"),
    "cut off inside": lambda p: os.truncate(p, GOOD.offset(LAYER) + 600),
    "cut off before": lambda p: os.truncate(p, GOOD.offset(LAYER)),
    "emptied": lambda p: os.truncate(p, 0),
    "written anew in place": lambda p: p.write_bytes(bytes(len(GOOD.data))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_written_after_the_check_is_found_when_it_is_used(
    change: str, path: Path, verified: VerifiedBundle, tmp_path: Path
) -> None:
    stamp = verified.stamp()
    CHANGES[change](path)
    entry = verified.find(LAYER)
    assert entry is not None
    assert verified.stamp() != stamp
    with pytest.raises(Corrupt):
        verified.read(LAYER)
    assert any(LAYER in error.message for error in verified.verify_members(threads=2))
    # As a tool is copied out of the bundle before it is executed: all of it, or nothing.
    folder = private_folder(tmp_path / "tools")
    with pytest.raises(Corrupt):
        write_file(folder / "helm", verified.chunks(entry), mode=0o700)
    assert list(folder.iterdir()) == []


def test_headers_that_change_after_the_check_lead_nowhere_else(
    path: Path, verified: VerifiedBundle
) -> None:
    """Places are computed from what was signed; the tar's headers are never read again."""
    for offset, frame, _ in verified.layout.frames():
        _write(path, offset, b"\xff" * len(frame))
    assert verified.read(LAYER) == CONTENT
    with UnverifiedBundle(path) as unverified, pytest.raises(AirgapError):
        unverified.verify(KeyTrust(GOOD.key.public, "release.pub"), NOW)


def test_bundle_json_that_changes_between_signature_and_reading(path: Path) -> None:
    """It is read once: the bytes that were checked are the bytes that are decoded."""

    class Changing(KeyTrust):
        def signers(self, payload: bytes, signatures: object) -> tuple[str, ...]:
            found = super().signers(payload, signatures)  # type: ignore[arg-type]  # as it came
            _write(path, GOOD.manifest.signature_area + 512, EVIL.payload)
            return found

    with UnverifiedBundle(path) as unverified:
        bundle = unverified.verify(Changing(GOOD.key.public, "release.pub"), NOW)
    with bundle:
        assert bundle.manifest == GOOD.manifest


# Links where something will be written


def test_a_link_where_a_file_of_the_state_will_be(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = private_folder(tmp_path / "state")
    (folder / "secrets.json").symlink_to(victim)
    write_file(folder / "secrets.json", b"{}")
    assert victim.read_text() == "precious"
    assert not (folder / "secrets.json").is_symlink()
    assert (folder / "secrets.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["to a folder", "to nothing", "to itself"])
def test_a_link_where_a_folder_of_the_state_will_be(kind: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    if kind == "to a folder":
        elsewhere.mkdir()
    state = tmp_path / "state"
    state.symlink_to(state if kind == "to itself" else elsewhere)
    with pytest.raises(InvalidInput, match="not a folder of user"):
        private_folder(state)
    assert not elsewhere.exists() or list(elsewhere.iterdir()) == []


def test_links_in_the_cache_are_replaced_and_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    cache = BlobCache(tmp_path / "cache")
    digest = Digest(hashlib.sha256(b"blob").hexdigest())
    place = tmp_path / "cache" / digest.blob_path
    place.parent.mkdir(parents=True)
    place.symlink_to(victim)
    assert cache.get(digest) is None
    assert victim.read_text() == "precious"
    place.symlink_to(victim)
    cache.put([b"blob"], expected=digest)
    assert victim.read_text() == "precious"
    assert not place.is_symlink()
    assert place.read_bytes() == b"blob"


def test_the_cache_of_another_user_is_only_as_good_as_its_digests(tmp_path: Path) -> None:
    digest = Digest(hashlib.sha256(b"blob").hexdigest())
    cache = BlobCache(tmp_path)
    cache.put([b"blob"])
    (tmp_path / digest.blob_path).write_bytes(b"evil")
    assert cache.get(digest) is None
    assert not (tmp_path / digest.blob_path).exists()
