"""The command ``installer``: what runs on the isolated site, one verb a module."""

from __future__ import annotations

from typing import NoReturn

import click

from installer.cli.console import LazyGroup, run_group

VERBS = {
    "verify": "Check signature, headers and every byte of a bundle.",
    "inspect": "Show what is inside a bundle whose signature holds.",
    "site": "Write a site.yaml to start from; print its schema; show its secrets.",
    "serve": "Serve a bundle as a read-only registry, straight from the file.",
    "render": "Print the objects that would be applied, for review; needs no cluster.",
    "preflight": "Check whether a run would succeed here; changes nothing.",
    "run": "Verify, seed, deploy and check: the whole installation.",
    "image": "Push, sign, verify and scan images in Harbor.",
    "check": "Use Harbor once as people will, and write the report that is handed over.",
    "undo": "Return to the release and database from before the last upgrade.",
    "harbor": "Compare what is set inside of Harbor with site.yaml, or make it so.",
    "status": "Show how the site is; changes nothing.",
    "uninstall": "Take away what was installed; data stays unless told otherwise.",
    "trust": "Import, show or update the trust root of a site.",
    "receipt": "Say what this site has and has accepted, to be carried back.",
    "support-bundle": "Collect what somebody elsewhere needs to help, without the secrets.",
}

cli = LazyGroup(
    "installer",
    package=__name__,
    verbs=VERBS,
    help="Installs Harbor on an isolated site from one signed file.",
)
click.version_option(package_name="harbor-airgap")(cli)


def main() -> NoReturn:
    """Entry point of the console script."""
    run_group(cli)
