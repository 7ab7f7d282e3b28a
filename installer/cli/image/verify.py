"""``installer image verify``: whether an image is signed with a key, and how."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from installer.cli.console import output_option, print_json, say
from installer.cli.image.reach import harbor_options
from installer.cli.open import read_key
from installer.oci import signatures
from installer.oci.cosign import SigningIdentity

if TYPE_CHECKING:
    from collections.abc import Callable

    from installer.deploy.harbor_access import HarborAccess


@click.command("verify")
@click.argument("reference", metavar="REF")
@click.option("--key", "key_file", required=True, type=click.Path(path_type=Path))
@harbor_options
@output_option
def command(
    reference: str, key_file: Path, reach: Callable[[str], HarborAccess], output: str
) -> None:
    """Check that REF is signed with the key whose public half is given; signs of cosign count.

    Harbor's own content trust only looks whether there is something that looks like a signature.

    Exit code 3: not signed, or not with this key. 6: Harbor can't be reached.
    """
    access = reach(reference)
    wanted = access.reference(reference)
    identity = SigningIdentity.parse(read_key(key_file), str(key_file))
    with access.registry() as registry:
        digest = access.digest(registry, wanted)
        held = signatures.verify(registry, wanted.path, digest, identity)
    name = f"{wanted.repository}@{digest}"
    forms = list(dict.fromkeys(one.form for one in held))
    if output == "json":
        print_json({"image": name, "keyId": identity.key_id, "forms": forms})
    else:
        click.echo(name)
        say(f"signed with key {identity.key_id[:16]} ({', '.join(forms)})")
