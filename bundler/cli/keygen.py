"""``bundler keygen``: a key pair for signing bundles."""

from __future__ import annotations

from installer.cli.keypair import keygen_command

PASSPHRASE_VARIABLE = "BUNDLER_PASSPHRASE"  # noqa: S105 (a variable's name)

command = keygen_command(
    "release.key",
    PASSPHRASE_VARIABLE,
    makes="Make a passphrase-encrypted P-256 key (OUT) and its public key (.pub beside it).",
    then="give it to the sites over another way than the bundle",
)
