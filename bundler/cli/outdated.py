"""``bundler outdated``: what upstream has by now that the lock has not; nothing is written."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click

from bundler.cli.diff import print_changes
from bundler.cli.upstream import open_upstream, registry_config_option
from bundler.difference import changes
from bundler.lock import check_lock_fits, read_lock
from bundler.resolve import THREADS, resolve
from bundler.sources.chart import is_newer, newest_version
from bundler.spec import Spec
from installer.cli.console import output_option, print_json, print_table, say


@click.command("outdated")
@click.argument("spec_file", metavar="SPEC", type=click.Path(path_type=Path))
@click.option("--lock", "lock_file", type=click.Path(path_type=Path), help="Default: beside SPEC.")
@registry_config_option
@output_option
def command(
    spec_file: Path, lock_file: Path | None, registry_config: Path | None, output: str
) -> None:
    """Show newer versions of SPEC's charts, tags that have moved and databases that were renewed.

    The first need another version in SPEC, the others only `bundler lock`.
    """
    spec = Spec.load(spec_file)
    lock = read_lock(lock_file or spec_file.with_name("bundle.lock"))
    check_lock_fits(lock, spec)
    with (
        open_upstream(spec_file.parent, registry_config) as upstream,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        newest = list(pool.map(partial(newest_version, upstream), spec.document.charts))
        moved = changes(lock, resolve(spec, upstream, now=datetime.now(UTC), progress=say))
    locked = {chart.name: chart.version for chart in lock.charts}
    newer = [
        {"chart": chart.name, "version": chart.version or locked.get(chart.name, ""), "newest": new}
        for chart, new in zip(spec.document.charts, newest, strict=True)
        if new and is_newer(new, chart.version or locked.get(chart.name, ""))
    ]
    if output == "json":
        print_json({"newer": newer, "changes": [c._asdict() | {"change": c.word} for c in moved]})
        return
    if newer:
        print_table("newer charts", ["chart", "version", "newest"], [[*n.values()] for n in newer])
    if moved:
        print_changes(moved)
    if not newer and not moved:
        click.echo("everything is the newest that upstream has")
