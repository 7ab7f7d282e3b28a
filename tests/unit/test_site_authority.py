from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from installer.deploy.certificates import HarborCertificate
from installer.errors import InvalidInput, PreflightFailed
from installer.site.authority import (
    PEOPLE,
    authority_is_good,
    check_clock,
    ends,
    ensure_certificates,
    general_names,
    leaf_is_good,
)
from installer.site.certificate import Verdict, examine
from installer.site.harbor import Certificate, Harbor, SelfSigned
from installer.site.private import write_file
from installer.site.state import State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW = datetime(2026, 11, 23, tzinfo=UTC)


@pytest.mark.parametrize("host", ["10.55.0.1", "fd00::5", "seed.site.test"])
def test_the_leaf_holds_for_the_host_under_its_authority(tmp_path: Path, host: str) -> None:
    ensure_certificates(tmp_path, "seed registry of plant-7", [host], NOW)
    ca = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
    leaf = x509.load_pem_x509_certificate((tmp_path / "tls.crt").read_bytes())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    verifier = PolicyBuilder().store(Store([ca])).time(NOW).build_server_verifier(names[0])
    assert len(verifier.verify(leaf, [])) == 2
    assert leaf_is_good(tmp_path, [host], NOW)
    ssl.create_default_context(cafile=tmp_path / "ca.crt")
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
        tmp_path / "tls.crt", tmp_path / "tls.key"
    )
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "tls.key").stat().st_mode & 0o777 == 0o600


def test_what_is_good_is_kept(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, "s", ["10.0.0.1"], NOW)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    ensure_certificates(tmp_path, "s", ["10.0.0.1"], NOW + timedelta(days=365))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_another_address_gets_another_leaf_from_the_same_authority(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, "s", ["10.0.0.1"], NOW)
    ca = (tmp_path / "ca.crt").read_bytes()
    assert not leaf_is_good(tmp_path, ["10.0.0.2"], NOW)
    ensure_certificates(tmp_path, "s", ["10.0.0.2"], NOW)
    assert leaf_is_good(tmp_path, ["10.0.0.2"], NOW)
    assert (tmp_path / "ca.crt").read_bytes() == ca


def test_everything_is_renewed_in_the_last_year(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, "s", ["10.0.0.1"], NOW)
    ca = (tmp_path / "ca.crt").read_bytes()
    later = NOW + timedelta(days=9.5 * 365)
    assert not leaf_is_good(tmp_path, ["10.0.0.1"], later)
    ensure_certificates(tmp_path, "s", ["10.0.0.1"], later)
    assert leaf_is_good(tmp_path, ["10.0.0.1"], later)
    assert (tmp_path / "ca.crt").read_bytes() != ca


