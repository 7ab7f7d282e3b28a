"""``bundler build``: everything that the lock names, in one signed file."""

from __future__ import annotations

import dataclasses
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bundler import installer_file
from bundler.build import Budget, budget, build, check_out, plan
from bundler.cli.keygen import PASSPHRASE_VARIABLE
from bundler.cli.lock import lock_spec
from bundler.cli.upstream import open_upstream, registry_config_option
from bundler.freeze import ARCHITECTURES
from bundler.lock import read_lock
from bundler.resolve import check_lock_fits
from bundler.reuse import LocalBlobs
from bundler.spec import Spec
from installer.cli.console import (
    output_option,
    passphrase,
    print_json,
    print_table,
    progress,
    say,
    size_text,
)
from installer.errors import InvalidInput, TransferFailed
from installer.keys import load

if TYPE_CHECKING:
    from bundler.cache import BlobCache
    from bundler.installer_file import InstallerFile


@click.command("build")
@click.argument("spec_file", metavar="SPEC", type=click.Path(path_type=Path))
@click.option(
    "--key", "key_file", required=True, type=click.Path(path_type=Path), help="Signing key."
)
@click.option("--passphrase-file", help=f"Else {PASSPHRASE_VARIABLE}, else asked.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The bundle to write.")
@click.option("--lock", "lock_file", type=click.Path(path_type=Path), help="Default: beside SPEC.")
@click.option(
    "--reuse",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="A bundle, OCI archive or OCI layout to take blobs from; any number of them.",
)
@click.option(
    "--installer",
    "installer_files",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="An installer that was made elsewhere, such as for another architecture.",
)
@click.option("--no-installer", is_flag=True, help="Put no installer into the bundle.")
@click.option("--dry-run", is_flag=True, help="Say what it would take; write no bundle.")
@registry_config_option
@output_option
def command(
    spec_file: Path,
    key_file: Path,
    passphrase_file: str | None,
    out: Path,
    lock_file: Path | None,
    reuse: tuple[Path, ...],
    installer_files: tuple[Path, ...],
    registry_config: Path | None,
    *,
    output: str,
    no_installer: bool,
    dry_run: bool,
) -> None:
    """Fetch what SPEC's lock names and write it to OUT as one signed file.

    Locks first when there is no lock yet. What an interrupted build has fetched is used by the
    next one, and what --reuse has is not fetched at all; both only after it was hashed.
    """
    start = time.monotonic()
    check_out(out)
    if no_installer and installer_files:
        raise click.UsageError("--installer and --no-installer exclude each other")
    given = [installer_file.read(path) for path in installer_files]
    spec = Spec.load(spec_file)
    key = None
    if not dry_run:
        key = load(key_file, passphrase(passphrase_file, PASSPHRASE_VARIABLE, confirm=False))
    lock_file = lock_file or spec_file.with_name("bundle.lock")
    with open_upstream(spec_file.parent, registry_config) as upstream:
        if lock_file.exists():
            lock = read_lock(lock_file)
            check_lock_fits(lock, spec)
        else:
            say(f"no {lock_file} yet: locking first")
            lock = lock_spec(spec, lock_file, upstream, now=datetime.now(UTC))
        installers = () if no_installer else _installers(given, upstream.cache)
        for installer in installers:
            installer_file.check_beside(installer, out.parent)
        machines = {platform_name.split("/")[1] for platform_name in lock.platforms}
        if installers and not machines & {installer.architecture for installer in installers}:
            say(
                f"note: the bundle is for {', '.join(sorted(machines))}, and no installer in it is;"
                " one that was made there can be given with --installer"
            )
        prepared = plan(lock, upstream, LocalBlobs(reuse, upstream.cache.folder), installers)
        total = sum(member.size for member in prepared.manifest.members)
        say(
            f"{lock.name} serial {lock.serial}: {len(lock.images)} images, "
            f"{len(lock.blobs)} blobs, {size_text(prepared.places.size)}"
        )
        if key is None:
            _show(budget(prepared, out), output)
            return
        with progress("fetching", total) as advance:
            built = build(lock, upstream, key, out, prepared=prepared, progress=advance)
    beside = [installer_file.put_beside(installer, out.parent) for installer in installers]
    seconds = time.monotonic() - start
    if output == "json":
        print_json(
            {
                "bundle": str(built.path),
                "bytes": built.size,
                "digest": str(built.digest),
                "serial": lock.serial,
                "signer": key.public.key_id,
                "fetched": built.filled.fetched,
                "reused": built.filled.reused,
                "copied": built.filled.copied,
                "installers": [str(path) for path in beside],
                "seconds": round(seconds, 3),
            }
        )
        return
    filled = built.filled
    reused = f", {size_text(filled.reused)} from an earlier run" if filled.reused else ""
    reused += f", {size_text(filled.copied)} were here already" if filled.copied else ""
    say(
        f"{built.path}: {size_text(built.size)} in {seconds:.1f} s"
        f" ({size_text(int(filled.fetched / max(seconds, 0.001)))}/s{reused})\n"
        f"  bundle.json {built.digest}, signed by key {key.public.key_id[:16]}\n"
        + "".join(f"  {path}, also in the bundle\n" for path in beside)
        + f"next: installer verify {built.path} --key {key_file.with_suffix('.pub')}"
    )


def _installers(given: list[InstallerFile], cache: BlobCache) -> list[InstallerFile]:
    """Those that were given and the one of this environment, one for each architecture."""
    found = {installer.architecture: installer for installer in given}
    if len(found) < len(given):
        raise InvalidInput("--installer: two files for one architecture")
    own = ARCHITECTURES.get(platform.machine(), "")
    if not own or own not in found:
        made = installer_file.make(cache, lambda size: progress("packing the installer", size))
        found[made.architecture] = made
    return [found[architecture] for architecture in sorted(found)]


def _show(found: Budget, output: str) -> None:
    if output == "json":
        print_json(dataclasses.asdict(found) | {"fits": found.fits})
    else:
        rows = [
            ("to download", size_text(found.download)),
            ("here already", size_text(found.copied)),
            ("from an earlier run", size_text(found.resumed)),
            ("the bundle", size_text(found.bundle)),
            ("room on the disk", size_text(found.room)),
        ]
        print_table("what a build takes", ("what", "size"), rows)
    if not found.fits:
        raise TransferFailed(
            f"{found.bundle - found.room:,} bytes more are needed than the disk has",
            hint="make room or choose another disk with --out",
        )
