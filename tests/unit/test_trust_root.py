"""Trust roots: thresholds, rotation by a chain, expiry, and what a forger could try."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from tuf.api.metadata import Metadata

from bundler.trust_root import Change, TrustFolder, resolve_key
from installer.bundle.signature import Signature
from installer.bundle.trust_root import BUNDLE_ROLE, ROOT_ROLE, TrustRoot, read_trust_root
from installer.errors import (
    Expired,
    InvalidInput,
    Rollback,
    TooFewSignatures,
    WrongSignature,
)
from installer.keys import SigningKey, generate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

A, B, C, D = (generate(b"x")[0] for _ in range(4))
NEXT_YEAR = datetime(2027, 6, 1, tzinfo=UTC)
NOW = datetime(2026, 6, 1, tzinfo=UTC)
PAYLOAD = b'{"bundle": 1}\n'
BOTH = (BUNDLE_ROLE, ROOT_ROLE)


@dataclass
class Owner:
    """Whoever keeps the folder with the versions."""

    folder: Path

    def init(self, keys: Sequence[SigningKey], threshold: int, **roots: Any) -> None:
        change = Change(NEXT_YEAR, thresholds={
            BUNDLE_ROLE: threshold, ROOT_ROLE: roots.get("root_threshold", threshold),
        })  # fmt: skip
        owners = roots.get("root_keys", keys)
        TrustFolder(self.folder).create(
            [key.public for key in keys], [key.public for key in owners], change
        )

    def change(self, **what: Any) -> None:
        TrustFolder(self.folder).change(Change(what.pop("expires", NEXT_YEAR), **what))

    def sign(self, *keys: SigningKey) -> None:
        for key in keys:
            there = TrustFolder(self.folder)
            there.sign(key.sign(there.payload), key.public)

    @property
    def root(self) -> TrustRoot:
        complete = TrustFolder(self.folder).complete
        assert complete is not None
        return complete


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    return Owner(tmp_path / "trust")


def signed(*keys: SigningKey) -> tuple[Signature, ...]:
    return tuple(key.sign(PAYLOAD) for key in keys)


def test_two_of_three(owner: Owner) -> None:
    owner.init([A, B, C], 2)
    owner.sign(A)
    assert TrustFolder(owner.folder).complete is None
    (missing,) = TrustFolder(owner.folder).missing
    assert (missing.needed, set(missing.key_ids)) == (1, {B.public.key_id, C.public.key_id})
    owner.sign(C)
    root = read_trust_root(owner.root.data, "root.json")
    assert root.version == 1
    assert set(root.signers(PAYLOAD, signed(A, C))) == {A.public.key_id, C.public.key_id}
    assert len(root.signers(PAYLOAD, signed(A, B, C, D))) == 3
    with pytest.raises(TooFewSignatures, match="2 signatures are needed"):
        root.signers(PAYLOAD, signed(B))
    with pytest.raises(TooFewSignatures):
        root.signers(PAYLOAD, signed(B, B))
    with pytest.raises(TooFewSignatures):
        root.signers(PAYLOAD, (*signed(B), A.sign(b"other")))
    with pytest.raises(TooFewSignatures):
        root.signers(PAYLOAD, (*signed(B), Signature(A.public.key_id, B.sign(PAYLOAD).der)))
    with pytest.raises(WrongSignature):
        root.signers(PAYLOAD, signed(D))
    with pytest.raises(WrongSignature):
        root.signers(PAYLOAD + b" ", signed(A, B, C))


def test_root_keys_sign_no_bundles(owner: Owner) -> None:
    owner.init([A], 1, root_keys=[C, D], root_threshold=2)
    with pytest.raises(InvalidInput, match="no root key"):
        owner.sign(A)
    owner.sign(C, D)
    with pytest.raises(WrongSignature):
        owner.root.signers(PAYLOAD, signed(C, D))
    assert owner.root.signers(PAYLOAD, signed(A)) == (A.public.key_id,)


def test_rotation_needs_the_old_and_the_new_threshold(owner: Owner) -> None:
    owner.init([A, B], 2)
    owner.sign(A, B)
    site = owner.root
    owner.change(
        add=tuple((C.public, role) for role in BOTH),
        remove=tuple((A.public.key_id, role) for role in BOTH),
    )
    owner.sign(B, C)
    assert TrustFolder(owner.folder).complete == site
    (missing,) = TrustFolder(owner.folder).missing
    assert (missing.whose, missing.key_ids) == ("version 1", (A.public.key_id,))
    owner.sign(A)
    newer = site.updated(owner.root.data, "update.json")
    assert newer.version == 2
    assert newer.signers(PAYLOAD, signed(B, C))
    with pytest.raises(TooFewSignatures):
        newer.signers(PAYLOAD, signed(A, B))
    assert site.signers(PAYLOAD, signed(A, B))


def test_a_site_follows_over_several_versions_and_never_back(owner: Owner) -> None:
    owner.init([A], 1)
    owner.sign(A)
    first = owner.root
    for old, new in ((A, B), (B, C)):
        owner.change(
            add=tuple((new.public, role) for role in BOTH),
            remove=tuple((old.public.key_id, role) for role in BOTH),
        )
        owner.sign(old, new)
    newest = owner.root
    assert newest.version == 3
    assert first.updated(newest.data, "update.json").fingerprint == newest.fingerprint
    followed = first.updated(b"\n".join(newest.versions[1:]), "update.json")
    assert followed.versions == newest.versions
    assert followed.updated(newest.data, "again").version == 3
    with pytest.raises(Rollback):
        followed.updated(first.data, "old.json")
    with pytest.raises(InvalidInput, match="does not follow"):
        first.updated(newest.versions[2], "gap.json")
    with pytest.raises(InvalidInput, match="does not follow"):
        read_trust_root(b"\n".join(newest.versions[::2]), "gap.json")
    # A later version alone can be imported: how it came is what makes it trusted.
    assert read_trust_root(newest.versions[2], "three.json").version == 3


def test_a_forked_version_is_refused(owner: Owner, tmp_path: Path) -> None:
    owner.init([A], 1)
    owner.sign(A)
    other = Owner(tmp_path / "other")
    other.init([A, B], 1)
    other.sign(A)
    with pytest.raises(WrongSignature, match="another than the one known"):
        owner.root.updated(other.root.data, "other.json")


def test_a_thief_of_one_key_can_not_rotate(owner: Owner, tmp_path: Path) -> None:
    owner.init([A, B, C], 2)
    owner.sign(A, B)
    forged = Owner(tmp_path / "forged")
    forged.folder.mkdir()
    for file in owner.folder.iterdir():
        (forged.folder / file.name).write_bytes(file.read_bytes())
    forged.change(
        add=((D.public, BUNDLE_ROLE), (D.public, ROOT_ROLE)),
        thresholds={BUNDLE_ROLE: 1, ROOT_ROLE: 1},
    )
    forged.sign(A, D)
    draft = (forged.folder / "2.root.json").read_bytes()
    with pytest.raises(WrongSignature, match="2 signatures of the root keys of version 1, 1 hold"):
        owner.root.updated(owner.root.data + draft, "forged.json")
    with pytest.raises(WrongSignature):
        read_trust_root(owner.root.data + draft, "forged.json")


def test_expiry(owner: Owner) -> None:
    owner.init([A], 1)
    owner.sign(A)
    owner.root.check_expiry(NOW)
    with pytest.raises(Expired, match="version 1 expired at 2027-06-01"):
        owner.root.check_expiry(datetime(2027, 6, 2, tzinfo=UTC))
    owner.change(expires=datetime(2028, 6, 1, tzinfo=UTC))
    owner.sign(A)
    owner.root.check_expiry(datetime(2027, 6, 2, tzinfo=UTC))


def _mutants() -> dict[str, Any]:
    def role(name: str, **values: Any) -> Any:
        return lambda document: document["signed"]["roles"][name].update(values)

    def twice(document: Any) -> None:
        """One key under two ids, so that it would count twice."""
        keys = document["signed"]["keys"]
        keys["f" * 64] = next(iter(keys.values()))
        document["signed"]["roles"][BUNDLE_ROLE] = {"keyids": list(keys), "threshold": 2}

    def ed25519(document: Any) -> None:
        for key in document["signed"]["keys"].values():
            key.update(keytype="ed25519", scheme="ed25519")

    return {
        "threshold of none": role(BUNDLE_ROLE, threshold=0),
        "negative threshold": role(BUNDLE_ROLE, threshold=-1),
        "a threshold that can't be met": role(BUNDLE_ROLE, threshold=9),
        "a key twice in a role": role(BUNDLE_ROLE, keyids=[A.public.key_id] * 2),
        "a role's key is not there": role(ROOT_ROLE, keyids=["0" * 64]),
        "one key under two ids": twice,
        "keys of another kind": ed25519,
        "another type": lambda d: d["signed"].update(_type="timestamp"),
        "no such type": lambda d: d["signed"].update(_type="x"),
        "version 0": lambda d: d["signed"].update(version=0),
        "no roles": lambda d: d["signed"].update(roles={}),
        "signed is a list": lambda d: d.update(signed=[]),
        "signatures twice": lambda d: d["signatures"].extend(d["signatures"]),
        "no expiry": lambda d: d["signed"].pop("expires"),
        "a key without a value": lambda d: d["signed"]["keys"][A.public.key_id].pop("keyval"),
    }


@pytest.mark.parametrize("name", list(_mutants()))
def test_malformed(owner: Owner, name: str) -> None:
    owner.init([A], 1)
    owner.sign(A)
    document = json.loads(owner.root.data)
    _mutants()[name](document)
    with pytest.raises(InvalidInput, match=r"root\.json"):
        read_trust_root(json.dumps(document).encode(), "root.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["signed"].update(expires="2099-01-01T00:00:00Z"),
        lambda d: d["signed"].update(version=2),
        lambda d: d["signed"].update(x=1),
        lambda d: d.update(signatures=[]),
        lambda d: d["signatures"][0].update(sig="00" * 70),
    ],
)
def test_not_signed_as_it_is(owner: Owner, change: Any) -> None:
    owner.init([A], 1)
    owner.sign(A)
    document = json.loads(owner.root.data)
    change(document)
    with pytest.raises(WrongSignature):
        read_trust_root(json.dumps(document, indent=1).encode(), "root.json")


def test_the_form_of_the_file_does_not_matter(owner: Owner) -> None:
    owner.init([A], 1)
    owner.sign(A)
    shown = json.dumps(json.loads(owner.root.data), indent=2).encode()
    root = read_trust_root(shown, "root.json")
    assert root.fingerprint == owner.root.fingerprint
    assert read_trust_root(root.data, "again").version == 1


def test_garbage() -> None:
    for data in (b"", b"\n\n", b"{}", b"[]", b"1", b"[" * 200_000, b"\xff", b'{"signed": 1}',
                 A.public_pem(), b"x" * 2_000_000):  # fmt: skip
        with pytest.raises(InvalidInput, match=r"root\.json"):
            read_trust_root(data, "root.json")


def test_a_change_after_a_signature_begins_anew(owner: Owner) -> None:
    owner.init([A, B], 2)
    owner.sign(A)
    lost = TrustFolder(owner.folder).change(Change(NEXT_YEAR, add=((C.public, BUNDLE_ROLE),)))
    assert lost
    (missing,) = TrustFolder(owner.folder).missing
    assert missing.needed == 2
    owner.sign(A, B)
    assert owner.root.version == 1
    complete = (owner.folder / "1.root.json").read_bytes()
    owner.change(add=((D.public, BUNDLE_ROLE),))
    assert (owner.folder / "1.root.json").read_bytes() == complete
    assert owner.root.version == 1


def test_what_the_owner_can_not_do(owner: Owner, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="would be 1"):
        owner.init([A], 2)
    with pytest.raises(InvalidInput, match="no trust root there"):
        owner.change()
    owner.init([A, B], 1)
    with pytest.raises(InvalidInput, match="there is a trust root already"):
        owner.init([C], 1)
    there = TrustFolder(owner.folder)
    with pytest.raises(WrongSignature):
        there.sign(A.sign(b"other"), A.public)
    owner.sign(A)
    with pytest.raises(InvalidInput, match="no version waits"):
        owner.sign(B)
    with pytest.raises(InvalidInput, match="would be 0"):
        owner.change(remove=tuple((k.public.key_id, ROOT_ROLE) for k in (A, B)))
    for words in ("", "zz", "0" * 64):
        with pytest.raises(InvalidInput, match="of the trust root"):
            resolve_key(owner.root, words)
    assert resolve_key(owner.root, A.public.key_id[:20].upper()) == A.public.key_id
    (owner.folder / "3.root.json").write_bytes(b"{}")
    with pytest.raises(InvalidInput, match="missing between 1 and 3"):
        TrustFolder(owner.folder)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.root.json").write_bytes(b"{}")
    with pytest.raises(InvalidInput, match="not TUF root metadata"):
        TrustFolder(tmp_path / "bad")


def test_python_tuf_itself_accepts_the_files(owner: Owner) -> None:
    owner.init([A, B], 2)
    owner.sign(A, B)
    owner.change(expires=datetime(2028, 1, 1, tzinfo=UTC))
    owner.sign(A, B)
    one, two = (Metadata.from_file(str(owner.folder / f"{n}.root.json")) for n in (1, 2))
    one.signed.verify_delegate("root", one.signed_bytes, one.signatures)
    one.signed.verify_delegate("root", two.signed_bytes, two.signatures)
