"""``installer status``: how the site is, for people in one table and for programs in one list."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from installer.cli.console import output_option, print_json, print_table
from installer.cli.open import TrustOptions, bundle_argument, open_at, trust_options
from installer.cli.run import site_option, state_folder_of, state_option
from installer.errors import AcceptanceFailed, PreflightFailed

if TYPE_CHECKING:
    from pathlib import Path

    from installer.deploy.status.line import Status


@click.command("status")
@bundle_argument
@trust_options
@site_option
@state_option
@output_option
def command(
    bundle: Path, trusted: TrustOptions, site_file: Path, state_folder: Path | None, output: str
) -> int:
    """Show how the site is that was installed from BUNDLE; changes nothing.

    Everything is asked anew: the seed registry, the cluster, Harbor and its certificate as they
    are served. It takes less than a minute, also when nothing answers.

    Exit code 0: nothing failed, there may be warnings. 8: something failed. 5: the cluster can't
    be reached. 3: the bundle is not trusted.
    """
    from installer.deploy.context import looking  # noqa: PLC0415 (slow to import)
    from installer.deploy.status import look  # noqa: PLC0415
    from installer.site.authority import utc_now  # noqa: PLC0415
    from installer.site.model import read_site  # noqa: PLC0415
    from installer.site.state import State  # noqa: PLC0415

    site = read_site(site_file)
    state = State(state_folder_of(site, state_folder))
    with (
        open_at(bundle, trusted, state) as verified,
        looking(verified, site, state) as context,
    ):
        status = look(context, utc_now())
    if output == "json":
        print_json(msgspec.to_builtins(status.lines))
    else:
        _show(site.name, status)
    return exit_code(status)


def exit_code(status: Status) -> int:
    """What scripts are told, in the words of the other commands' errors."""
    if not status.reachable:
        return PreflightFailed.exit_code
    return AcceptanceFailed.exit_code if status.failed else 0


def _show(site: str, status: Status) -> None:
    rows, group = [], ""
    for line in status.lines:
        text = f"{line.text}\n-> {line.hint}" if line.hint else line.text
        rows.append((line.group if line.group != group else "", line.name, line.state, text))
        group = line.group
    print_table(f"site {site}", ("part", "what", "state", "found"), rows)
    warnings = sum(line.state == "warning" for line in status.lines)
    click.echo(f"of {len(rows)} lines, failed: {len(status.failed)}, warnings: {warnings}")
