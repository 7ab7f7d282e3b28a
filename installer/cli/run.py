"""``installer run``: one command from the file to a Harbor that works."""

from __future__ import annotations

import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from installer.cli.console import output_option, print_json, progress, say
from installer.cli.open import TrustOptions, bundle_argument, open_verified, trust_options

if TYPE_CHECKING:
    from installer.bundle.archive import VerifiedBundle
    from installer.deploy.plan import Planned, Report, Step
    from installer.deploy.preflight.verdict import Check
    from installer.site.model import Site

STATE = Path("/var/lib/harbor-airgap")

site_option = click.option(
    "--site",
    "site_file",
    required=True,
    type=click.Path(path_type=Path),
    help="What is particular to this site: site.yaml.",
)
state_option = click.option(
    "--state",
    "state_folder",
    type=click.Path(path_type=Path),
    help=f"Folder with the site's secrets, journal and tools.  [default: {STATE}/NAME]",
)

downgrade_option = click.option(
    "--allow-downgrade",
    "downgrade",
    metavar="REASON",
    default="",
    help="Use a bundle older than one seen here; the reason is recorded.",
)


@click.command("run")
@bundle_argument
@trust_options
@site_option
@state_option
@click.option("--plan", "only_plan", is_flag=True, help="Show what would be done; touch nothing.")
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
    only_plan: bool,
) -> None:
    """Install from BUNDLE what site.yaml says, and check that it works.

    Run it again after an interruption, or with the next bundle: it does what is not done yet.

    Exit code 3: not trusted. 4: corrupt. 5: refused, nothing was changed. 6: network or disk.
    7: Helm or the cluster refused. 8: deployed, but it does not work.
    """
    from installer.deploy.deployment import plan, run  # noqa: PLC0415 (slow to import)
    from installer.deploy.request import Request  # noqa: PLC0415
    from installer.site.model import read_site  # noqa: PLC0415
    from installer.site.state import State  # noqa: PLC0415

    start = time.monotonic()
    site = read_site(site_file)
    state = State(state_folder_of(site, state_folder))
    key = trusted.at(state)
    with open_verified(bundle, key, state.time(datetime.now(UTC))) as verified:
        warnings = _Warnings()
        request = Request(
            verified, site, state, key, own_command(), downgrade.strip(), progress, warnings
        )
        if output == "table":
            _introduce(verified, site)
        if only_plan:
            _show_plan(plan(request), warnings, output)
            return
        unfinished = state.journal.unfinished()
        if unfinished is not None and output == "table":
            say(
                f"a run stopped at {unfinished.time} in step {unfinished.step}: going on from there"
            )
        report = run(request, _Progress(silent=output == "json"))
        seconds = time.monotonic() - start
        if output == "json":
            print_json(
                _document(verified, site, state.folder, report, seconds) | warnings.document()
            )
        elif verified.manifest.only_databases:
            _tell_databases(site, report, seconds)
        else:
            _summarise(site, site_file, state.folder, report, seconds)


def state_folder_of(site: Site, chosen: Path | None) -> Path:
    """The folder that keeps a site's state: the chosen one, or the usual place by its name."""
    return (chosen or STATE / site.name).absolute()


def own_command() -> tuple[str, ...]:
    """How this very installer is started again: program and leading arguments."""
    if getattr(sys, "frozen", False):  # one file (bundler/loader/boot.py)
        return (sys.executable,)
    spec = sys.modules["__main__"].__spec__
    if spec is not None and spec.name != "__main__":  # python -m package, but not an archive
        return (sys.executable, "-m", spec.name.removesuffix(".__main__"))
    return (sys.executable, str(Path(sys.argv[0]).absolute()))


class _Warnings:
    """Shows what the preflight warns of, and keeps it for programs."""

    def __init__(self) -> None:
        self._checks: list[Check] = []

    def __call__(self, check: Check) -> None:
        self._checks.append(check)
        say(f"warning: {check.name}: {check.text}")
        if check.hint:
            say(f"hint: {check.hint}")

    def document(self) -> dict[str, Any]:
        """All of them, as part of what programs get."""
        found = [{"name": one.name, "text": one.text, "hint": one.hint} for one in self._checks]
        return {"warnings": found}


class _Progress:
    """Tells the person what happens while it happens."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent

    def _say(self, text: str) -> None:
        if not self._silent:
            say(text)

    def started(self, step: Step) -> None:
        """Say what is being applied, and what that changes."""
        from installer.deploy.plan import details  # noqa: PLC0415 (slow to import)

        for line in details(step):
            self._say(f"           {line}")
        self._say(f"  …        {step.sentence}")

    def finished(self, step: Step, note: str, *, changed: bool) -> None:
        """Say that it is done, with its note."""
        self._say(f"  {'done' if changed else 'already':8} {step.sentence}")
        if note:
            self._say(f"           {note}")


def _introduce(bundle: VerifiedBundle, site: Site) -> None:
    manifest = bundle.manifest
    say(
        f"{manifest.name} serial {manifest.serial} of channel {manifest.channel}, "
        f"created {manifest.created}, signed by key {bundle.signers[0][:16]}\n"
        f"site {site.name}"
    )


def _show_plan(planned: list[Planned], warnings: _Warnings, output: str) -> None:
    if output == "json":
        steps = [
            {"step": p.step.name, "does": p.step.sentence, "done": p.done}
            | ({"details": list(p.details)} if p.details else {})
            for p in planned
        ]
        changes = any(not p.done for p in planned)
        print_json({"steps": steps, "changes": changes} | warnings.document())
        return
    for item in planned:
        click.echo(f"  {'already' if item.done else 'to do':8} {item.step.sentence}")
        for line in item.details:
            click.echo(f"           {line}")
    waiting = sum(not item.done for item in planned)
    click.echo(f"{waiting} to do" if waiting else "nothing to do")


def _summarise(site: Site, site_file: Path, state: Path, report: Report, seconds: float) -> None:
    if not report.changed:
        click.echo(f"nothing to do: {site.name} is as it should be")
    else:
        click.echo(f"{site.name} is installed, {seconds:.0f} s")
    harbors = {release.key: release.harbor for release in site.releases if release.harbor}
    command = f"installer site secrets adminPassword --site {shlex.quote(str(site_file))}"
    if state != state_folder_of(site, None):
        command += f" --state {shlex.quote(str(state))}"
    for key, harbor in harbors.items():
        which = f" --release {key}" if len(harbors) > 1 else ""
        click.echo(f"Harbor: {harbor.external_url}, user admin")
        click.echo(f"  its first password: {command}{which}")
    if report.changed:
        click.echo(
            f"Back up {state}: Harbor's database can't be read without the key in it, of which "
            "only the cluster has a copy."
        )


def _tell_databases(site: Site, report: Report, seconds: float) -> None:
    if not report.changed:
        click.echo(f"nothing to do: {site.name} works with these databases")
        return
    click.echo(f"{site.name} works with the new databases, {seconds:.0f} s")
    for step, note in report.notes.items():
        click.echo(f"{step}: {note}")


def _document(
    bundle: VerifiedBundle, site: Site, state: Path, report: Report, seconds: float
) -> dict[str, Any]:
    return {
        "site": site.name,
        "bundle": str(bundle.digest),
        "serial": bundle.manifest.serial,
        "state": str(state),
        "changed": report.changed,
        "unchanged": report.unchanged,
        "notes": report.notes,
        "harbor": [r.harbor.external_url for r in site.releases if r.harbor is not None],
        "seconds": round(seconds, 1),
    }
