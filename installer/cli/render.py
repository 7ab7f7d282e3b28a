"""``installer render``: what would be applied, for review, with no cluster needed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from installer.cli.console import say
from installer.cli.open import bundle_argument, key_option, open_verified
from installer.cli.run import site_option, state_folder_of, state_option

if TYPE_CHECKING:
    from pathlib import Path

_SECRET = re.compile(r"^kind:\s*['\"]?Secret['\"]?\s*$", re.MULTILINE)
_CONTENT = re.compile(r"^(data|stringData):.*?(?=^\S|\Z)", re.MULTILINE | re.DOTALL)


@click.command("render")
@bundle_argument
@key_option
@site_option
@state_option
@click.option(
    "--kube-version",
    default="1.34.0",
    show_default=True,
    help="Version of Kubernetes to render for.",
)
def command(
    bundle: Path, key_file: Path, site_file: Path, state_folder: Path | None, kube_version: str
) -> None:
    """Print the objects that BUNDLE's Helm makes of site.yaml; touch nothing.

    Every image in them is one of the bundle by digest, or this is refused with exit code 5. The
    contents of Secrets are left out. The answer needs no cluster, so it can be reviewed before the
    visit.
    """
    from installer.deploy.context import looking  # noqa: PLC0415 (slow to import)
    from installer.deploy.preflight import ClusterInfo  # noqa: PLC0415
    from installer.deploy.release import HelmRelease  # noqa: PLC0415
    from installer.helm.images import find_images  # noqa: PLC0415
    from installer.site.model import read_site  # noqa: PLC0415
    from installer.site.state import State  # noqa: PLC0415

    site = read_site(site_file)
    state = State(state_folder_of(site, state_folder))
    with (
        open_verified(bundle, key_file) as verified,
        looking(verified, site, state, needed=("helm",)) as context,
    ):
        for release in site.releases:
            objects = HelmRelease(context, ClusterInfo(kube_version, ()), release).rendered()
            images = {str(found.reference) for found in find_images(objects)}
            click.echo(without_secrets(objects))
            say(
                f"release {release.key}: {objects.count('# Source:')} objects; "
                f"all {len(images)} images are in the bundle, by digest:"
            )
            for image in sorted(images):
                say(f"  {image}")


def without_secrets(objects: str) -> str:
    """Leave out what Secrets hold; their names and keys' existence stay visible."""
    documents = re.split(r"^---\s*$", objects, flags=re.MULTILINE)
    return "---".join(
        _CONTENT.sub(r"\1: {}  # left out\n", document) if _SECRET.search(document) else document
        for document in documents
    )
