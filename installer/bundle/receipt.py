"""What a site tells the connected side: the blobs that it has, and what it has accepted.

A receipt is a small JSON file that a person carries back. ``bundler build --since receipt.json``
leaves out the blobs that it names; an auditor reads from it which bundles went in, and which ones
against the order of serials, and why. It is not signed and nothing is trusted because of it: a
wrong receipt gives a delta that the site refuses, since the blobs which it leaves out are listed in
signed bytes (docs/format.md, "The receipt").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from installer.bundle.digest import Digest
from installer.bundle.manifest import MAX_NUMBER, parse_time
from installer.errors import Corrupt, InvalidInput
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from installer.bundle.manifest import Manifest

MAX_RECEIPT_BYTES = 64 * 1024 * 1024
"""As much as a bundle.json may have: a receipt names blobs in fewer bytes than that does."""

_BLOBS = "blobs/sha256/"


class _Strict(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel"
):
    """Common to all entries: unknown keys are refused, defaults are left out."""


class AcceptedBundle(_Strict, frozen=True):
    """A bundle that was used at the site; ``sha256`` (hexadecimal) is of its bundle.json.

    ``accepted`` is when (RFC 3339), ``signers`` the ids of the keys whose signatures held.
    """

    name: str
    channel: str
    serial: int
    sha256: str
    accepted: str = ""
    signers: tuple[str, ...] = ()


class HeldBlob(_Strict, frozen=True, order=True):
    """A blob that the site has: sha256 in hexadecimal, size in bytes."""

    sha256: str
    size: int

    @property
    def digest(self) -> Digest:
        """The digest as a type."""
        return Digest(self.sha256)


class Downgrade(_Strict, frozen=True):
    """An older bundle that was used on purpose: when (RFC 3339), which one, and why.

    ``highest`` is the serial that the site had seen by then, ``sha256`` that of bundle.json.
    """

    time: str
    channel: str
    serial: int
    highest: int
    sha256: str
    reason: str


class Receipt(_Strict, frozen=True):
    """What a site has and what it has accepted; ``created`` is RFC 3339 in UTC.

    ``bundles`` are in the order of their acceptance, ``blobs`` sorted and each there once.
    """

    api_version: Literal["receipt/v1"]
    kind: Literal["Receipt"]
    site: str
    created: str
    bundles: tuple[AcceptedBundle, ...] = ()
    blobs: tuple[HeldBlob, ...] = ()
    downgrades: tuple[Downgrade, ...] = ()


def held_blobs(manifests: Iterable[Manifest]) -> tuple[HeldBlob, ...]:
    """The blobs of bundles, sorted; what a delta requires counts, since the site has that too."""
    found = {
        HeldBlob(member.sha256, member.size)
        for manifest in manifests
        for member in (*manifest.members, *manifest.required)
        if member.path.startswith(_BLOBS)
    }
    return tuple(sorted(found))


def encode_receipt(receipt: Receipt) -> bytes:
    """Write a receipt; a line a value, so that people can read it."""
    return msgspec.json.format(msgspec.json.encode(receipt), indent=1) + b"\n"


def decode_receipt(data: bytes, name: str) -> Receipt:
    """Read a receipt; ``name`` stands in errors. Raises InvalidInput."""
    hint = "take the file that `installer receipt` wrote at the site"
    if len(data) > MAX_RECEIPT_BYTES:
        raise InvalidInput(f"{name}: over {MAX_RECEIPT_BYTES} bytes: not a receipt", hint=hint)
    try:
        receipt = decode_json(data, Receipt)
        parse_time(receipt.created)
        accepted: tuple[AcceptedBundle | Downgrade, ...] = (*receipt.bundles, *receipt.downgrades)
        for bundle in accepted:
            Digest(bundle.sha256)
            _check_number(bundle.serial, "serial")
        for blob in receipt.blobs:
            Digest(blob.sha256)
            _check_number(blob.size, "size")
    except (InvalidInput, Corrupt) as error:
        raise InvalidInput(f"{name}: not a receipt: {error.message}", hint=hint) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"{name}: not a receipt: {error}", hint=hint) from error
    return receipt


def _check_number(number: int, what: str) -> None:
    if not 0 <= number <= MAX_NUMBER:
        raise InvalidInput(f"{what} {number} is out of range")
