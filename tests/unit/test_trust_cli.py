"""The commands around a trust root, from its first key to a site that follows a rotation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from click.testing import CliRunner

from bundler.cli import cli as bundler
from installer.bundle.archive import UnverifiedBundle
from installer.bundle.manifest import parse_time
from installer.bundle.receipt import decode_receipt, held_blobs
from installer.bundle.trust import TrustAnchor
from installer.cli import cli as installer
from installer.cli.open import IMPORTED, TrustOptions, open_accepted, open_at
from installer.errors import (
    AirgapError,
    Expired,
    InvalidInput,
    Rollback,
    TooFewSignatures,
    WrongSignature,
)
from installer.keys import generate
from installer.site.state import State
from tests.attacks.mutants import sample
from tests.bundles import open_bundle
from tests.unit.test_vulnerability_data import made

if TYPE_CHECKING:
    from pathlib import Path

WORD = "a passphrase"
KEYS = {name: generate(WORD.encode()) for name in "abcd"}


class Desk:
    """A folder with keys and a bundle, and both commands."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.chdir(folder)
        monkeypatch.setenv("BUNDLER_PASSPHRASE", WORD)
        for name, (key, pem) in KEYS.items():
            (folder / f"{name}.key").write_bytes(pem)
            (folder / f"{name}.pub").write_bytes(key.public_pem())
        (folder / "b.tar").write_bytes(sample(key=KEYS["a"][0]).data)

    def bundler(self, words: str) -> str:
        return self._run(bundler, words)

    def installer(self, words: str) -> str:
        return self._run(installer, words)

    @staticmethod
    def _run(command: Any, words: str) -> str:
        done = CliRunner().invoke(command, words.split(), standalone_mode=False)
        if done.exception is not None:
            raise done.exception
        return done.output

    def rotated(self) -> None:
        """Version 1 of a and b, version 2 of b and c, both exported."""
        self.bundler("trust init --key a.pub --key b.pub --threshold 2")
        self.bundler("trust sign --key a.key")
        self.bundler("trust sign --key b.key")
        self.bundler("trust export --out one.json")
        self.bundler("trust rotate --old a.pub --new c.pub")
        for name in "abc":
            self.bundler(f"trust sign --key {name}.key")
        self.bundler("trust export --out two.json")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(tmp_path, monkeypatch)


def test_from_the_first_key_to_a_site_that_follows(desk: Desk) -> None:
    desk.rotated()
    with pytest.raises(TooFewSignatures):
        desk.installer("verify b.tar --trust-root one.json")
    desk.bundler("sign b.tar --key b.key")
    assert "verified" in desk.installer("verify b.tar --trust-root one.json")
    shown = json.loads(desk.installer("verify b.tar --trust-root one.json --output json"))
    assert set(shown["signers"]) == {KEYS[name][0].public.key_id for name in "ab"}

    said = desk.installer("trust import one.json --state site")
    assert "version 1" in said
    assert "needs 2 of 2 keys" in said
    assert "verified" in desk.installer("verify b.tar --trust-root site")
    with pytest.raises(InvalidInput, match="has a trust root already"):
        desk.installer("trust import one.json --state site")
    assert "from version 1 to version 2" in desk.installer("trust update two.json --state site")
    assert "had already" in desk.installer("trust update two.json --state site")
    with pytest.raises(Rollback):
        desk.installer("trust update one.json --state site")
    with pytest.raises(TooFewSignatures):
        desk.installer("inspect b.tar --trust-root site")
    desk.bundler("sign b.tar --key c.key")
    assert "harbor  serial 7" in desk.installer("inspect b.tar --trust-root site")
    found = json.loads(desk.installer("trust show --state site --output json"))
    assert found["version"] == 2
    assert found == json.loads(desk.installer("trust show two.json --output json"))
    assert (desk.folder / "site" / IMPORTED).stat().st_mode & 0o777 == 0o600


def test_a_site_with_a_trust_root_takes_no_single_key(desk: Desk) -> None:
    desk.rotated()
    state = State(desk.folder / "site")
    one = TrustOptions(desk.folder / "a.pub", None)
    open_at(desk.folder / "b.tar", one, state).close()
    desk.installer("trust import one.json --state site")
    with pytest.raises(InvalidInput, match="a trust root of its own"):
        open_at(desk.folder / "b.tar", one, state)
    none = TrustOptions(None, None)
    with pytest.raises(TooFewSignatures):
        open_at(desk.folder / "b.tar", none, state)
    desk.bundler("sign b.tar --key b.key")
    open_at(desk.folder / "b.tar", none, state).close()


