from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from installer.site.authority import authority_is_good, ensure_certificates, leaf_is_good

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 23, tzinfo=UTC)


@pytest.mark.parametrize("host", ["10.55.0.1", "fd00::5", "seed.site.test"])
def test_the_leaf_holds_for_the_host_under_its_authority(tmp_path: Path, host: str) -> None:
    ensure_certificates(tmp_path, "plant-7", host, NOW)
    ca = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
    leaf = x509.load_pem_x509_certificate((tmp_path / "tls.crt").read_bytes())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    verifier = PolicyBuilder().store(Store([ca])).time(NOW).build_server_verifier(names[0])
    assert len(verifier.verify(leaf, [])) == 2
    assert leaf_is_good(tmp_path, host, NOW)
    ssl.create_default_context(cafile=tmp_path / "ca.crt")
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
        tmp_path / "tls.crt", tmp_path / "tls.key"
    )
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "tls.key").stat().st_mode & 0o777 == 0o600


def test_what_is_good_is_kept(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, "s", "10.0.0.1", NOW)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    ensure_certificates(tmp_path, "s", "10.0.0.1", NOW + timedelta(days=365))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_another_address_gets_another_leaf_from_the_same_authority(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, "s", "10.0.0.1", NOW)
    ca = (tmp_path / "ca.crt").read_bytes()
    assert not leaf_is_good(tmp_path, "10.0.0.2", NOW)
    ensure_certificates(tmp_path, "s", "10.0.0.2", NOW)
    assert leaf_is_good(tmp_path, "10.0.0.2", NOW)
    assert (tmp_path / "ca.crt").read_bytes() == ca


def test_everything_is_renewed_in_the_last_year(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, "s", "10.0.0.1", NOW)
    ca = (tmp_path / "ca.crt").read_bytes()
    later = NOW + timedelta(days=9.5 * 365)
    assert not leaf_is_good(tmp_path, "10.0.0.1", later)
    ensure_certificates(tmp_path, "s", "10.0.0.1", later)
    assert leaf_is_good(tmp_path, "10.0.0.1", later)
    assert (tmp_path / "ca.crt").read_bytes() != ca


@pytest.mark.parametrize("name", ["ca.crt", "ca.key", "tls.crt", "tls.key"])
@pytest.mark.parametrize("content", [None, b"", b"garbage", "other"])
def test_a_missing_damaged_or_foreign_file_is_made_good(
    tmp_path: Path, name: str, content: bytes | str | None
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ensure_certificates(tmp_path / "a", "s", "10.0.0.1", NOW)
    ensure_certificates(tmp_path / "b", "s", "10.0.0.1", NOW)
    path = tmp_path / "a" / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(
            (tmp_path / "b" / name).read_bytes() if isinstance(content, str) else content
        )
    assert not (
        authority_is_good(tmp_path / "a", NOW) and leaf_is_good(tmp_path / "a", "10.0.0.1", NOW)
    )
    ensure_certificates(tmp_path / "a", "s", "10.0.0.1", NOW)
    assert authority_is_good(tmp_path / "a", NOW)
    assert leaf_is_good(tmp_path / "a", "10.0.0.1", NOW)
