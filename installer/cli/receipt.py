"""``installer receipt``: what this site has and has accepted, to be carried back."""

from __future__ import annotations

from pathlib import Path

import click

from installer.bundle.receipt import encode_receipt
from installer.cli.console import say
from installer.cli.run import site_option, state_folder_of, state_option
from installer.errors import InvalidInput


@click.command("receipt")
@site_option
@state_option
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write it here.  [default: standard output]"
)
def command(site_file: Path, state_folder: Path | None, out: Path | None) -> None:
    """Say which blobs this site has, which bundles it accepted, and each downgrade with its reason.

    `bundler build --since` makes a bundle of it that leaves out what the site has. It has names and
    digests, no secrets.
    """
    from installer.site.model import read_site  # noqa: PLC0415 (slow to import)
    from installer.site.private import write_file  # noqa: PLC0415
    from installer.site.state import State  # noqa: PLC0415

    site = read_site(site_file)
    receipt = State(state_folder_of(site, state_folder)).receipt
    if receipt is None:
        raise InvalidInput(
            f"site {site.name} has not accepted a bundle yet",
            hint="`installer run` does, once it has verified one",
        )
    data = encode_receipt(receipt)
    if out is None:
        click.echo(data, nl=False)
    else:
        if out.exists():
            raise InvalidInput(f"{out} exists", hint="nothing is overwritten: choose another name")
        write_file(out, data, mode=0o644)
    say(
        f"site {receipt.site}: {len(receipt.blobs)} blobs, {len(receipt.bundles)} bundles, "
        f"{len(receipt.downgrades)} downgrades, as of {receipt.created}"
    )
