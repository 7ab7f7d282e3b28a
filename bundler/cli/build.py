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
from bundler.build import THREADS, Budget, Built, Manner, Plan, budget, build, check_out, plan
from bundler.cli.fetching import Watch, form_for, time_text
from bundler.cli.keygen import PASSPHRASE_VARIABLE
from bundler.cli.upstream import open_upstream, registry_config_option
from bundler.delta import Held, read_held
from bundler.installer_format import ARCHITECTURES
from bundler.lock import check_lock_fits, read_lock
from bundler.reuse import LocalBlobs
from bundler.spec import Spec
from bundler.target import MIN_PART_SIZE
from installer.bundle.signature import PublicKey
from installer.bundle.trust import KeyTrust
from installer.cli.console import (
    SizeType,
    output_option,
    passphrase,
    print_json,
    print_table,
    say,
    size_text,
)
from installer.cli.open import read_key
from installer.errors import InvalidInput, TransferFailed
from installer.keys import load
from installer.oci.http import Patience

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bundler.cache import BlobCache
    from bundler.installer_file import InstallerFile
    from bundler.lock import Lock


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
@click.option(
    "--since",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Leave out what this bundle, bundle.json (with its .sig) or receipt lists: a delta.",
)
@click.option(
    "--since-key",
    type=click.Path(path_type=Path),
    help="Public key that --since is signed with. Default: that of --key.",
)
@click.option(
    "--part-size",
    type=SizeType(MIN_PART_SIZE),
    help="Write parts smaller than this (4GiB for FAT32, 25GB for a Blu-ray) and their index.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 64),
    default=THREADS,
    show_default=True,
    help="Connections at once, over all hosts.",
)
@click.option("--per-host", type=click.IntRange(1, 64), help="Of them at most so many to one host.")
@click.option("--limit-rate", type=SizeType(), help="Bytes a second at most: 10MB, 512KiB.")
@click.option(
    "--outage",
    type=click.IntRange(0, 7 * 86400),
    default=120,
    show_default=True,
    metavar="SECONDS",
    help="How long a host that was there is waited for.",
)
@click.option("--quiet", is_flag=True, help="Say nothing on the way.")
@click.option("--dry-run", is_flag=True, help="Say what it would take; write no bundle.")
@registry_config_option
@output_option
def command(
    spec_file: Path,
    key_file: Path,
    passphrase_file: str | None,
    out: Path,
    *,
    lock_file: Path | None,
    reuse: tuple[Path, ...],
    installer_files: tuple[Path, ...],
    since: Path | None,
    since_key: Path | None,
    part_size: int | None,
    concurrency: int,
    per_host: int | None,
    limit_rate: int | None,
    outage: int,
    registry_config: Path | None,
    output: str,
    no_installer: bool,
    quiet: bool,
    dry_run: bool,
) -> None:
    """Fetch what SPEC's lock names and write it to OUT as one signed file.

    Locks first when there is no lock yet. What an interrupted build has fetched is used by the
    next one, and what --reuse has is not fetched at all; both only after it was hashed. With
    --since the bundle is a delta: a site needs the earlier bundles as well.
    """
    start = time.monotonic()
    check_out(out, part_size)
    if no_installer and installer_files:
        raise click.UsageError("--installer and --no-installer exclude each other")
    given = [installer_file.read(path) for path in installer_files]
    spec = Spec.load(spec_file)
    key = None
    if not dry_run:
        key = load(key_file, passphrase(passphrase_file, PASSPHRASE_VARIABLE, confirm=False))
    held = _read_since(since, since_key or key_file.with_suffix(".pub")) if since else None
    lock_file = lock_file or spec_file.with_name("bundle.lock")
    watch = Watch(form_for(output, quiet=quiet))
    manner = Manner(concurrency, per_host, limit_rate, watch)
    # A lock says that its hosts are right; without one, a host that does not answer may be a typo.
    patience = Patience(outage=outage if lock_file.exists() else 0)
    with open_upstream(
        spec_file.parent, registry_config, patience=patience, notice=watch.retried
    ) as upstream:
        if lock_file.exists():
            lock = read_lock(lock_file)
            check_lock_fits(lock, spec)
        else:
            from bundler.cli.lock import lock_spec  # noqa: PLC0415  # 80 ms: only without a lock

            watch.note(f"no {lock_file} yet: locking first")
            lock = lock_spec(spec, lock_file, upstream, now=datetime.now(UTC), progress=watch.note)
        installers = () if no_installer else _installers(given, upstream.cache, watch)
        _check_installers(installers, lock, out, watch)
        prepared = plan(lock, upstream, LocalBlobs(reuse, upstream.cache.folder), installers, held)
        total = sum(member.size for member in prepared.manifest.members)
        if not quiet and output == "table":
            say(
                f"{lock.name} serial {lock.serial}: {len(lock.images)} images, "
                f"{len(lock.blobs)} blobs, {size_text(prepared.places.size)}"
            )
            if held is not None:
                say(_left_out(prepared, held))
        if key is None:
            _show(budget(prepared, out, part_size), _required(prepared), output)
            return
        with watch.fetching(total):
            built = build(
                lock, upstream, key, out, prepared=prepared, part_size=part_size, manner=manner
            )
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
                "made": built.filled.made,
                "installers": [str(path) for path in beside],
                "required": _required(prepared),
                "alone": prepared.alone,
                "hosts": watch.hosts_document(),
                "seconds": round(seconds, 3),
            }
        )
        return
    if quiet:
        return
    say(_summary(built, prepared, watch, seconds))
    say(
        f"  bundle.json {built.digest}, signed by key {key.public.key_id[:16]}\n"
        + "".join(f"  {path}, also in the bundle\n" for path in beside)
        + f"next: installer verify {built.path} --key {key_file.with_suffix('.pub')}"
    )


