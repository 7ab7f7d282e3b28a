"""A trust root: whose signatures a bundle needs, how many, until when, and who may change that.

It is TUF root metadata (TUF specification 1.0, 4.3), read and judged by python-tuf. Two of its
roles are used: keys of ``targets`` sign bundles, keys of ``root`` sign the next trust root;
``snapshot`` and ``timestamp`` have no keys, for there is no repository. A threshold says how many
keys of a role are needed.

A file has one version or several, one a line, oldest first: a chain. Each must be signed by the
root threshold of the one before and by its own (TUF specification, 5.3.4), so a site that has one
of them can follow to the newest, and nobody without enough of the old keys can lead it elsewhere.
The first one reaches the site out of band, like a public key.

Only ECDSA P-256 keys under our own key id, sha256 of the SPKI, are taken. So no key can count twice
under two names. This module and ``bundler.trust_root`` are the only ones that know python-tuf.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root
from tuf.api.metadata import Signature as TufSignature

from installer.bundle.manifest import format_time
from installer.bundle.signature import PublicKey
from installer.errors import (
    Expired,
    InvalidInput,
    Rollback,
    TooFewSignatures,
    WrongSignature,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from tuf.api.metadata import Key, Role

    from installer.bundle.signature import Signature

MAX_BYTES = 1024 * 1024
"""Of a file with a chain: one version takes about 1 kB and 400 bytes a key."""

BUNDLE_ROLE = "targets"
ROOT_ROLE = "root"
_KEY = ("ecdsa", "ecdsa-sha2-nistp256")
_SHORT = 16


@dataclass(frozen=True, slots=True)
class TrustRoot:
    """The newest version of a chain that held, with the chain that leads to it."""

    name: str
    versions: tuple[bytes, ...]
    _root: Root

    @property
    def version(self) -> int:
        """Its number; the next one has the next number."""
        return self._root.version

    @property
    def expires(self) -> datetime:
        """When it ends to be believed."""
        return self._root.expires

    @property
    def fingerprint(self) -> str:
        """sha256 (hexadecimal) of what is signed in the newest version: to compare by telephone."""
        return hashlib.sha256(Metadata(self._root).signed_bytes).hexdigest()

    def keys(self, role: str) -> tuple[str, ...]:
        """Ids of a role's keys."""
        return tuple(self._root.roles[role].keyids)

    def threshold(self, role: str) -> int:
        """How many keys of a role are needed."""
        return self._root.roles[role].threshold

    @property
    def data(self) -> bytes:
        """The chain as a file has it."""
        return b"".join(version + b"\n" for version in self.versions)

    def signers(self, payload: bytes, signatures: Sequence[Signature]) -> tuple[str, ...]:
        """Ids of the keys whose signatures hold over the exact bytes of bundle.json.

        Raises WrongSignature when there is none, TooFewSignatures when the threshold is not met.
        """
        result = self._root.get_verification_result(BUNDLE_ROLE, payload, _to_tuf(signatures))
        signed = tuple(key_id for key_id in self.keys(BUNDLE_ROLE) if key_id in result.signed)
        if result.verified:
            return signed
        others = ", ".join(one.key_id[:_SHORT] for one in signatures)
        if not signed:
            raise WrongSignature(
                f"no signature of a key that {self.name} (version {self.version}) trusts holds for "
                f"this bundle; it states signatures of {others}",
                hint="was the trust root rotated: installer trust update? If not, don't use it",
            )
        raise TooFewSignatures(
            f"{result.threshold} signatures are needed by {self.name} (version {self.version}), "
            f"{len(signed)} hold: {_short(signed)}; not signed by {_short(result.unsigned)}",
            hint="ask one more of the signers: bundler sign BUNDLE --key THEIRS",
        )

    def check_expiry(self, now: datetime) -> None:
        """Refuse it after its expiry; raises Expired."""
        if self._root.is_expired(now):
            raise Expired(
                f"{self.name}: version {self.version} expired at {format_time(self.expires)}",
                hint="get the next version from the sender: installer trust update; "
                "or set this machine's clock if it is wrong",
            )

    def updated(self, data: bytes, name: str) -> TrustRoot:
        """Follow a file's chain from this version on; the same when there is nothing newer.

        Raises InvalidInput, WrongSignature when a link does not hold, Rollback when the file ends
        before this version.
        """
        current, chain, newest = self._root, list(self.versions), 0
        for line in _lines(data, name):
            metadata = _parse(line, name)
            root = metadata.signed
            newest = max(newest, root.version)
            if root.version < current.version:
                continue
            if root.version == current.version:
                if Metadata(root).signed_bytes != Metadata(current).signed_bytes:
                    raise WrongSignature(
                        f"{name}: version {root.version} is another than the one known here",
                        hint="somebody made two of them: ask the sender, don't use it",
                    )
                continue
            _check_link(current, metadata, name)
            current = root
            chain.append(line)
        if newest < self.version:
            raise Rollback(
                f"{name}: ends at version {newest}, here is version {self.version} already",
                hint="bring the newest file that `bundler trust export` wrote",
            )
        return TrustRoot(self.name, tuple(chain), current)


