"""``installer undo``: back to what Harbor was before its last upgrade, with its database."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from installer.cli.console import output_option, print_json, progress, say
from installer.cli.open import TrustOptions, bundle_argument, open_verified, trust_options
from installer.cli.run import _Progress, own_command, site_option, state_folder_of, state_option
from installer.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path


@click.command("undo")
@bundle_argument
@trust_options
@site_option
@state_option
@click.option("--release", "key", default="", help="NAMESPACE/NAME, where there are several.")
@click.option("--plan", "only_plan", is_flag=True, help="Show what would be done; touch nothing.")
@click.option("--yes", is_flag=True, help="Do it without asking.")
@output_option
def command(
    bundle: Path,
    trusted: TrustOptions,
    site_file: Path,
    state_folder: Path | None,
    key: str,
    output: str,
    *,
    only_plan: bool,
    yes: bool,
) -> None:
    """Return to BUNDLE, the one from before the last upgrade, and to the database of then.

    What was pushed or changed since the upgrade is lost. Run it again after an interruption.

    Exit code 5: refused, nothing was changed. 7: Helm or the cluster refused.
    """
    from installer.deploy import undo  # noqa: PLC0415 (slow to import)
    from installer.deploy.request import Request  # noqa: PLC0415
    from installer.site.model import read_site  # noqa: PLC0415
    from installer.site.state import State  # noqa: PLC0415

    start = time.monotonic()
    site = read_site(site_file)
    state = State(state_folder_of(site, state_folder))
    pem = trusted.at(state)
    with open_verified(bundle, pem, state.time(datetime.now(UTC))) as verified:
        request = Request(verified, site, state, pem, own_command(), undo.REASON, progress)
        back = undo.find(request, key)
        if back is None:
            if output == "json":
                print_json({"site": site.name, "changed": []})
            else:
                click.echo("nothing to undo: it is what the bundle has")
            return
        planned = undo.plan(request, back)
        if output == "table" or not yes:
            say(back.sentence)
            for item in planned:
                say(f"  {'already' if item.done else 'to do':8} {item.step.sentence}")
        if only_plan:
            if output == "json":
                steps = [
                    {"step": p.step.name, "does": p.step.sentence, "done": p.done} for p in planned
                ]
                print_json({"steps": steps, "does": back.sentence})
            return
        if not yes:
            if not sys.stdin.isatty():
                raise InvalidInput("nobody is there to be asked", hint="say --yes to do it")
            click.confirm("Do it?", abort=True, err=True)
        report = undo.run(request, back, _Progress(silent=output == "json"))
        seconds = time.monotonic() - start
        if output == "json":
            print_json(
                {
                    "site": site.name,
                    "release": back.release.key,
                    "chart": back.snapshot.chart,
                    "database": back.snapshot.time,
                    "changed": report.changed,
                    "unchanged": report.unchanged,
                    "notes": report.notes,
                    "seconds": round(seconds, 1),
                }
            )
        else:
            click.echo(f"{back.release.key} is {back.snapshot.chart} again, {seconds:.0f} s")
