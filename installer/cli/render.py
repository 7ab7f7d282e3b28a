"""``installer render``: what would be applied, for review, with no cluster needed.

What is printed may be mailed around. So the objects are read and written anew: what Secrets hold is
blanked by their structure, whatever way the chart wrote them, and everything else is searched for
the secrets of this site, since charts put passwords into ConfigMaps and URLs too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click
import yaml

from installer.cli.console import say
from installer.cli.open import TrustOptions, bundle_argument, open_at, trust_options
from installer.cli.run import site_option, state_folder_of, state_option
from installer.helm.images import read_objects
from installer.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

_BLANK = "***"
_LOGIN = re.compile(r"(?<=://)[^/?#\s]*:[^/?#\s]*(?=@)")
_WIDTH = 2**31 - 1
_BASE: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_BASE):  # type: ignore[misc]  # the C dumper is there or not only at run time
    """Writes text of several lines as people do."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write everything out."""
        del data
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


@click.command("render")
@bundle_argument
@trust_options
@site_option
@state_option
@click.option(
    "--kube-version",
    default="1.34.0",
    show_default=True,
    help="Version of Kubernetes to render for.",
)
def command(
    bundle: Path,
    trusted: TrustOptions,
    site_file: Path,
    state_folder: Path | None,
    kube_version: str,
) -> None:
    """Print the objects that BUNDLE's Helm makes of site.yaml; touch nothing.

    Every image in them is one of the bundle by digest, or this is refused with exit code 5; so is
    every image of hooks that only an upgrade has. The contents of Secrets are left out. The answer
    needs no cluster, so it can be reviewed before the visit.
    """
    from installer.deploy.cluster import ClusterInfo  # noqa: PLC0415
    from installer.deploy.context import looking  # noqa: PLC0415 (slow to import)
    from installer.deploy.harbor import HarborParts  # noqa: PLC0415
    from installer.deploy.release import HelmRelease  # noqa: PLC0415
    from installer.site.model import read_site  # noqa: PLC0415
    from installer.site.state import State  # noqa: PLC0415

    site = read_site(site_file)
    state = State(state_folder_of(site, state_folder))
    with (
        open_at(bundle, trusted, state) as verified,
        looking(verified, site, state, needed=("helm",)) as context,
    ):
        for release in site.releases:
            cluster = ClusterInfo(kube_version, ())
            installed = HelmRelease(context, cluster, release)
            found = installed.rendered()
            before = ""
            if release.harbor is not None:
                parts = HarborParts(context, release, release.harbor, installed, cluster)
                before = parts.rendered()
            objects = [
                text
                for part in (before, found.objects)
                for text in without_secrets(part, found.secrets)
            ]
            images = sorted({str(image.reference) for image in found.images})
            click.echo("".join(objects), nl=False)
            say(
                f"release {release.key}: {len(objects)} objects; all {len(images)} images, also "
                "those of an upgrade, are in the bundle, by digest:"
            )
            for image in images:
                say(f"  {image}")


def without_secrets(objects: str, secrets: Collection[str]) -> Iterator[str]:
    """Each object as YAML, without what Secrets hold and without the texts in ``secrets``.

    The keys of a Secret stay visible. Raises InvalidInput for what is not YAML.
    """
    for source, document in read_objects(objects):
        # The texts first: how YAML will quote them is then of no importance.
        shown = _redacted(_blanked(document), secrets)
        text = yaml.dump(shown, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH)
        yield f"---\n# Source: {source}\n{redact(text, secrets)}"


def _blanked(document: Any, kind: str = "") -> Any:
    if not isinstance(document, dict):
        return document
    kind = str(document.get("kind") or kind)
    if kind.endswith("List") and isinstance(document.get("items"), list):
        items = [_blanked(item, kind.removesuffix("List")) for item in document["items"]]
        return {**document, "items": items}
    if kind != "Secret":
        return document
    return {k: _keys(v) if k in ("data", "stringData") else v for k, v in document.items()}


def _keys(content: Any) -> Any:
    return dict.fromkeys(content, _BLANK) if isinstance(content, dict) else _BLANK


def _redacted(value: Any, secrets: Collection[str]) -> Any:
    if isinstance(value, dict):
        return {key: _redacted(child, secrets) for key, child in value.items()}
    if isinstance(value, list):
        return [_redacted(child, secrets) for child in value]
    return _LOGIN.sub(_BLANK, redact(value, secrets)) if isinstance(value, str) else value
