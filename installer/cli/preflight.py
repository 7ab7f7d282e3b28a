"""``installer preflight``: would a run succeed here? All that is known before it, in one table."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from installer.cli.console import output_option, print_json, print_table, progress
from installer.cli.open import TrustOptions, bundle_argument, open_verified, trust_options
from installer.cli.run import (
    downgrade_option,
    own_command,
    site_option,
    state_folder_of,
    state_option,
)

if TYPE_CHECKING:
    from pathlib import Path

    from installer.deploy.preflight.verdict import Check


@click.command("preflight")
@bundle_argument
@trust_options
@site_option
@state_option
@click.option(
    "--pull",
    is_flag=True,
    help="Let every node pull an image and a pod look up externalURL: makes pods in a namespace "
    "of their own, and removes it. The seed registry has to be there.",
)
@downgrade_option
@output_option
def command(
    bundle: Path,
    trusted: TrustOptions,
    site_file: Path,
    state_folder: Path | None,
    downgrade: str,
    output: str,
    *,
    pull: bool,
) -> int:
    """Check all that `run` of BUNDLE needs here, and say what to do where it lacks.

    Nothing is changed, but for the pods of --pull. `run` makes the same checks before it begins
    and stops if one failed.

    Exit code 0: nothing failed, there may be warnings. Else that of the first failed check, as a
    run would give it: 2 for an input file, 5 for the machine and the cluster. 3: not trusted.
    """
    from installer.deploy.deployment import preflight  # noqa: PLC0415
    from installer.deploy.preflight.verdict import refusal  # noqa: PLC0415 (slow to import)
    from installer.deploy.request import Request  # noqa: PLC0415
    from installer.site.model import read_site  # noqa: PLC0415
    from installer.site.state import State  # noqa: PLC0415

    start = time.monotonic()
    site = read_site(site_file)
    state = State(state_folder_of(site, state_folder))
    key = trusted.at(state)
    with open_verified(bundle, key, state.time(datetime.now(UTC))) as verified:
        request = Request(verified, site, state, key, own_command(), downgrade.strip(), progress)
        checks = preflight(request, pull=pull)
    seconds = time.monotonic() - start
    if output == "json":
        print_json(_document(site.name, checks, seconds))
    else:
        _show(site.name, checks, seconds)
        click.echo("what was made for --pull is gone again" if pull else "nothing was changed")
    error = refusal(checks)
    return error.exit_code if error else 0


def _count(checks: tuple[Check, ...], state: str) -> int:
    return sum(check.state == state for check in checks)


def _document(site: str, checks: tuple[Check, ...], seconds: float) -> dict[str, Any]:
    return {
        "site": site,
        "checks": [
            {"name": one.name, "state": one.state, "text": one.text, "hint": one.hint}
            for one in checks
        ],
        "failed": _count(checks, "failed"),
        "warnings": _count(checks, "warning"),
        "seconds": round(seconds, 1),
    }


def _show(site: str, checks: tuple[Check, ...], seconds: float) -> None:
    rows = [
        (one.name, one.state, f"{one.text}\n-> {one.hint}" if one.hint else one.text)
        for one in checks
    ]
    print_table(f"site {site}", ("check", "state", "found"), rows)
    failed, warnings = _count(checks, "failed"), _count(checks, "warning")
    click.echo(f"{len(checks)} checks in {seconds:.1f} s: {failed} failed, {warnings} warnings")