def test_somebody_must_be_trusted(desk: Desk) -> None:
    for words in ("", "--key a.pub --trust-root one.json"):
        with pytest.raises(InvalidInput, match="either --key or --trust-root"):
            desk.installer(f"verify b.tar {words}")
    with pytest.raises(InvalidInput, match=r"a\.pub: not TUF root metadata"):
        desk.installer("verify b.tar --trust-root a.pub")
    with pytest.raises(InvalidInput):
        desk.installer("verify b.tar --trust-root nothing.json")
    with pytest.raises(InvalidInput, match="which site"):
        desk.installer("trust show")
    with pytest.raises(InvalidInput, match="no trust root"):
        desk.installer("trust show --state site")
    assert not (desk.folder / "site").exists()


def test_the_owner_is_told_what_is_missing(desk: Desk) -> None:
    with pytest.raises(InvalidInput, match="no trust root there"):
        desk.bundler("trust show")
    said = desk.bundler("trust init --key a.pub --key b.pub --threshold 2 --expires 2099-01-01")
    assert "version 1 waits for signatures" in said
    assert "2099-01-01" in said
    with pytest.raises(InvalidInput, match="no version has all its signatures"):
        desk.bundler("trust export --out x.json")
    said = desk.bundler("trust sign --key a.key")
    assert f"1 of the root keys of itself: {KEYS['b'][0].public.key_id[:16]}" in said
    shown = json.loads(desk.bundler("trust show --output json"))
    assert shown["draft"] == 1
    assert shown["missing"][0]["keys"] == [KEYS["b"][0].public.key_id]
    assert "version 1 is complete" in desk.bundler("trust sign --key b.key")
    said = desk.bundler("trust add-key c.pub --role bundle --threshold 3")
    assert "version 2 waits" in said
    assert "gone with the change" not in said
    desk.bundler("trust sign --key a.key")
    key_id = KEYS["c"][0].public.key_id
    with pytest.raises(InvalidInput, match="3 keys are needed to sign bundles, there would be 2"):
        desk.bundler(f"trust remove-key {key_id[:12]} --role bundle")
    assert "gone with the change" in desk.bundler(f"trust remove-key {key_id} --threshold 1")
    with pytest.raises(InvalidInput, match="in the past"):
        desk.bundler("trust rotate --expires 2001-01-01")
    for words in ("--old a.pub", "--new a.pub", "--old d.pub --new c.pub"):
        with pytest.raises(InvalidInput):
            desk.bundler(f"trust rotate {words}")


def test_an_hsm_signs_a_trust_root(desk: Desk) -> None:
    desk.bundler("trust init --key a.pub")
    desk.bundler("trust payload --out payload")
    payload = (desk.folder / "payload").read_bytes()
    (desk.folder / "sig").write_bytes(KEYS["a"][0].sign(payload).der)
    for words in ("", "--signature sig", "--key a.key --signature sig --public a.pub"):
        with pytest.raises(InvalidInput, match="either --key"):
            desk.bundler(f"trust sign {words}")
    with pytest.raises(WrongSignature):
        desk.bundler("trust sign --signature sig --public b.pub")
    assert "complete" in desk.bundler("trust sign --signature sig --public a.pub")


def test_an_expired_trust_root(desk: Desk) -> None:
    desk.bundler("trust init --key a.pub --expires 2099-01-01")
    desk.bundler("trust sign --key a.key")
    desk.bundler("trust export --out root.json")
    anchor = TrustAnchor((desk.folder / "root.json").read_bytes(), "root.json", is_root=True)
    assert anchor.trust(parse_time("2098-12-31T00:00:00Z"))
    with pytest.raises(Expired):
        anchor.trust(parse_time("2099-01-02T00:00:00Z"))
    # The newest bundle was made after that: a clock that says otherwise is not believed.
    state = State(desk.folder / "site")
    with state.held():
        state.write("serials.json", type(state.serials)("stable", {}, "2099-01-02T00:00:00Z"))
    with pytest.raises(Expired):
        desk.installer("trust import root.json --state site")
    options = TrustOptions(None, desk.folder / "root.json")
    with pytest.raises(Expired):
        open_at(desk.folder / "b.tar", options, state)


# What a site remembers


def accepted(state: State, data: bytes, path: Path, *, at: str, downgrade: str = "") -> None:
    path.write_bytes(data)
    anchor = TrustAnchor(KEYS["a"][0].public_pem(), "a.pub")
    now = parse_time(at)
    with UnverifiedBundle(path) as unverified:
        bundle = unverified.verify(anchor.trust(now), now)
    with bundle:
        state.accept(bundle, "plant", now, downgrade=downgrade)


