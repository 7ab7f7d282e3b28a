"""``bundler build``: everything that the lock names, in one signed file."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import click

from bundler.build import build, check_out, plan
from bundler.cli.keygen import PASSPHRASE_VARIABLE
from bundler.cli.lock import lock_spec
from bundler.cli.upstream import open_upstream, registry_config_option
from bundler.keys import load
from bundler.lock import read_lock
from bundler.resolve import check_lock_fits
from bundler.spec import Spec
from installer.cli.console import (
    output_option,
    passphrase,
    print_json,
    progress,
    say,
    size_text,
)


@click.command("build")
@click.argument("spec_file", metavar="SPEC", type=click.Path(path_type=Path))
@click.option(
    "--key", "key_file", required=True, type=click.Path(path_type=Path), help="Signing key."
)
@click.option("--passphrase-file", help=f"Else {PASSPHRASE_VARIABLE}, else asked.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The bundle to write.")
@click.option("--lock", "lock_file", type=click.Path(path_type=Path), help="Default: beside SPEC.")
@registry_config_option
@output_option
def command(
    spec_file: Path,
    key_file: Path,
    passphrase_file: str | None,
    out: Path,
    lock_file: Path | None,
    registry_config: Path | None,
    output: str,
) -> None:
    """Fetch what SPEC's lock names and write it to OUT as one signed file.

    Locks first when there is no lock yet. What an interrupted build has fetched is used by the
    next one.
    """
    start = time.monotonic()
    check_out(out)
    spec = Spec.load(spec_file)
    secret = passphrase(passphrase_file, PASSPHRASE_VARIABLE, confirm=False)
    key = load(key_file, secret)
    lock_file = lock_file or spec_file.with_name("bundle.lock")
    with open_upstream(spec_file.parent, registry_config) as upstream:
        if lock_file.exists():
            lock = read_lock(lock_file)
            check_lock_fits(lock, spec)
        else:
            say(f"no {lock_file} yet: locking first")
            lock = lock_spec(spec, lock_file, upstream, now=datetime.now(UTC))
        prepared = plan(lock, upstream)
        total = sum(member.size for member in prepared.manifest.members)
        say(
            f"{lock.name} serial {lock.serial}: {len(lock.images)} images, "
            f"{len(lock.blobs)} blobs, {size_text(prepared.places.size)}"
        )
        with progress("fetching", total) as advance:
            built = build(lock, upstream, key, out, prepared=prepared, progress=advance)
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
                "seconds": round(seconds, 3),
            }
        )
        return
    reused = (
        f", {size_text(built.filled.reused)} from an earlier run" if built.filled.reused else ""
    )
    say(
        f"{built.path}: {size_text(built.size)} in {seconds:.1f} s"
        f" ({size_text(int(built.filled.fetched / max(seconds, 0.001)))}/s{reused})\n"
        f"  bundle.json {built.digest}, signed by key {key.public.key_id[:16]}\n"
        f"next: installer verify {built.path} --key {key_file.with_suffix('.pub')}"
    )
