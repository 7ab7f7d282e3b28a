"""``bundler diff``: what the next bundle has that the last one had not."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bundler.difference import blob_bytes, changes
from bundler.lock import Lock, read_lock
from installer.bundle.digest import Digest
from installer.cli.console import output_option, print_json, print_table, size_text
from installer.cli.open import TrustOptions, open_verified
from installer.errors import InvalidInput
from installer.helm.chart import ChartArchive
from installer.helm.difference import changed_values, summary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bundler.difference import Change
    from bundler.rendered_difference import ObjectChanges
    from installer.bundle.archive import VerifiedBundle

_SHORT = 12
_side = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command("diff")
@click.argument("old", type=_side)
@click.argument("new", type=_side)
@click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path),
    help="Public key of the bundles; locks need none.",
)
@click.option("--objects", is_flag=True, help="Render charts that changed: which objects differ.")
@output_option
def command(old: Path, new: Path, key_file: Path | None, output: str, *, objects: bool) -> None:
    """Show what NEW has and OLD has not, and the other way round: two locks or two bundles.

    Of bundles also which default values of a chart are new (+), gone (-) or others (~): what
    a site.yaml may have to follow. With --objects both versions are rendered by the Helm of NEW,
    with each profile that both have.
    """
    with ExitStack() as stack:
        sides = [_open(path, key_file, stack) for path in (old, new)]
        before, after = (side if isinstance(side, Lock) else side.manifest for side in sides)
        found, sizes = changes(before, after), blob_bytes(before, after)
        values = _values(found, *sides)
        rendered = _rendered(found, *sides) if objects else []
    if output == "json":
        rows = [c._asdict() | {"change": c.word} for c in found]
        made = {"objects": [one._asdict() for one in rendered]} if objects else {}
        print_json({"changes": rows, "bytes": sizes._asdict(), "values": values} | made)
        return
    if found:
        print_changes(found)
    for chart, paths in values.items():
        click.echo(f"\ndefault values of chart {chart}:")
        for path in paths:
            click.echo(f"  {path}")
    for one in rendered:
        what = f"\nobjects of chart {one.chart}, profile {one.profile}"
        click.echo(summary(what, (one.added, one.removed, one.changed)))
        if one.random:
            click.echo(f"  others at each rendering, not compared: {', '.join(one.random)}")
    click.echo(
        f"{'' if found else 'the same artefacts; '}{size_text(sizes.new)} are new, "
        f"{size_text(sizes.same)} the same, {size_text(sizes.gone)} gone"
    )


def print_changes(found: Sequence[Change]) -> None:
    """Show them as a table."""
    rows = [
        [change.word, change.kind, change.name, " → ".join(filter(None, _versions(change)))]
        for change in found
    ]
    print_table("changes", ["change", "kind", "name", "version"], rows)


def _versions(change: Change) -> tuple[str, str]:
    if change.was != change.will:
        return change.was, change.will
    before, after = (
        f"{Digest.parse(digest).hex[:_SHORT]}" if digest else ""
        for digest in (change.before, change.after)
    )
    return f"{change.was} {before}".strip(), after


def _open(path: Path, key_file: Path | None, stack: ExitStack) -> Lock | VerifiedBundle:
    with path.open("rb") as file:
        begins = file.read(1)
    if begins == b"{":
        return read_lock(path)
    if key_file is None:
        raise InvalidInput(
            f"{path}: not a bundle.lock, and to open a bundle its key is needed",
            hint="name the public key with --key release.pub",
        )
    return stack.enter_context(open_verified(path, TrustOptions(key_file, None)))


def _values(
    found: Sequence[Change], old: Lock | VerifiedBundle, new: Lock | VerifiedBundle
) -> dict[str, list[str]]:
    """Changed default values by chart; a lock does not have the charts' files."""
    if isinstance(old, Lock) or isinstance(new, Lock):
        return {}
    return {
        change.name: list(
            changed_values(_defaults(old, change.before), _defaults(new, change.after))
        )
        for change in found
        if change.kind == "chart" and change.word == "changed"
    }


def _rendered(
    found: Sequence[Change], old: Lock | VerifiedBundle, new: Lock | VerifiedBundle
) -> list[ObjectChanges]:
    if isinstance(old, Lock) or isinstance(new, Lock):
        raise InvalidInput(
            "--objects needs two bundles: a lock does not have the charts",
            hint="build the bundles, or leave --objects out",
        )
    from bundler.rendered_difference import rendered_changes  # noqa: PLC0415 (seldom needed)

    charts = [c for c in found if c.kind == "chart" and c.word == "changed"]
    return rendered_changes(old, new, charts)


def _defaults(bundle: VerifiedBundle, digest: str) -> dict[str, Any]:
    chart = next(chart for chart in bundle.manifest.charts if chart.digest == digest)
    path = Digest(chart.sha256).blob_path
    if bundle.find(path) is None:
        return {}  # a delta leaves out what the site has
    return ChartArchive.read(bundle.read(path), chart.name).values
