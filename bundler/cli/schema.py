"""``bundler schema``: a JSON Schema of bundle.yaml, for editors."""

from __future__ import annotations

import click

from bundler.spec_document import BundleSpec
from installer.cli.console import print_json
from installer.schema import json_schema


@click.command("schema")
def command() -> None:
    """Print a JSON Schema of bundle.yaml.

    Keep it as bundle.schema.json and write `# yaml-language-server: $schema=bundle.schema.json` as
    the first line of the file: the editor completes keys and marks wrong ones.
    """
    print_json(json_schema(BundleSpec, "bundle.yaml of the Harbor air-gap bundler"))
