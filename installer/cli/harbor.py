"""``installer harbor``: what is set inside of Harbor, compared with site.yaml or made so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from installer.cli.console import output_option, print_json, print_table, progress, say
from installer.cli.run import site_option, state_folder_of, state_option
from installer.errors import AcceptanceFailed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from installer.harbor.settings.change import Change, Remark
    from installer.harbor.settings.target import Target
    from installer.site.state import State

release_option = click.option(
    "--release",
    "key",
    metavar="NAMESPACE/NAME",
    default="",
    help="Of several Harbors, which one.",
)


@click.group("harbor")
def command() -> None:
    """Compare what is set inside of Harbor with site.yaml, or make it so."""


@command.command("diff")
@site_option
@state_option
@release_option
@output_option
def diff(site_file: Path, state_folder: Path | None, key: str, output: str) -> int:
    """Show what `installer harbor apply` would change; change nothing.

    Harbor is asked at its external URL as admin, with the password that the state folder has or
    harbor.adminPasswordFile names. What is there and not in the file is listed as well.

    Exit code 0: Harbor is as site.yaml says. 8: it differs. 5: the password is wrong, or Harbor
    lacks an option. 6: it does not answer.
    """
    from installer.harbor.settings.engine import AREAS, compare  # noqa: PLC0415 (slow to import)

    target, _ = _target(site_file, state_folder, key)
    with target.client, progress("comparing", len(AREAS), items=True) as advance:
        found = compare(target, lambda: advance(1))
    if output == "json":
        print_json(
            {"harbor": target.client.url, "version": str(target.version)}
            | _document(found.changes, found.remarks)
        )
    else:
        _show(f"Harbor {target.version} at {target.client.url}", found.changes)
        _remark(found.remarks)
        count = len(found.changes)
        click.echo(f"{count} to change" if count else "nothing to change")
    return AcceptanceFailed.exit_code if found.changes else 0


@command.command("apply")
@site_option
@state_option
@release_option
@output_option
def apply(site_file: Path, state_folder: Path | None, key: str, output: str) -> None:
    """Make Harbor as site.yaml says: compare, change what differs, read it again.

    Run it again after an interruption. What is there and not in the file is left alone, and said.
    Secrets that Harbor makes for robots are written into files that only their owner reads.

    Exit code 2: site.yaml is wrong. 5: refused, nothing was changed. 6: Harbor does not answer.
    7: Harbor refused, or did not take it.
    """
    from installer.harbor.settings.engine import apply as make_so  # noqa: PLC0415

    target, state = _target(site_file, state_folder, key)

    def observe(change: Change) -> None:
        state.journal.append("setting", text=change.sentence)
        if output == "table":
            say(f"  {change.sentence}")
            for line in change.lines:
                say(f"      {line}")

    with state.held(), target.client:
        done = make_so(target, observe)
    if output == "json":
        print_json(
            {"harbor": target.client.url, "version": str(target.version)}
            | _document(done.changes, done.remarks)
            | {"notes": list(done.notes)}
        )
        return
    for note in done.notes:
        click.echo(note)
    _remark(done.remarks)
    count = len(done.changes)
    click.echo(f"{count} changed" if count else "nothing to do: Harbor is as site.yaml says")


@command.command("renew-secret")
@click.argument("robot", metavar="[PROJECT+]ROBOT")
@site_option
@state_option
@release_option
def renew_secret(robot: str, site_file: Path, state_folder: Path | None, key: str) -> None:
    """Let Harbor make a new secret for a robot of site.yaml, and write it into its file.

    Whoever uses the old one is locked out from then on.
    """
    from installer.harbor.settings import robots  # noqa: PLC0415 (slow to import)

    target, state = _target(site_file, state_folder, key)
    with state.held(), target.client:
        click.echo(robots.renew_secret(target, robot))
        state.journal.append("setting", text=f"renew the secret of robot {robot}")


def _target(site_file: Path, state_folder: Path | None, key: str) -> tuple[Target, State]:
    from installer.deploy.harbor_access import access_to, harbor_of  # noqa: PLC0415
    from installer.deploy.settings import target_of  # noqa: PLC0415
    from installer.site.model import read_site  # noqa: PLC0415
    from installer.site.section import check_paths  # noqa: PLC0415
    from installer.site.state import State  # noqa: PLC0415

    site = read_site(site_file)
    release, harbor = harbor_of(site, key)
    check_paths(harbor.settings, "harbor.settings")
    state = State(state_folder_of(site, state_folder))
    client = access_to(site, state, release.key).client()
    return target_of(client, release, harbor, state), state


def _show(title: str, changes: Sequence[Change]) -> None:
    rows = [
        [change.sentence if number == 0 else "", line.key, line.before, line.after]
        for change in changes
        for number, line in enumerate(change.lines)
    ]
    if rows:
        print_table(title, ["what", "key", "now", "site.yaml"], rows)
    else:
        click.echo(title)


def _remark(remarks: Sequence[Remark]) -> None:
    for remark in remarks:
        click.echo(f"  {remark.text}")


def _document(changes: Sequence[Change], remarks: Sequence[Remark]) -> dict[str, Any]:
    return {
        "changes": [
            {
                "what": change.what,
                "new": change.new,
                "differences": [
                    {"key": line.key, "now": line.before, "wanted": line.after}
                    for line in change.lines
                ],
            }
            for change in changes
        ],
        "remarks": [remark.text for remark in remarks],
    }