def _check_installers(
    installers: Sequence[InstallerFile], lock: Lock, out: Path, watch: Watch
) -> None:
    """Refuse to write over foreign files, and say when no installer is for the bundle's machines.

    Raises InvalidInput.
    """
    for installer in installers:
        installer_file.check_beside(installer, out.parent)
    machines = {platform_name.split("/")[1] for platform_name in lock.platforms}
    if installers and not machines & {installer.architecture for installer in installers}:
        watch.note(
            f"note: the bundle is for {', '.join(sorted(machines))}, and no installer in it is;"
            " one that was made there can be given with --installer"
        )


def _installers(given: list[InstallerFile], cache: BlobCache, watch: Watch) -> list[InstallerFile]:
    """Those that were given and the one of this environment, one for each architecture."""
    found = {installer.architecture: installer for installer in given}
    if len(found) < len(given):
        raise InvalidInput("--installer: two files for one architecture")
    own = ARCHITECTURES.get(platform.machine(), "")
    if not own or own not in found:
        made = installer_file.make(cache, lambda size: watch.working("packing the installer", size))
        found[made.architecture] = made
    return [found[architecture] for architecture in sorted(found)]


def _summary(built: Built, prepared: Plan, watch: Watch, seconds: float) -> str:
    """Sizes, where the bytes came from, what sharing saves, and the hosts."""
    filled = built.filled
    rate = size_text(int(filled.fetched / max(seconds, 0.001)))
    parts = [f"{size_text(filled.fetched)} fetched ({rate}/s)"]
    if filled.reused:
        parts.append(f"{size_text(filled.reused)} from an earlier run")
    if filled.copied:
        parts.append(f"{size_text(filled.copied)} were here already")
    parts.append(f"{size_text(filled.made)} made here")
    lines = [f"{built.path}: {size_text(built.size)} in {time_text(seconds)}", ", ".join(parts)]
    carried = sum(m.size for m in (*prepared.manifest.members, *prepared.manifest.required))
    if prepared.alone > carried:
        saved = size_text(prepared.alone - carried)
        lines.append(f"shared layers save {saved} of {size_text(prepared.alone)}")
    if hosts := watch.hosts_text():
        lines.append(hosts)
    if watch.restarts:
        lines.append(f"{watch.restarts} came with wrong bytes first")
    return "\n  ".join(lines)


def _read_since(path: Path, key_file: Path) -> Held:
    key = PublicKey.parse(read_key(key_file), str(key_file))
    return read_held(path, KeyTrust(key, key_file.name), key)


def _required(prepared: Plan) -> dict[str, int]:
    required = prepared.manifest.required
    return {"blobs": len(required), "bytes": sum(member.size for member in required)}


def _left_out(prepared: Plan, held: Held) -> str:
    """Say what a delta saves, and what its site needs."""
    facts = _required(prepared)
    if not facts["blobs"]:
        return f"{held.name} has nothing of it: this is a full bundle"
    return (
        f"a delta to {held.name}: {facts['blobs']} blobs, {size_text(facts['bytes'])}, are left out"
    )


def _show(found: Budget, required: dict[str, int], output: str) -> None:
    if output == "json":
        print_json(dataclasses.asdict(found) | {"fits": found.fits, "required": required})
    else:
        rows = [
            ("to download", size_text(found.download)),
            ("here already", size_text(found.copied)),
            ("from an earlier run", size_text(found.resumed)),
            ("the bundle", size_text(found.bundle)),
            *([("left out", size_text(required["bytes"]))] if required["blobs"] else []),
            ("room on the disk", size_text(found.room)),
        ]
        print_table("what a build takes", ("what", "size"), rows)
    if not found.fits:
        raise TransferFailed(
            f"{found.bundle - found.room:,} bytes more are needed than the disk has",
            hint="make room or choose another disk with --out",
        )
