"""``installer check``: use Harbor once as people will, and write the report that is handed over."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from installer.cli.console import output_option, print_json, print_table, say
from installer.cli.open import TrustOptions, open_at, trust_options
from installer.cli.run import site_option, state_folder_of, state_option
from installer.errors import AcceptanceFailed, InvalidInput

if TYPE_CHECKING:
    from installer.harbor.acceptance import Finding
    from installer.harbor.report import AcceptanceReport


@click.command("check")
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@trust_options
@site_option
@state_option
@click.option(
    "--report",
    "report_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the report here: HTML, or JSON for a name that ends in .json.",
)
@output_option
def command(
    bundle: Path | None,
    trusted: TrustOptions,
    site_file: Path,
    state_folder: Path | None,
    report_file: Path | None,
    output: str,
) -> int:
    """Use every Harbor of the site once, and say whether it works.

    In a project of its own, which is removed at the end: login, push and pull, scan on push,
    content trust, quota, a robot account, tag retention, audit log. With BUNDLE, which the site
    was installed from, the images that run are compared with it as well.

    Exit code 0: nothing failed. 8: something failed. 2: site.yaml is wrong. 3: the bundle is not
    trusted. 130: interrupted; the project is removed all the same.
    """
    from installer.deploy.acceptance import Checked, accept, keep  # noqa: PLC0415 (slow to import)
    from installer.deploy.context import looking  # noqa: PLC0415
    from installer.site.model import read_site  # noqa: PLC0415
    from installer.site.state import State  # noqa: PLC0415

    if bundle is None and trusted != TrustOptions(None, None):
        raise InvalidInput(
            "BUNDLE and --key belong together", hint="give both, or neither to check Harbor alone"
        )
    site = read_site(site_file)
    state = State(state_folder_of(site, state_folder))
    with ExitStack() as stack:
        context, name = None, ""
        if bundle is not None:
            anchor = trusted.at(state)
            name = Path(anchor.name).name
            verified = stack.enter_context(open_at(bundle, anchor, state))
            context = stack.enter_context(looking(verified, site, state))
        stack.enter_context(state.held())
        told = _Told(silent=output == "json")
        report = accept(Checked(site, state, context, name, told.watch, told.found))
        if context is not None:
            keep(state, report)
    if report_file is not None:
        _write(report_file, report)
    if output == "json":
        print_json(msgspec.to_builtins(report))
    else:
        _show(report)
        if report_file is not None:
            say(f"report: {report_file}")
    return AcceptanceFailed.exit_code if report.failed else 0


class _Told:
    """Tells the person what is being checked, as it goes on."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent

    def watch(self, title: str) -> None:
        """Say what comes next."""
        if not self._silent:
            say(f"  …        {title}")

    def found(self, finding: Finding) -> None:
        """Say how it is."""
        if not self._silent:
            say(f"  {finding.state:11} {finding.title}")


def _write(path: Path, report: AcceptanceReport) -> None:
    from installer.harbor.report import as_html, as_json  # noqa: PLC0415 (slow to import)

    data = as_json(report) if path.suffix == ".json" else as_html(report)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InvalidInput(
            f"{path}: {error.strerror}", hint="--report takes a file in a folder that is there"
        ) from error


def _show(report: AcceptanceReport) -> None:
    rows, title = [], ""
    for section in report.sections:
        for one in section.findings:
            text = f"{one.text}\n-> {one.hint}" if one.hint else one.text
            rows.append(
                (section.title if section.title != title else "", one.title, one.state, text)
            )
            title = section.title
    print_table(f"site {report.site}", ("part", "what", "state", "seen"), rows)
    click.echo(report.verdict)
