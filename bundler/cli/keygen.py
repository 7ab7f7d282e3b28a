"""``bundler keygen``: a key pair for signing bundles."""

from __future__ import annotations

from pathlib import Path

import click

from installer.cli.console import passphrase, say
from installer.keys import write_pair

PASSPHRASE_VARIABLE = "BUNDLER_PASSPHRASE"  # noqa: S105 (a variable's name)


@click.command("keygen")
@click.option("--out", default="release.key", type=click.Path(path_type=Path), show_default=True)
@click.option("--passphrase-file", help=f"Else {PASSPHRASE_VARIABLE}, else asked twice.")
def command(out: Path, passphrase_file: str | None) -> None:
    """Make a passphrase-encrypted P-256 key (OUT) and its public key (.pub beside it)."""
    public, key = write_pair(
        out, lambda: passphrase(passphrase_file, PASSPHRASE_VARIABLE, confirm=True)
    )
    say(
        f"{out}: private key, encrypted; keep it and its passphrase apart\n"
        f"{public}: public key, key id {key.public.key_id[:16]}; "
        "give it to the sites over another way than the bundle"
    )
