"""``installer image keygen``: a key to sign images with."""

from __future__ import annotations

from pathlib import Path

import click

from installer.cli.console import passphrase, say
from installer.cli.image.reach import PASSPHRASE_VARIABLE
from installer.keys import write_pair


@click.command("keygen")
@click.option("--out", default="images.key", type=click.Path(path_type=Path), show_default=True)
@click.option("--passphrase-file", help=f"Else {PASSPHRASE_VARIABLE}, else asked twice.")
def command(out: Path, passphrase_file: str | None) -> None:
    """Make a passphrase-encrypted P-256 key (OUT) to sign images with, and its .pub."""
    public, key = write_pair(
        out, lambda: passphrase(passphrase_file, PASSPHRASE_VARIABLE, confirm=True)
    )
    say(
        f"{out}: private key, encrypted; keep it and its passphrase apart\n"
        f"{public}: public key, key id {key.public.key_id[:16]}; who pulls images verifies with it"
    )
