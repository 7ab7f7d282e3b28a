"""``installer uninstall``: asks, keeps data unless told, lists what remains."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click
import msgspec

from installer.cli.console import output_option, print_json, print_table, say
from installer.cli.open import TrustOptions, bundle_argument, open_at, trust_options
from installer.cli.run import _Progress, site_option, state_folder_of, state_option
from installer.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from installer.deploy.removal import Remains
    from installer.deploy.uninstall import Outlook

_DATA = "delete data"


@click.command("uninstall")
@bundle_argument
@trust_options
@site_option
@state_option
@click.option(
    "--release",
    "releases",
    metavar="NAMESPACE/NAME",
    multiple=True,
    help="Only this release of site.yaml; may be repeated.  [default: all of them]",
)
@click.option("--delete-data", is_flag=True, help="Delete claims and volumes in the cluster too.")
@click.option("--yes", is_flag=True, help="Ask nothing.")
@output_option
def command(
    bundle: Path,
    trusted: TrustOptions,
    site_file: Path,
    state_folder: Path | None,
    releases: Sequence[str],
    output: str,
    *,
    delete_data: bool,
    yes: bool,
) -> None:
    """Take away what was installed; data stays, and what remains is listed.

    It shows what it would do and asks for the site's name. Run it again after an interruption: it
    does what is not done yet. `installer run` with the same site.yaml brings everything back.

    Exit code 2: not confirmed, nothing was changed. 3: not trusted. 5: refused, nothing was
    changed. 6: disk. 7: Helm, HAProxy or the cluster refused.
    """
    from installer.deploy.uninstall import Request, plan, uninstall  # noqa: PLC0415 (slow to import)
    from installer.site.model import read_site  # noqa: PLC0415
    from installer.site.state import State  # noqa: PLC0415

    start = time.monotonic()
    site = read_site(site_file)
    state = State(state_folder_of(site, state_folder))
    with open_at(bundle, trusted, state) as verified:
        request = Request(verified, site, state, tuple(releases), delete_data)
        if not yes:
            _confirm(site.name, plan(request))
        outcome = uninstall(request, _Progress(silent=output == "json"))
    if output == "json":
        print_json(
            {
                "site": site.name,
                "bundle": str(verified.digest),
                "state": str(state.folder),
                "changed": outcome.report.changed,
                "unchanged": outcome.report.unchanged,
                "notes": outcome.report.notes,
                "remains": msgspec.to_builtins(outcome.remains),
                "seconds": round(time.monotonic() - start, 1),
            }
        )
        return
    _show(f"what remains of site {site.name}", outcome.remains)


def _confirm(site: str, outlook: Outlook) -> None:
    """Show what would be done and ask; raises InvalidInput when it isn't what was meant."""
    for item in outlook.planned:
        say(f"  {'already' if item.done else 'to do':8} {item.step.sentence}")
    for line in outlook.deleted:
        say(f"  goes     {line}")
    for row in outlook.remains:
        say(f"  stays    {row.what} {row.where}: {row.note}")
    if all(item.done for item in outlook.planned):
        return
    if not sys.stdin.isatty():
        raise InvalidInput(
            "nothing was changed: there is no terminal to ask on",
            hint="look at what would be done, then add --yes",
        )
    _ask(site, f"Type the name of the site ({site}) to take it away")
    if outlook.deleted:
        _ask(_DATA, f"Type `{_DATA}` to delete what goes as well")


def _ask(wanted: str, question: str) -> None:
    if click.prompt(question, default="", show_default=False, err=True).strip() != wanted:
        raise InvalidInput("nothing was changed: that was something else")


def _show(title: str, remains: Sequence[Remains]) -> None:
    print_table(title, ("what", "where", "note"), [(r.what, r.where, r.note) for r in remains])
