"""Every mutant is refused, with its own error, before anything is used of it."""

from __future__ import annotations

import random
import subprocess
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
import pytest

from installer.bundle.archive import UnverifiedBundle
from installer.bundle.trust import KeyTrust, check_history, check_together
from installer.errors import (
    AirgapError,
    Corrupt,
    Expired,
    InvalidInput,
    NotTrusted,
    Rollback,
    WrongChannel,
)
from installer.keys import generate
from tests.attacks.mutants import MUTANTS, Sample, sample
from tests.attacks.signed import SIGNED, nested
from tests.attacks.witness import untouched

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 6, 1, tzinfo=UTC)
GOOD = sample()
ATTACKS = MUTANTS | SIGNED


def check(path: Path, good: Sample = GOOD, now: datetime = NOW) -> None:
    """What ``installer verify`` does."""
    with UnverifiedBundle(path) as unverified:
        verified = unverified.verify(KeyTrust(good.key.public, "release.pub"), now)
    with verified:
        for error in verified.verify_members(threads=2):
            raise error


def test_the_good_bundle_passes(tmp_path: Path) -> None:
    path = tmp_path / "good.tar"
    path.write_bytes(GOOD.data)
    check(path)


def test_the_witness_sees_what_is_written_and_started(tmp_path: Path) -> None:
    for deed in (
        lambda: (tmp_path / "new").write_bytes(b""),
        (tmp_path / "folder").mkdir,
        lambda: subprocess.run(["true"], check=True),
    ):
        with pytest.raises(AssertionError, match=r"open|mkdir|Popen"), untouched():
            deed()


@pytest.mark.parametrize("attack", ATTACKS)
def test_refused(attack: str, tmp_path: Path) -> None:
    make, expected, words = ATTACKS[attack]
    data = make(GOOD)
    assert data != GOOD.data
    path = tmp_path / "mutant.tar"
    path.write_bytes(data)
    with untouched(), pytest.raises(expected, match=words) as caught:
        check(path)
    assert type(caught.value) is expected
    assert caught.value.message


def test_values_nested_up_to_where_the_stack_ends(tmp_path: Path) -> None:
    """Reading needs less stack than writing again: both ends must be our own error."""
    path = tmp_path / "deep.tar"
    for depth in range(900, 1000, 3):
        path.write_bytes(nested(depth)(GOOD))
        with suppress(Corrupt):
            check(path)


def test_a_thousand_flipped_bits_are_noticed(tmp_path: Path) -> None:
    generator = random.Random(2026)
    path = tmp_path / "flipped.tar"
    for _ in range(1000):
        data = bytearray(GOOD.data)
        position = generator.randrange(len(data))
        data[position] ^= 1 << generator.randrange(8)
        path.write_bytes(data)
        with pytest.raises((Corrupt, NotTrusted)):
            check(path)


def test_garbage_gives_only_our_own_errors(tmp_path: Path) -> None:
    generator = random.Random(7)
    path = tmp_path / "garbage.tar"
    for _ in range(300):
        data = bytearray(GOOD.data)
        for _ in range(generator.randrange(1, 40)):
            start = generator.randrange(12 * 1024)
            data[start : start + 8] = generator.randbytes(8)
        path.write_bytes(data[: generator.randrange(1, len(data))])
        with pytest.raises(AirgapError):
            check(path)


def test_expired(tmp_path: Path) -> None:
    good = sample(expires="2026-05-31T00:00:00Z")
    path = tmp_path / "expired.tar"
    path.write_bytes(good.data)
    with pytest.raises(Expired):
        check(path, good)
    check(path, good, NOW - timedelta(days=2))


def test_rollback_and_other_channel() -> None:
    manifest = GOOD.manifest
    check_history(manifest, channel="stable", highest_serial=7, allow_downgrade=False)
    check_history(manifest, channel=None, highest_serial=None, allow_downgrade=False)
    with pytest.raises(Rollback):
        check_history(manifest, channel="stable", highest_serial=8, allow_downgrade=False)
    check_history(manifest, channel="stable", highest_serial=8, allow_downgrade=True)
    with pytest.raises(WrongChannel):
        check_history(manifest, channel="edge", highest_serial=None, allow_downgrade=False)


def test_bundles_of_two_channels_are_not_used_as_one() -> None:
    edge = msgspec.structs.replace(GOOD.manifest, channel="edge", serial=9)
    check_together([GOOD.manifest, GOOD.manifest])
    with pytest.raises(WrongChannel, match="edge"):
        check_together([GOOD.manifest, edge])


def test_content_that_differs_is_refused_each_time(tmp_path: Path) -> None:
    path = tmp_path / "changed.tar"
    path.write_bytes(MUTANTS["content changed"].make(GOOD))
    with UnverifiedBundle(path) as unverified:
        verified = unverified.verify(KeyTrust(GOOD.key.public, "release.pub"), NOW)
    with verified:
        bad = next(e for e in verified.layout.entries if e.member.size == len(b"layer one " * 300))
        for _ in range(2):
            with pytest.raises(Corrupt, match=bad.member.path):
                list(verified.chunks(bad))
        with pytest.raises(Corrupt):
            verified.read(bad.member.path)
        assert verified.read("README.txt") == b"read me\n"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InvalidInput):
            UnverifiedBundle(path)


def test_a_key_that_signed_something_else(tmp_path: Path) -> None:
    path = tmp_path / "good.tar"
    path.write_bytes(GOOD.data)
    stranger = generate(b"z")[0]
    with UnverifiedBundle(path) as unverified, pytest.raises(NotTrusted):
        unverified.verify(KeyTrust(stranger.public, "release.pub"), NOW)
