"""``bundler sign``: a further signature, made with a key that is here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bundler.cli.keygen import PASSPHRASE_VARIABLE
from bundler.sign import opened
from installer.cli.console import output_option, passphrase, print_json, say
from installer.keys import load

if TYPE_CHECKING:
    from bundler.sign import SignableBundle

bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))


@click.command("sign")
@bundle_argument
@click.option(
    "--key", "key_file", required=True, type=click.Path(path_type=Path), help="Signing key."
)
@click.option("--passphrase-file", help=f"Else {PASSPHRASE_VARIABLE}, else asked.")
@output_option
def command(bundle: Path, key_file: Path, passphrase_file: str | None, output: str) -> None:
    """Add a signature to BUNDLE; nothing but its first 64 KiB is written, no content is read.

    The bundle is not checked against anybody's key: `installer verify` does that before.
    """
    with opened(bundle) as signable:
        introduce(signable)
        key = load(key_file, passphrase(passphrase_file, PASSPHRASE_VARIABLE, confirm=False))
        added = signable.add(key.sign(signable.payload), key.public)
        tell(signable, key.public.key_id, output, added=added)


def introduce(bundle: SignableBundle) -> None:
    """Say what is about to be signed."""
    manifest = bundle.manifest
    signers = ", ".join(one.key_id[:16] for one in bundle.signatures) or "nobody"
    say(
        f"{manifest.name} serial {manifest.serial} of channel {manifest.channel}, "
        f"created {manifest.created}"
        + (f", expires {manifest.expires}" if manifest.expires else "")
        + f"\n  bundle.json {bundle.digest}, signed by {signers}"
    )


def tell(bundle: SignableBundle, key_id: str, output: str, *, added: bool) -> None:
    """Say whose signatures the bundle has now."""
    signers = [one.key_id for one in bundle.signatures if one.key_id != key_id] + [key_id]
    if output == "json":
        found = {"bundle": str(bundle.path), "digest": str(bundle.digest)}
        print_json(found | {"added": added, "signers": signers})
    elif added:
        say(f"{bundle.path}: signed by key {key_id[:16]} as well, {len(signers)} signatures")
    else:
        say(f"{bundle.path}: key {key_id[:16]} had signed it already, nothing was changed")
