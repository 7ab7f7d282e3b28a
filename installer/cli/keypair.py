"""The verb ``keygen``, which both programs have: a private key under a passphrase, and its .pub."""

from __future__ import annotations

from pathlib import Path

import click

from installer.cli.console import passphrase, say
from installer.keys import write_pair


def keygen_command(out: str, variable: str, *, makes: str, then: str) -> click.Command:
    """The verb: ``out`` is the default file, ``variable`` one that may hold the passphrase.

    ``makes`` is its help, ``then`` what the public key is for.
    """

    @click.command("keygen", help=makes)
    @click.option("--out", default=out, type=click.Path(path_type=Path), show_default=True)
    @click.option("--passphrase-file", help=f"Else {variable}, else asked twice.")
    def command(out: Path, passphrase_file: str | None) -> None:
        public, key = write_pair(out, lambda: passphrase(passphrase_file, variable, confirm=True))
        say(
            f"{out}: private key, encrypted; keep it and its passphrase apart\n"
            f"{public}: public key, key id {key.public.key_id[:16]}; {then}"
        )

    return command
