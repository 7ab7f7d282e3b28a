"""Opening a bundle for a command: path and key become a VerifiedBundle."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from installer.bundle.archive import UnverifiedBundle
from installer.bundle.signature import PublicKey
from installer.bundle.trust import KeyTrust
from installer.errors import InvalidInput

if TYPE_CHECKING:
    from installer.bundle.archive import VerifiedBundle

MAX_KEY_BYTES = 64 * 1024

bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))
key_option = click.option(
    "--key",
    "key_file",
    required=True,
    type=click.Path(path_type=Path),
    help="Public key that you got over another way than the bundle.",
)


def read_key(key_file: Path) -> bytes:
    """Read the public key (PEM) that the person names; raises InvalidInput.

    Only once for a command: ``--key <(…)`` can't be read again.
    """
    try:
        with key_file.open("rb") as stream:
            return stream.read(MAX_KEY_BYTES)
    except OSError as error:
        raise InvalidInput(
            f"{key_file}: {error.strerror}", hint="--key takes the sender's release.pub"
        ) from error


def open_verified(path: Path, key_file: Path, pem: bytes | None = None) -> VerifiedBundle:
    """Checks (1) to (5) of the archive module; raises a NotTrusted, Corrupt or InvalidInput.

    ``pem`` is what was read of the key file, if it was.
    """
    key = PublicKey.parse(read_key(key_file) if pem is None else pem, str(key_file))
    trust = KeyTrust(key, key_file.name)
    with UnverifiedBundle(path) as unverified:
        return unverified.verify(trust, datetime.now(UTC))
