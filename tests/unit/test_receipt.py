"""A receipt: one strict form, the blobs of bundles and what they require."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from installer.bundle.digest import Digest
from installer.bundle.receipt import (
    AcceptedBundle,
    Downgrade,
    HeldBlob,
    Receipt,
    decode_receipt,
    encode_receipt,
    held_blobs,
)
from installer.errors import InvalidInput
from tests.attacks.mutants import sample

HEX = Digest.of(b"x").hex
RECEIPT = Receipt(
    api_version="receipt/v1",
    kind="Receipt",
    site="plant",
    created="2026-02-03T04:05:06Z",
    bundles=(AcceptedBundle("harbor", "stable", 7, HEX, "2026-02-03T04:05:06Z", (HEX,)),),
    blobs=(HeldBlob(HEX, 12),),
    downgrades=(Downgrade("2026-02-03T04:05:06Z", "stable", 6, 7, HEX, "7 lost the database"),),
)


def test_round_trip() -> None:
    assert decode_receipt(encode_receipt(RECEIPT), "receipt.json") == RECEIPT
    assert json.loads(encode_receipt(RECEIPT))["apiVersion"] == "receipt/v1"


@pytest.mark.parametrize(
    "change",
    [
        {"apiVersion": "receipt/v2"},
        {"kind": "Bundle"},
        {"created": "yesterday"},
        {"extra": 1},
        {"blobs": [{"sha256": "abc", "size": 1}]},
        {"blobs": [{"sha256": HEX, "size": -1}]},
        {"blobs": [{"sha256": HEX, "size": 2**60}]},
        {"bundles": [{"name": "a", "channel": "b", "serial": -1, "sha256": HEX}]},
        {"downgrades": [{"time": "", "channel": "", "serial": 1, "highest": 2, "sha256": HEX}]},
    ],
)
def test_refused(change: dict[str, Any]) -> None:
    document = json.loads(encode_receipt(RECEIPT)) | change
    with pytest.raises(InvalidInput, match=r"receipt\.json: not a receipt"):
        decode_receipt(json.dumps(document).encode(), "receipt.json")


def test_garbage_is_refused() -> None:
    for data in (b"", b"[]", b"\xff{}", b"[" * 100_000):
        with pytest.raises(InvalidInput):
            decode_receipt(data, "receipt.json")


def test_blobs_of_bundles_and_what_they_require() -> None:
    manifest = sample().manifest
    blobs = [m for m in manifest.members if m.path.startswith("blobs/")]
    base = msgspec.structs.replace(manifest, members=tuple(blobs[:3]))
    delta = msgspec.structs.replace(manifest, members=(blobs[3],), required=tuple(blobs[:2]))
    held = held_blobs([base, delta])
    assert held == tuple(sorted(HeldBlob(m.sha256, m.size) for m in blobs))
    assert held_blobs([delta]) == tuple(
        sorted(HeldBlob(m.sha256, m.size) for m in (blobs[0], blobs[1], blobs[3]))
    )