def read_trust_root(data: bytes, name: str) -> TrustRoot:
    """Read a chain that came out of band; ``name`` stands in errors.

    The first version must be signed by itself, each other by the one before and by itself. Raises
    InvalidInput, or WrongSignature when a link does not hold.
    """
    first, *others = _lines(data, name)
    metadata = _parse(first, name)
    _check_link(None, metadata, name)
    start = TrustRoot(name, (first,), metadata.signed)
    return start.updated(b"\n".join(others), name) if others else start


def _lines(data: bytes, name: str) -> list[bytes]:
    """The versions in a file: one JSON text on lines of its own choice, or one text a line."""
    if len(data) > MAX_BYTES:
        raise InvalidInput(f"{name}: over {MAX_BYTES} bytes: not a trust root")
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        lines = [line.strip() for line in data.splitlines() if line.strip()]
    else:
        lines = [data.strip().replace(b"\n", b" ").replace(b"\r", b" ")]
    if not lines:
        raise InvalidInput(f"{name}: empty", hint="`bundler trust export` writes a trust root")
    return lines


def _parse(data: bytes, name: str) -> Metadata[Root]:
    """Read one version; nothing is known yet about its signatures."""
    hint = "`bundler trust export` writes a trust root; --key takes a public key"
    try:
        metadata: Metadata[Root] = Metadata.from_bytes(data)
    except RepositoryError as error:
        reason = error.__cause__ or error
        raise InvalidInput(f"{name}: not TUF root metadata: {reason}"[:500], hint=hint) from error
    root = metadata.signed
    if not isinstance(root, Root):
        raise InvalidInput(f"{name}: TUF metadata, but not of the root role", hint=hint)
    try:
        for key in root.keys.values():
            _check_key(key)
        for role in (BUNDLE_ROLE, ROOT_ROLE):
            _check_role(role, root.roles[role], root)
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error.message}", hint=error.hint) from error
    return metadata


def _check_key(key: Key) -> None:
    name = f"key {key.keyid[:80]}"
    public = PublicKey.parse(str(key.keyval.get("public", "")).encode(), name)
    if (key.keytype, key.scheme) != _KEY or public.key_id != key.keyid:
        raise InvalidInput(f"{name}: not P-256 under its own key id")


def _check_role(name: str, role: Role, root: Root) -> None:
    missing = [key_id for key_id in role.keyids if key_id not in root.keys]
    if missing:
        raise InvalidInput(f"role {name}: key {missing[0][:80]} is not there")
    if role.threshold > len(role.keyids):
        raise InvalidInput(
            f"role {name}: {role.threshold} of {len(role.keyids)} keys can never sign"
        )


def _check_link(previous: Root | None, metadata: Metadata[Root], name: str) -> None:
    root = metadata.signed
    if previous is not None and root.version != previous.version + 1:
        raise InvalidInput(
            f"{name}: version {root.version} does not follow version {previous.version}",
            hint="a chain has every version: take the whole file of `bundler trust export`",
        )
    result = root.get_root_verification_result(previous, metadata.signed_bytes, metadata.signatures)
    before = f"version {previous.version}" if previous else "itself"
    for judged, by in ((result.first, before), (result.second, "itself")):
        if not judged.verified:
            raise WrongSignature(
                f"{name}: version {root.version} needs {judged.threshold} signatures of the root "
                f"keys of {by}, {len(judged.signed)} hold",
                hint="it is not the sender's, or somebody has still to sign it: bundler trust sign",
            )


def _to_tuf(signatures: Iterable[Signature]) -> dict[str, TufSignature]:
    return {one.key_id: TufSignature(one.key_id, one.der.hex()) for one in signatures}


def _short(key_ids: Iterable[str]) -> str:
    return ", ".join(key_id[:_SHORT] for key_id in key_ids)