@pytest.mark.parametrize("name", ["ca.crt", "ca.key", "tls.crt", "tls.key"])
@pytest.mark.parametrize("content", [None, b"", b"garbage", "other"])
def test_a_missing_damaged_or_foreign_file_is_made_good(
    tmp_path: Path, name: str, content: bytes | str | None
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ensure_certificates(tmp_path / "a", "s", ["10.0.0.1"], NOW)
    ensure_certificates(tmp_path / "b", "s", ["10.0.0.1"], NOW)
    path = tmp_path / "a" / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(
            (tmp_path / "b" / name).read_bytes() if isinstance(content, str) else content
        )
    assert not (
        authority_is_good(tmp_path / "a", NOW) and leaf_is_good(tmp_path / "a", ["10.0.0.1"], NOW)
    )
    ensure_certificates(tmp_path / "a", "s", ["10.0.0.1"], NOW)
    assert authority_is_good(tmp_path / "a", NOW)
    assert leaf_is_good(tmp_path / "a", ["10.0.0.1"], NOW)


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def verifies(leaf: x509.Certificate, ca: x509.Certificate, name: str, now: datetime) -> bool:
    builder = PolicyBuilder().store(Store([ca])).time(now)
    try:
        builder.build_server_verifier(x509.DNSName(name)).verify(leaf, [])
    except VerificationError:
        return False
    return True


def test_one_leaf_has_all_names_each_once(tmp_path: Path) -> None:
    hosts = ["harbor.test", "*.Harbor.test", "10.0.0.1", "fd00::1", "HARBOR.test.", "fd00:0::1"]
    ensure_certificates(tmp_path, "s", hosts, NOW)
    leaf = certificate(tmp_path / "tls.crt")
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == [
        "harbor.test",
        "*.harbor.test",
        "10.0.0.1",
        "fd00::1",
    ]
    ca = certificate(tmp_path / "ca.crt")
    assert verifies(leaf, ca, "a.harbor.test", NOW)
    assert not verifies(leaf, ca, "a.b.harbor.test", NOW)
    # Neither order nor spelling makes a new one, another set does.
    assert leaf_is_good(tmp_path, list(reversed(hosts)), NOW)
    assert not leaf_is_good(tmp_path, hosts[:1], NOW)
    assert not leaf_is_good(tmp_path, [*hosts, "more.test"], NOW)


@pytest.mark.parametrize(
    "host",
    [
        *("", "a b", "-a.test", "a..test", "a.*.test", "*", "h*.test", "h\u00e4fen.test", "10.0.0"),
        *("a" * 64, ".".join(["a" * 50] * 6), "https://a.test", "a.test:443", "a.test\n"),
    ],
)
def test_what_no_certificate_can_name_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(InvalidInput, match="not a host that a certificate can name"):
        ensure_certificates(tmp_path, "s", ["a.test", host], NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_zone_is_no_part_of_an_address() -> None:
    assert general_names(["fe80::1%eth0"]) == general_names(["fe80::1"])


def test_browsers_take_the_leaf(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, "s", ["a.test"], NOW, validity=PEOPLE)
    leaf = certificate(tmp_path / "tls.crt")
    period = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert timedelta(days=800) < period < timedelta(days=825)


@pytest.mark.parametrize("delay", [0, 30])
def test_a_yearly_visit_never_finds_an_ended_leaf(tmp_path: Path, delay: int) -> None:
    visit = NOW
    first = last = None
    for _ in range(9):
        ensure_certificates(tmp_path, "s", ["a.test"], visit, validity=PEOPLE)
        first = first or certificate(tmp_path / "ca.crt")
        visit += timedelta(days=365 + delay)
        last = certificate(tmp_path / "tls.crt")
        assert last.not_valid_after_utc > visit
    assert first is not None
    assert last is not None
    assert verifies(last, certificate(tmp_path / "ca.crt"), "a.test", visit)


def test_renewing_the_leaf_keeps_the_authority(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, "s", ["a.test"], NOW, validity=PEOPLE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    later = NOW + timedelta(days=500)
    assert not leaf_is_good(tmp_path, ["a.test"], later)
    ensure_certificates(tmp_path, "s", ["a.test"], later, validity=PEOPLE)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"tls.crt", "tls.key"}


def test_an_authority_signs_several_leaves_by_name(tmp_path: Path) -> None:
    for name, mutual in (("a", True), ("b", False)):
        ensure_certificates(tmp_path, "s", [f"{name}.test"], NOW, name=name, mutual=mutual)
    assert not (tmp_path / "tls.crt").exists()
    assert leaf_is_good(tmp_path, ["a.test"], NOW, "a")
    assert not leaf_is_good(tmp_path, ["a.test"], NOW, "b")
    assert not leaf_is_good(tmp_path, ["a.test"], NOW, "missing")
    store = Store([certificate(tmp_path / "ca.crt")])
    clients = PolicyBuilder().store(store).time(NOW).build_client_verifier()
    clients.verify(certificate(tmp_path / "a.crt"), [])
    with pytest.raises(VerificationError):
        clients.verify(certificate(tmp_path / "b.crt"), [])
    assert ends(tmp_path, ["a", "b"]) == certificate(tmp_path / "ca.crt").not_valid_after_utc
    assert ends(tmp_path, ["a", "missing"]) is None


def test_a_renewed_authority_is_known_to_who_has_the_earlier_one(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, "first", ["a.test"], NOW, validity=PEOPLE)
    earlier = certificate(tmp_path / "ca.crt")
    later = NOW + timedelta(days=3400)
    ensure_certificates(tmp_path, "second", ["a.test"], later, validity=PEOPLE)
    renewed, leaf = certificate(tmp_path / "ca.crt"), certificate(tmp_path / "tls.crt")
    assert renewed != earlier
    assert renewed.subject == earlier.subject
    assert verifies(leaf, earlier, "a.test", later)
    assert verifies(leaf, renewed, "a.test", later + timedelta(days=800))


def test_no_leaf_outlives_its_authority(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, "s", ["a.test"], NOW, validity=PEOPLE)
    later = NOW + timedelta(days=3000)
    ensure_certificates(tmp_path, "s", ["a.test"], later, validity=PEOPLE)
    leaf, ca = certificate(tmp_path / "tls.crt"), certificate(tmp_path / "ca.crt")
    assert leaf.not_valid_after_utc == ca.not_valid_after_utc
    assert leaf_is_good(tmp_path, ["a.test"], later)


def test_a_clock_before_the_certificate_changes_nothing(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, "s", ["a.test"], NOW)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    wrong = datetime(1970, 1, 1, 0, 5, tzinfo=UTC)
    assert not leaf_is_good(tmp_path, ["a.test"], wrong)
    with pytest.raises(PreflightFailed, match="clock says 1970-01-01 00:05 UTC") as caught:
        ensure_certificates(tmp_path, "s", ["a.test"], wrong)
    assert "ca.crt is valid from 2026-11-22" in caught.value.message
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    check_clock(tmp_path, NOW - timedelta(hours=20))
    assert leaf_is_good(tmp_path, ["a.test"], NOW - timedelta(hours=20))


class Killed(Exception):
    pass


@pytest.mark.parametrize("renewing", [False, True])
@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_killed_between_two_files_the_next_run_makes_it_good(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writes: int,
    renewing: bool,  # noqa: FBT001 - pytest gives it by name
) -> None:
    now = NOW
    if renewing:
        ensure_certificates(tmp_path, "s", ["a.test"], NOW)
        now += timedelta(days=3400)
    left = writes

    def write(path: Path, content: bytes, *, mode: int = 0o600) -> None:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        write_file(path, content, mode=mode)

    earlier = (tmp_path / "ca.key").read_bytes() if renewing else b""
    monkeypatch.setattr("installer.site.authority.write_file", write)
    if renewing and writes == 3:
        ensure_certificates(tmp_path, "s", ["a.test"], now)  # it has only three files to write
    else:
        with pytest.raises(Killed):
            ensure_certificates(tmp_path, "s", ["a.test"], now)
        assert not leaf_is_good(tmp_path, ["a.test"], now)
    monkeypatch.undo()
    ensure_certificates(tmp_path, "s", ["a.test"], now)
    assert authority_is_good(tmp_path, now)
    assert leaf_is_good(tmp_path, ["a.test"], now)
    assert (tmp_path / "ca.key").read_bytes() == earlier or not renewing


# The step of a Harbor


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = State(tmp_path / "state")
    with state.held():
        yield state


def step(state: State, clock: Clock, *names: str, url: str = "https://harbor.test:8443") -> Any:
    harbor = Harbor(url, certificate=Certificate(self_signed=SelfSigned(names)))
    return HarborCertificate(harbor, "registry/hub", state, "plant-7", clock)


def test_a_harbor_gets_a_certificate_and_people_what_to_do(state: State) -> None:
    made = step(state, Clock(), "10.0.0.7")
    made.preflight()
    assert made.files() is None
    assert made.ca() is None
    assert not made.check()
    assert not state.path("tls").exists()
    note = made.apply()
    folder = state.path("tls/registry/hub")
    assert made.check()
    assert made.ca_file() == str(folder / "ca.crt")
    assert made.ca_file() in note
    assert "/etc/docker/certs.d/harbor.test:8443/ca.crt" in note
    fingerprint = certificate(folder / "ca.crt").fingerprint(hashes.SHA256())
    assert fingerprint.hex(":").upper() in note
    files = made.files()
    assert files.ca == made.ca() == (folder / "ca.crt").read_bytes()
    for url in ("https://harbor.test:8443", "https://10.0.0.7"):
        assert examine(files.chain, files.key, files.ca, url, NOW) == Verdict((), ())
    assert all(path.stat().st_mode & 0o777 == 0o700 for path in (folder, folder.parent))


def test_two_harbors_share_nothing(state: State) -> None:
    harbor = Harbor("https://h.test", certificate=Certificate(self_signed=SelfSigned()))
    one, two = (HarborCertificate(harbor, key, state, "s", Clock()) for key in ("a-b/c", "a/b-c"))
    one.apply()
    assert not two.check()
    two.apply()
    assert one.ca() != two.ca()


def test_other_names_and_time_make_a_new_leaf_of_the_same_authority(state: State) -> None:
    clock = Clock()
    made = step(state, clock)
    made.apply()
    before = made.files()
    more = step(state, clock, "more.test")
    assert not more.check()
    assert "clients keep the authority" in more.apply()
    assert more.files().ca == before.ca
    assert more.files().chain != before.chain
    clock.now += timedelta(days=420)
    assert more.check()
    clock.now += timedelta(days=10)
    assert not more.check()
    assert "clients keep the authority" in more.apply()
    assert more.check()
    clock.now += timedelta(days=3000)
    assert "clients have to trust" in more.apply()


def test_half_a_pair_is_not_handed_out(state: State) -> None:
    made = step(state, Clock())
    made.apply()
    (state.path("tls/registry/hub") / "tls.key").write_bytes(b"")
    assert made.files() is None
    assert not made.check()
    made.apply()
    assert made.files() is not None


def test_a_wrong_clock_or_name_is_refused_first(state: State) -> None:
    clock = Clock()
    made = step(state, clock)
    made.apply()
    clock.now -= timedelta(days=2)
    for call in (made.preflight, made.apply):
        with pytest.raises(PreflightFailed, match="this machine's clock says 2026-11-21"):
            call()
    with pytest.raises(InvalidInput, match="not a host"):
        step(state, clock, "not a host").preflight()
