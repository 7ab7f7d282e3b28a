"""openssl and cosign accept our signature, and refuse it over anything else."""

from __future__ import annotations

import subprocess
import tarfile
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from bundler.cli import cli
from bundler.sign import opened
from installer.bundle.archive import UnverifiedBundle
from installer.bundle.signature import PublicKey
from installer.bundle.trust import KeyTrust
from installer.errors import InvalidInput, WrongSignature
from installer.keys import generate, load
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


def run(*words: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, words)), cwd=cwd, capture_output=True, text=True, check=True,
        stdin=subprocess.DEVNULL,
        env={"HOME": str(cwd), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"} | environment,
    )  # fmt: skip


WORD = "a passphrase"


def signers(folder: Path) -> int:
    with tarfile.open(folder / "b.tar") as tar:
        return sum(name.endswith(".sig") for name in tar.getnames())


@pytest.mark.parametrize("how", ["pkcs8", "traditional"])
def test_openssl_keys_sign(openssl: str, folder: Path, how: str) -> None:
    run(openssl, "ecparam", "-name", "prime256v1", "-genkey", "-out", "raw.key", cwd=folder)
    if how == "pkcs8":
        run(openssl, "pkcs8", "-topk8", "-v2", "aes-256-cbc", "-in", "raw.key", "-out", "a.key",
            "-passout", f"pass:{WORD}", cwd=folder)  # fmt: skip
    else:
        run(openssl, "ec", "-aes256", "-in", "raw.key", "-out", "a.key",
            "-passout", f"pass:{WORD}", cwd=folder)  # fmt: skip
    run(openssl, "ec", "-in", "raw.key", "-pubout", "-out", "a.pub", cwd=folder)
    key = load(folder / "a.key", WORD.encode())
    with opened(folder / "b.tar") as bundle:
        assert bundle.add(key.sign(bundle.payload), key.public)
    with tarfile.open(folder / "b.tar") as tar:
        tar.extract("bundle.json.2.sig", folder, filter="data")
    run(openssl, "dgst", "-sha256", "-verify", "a.pub", "-signature", "bundle.json.2.sig",
        "bundle.json", cwd=folder)  # fmt: skip


def test_a_signature_of_openssl_is_attached(openssl: str, folder: Path) -> None:
    run(openssl, "ecparam", "-name", "prime256v1", "-genkey", "-out", "raw.key", cwd=folder)
    run(openssl, "ec", "-in", "raw.key", "-pubout", "-out", "a.pub", cwd=folder)
    run(openssl, "dgst", "-sha256", "-sign", "raw.key", "-out", "sig", "bundle.json", cwd=folder)
    attach(folder, "sig", "a.pub")
    run(openssl, "dgst", "-sha256", "-sign", "raw.key", "-out", "bad", "other.json", cwd=folder)
    with pytest.raises(WrongSignature):
        attach(folder, "bad", "a.pub")


def attach(folder: Path, signature: str, key: str) -> None:
    before = signers(folder)
    words = ["attach-signature", folder / "b.tar", folder / signature, "--key", folder / key]
    CliRunner().invoke(cli, [*map(str, words)], catch_exceptions=False)
    assert signers(folder) == before + 1
    public = PublicKey.parse((folder / key).read_bytes(), key)
    with UnverifiedBundle(folder / "b.tar") as unverified:
        unverified.verify(KeyTrust(public, key), datetime.now(UTC)).close()


def test_keys_and_signatures_of_cosign(cosign: Path, openssl: str, folder: Path) -> None:
    run(cosign, "generate-key-pair", cwd=folder, COSIGN_PASSWORD=WORD)
    key = load(folder / "cosign.key", WORD.encode())
    public = PublicKey.parse((folder / "cosign.pub").read_bytes(), "cosign.pub")
    assert key.public.key_id == public.key_id
    with pytest.raises(InvalidInput, match="wrong passphrase"):
        load(folder / "cosign.key", b"another")
    run(cosign, "sign-blob", "--key", "cosign.key", "--bundle", "sig", "--tlog-upload=false",
        "--use-signing-config=false", "--yes", "bundle.json",
        cwd=folder, COSIGN_PASSWORD=WORD)  # fmt: skip
    attach(folder, "sig", "cosign.pub")
    with tarfile.open(folder / "b.tar") as tar:
        for name in ("bundle.json.2.sig", "bundle.json.2.sigstore.json"):
            tar.extract(name, folder, filter="data")
    run(openssl, "dgst", "-sha256", "-verify", "cosign.pub", "-signature", "bundle.json.2.sig",
        "bundle.json", cwd=folder)  # fmt: skip
    run(cosign, "verify-blob", "--key", "cosign.pub", "--bundle", "bundle.json.2.sigstore.json",
        "--insecure-ignore-tlog", "bundle.json", cwd=folder)  # fmt: skip


@pytest.mark.parametrize(
    ("member", "kind"),
    [("provenance.sigstore.json", "slsaprovenance1"), ("sbom.sigstore.json", "cyclonedx")],
)
def test_attestations_of_a_build(cosign: Path, tmp_path: Path, member: str, kind: str) -> None:
    key, pem = generate(WORD.encode())
    (tmp_path / "release.key").write_bytes(pem)
    (tmp_path / "release.pub").write_bytes(key.public_pem())
    (tmp_path / "runbook.txt").write_text("call the operator\n")
    (tmp_path / "bundle.yaml").write_text(
        "apiVersion: bundle/v1\nkind: BundleSpec\nname: small\nchannel: stable\n"
        "platforms: [linux/amd64]\nfiles: [{name: runbook.txt, source: ./runbook.txt}]\n"
    )
    words = ["build", tmp_path / "bundle.yaml", "--key", tmp_path / "release.key", "--out",
             tmp_path / "b.tar"]  # fmt: skip
    environment = {"BUNDLER_PASSPHRASE": WORD, "AIRGAP_CACHE_DIR": str(tmp_path / "cache")}
    CliRunner(env=environment).invoke(cli, [*map(str, words)], catch_exceptions=False)
    with tarfile.open(tmp_path / "b.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    check = (cosign, "verify-blob-attestation", "--key", "release.pub", "--bundle", member,
             "--insecure-ignore-tlog")  # fmt: skip
    run(*check, "--type", kind, "index.json", cwd=tmp_path)
    for wrong in (("--type", "spdx", "index.json"), ("--type", kind, "oci-layout")):
        with pytest.raises(subprocess.CalledProcessError):
            run(*check, *wrong, cwd=tmp_path)
    with UnverifiedBundle(tmp_path / "b.tar") as unverified:
        verified = unverified.verify(KeyTrust(key.public, "release.pub"), datetime.now(UTC))
    with verified:
        assert not verified.verify_members(threads=2)
