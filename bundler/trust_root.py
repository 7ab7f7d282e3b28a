"""Making a trust root: a folder with every version of it, the newest one perhaps not signed yet.

The files are named as TUF names them, ``1.root.json``, ``2.root.json``, … (TUF specification, 6.1).
A version that has the signatures it needs is never changed again: any change begins the next one,
which is a draft until enough of the old and of the new root keys have signed it. Keys stay where
they are: a signature is made by each person on their own machine, over a copy of the folder, or by
an HSM over the bytes that ``payload`` gives.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Key, Metadata, Role, Root
from tuf.api.metadata import Signature as TufSignature

from installer.bundle.trust_root import BUNDLE_ROLE, ROOT_ROLE, TrustRoot, read_trust_root
from installer.errors import InvalidInput, TransferFailed, WrongSignature

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from installer.bundle.signature import PublicKey, Signature

ROLES: Mapping[str, tuple[str, ...]] = {
    "bundle": (BUNDLE_ROLE,),
    "root": (ROOT_ROLE,),
    "both": (BUNDLE_ROLE, ROOT_ROLE),
}
"""What a key is for, in the words of the command line, and TUF's roles for it."""

_NAME = re.compile(r"([1-9][0-9]{0,8})\.root\.json\Z")
_SHORT = 16


@dataclass(frozen=True, slots=True)
class Missing:
    """Who can still sign a draft: of a set of keys ``needed`` more, ``key_ids`` have not yet."""

    whose: str
    needed: int
    key_ids: tuple[str, ...]


