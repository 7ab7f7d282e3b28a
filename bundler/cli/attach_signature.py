"""``bundler attach-signature``: a signature that was made elsewhere, checked and put in."""

from __future__ import annotations

from pathlib import Path

import click

from bundler.cli.sign import bundle_argument, introduce, tell
from bundler.sign import opened
from installer.bundle.signature import (
    MAX_SIGNATURE_FILE,
    PublicKey,
    Signature,
    read_signature,
)
from installer.cli.console import output_option
from installer.cli.open import read_key
from installer.errors import InvalidInput


@click.command("attach-signature")
@bundle_argument
@click.argument("signature", type=click.Path(path_type=Path))
@click.option(
    "--key",
    "key_file",
    required=True,
    type=click.Path(path_type=Path),
    help="Public key that the signature is of.",
)
@output_option
def command(bundle: Path, signature: Path, key_file: Path, output: str) -> None:
    """Put SIGNATURE, a file from an HSM, openssl or cosign, into BUNDLE if it holds.

    \b
    What is signed is bundle.json:
      tar xf BUNDLE bundle.json
      openssl dgst -sha256 -sign KEY -out SIGNATURE bundle.json
      cosign sign-blob --key KEY --bundle SIGNATURE bundle.json

    DER, 64 raw bytes as PKCS#11 gives them, either in base64, and Sigstore bundles are read.

    Exit code 3: it is not a signature of that key over this bundle.
    """  # noqa: D301 (click's mark for lines that are kept)
    key = PublicKey.parse(read_key(key_file), str(key_file))
    der = read_signature(read_signature_file(signature), str(signature))
    with opened(bundle) as signable:
        introduce(signable)
        added = signable.add(Signature(key.key_id, der), key)
        tell(signable, key.key_id, output, added=added)


def read_signature_file(path: Path) -> bytes:
    """Read a small file; raises InvalidInput."""
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_SIGNATURE_FILE)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from error
