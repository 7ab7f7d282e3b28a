"""openssl and cosign accept our signature, and refuse it over anything else."""

from __future__ import annotations

import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

from tests.attacks.mutants import sample

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what ``tar xf`` takes out of a bundle, and the public key."""
    good = sample()
    (tmp_path / "b.tar").write_bytes(good.data)
    (tmp_path / "release.pub").write_bytes(good.key.public_pem())
    with tarfile.open(tmp_path / "b.tar") as tar:
        for name in ("bundle.json", "bundle.json.sig", "bundle.json.sigstore.json"):
            tar.extract(name, tmp_path, filter="data")
    (tmp_path / "other.json").write_bytes(good.payload.replace(b'"serial": 7', b'"serial": 8'))
    return tmp_path


@pytest.mark.parametrize(("document", "accepted"), [("bundle.json", True), ("other.json", False)])
def test_openssl(openssl: str, folder: Path, document: str, accepted: bool) -> None:  # noqa: FBT001 (a parameter of the test)
    done = subprocess.run(
        [openssl, "dgst", "-sha256", "-verify", "release.pub", "-signature", "bundle.json.sig",
         document],
        cwd=folder, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) is accepted, done.stdout


@pytest.mark.parametrize(("document", "accepted"), [("bundle.json", True), ("other.json", False)])
def test_cosign(cosign: Path, folder: Path, document: str, accepted: bool) -> None:  # noqa: FBT001 (a parameter of the test)
    done = subprocess.run(
        [cosign, "verify-blob", "--key", "release.pub", "--bundle", "bundle.json.sigstore.json",
         "--insecure-ignore-tlog", document],
        cwd=folder, capture_output=True, text=True, check=False,
        env={"HOME": str(folder), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert (done.returncode == 0) is accepted, done.stderr