class TrustFolder:
    """The versions of a trust root in a folder; reading changes nothing."""

    def __init__(self, folder: Path) -> None:
        """Read all versions; raises InvalidInput or WrongSignature."""
        self.folder = folder
        self._complete: TrustRoot | None = None
        self._draft: Metadata[Root] | None = None
        numbers = sorted(
            int(match.group(1))
            for path in (folder.iterdir() if folder.is_dir() else ())
            if (match := _NAME.match(path.name))
        )
        if numbers != list(range(1, len(numbers) + 1)):
            raise InvalidInput(f"{folder}: a version is missing between 1 and {numbers[-1]}")
        lines = [self._path(number).read_bytes().replace(b"\n", b" ") for number in numbers]
        if lines:
            draft = self._read(lines[-1], self._path(len(lines)))
            if self._missing(draft, self._of(lines[:-1])):
                self._draft = draft
                lines.pop()
        self._complete = self._of(lines)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}.root.json"

    def _of(self, lines: Sequence[bytes]) -> TrustRoot | None:
        return read_trust_root(b"\n".join(lines), str(self.folder)) if lines else None

    @staticmethod
    def _read(data: bytes, path: Path) -> Metadata[Root]:
        try:
            metadata: Metadata[Root] = Metadata.from_bytes(data)
        except RepositoryError as error:
            raise InvalidInput(f"{path}: not TUF root metadata: {error}"[:500]) from error
        if not isinstance(metadata.signed, Root):
            raise InvalidInput(f"{path}: TUF metadata, but not of the root role")
        return metadata

    @property
    def complete(self) -> TrustRoot | None:
        """The newest version that has all its signatures, None if there is none yet."""
        return self._complete

    @property
    def draft(self) -> Root | None:
        """The version that waits for signatures, None if there is none."""
        return self._draft.signed if self._draft else None

    @property
    def payload(self) -> bytes:
        """The exact bytes that are signed of the draft; raises InvalidInput without one."""
        return self._waiting().signed_bytes

    @property
    def missing(self) -> list[Missing]:
        """Whose signatures the draft still needs; empty without a draft."""
        return self._missing(self._draft, self._complete) if self._draft else []

    @staticmethod
    def _missing(draft: Metadata[Root], before: TrustRoot | None) -> list[Missing]:
        previous = Metadata.from_bytes(before.versions[-1]).signed if before else None
        result = draft.signed.get_root_verification_result(
            previous, draft.signed_bytes, draft.signatures
        )
        found = []
        judged = {"itself": result.second}
        if previous is not None:
            judged = {f"version {previous.version}": result.first, **judged}
        for whose, one in judged.items():
            if not one.verified:
                found.append(Missing(whose, one.threshold - len(one.signed), tuple(one.unsigned)))
        return found

    def _waiting(self) -> Metadata[Root]:
        if self._draft is None:
            raise InvalidInput(
                f"{self.folder}: no version waits for a signature",
                hint="begin one: bundler trust add-key, remove-key or rotate",
            )
        return self._draft

    def create(
        self, bundle_keys: Iterable[PublicKey], root_keys: Iterable[PublicKey], change: Change
    ) -> None:
        """Write version 1 as a draft; raises InvalidInput when there is one already."""
        if self._complete or self._draft:
            raise InvalidInput(
                f"{self.folder}: there is a trust root already",
                hint="change it with: bundler trust add-key, remove-key or rotate",
            )
        root = Root(consistent_snapshot=None)
        for role, keys in ((BUNDLE_ROLE, bundle_keys), (ROOT_ROLE, root_keys)):
            for key in keys:
                root.add_key(_key(key), role)
        self._write(root, change)

    def change(self, change: Change) -> bool:
        """Change the draft, or begin the next version; True if signatures of a draft were lost.

        Raises InvalidInput for a key that is not there, or thresholds that can't be met.
        """
        lost = bool(self._draft and self._draft.signatures)
        if self._draft is not None:
            root = self._draft.signed
        elif self._complete is not None:
            root = self._read(self._complete.versions[-1], self.folder).signed
            root.version += 1
        else:
            raise InvalidInput(
                f"{self.folder}: no trust root there", hint="make one with: bundler trust init"
            )
        self._write(root, change)
        return lost

    def _write(self, root: Root, change: Change) -> None:
        for key_id, role in change.remove:
            with suppress(ValueError):
                root.revoke_key(key_id, role)
        for key, role in change.add:
            root.add_key(_key(key), role)
        for role, threshold in change.thresholds.items():
            root.roles[role] = Role(root.roles[role].keyids, max(threshold, 1))
        for name, role in ((BUNDLE_ROLE, "bundles"), (ROOT_ROLE, "the next trust root")):
            keys, needed = root.roles[name].keyids, root.roles[name].threshold
            if not 1 <= needed <= len(keys):
                raise InvalidInput(
                    f"{needed} keys are needed to sign {role}, there would be {len(keys)}",
                    hint="add keys first, or lower the threshold with --threshold, "
                    "--root-threshold",
                )
        root.expires = change.expires
        self._draft = Metadata(root)
        self._save()

    def sign(self, signature: Signature, key: PublicKey) -> None:
        """Add a signature over ``payload``; raises WrongSignature, or InvalidInput for no root key.

        When it was the last one that was needed, the version is complete.
        """
        draft = self._waiting()
        if not key.holds(signature, draft.signed_bytes):
            raise WrongSignature(
                f"the signature is not one of key {key.key_id[:_SHORT]} over version "
                f"{draft.signed.version}",
                hint="sign exactly what this writes, with SHA-256: bundler trust payload",
            )
        allowed = set(draft.signed.roles[ROOT_ROLE].keyids)
        if self._complete is not None:
            allowed |= set(self._complete.keys(ROOT_ROLE))
        if key.key_id not in allowed:
            raise InvalidInput(
                f"key {key.key_id[:_SHORT]} is no root key, before or after",
                hint="bundler trust show lists the keys that can sign",
            )
        draft.signatures[key.key_id] = TufSignature(key.key_id, signature.der.hex())
        self._save()
        if not self.missing:
            self._complete = TrustFolder(self.folder).complete
            self._draft = None

    def _save(self) -> None:
        draft = self._waiting()
        path = self._path(draft.signed.version)
        part = path.with_name(path.name + ".part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as stream:
                stream.write(draft.to_bytes() + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(path)
        except OSError as error:
            raise TransferFailed(f"{path}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be other in the next version; ``thresholds`` by TUF's role names."""

    expires: datetime
    add: tuple[tuple[PublicKey, str], ...] = ()
    remove: tuple[tuple[str, str], ...] = ()
    thresholds: Mapping[str, int] = field(default_factory=dict)


def resolve_key(root: TrustRoot | Root, words: str) -> str:
    """The id of the one key whose id begins with ``words``; raises InvalidInput."""
    roles = (BUNDLE_ROLE, ROOT_ROLE)
    if isinstance(root, TrustRoot):
        there = {key_id for role in roles for key_id in root.keys(role)}
    else:
        there = {key_id for role in roles for key_id in root.roles[role].keyids}
    found = [key_id for key_id in sorted(there) if key_id.startswith(words.lower())]
    if len(found) != 1 or not words:
        raise InvalidInput(
            f"{words}: {'no key' if not found else 'several keys'} of the trust root",
            hint="bundler trust show lists them; give its .pub file, or the begin of its id",
        )
    return found[0]


def _key(key: PublicKey) -> Key:
    return Key.from_dict(
        key.key_id,
        {
            "keytype": "ecdsa",
            "scheme": "ecdsa-sha2-nistp256",
            "keyval": {"public": key.pem.decode()},
        },
    )