def test_the_receipt(desk: Desk) -> None:
    (desk.folder / "site.yaml").write_text(
        "apiVersion: site/v1\nkind: Site\nname: plant\ncluster: {kubeconfig: k}\n"
        "seed: {push: {registry: 'r.example'}}\nreleases: [{chart: app, namespace: app}]\n"
    )
    words = "receipt --site site.yaml --state state"
    with pytest.raises(InvalidInput, match="has not accepted a bundle"):
        desk.installer(words)
    state = State(desk.folder / "state")
    newer, older = (sample(key=KEYS["a"][0], serial=serial) for serial in (7, 6))
    with state.held():
        accepted(state, newer.data, desk.folder / "n.tar", at="2026-02-01T00:00:00Z")
        before = (desk.folder / "state" / "receipt.json").read_bytes()
        accepted(state, newer.data, desk.folder / "n.tar", at="2026-03-01T00:00:00Z")
        assert (desk.folder / "state" / "receipt.json").read_bytes() == before
        for _ in range(2):
            accepted(
                state, older.data, desk.folder / "o.tar", at="2026-04-01T00:00:00Z",
                downgrade="7 loses tags",
            )  # fmt: skip
    desk.installer(f"{words} --out r.json")
    receipt = decode_receipt((desk.folder / "r.json").read_bytes(), "r.json")
    assert receipt.site == "plant"
    assert [bundle.serial for bundle in receipt.bundles] == [7, 6]
    assert receipt.bundles[0].signers == (KEYS["a"][0].public.key_id,)
    (downgrade,) = receipt.downgrades
    assert (downgrade.serial, downgrade.highest) == (6, 7)
    assert (downgrade.reason, downgrade.time) == ("7 loses tags", "2026-04-01T00:00:00Z")
    assert {blob.digest.blob_path for blob in receipt.blobs} == {
        path for path in older.contents if path.startswith("blobs/")
    }
    assert state.serials.highest == {"stable": 7}
    with pytest.raises(InvalidInput, match=r"r\.json exists"):
        desk.installer(f"{words} --out r.json")
    (desk.folder / "state" / "receipt.json").write_text("{}")
    with pytest.raises(AirgapError, match="not a receipt"):
        desk.installer(words)


def test_databases_beside_a_bundle_leave_its_blobs_in_the_receipt(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    main, pem = made(tmp_path, "harbor", 900, day=1)
    fresh, _ = made(tmp_path, "trivy-databases", 5, day=8)
    now = parse_time("2026-02-01T00:00:00Z")
    with open_bundle(main, pem) as one, open_bundle(fresh, pem) as two, state.held():
        state.accept(one, "plant", now, downgrade="")
        state.accept(two, "plant", now, downgrade="")
        expected = held_blobs([one.manifest, two.manifest])
        assert len(expected) > len(held_blobs([two.manifest]))
    receipt = state.receipt
    assert receipt is not None
    assert receipt.blobs == expected
    assert [bundle.serial for bundle in receipt.bundles] == [900, 5]
    assert not receipt.downgrades


def test_a_clock_that_was_set_back_opens_no_expired_bundle(desk: Desk) -> None:
    state = State(desk.folder / "state")
    options = TrustOptions(desk.folder / "a.pub", None)
    old = sample(key=KEYS["a"][0], expires="2098-01-31T00:00:00Z", serial=5)
    (desk.folder / "old.tar").write_bytes(old.data)
    newer = msgspec.structs.replace(old.manifest, serial=9, created="2099-02-01T00:00:00Z")
    clock = parse_time("2097-01-15T00:00:00Z")
    with state.held():
        state.record(old.manifest)
        assert state.time(clock) == clock
        open_at(desk.folder / "old.tar", options, state).close()
        state.record(newer)
        state.record(old.manifest)
    assert state.time(clock) == parse_time(newer.created)
    with pytest.raises(Expired, match="expired at 2098"):
        open_at(desk.folder / "old.tar", options, state)


def test_what_was_accepted_is_opened_after_its_expiry(desk: Desk) -> None:
    state = State(desk.folder / "state")
    options = TrustOptions(desk.folder / "a.pub", None)
    data = sample(key=KEYS["a"][0], expires="2026-01-31T00:00:00Z").data
    (desk.folder / "old.tar").write_bytes(data)
    with pytest.raises(Expired):
        open_at(desk.folder / "old.tar", options, state)
    with state.held():
        accepted(state, data, desk.folder / "old.tar", at="2026-01-30T00:00:00Z")
    with open_at(desk.folder / "old.tar", options, state) as bundle:
        digest = str(bundle.digest)
    anchor, now = options.anchor(), parse_time("2026-02-02T00:00:00Z")
    open_accepted(desk.folder / "old.tar", anchor, (digest,), now).close()
    with pytest.raises(Expired):
        open_accepted(desk.folder / "old.tar", anchor, (), now)
    with pytest.raises(Expired):
        desk.installer("serve old.tar --key a.pub --listen 127.0.0.1:0")
    # A run would be how it comes in: that stays refused.
    with pytest.raises(Expired):
        desk.installer("verify old.tar --key a.pub")
