"""``installer image sign``: a signature that Harbor and cosign count."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from installer import keys
from installer.cli.console import output_option, passphrase, print_json, say
from installer.cli.image.keygen import PASSPHRASE_VARIABLE
from installer.cli.image.reach import harbor_options
from installer.oci import signatures

if TYPE_CHECKING:
    from collections.abc import Callable

    from installer.deploy.harbor_access import HarborAccess


@click.command("sign")
@click.argument("reference", metavar="REF")
@click.option("--key", "key_file", required=True, type=click.Path(path_type=Path))
@click.option("--passphrase-file", help=f"Else {PASSPHRASE_VARIABLE}, else asked.")
@harbor_options
@output_option
def command(
    reference: str,
    key_file: Path,
    passphrase_file: str | None,
    reach: Callable[[str], HarborAccess],
    output: str,
) -> None:
    """Sign the image REF in Harbor with the private key, as cosign does.

    Both of cosign's forms are written: the older one is what every Harbor counts as a signature.
    Of an image for several platforms each is signed. Signing again changes nothing.

    Exit code 2: the key or the name is wrong. 6: Harbor refused, or can't be reached.
    """
    access = reach(reference)
    wanted = access.reference(reference)
    key = keys.load(key_file, passphrase(passphrase_file, PASSPHRASE_VARIABLE, confirm=False))
    with access.registry() as registry:
        digest = access.digest(registry, wanted)
        done = signatures.sign(registry, wanted.path, digest, key)
    name = f"{wanted.repository}@{digest}"
    if output == "json":
        print_json(
            {
                "image": name,
                "keyId": key.public.key_id,
                "signed": [str(one) for one in done.made],
                "unchanged": [str(one) for one in done.there],
                "withoutBundle": [str(one) for one in done.without_bundle],
            }
        )
        return
    click.echo(name)
    said = f"{len(done.made)} signed" if done.made else "signed before"
    say(f"{said} with key {key.public.key_id[:16]}; check it: installer image verify --key PUB")
    if done.without_bundle:
        say(
            f"warning: {len(done.without_bundle)} only in the older form: "
            "a policy of the project keeps the manifest back"
        )
