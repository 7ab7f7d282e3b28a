"""The command ``bundler``: what runs on the connected host, one verb a module."""

from __future__ import annotations

from typing import NoReturn

import click

from installer.cli.console import LazyGroup, run_group

VERBS = {
    "init": "Write a commented bundle.yaml to start from.",
    "schema": "Print a JSON Schema of bundle.yaml, for editors.",
    "keygen": "Make a passphrase-encrypted signing key and its public key.",
    "lock": "Resolve bundle.yaml to digests and sizes: bundle.lock.",
    "outdated": "Show what upstream has that is newer than the lock.",
    "diff": "Show what differs between two locks or two bundles.",
    "build": "Fetch everything that the lock names into one signed file.",
    "inspect": "Show what a bundle holds, as the site will see it.",
    "sign": "Add a signature to a finished bundle.",
    "trust": "Make and rotate a trust root of several keys.",
    "attach-signature": "Add a signature that openssl, cosign or an HSM made.",
}

cli = LazyGroup(
    "bundler",
    package=__name__,
    verbs=VERBS,
    help="Packs Harbor and all it needs into one signed file for an isolated site.",
)
click.version_option(package_name="harbor-airgap")(cli)


def main() -> NoReturn:
    """Entry point of the console script."""
    run_group(cli)
