"""``bundler lock``: resolves a spec to digests, and says what changed since the last time."""

from __future__ import annotations

import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bundler.cli.diff import print_changes
from bundler.cli.upstream import open_upstream, registry_config_option
from bundler.difference import changes
from bundler.lock import encode_lock, is_lock, read_lock
from bundler.resolve import resolve
from bundler.spec import Spec
from installer.bundle.digest import Digest
from installer.cli.console import output_option, print_json, print_table, say, size_text
from installer.errors import InvalidInput, TransferFailed
from installer.oci.graph import INDEX_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable

    from bundler.lock import Lock
    from bundler.sources.upstream import Upstream

_SHORT = 12


@click.command("lock")
@click.argument("spec_file", metavar="SPEC", type=click.Path(path_type=Path))
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--update", is_flag=True, help="Take anew only what is NAMEd, else everything.")
@click.option("--lock", "lock_file", type=click.Path(path_type=Path), help="Default: beside SPEC.")
@registry_config_option
@output_option
def command(
    spec_file: Path,
    names: tuple[str, ...],
    lock_file: Path | None,
    registry_config: Path | None,
    output: str,
    *,
    update: bool,
) -> None:
    """Pin everything that SPEC means by digest, size and place, and write it to bundle.lock.

    Run again it takes what upstream has by then; if nothing changed, the file stays the same. With
    --update NAME ... only these charts, images, tools and databases are taken anew (a name, a
    reference or a pattern), all else as the last lock has it.
    """
    if names and not update:
        raise InvalidInput(f"{names[0]}: a NAME is for --update", hint="see bundler lock --help")
    spec = Spec.load(spec_file)
    lock_file = lock_file or spec_file.with_name("bundle.lock")
    before = previous_lock(lock_file)
    with open_upstream(spec_file.parent, registry_config) as upstream:
        if names and before is None:
            raise InvalidInput(
                f"{lock_file}: there is no lock to update", hint="leave --update out the first time"
            )
        now = datetime.now(UTC)
        lock = lock_spec(spec, lock_file, upstream, now=now, previous=before, update=names)
    if output == "json":
        _print_json(lock_file, before, lock)
    else:
        _print(lock_file, before, lock)


def lock_spec(
    spec: Spec,
    lock_file: Path,
    upstream: Upstream,
    *,
    now: datetime,
    previous: Lock | None = None,
    update: tuple[str, ...] = (),
    progress: Callable[[str], None] = say,
) -> Lock:
    """Resolve a spec and write its lock, unless it is the same as before."""
    lock = resolve(spec, upstream, now=now, previous=previous, update=update, progress=progress)
    _tell_foreign_tools(lock, progress)
    if lock != previous:
        write_lock(lock_file, lock)
    return lock


def _tell_foreign_tools(lock: Lock, tell: Callable[[str], object]) -> None:
    """Tell which tools run on none of the bundle's platforms: a machine beside the nodes has to."""
    machines = {platform.split("/")[1] for platform in lock.platforms}
    for name in sorted({tool.name for tool in lock.tools}):
        platforms = sorted({tool.platform for tool in lock.tools if tool.name == name})
        if not machines & {platform.split("/")[1] for platform in platforms}:
            tell(
                f"note: the bundle is for {', '.join(lock.platforms)}, and {name} in it only for"
                f" {', '.join(platforms)}: another entry of that name under tools can be for a node"
            )


def previous_lock(lock_file: Path) -> Lock | None:
    """The lock of the last time; one that can't be read is told about, and made anew."""
    if not lock_file.exists():
        return None
    try:
        return read_lock(lock_file)
    except InvalidInput as error:
        if not is_lock(lock_file):
            raise InvalidInput(
                f"{lock_file}: exists, and is not a bundle.lock",
                hint="name another file with --lock; nothing is overwritten",
            ) from error
        say(f"{error.message}; it is written anew")
        return None


def write_lock(lock_file: Path, lock: Lock) -> None:
    """Write a lock so that there is the old one or the new one, never half of it.

    Raises TransferFailed.
    """
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=lock_file.parent, prefix=f".{lock_file.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(encode_lock(lock))
            file.flush()
            os.fchmod(handle, 0o644)
            os.fsync(handle)
        temporary.replace(lock_file)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise TransferFailed(
            f"{lock_file}: can't be written: {error.strerror}",
            hint="choose another place with --lock",
        ) from error


def _print(lock_file: Path, before: Lock | None, lock: Lock) -> None:
    rows = [
        [
            "chart",
            f"{c.name} {c.version} (app {c.app_version})",
            size_text(c.size),
            _short(c.digest),
        ]
        for c in lock.charts
    ]
    for image in lock.images:
        wanted = sorted({f"{o.chart}/{o.profile}" if o.chart else "spec" for o in image.origins})
        held = "; whole index" if image.media_type in INDEX_TYPES else ""
        held += "".join(f"; signed: {one.key}" for one in image.verified if one.key)
        rows.append(
            ["image", f"{image.reference}  ({', '.join(wanted)}{held})", "", _short(image.digest)]
        )
    rows += [
        ["tool", f"{t.name} ({t.platform})", size_text(t.size), _short(t.digest)]
        for t in lock.tools
    ]
    for database in lock.databases:
        dated = f"  of {database.updated_at}" if database.updated_at else ""
        size, digest = size_text(database.size), _short(database.digest)
        rows.append(["database", database.reference + dated, size, digest])
    rows += [["file", f.name, size_text(f.size), _short(f.digest)] for f in lock.files]
    print_table("", ["kind", "name", "size", "digest"], rows)
    for left in lock.excluded:
        click.echo(f"left out: {left.reference}: {left.reason}")
    if before is not None and before != lock:
        click.echo()
        _print_changes(before, lock)
    state = "unchanged" if before == lock else "written"
    click.echo(
        f"\n{lock_file}: {state}, serial {lock.serial} of {lock.created}; "
        f"{len(lock.images)} images, {len(lock.blobs)} blobs, {size_text(_total(lock))}"
    )


def _print_changes(before: Lock, lock: Lock) -> None:
    found = changes(before, lock)
    if found:
        print_changes(found)
    else:
        click.echo("same contents; the spec, a place or an origin changed")


def _print_json(lock_file: Path, before: Lock | None, lock: Lock) -> None:
    print_json(
        {
            "lock": str(lock_file),
            "serial": lock.serial,
            "created": lock.created,
            "changed": before != lock,
            "bytes": _total(lock),
            "blobs": len(lock.blobs),
            "images": {image.reference: image.digest for image in lock.images},
            "changes": [
                c._asdict() | {"change": c.word}
                for c in (changes(before, lock) if before is not None else ())
            ],
        }
    )


def _total(lock: Lock) -> int:
    return sum(blob.size for blob in lock.blobs)


def _short(digest: str) -> str:
    return Digest.parse(digest).hex[:_SHORT] if digest else ""
