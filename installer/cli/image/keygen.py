"""``installer image keygen``: a key to sign images with."""

from __future__ import annotations

from installer.cli.keypair import keygen_command

PASSPHRASE_VARIABLE = "INSTALLER_PASSPHRASE"  # noqa: S105 (a variable's name)

command = keygen_command(
    "images.key",
    PASSPHRASE_VARIABLE,
    makes="Make a passphrase-encrypted P-256 key (OUT) to sign images with, and its .pub.",
    then="who pulls images verifies with it",
)
