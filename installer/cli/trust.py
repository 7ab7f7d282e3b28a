"""``installer trust``: the trust root that a site has, and how it follows to the next version."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from installer.bundle.manifest import format_time
from installer.bundle.trust_root import BUNDLE_ROLE, ROOT_ROLE, TrustRoot, read_trust_root
from installer.cli.console import output_option, print_json, say
from installer.cli.open import IMPORTED, read_root
from installer.cli.run import state_folder_of, state_option
from installer.errors import InvalidInput
from installer.site.private import read_file, write_file

if TYPE_CHECKING:
    from installer.site.state import State

_SHORT = 16

_site_option = click.option(
    "--site", "site_file", type=click.Path(path_type=Path), help="site.yaml, which says the folder."
)
_file_argument = click.argument("file", type=click.Path(path_type=Path))


@click.group("trust")
def command() -> None:
    """Import, show or update the trust root of a site: whose signatures its bundles need."""


@command.command("import")
@_file_argument
@_site_option
@state_option
@output_option
def import_(file: Path, site_file: Path | None, state_folder: Path | None, output: str) -> None:
    """Take FILE, from `bundler trust export`, as this site's trust root, once.

    It is believed because of the way on which it came: compare the fingerprint with the sender
    over another way. From then on the site's commands use it, and take no --key any more.
    """
    state = _state(site_file, state_folder)
    root = _read(file)
    root.check_expiry(state.time(datetime.now(UTC)))
    with state.held():
        if read_file(state.path(IMPORTED)) is not None:
            raise InvalidInput(
                f"{state.path(IMPORTED)}: this site has a trust root already",
                hint="follow it to its next version: installer trust update",
            )
        write_file(state.path(IMPORTED), root.data)
    _show(root, output)
    say(f"imported for {state.folder}")


@command.command("update")
@_file_argument
@_site_option
@state_option
@output_option
def update(file: Path, site_file: Path | None, state_folder: Path | None, output: str) -> None:
    """Follow from the site's trust root to the newest version in FILE.

    Each version must be signed by enough root keys of the one before and by its own.

    Exit code 3: it is not, or FILE is older than what the site has.
    """
    state = _state(site_file, state_folder)
    given = read_root(file)
    with state.held():
        known = _known(state)
        root = known.updated(given.data, given.name)
        root.check_expiry(state.time(datetime.now(UTC)))
        if root.version != known.version:
            write_file(state.path(IMPORTED), root.data)
    _show(root, output)
    if root.version == known.version:
        say("that is what the site had already")
    else:
        say(f"from version {known.version} to version {root.version}")


@command.command("show")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@_site_option
@state_option
@output_option
def show(file: Path | None, site_file: Path | None, state_folder: Path | None, output: str) -> None:
    """Show the site's trust root, or the one in FILE: keys, thresholds, expiry, fingerprint."""
    _show(_read(file) if file else _known(_state(site_file, state_folder)), output)


def _state(site_file: Path | None, state_folder: Path | None) -> State:
    from installer.site.state import State  # noqa: PLC0415 (slow to import)

    if state_folder is not None:
        return State(state_folder.absolute())
    if site_file is None:
        raise InvalidInput(
            "which site?", hint="say --site site.yaml, or --state with its state folder"
        )
    from installer.site.model import read_site  # noqa: PLC0415

    return State(state_folder_of(read_site(site_file), None))


def _read(file: Path) -> TrustRoot:
    given = read_root(file)
    return read_trust_root(given.data, given.name)


def _known(state: State) -> TrustRoot:
    if not state.path(IMPORTED).is_file():
        raise InvalidInput(
            f"{state.folder}: this site has no trust root",
            hint="give it one: installer trust import FILE",
        )
    return _read(state.path(IMPORTED))


def _show(root: TrustRoot, output: str) -> None:
    if output == "json":
        print_json(describe(root))
    else:
        show_root(root)


def describe(root: TrustRoot) -> dict[str, Any]:
    """A trust root for programs."""
    return {
        "version": root.version,
        "expires": format_time(root.expires),
        "fingerprint": root.fingerprint,
        "bundle": {"threshold": root.threshold(BUNDLE_ROLE), "keys": list(root.keys(BUNDLE_ROLE))},
        "root": {"threshold": root.threshold(ROOT_ROLE), "keys": list(root.keys(ROOT_ROLE))},
    }


def show_root(root: TrustRoot) -> None:
    """A trust root for people."""
    click.echo(
        f"trust root version {root.version}, expires {format_time(root.expires)}\n"
        f"  fingerprint {root.fingerprint}"
    )
    for role, what in ((BUNDLE_ROLE, "a bundle"), (ROOT_ROLE, "the next trust root")):
        keys = ", ".join(key_id[:_SHORT] for key_id in root.keys(role))
        count = len(root.keys(role))
        click.echo(f"  {what} needs {root.threshold(role)} of {count} keys: {keys}")
