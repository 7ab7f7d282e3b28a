"""``installer image scan``: Harbor's scanner, asked now."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from installer.cli.console import output_option, print_json, print_table, say
from installer.cli.image.reach import harbor_options
from installer.errors import AcceptanceFailed
from installer.harbor.scan import find_artifact
from installer.harbor.scan import scan as run_scan

if TYPE_CHECKING:
    from collections.abc import Callable

    from installer.deploy.harbor_access import HarborAccess

_SEVERITIES = ("unknown", "negligible", "low", "medium", "high", "critical")


@click.command("scan")
@click.argument("reference", metavar="REF")
@click.option(
    "--severity",
    type=click.Choice(_SEVERITIES, case_sensitive=False),
    help="Fail if something of this severity or a worse one is found.",
)
@click.option("--timeout", default=900, show_default=True, help="Seconds to wait for the scan.")
@harbor_options
@output_option
def command(
    reference: str,
    severity: str | None,
    timeout: int,
    reach: Callable[[str], HarborAccess],
    output: str,
) -> None:
    """Let Harbor scan the image REF now, wait for it, and show what it found.

    Exit code 6: Harbor can't be reached. 7: it refuses to scan that. 8: the scan failed, or found
    something of --severity.
    """
    access = reach(reference)
    wanted = access.reference(reference)
    with access.client() as client:
        digest = (
            str(wanted.digest or "") or find_artifact(client, wanted.path, wanted.version).digest
        )
        watch = (lambda state: say(f"scan: {state.lower()}")) if output == "table" else _silent
        report = run_scan(client, wanted.path, digest, patience=timeout, watch=watch)
    name = f"{wanted.repository}@{digest}"
    counts = report.counts()
    found = report.worst_first
    if output == "json":
        import msgspec  # noqa: PLC0415 (slow to import)

        print_json({"image": name, "counts": counts} | msgspec.to_builtins(report))
    else:
        rows = [
            (one.severity, one.id, one.package, one.version, one.fix_version or "-")
            for one in found
        ]
        if rows:
            print_table(name, ("severity", "id", "package", "version", "fixed in"), rows)
        summary = ", ".join(f"{count} {word}" for word, count in counts.items()) or "nothing found"
        click.echo(f"{summary}; scanned by {report.scanner.name} {report.scanner.version}")
    if severity and (bad := report.at_least(severity.lower())):
        raise AcceptanceFailed(
            f"{name}: {len(bad)} findings of severity {severity.lower()} or worse",
            hint="update the packages that have a fix, and push and scan the new image",
        )


def _silent(state: str) -> None:
    del state
