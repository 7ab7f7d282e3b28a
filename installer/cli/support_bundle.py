"""``installer support-bundle``: one file to send to somebody who helps, without the secrets."""

from __future__ import annotations

from pathlib import Path

import click

from installer.cli.console import print_table, say, size_text
from installer.cli.open import TrustOptions, bundle_argument, open_at, trust_options
from installer.cli.run import site_option, state_folder_of, state_option


@click.command("support-bundle")
@bundle_argument
@trust_options
@site_option
@state_option
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The file to write, for example support.tar.gz; nothing is replaced.",
)
def command(
    bundle: Path, trusted: TrustOptions, site_file: Path, state_folder: Path | None, out: Path
) -> None:
    """Collect into one file what somebody elsewhere needs to help; changes nothing at the site.

    Status, journal, versions, the objects of each namespace, logs of all containers, values and
    rendered objects. Secrets of the cluster are not read, and those that this site knows are cut
    out of everything. What can't be had is listed in missing.txt in it.

    Exit code 0: the file is there, also when something is missing. 2: there is such a file
    already. 3: the bundle is not trusted. 4: the state's own secrets can't be read. 6: it can't be
    written.
    """
    from installer.deploy.context import looking  # noqa: PLC0415 (slow to import)
    from installer.deploy.status import look  # noqa: PLC0415
    from installer.deploy.support import check_out, collect  # noqa: PLC0415
    from installer.site.authority import utc_now  # noqa: PLC0415
    from installer.site.model import read_site  # noqa: PLC0415
    from installer.site.state import State  # noqa: PLC0415

    site = read_site(site_file)
    check_out(out)
    state = State(state_folder_of(site, state_folder))
    with (
        open_at(bundle, trusted, state) as verified,
        looking(verified, site, state) as context,
    ):
        say(f"asking the site {site.name}; this may take some minutes")
        now = utc_now()
        summary = collect(context, site_file, look(context, now), out, now)
    rows = [(name, size_text(size)) for name, size in summary.members]
    print_table(str(out), ("member", "size"), rows)
    for line in summary.missing:
        say(f"missing: {line}")
    click.echo(
        f"{out}: {len(rows)} members, {size_text(out.stat().st_size)}. Known secrets are cut out, "
        "but look through it before you send it: names, addresses and what users wrote are in it."
    )
