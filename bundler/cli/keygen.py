"""``bundler keygen``: a key pair for signing bundles."""

from __future__ import annotations

from pathlib import Path

import click

from bundler.keys import generate, write_new
from installer.cli.console import passphrase, say
from installer.errors import InvalidInput

PASSPHRASE_VARIABLE = "BUNDLER_PASSPHRASE"  # noqa: S105 (a variable's name)


@click.command("keygen")
@click.option("--out", default="release.key", type=click.Path(path_type=Path), show_default=True)
@click.option("--passphrase-file", help=f"Else {PASSPHRASE_VARIABLE}, else asked twice.")
def command(out: Path, passphrase_file: str | None) -> None:
    """Make a passphrase-encrypted P-256 key (OUT) and its public key (.pub beside it)."""
    public = out.with_suffix(".pub")
    if public == out:
        raise InvalidInput(
            f"--out {out}: .pub is for the public key", hint="name the private key release.key"
        )
    for path in (out, public):
        if path.exists():
            raise InvalidInput(
                f"{path} exists", hint="keys are never overwritten: choose another --out"
            )
    secret = passphrase(passphrase_file, PASSPHRASE_VARIABLE, confirm=True)
    key, pem = generate(secret)
    write_new(out, pem, 0o600)
    try:
        write_new(public, key.public_pem(), 0o644)
    except InvalidInput:
        out.unlink()
        raise
    say(
        f"{out}: private key, encrypted; keep it and its passphrase apart\n"
        f"{public}: public key, key id {key.public.key_id[:16]}; "
        "give it to the sites over another way than the bundle"
    )
