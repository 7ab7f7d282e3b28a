"""``installer site``: a ``site.yaml`` to start from, its schema for editors, and its secrets.

What is asked or set is what has to differ from site to site. Secrets are never among it: site.yaml
names files for them, or the installer generates them.
"""

from __future__ import annotations

import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from installer.cli.console import output_option, print_json, print_table, report, say
from installer.cli.run import site_option, state_folder_of, state_option
from installer.errors import InvalidInput, PreflightFailed, TransferFailed
from installer.schema import json_schema
from installer.site.model import Site
from installer.site.profiles import PROFILES, check, profile_text, questions, with_value

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.group("site")
def command() -> None:
    """Write a site.yaml to start from; print its schema for editors; show its secrets."""


@command.command(
    "init",
    epilog="\b\nProfiles:\n"
    + "\n".join(f"  {name:11} {words}" for name, words in PROFILES.items()),
)
@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path), default=Path())
@click.option(
    "--profile",
    type=click.Choice(list(PROFILES)),
    default=next(iter(PROFILES)),
    show_default=True,
    help="What to start from.",
)
@click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Set a key, such as 'releases[0].harbor.externalURL', and ask nothing. May be repeated; "
    "a list is written with commas.",
)
def init(folder: Path, profile: str, settings: Sequence[str]) -> None:
    """Write a commented site.yaml into DIR (here, if not given).

    On a terminal it asks for what differs from site to site; elsewhere, or with --set, it asks
    nothing. Secrets are never asked for. A file that is already there is not touched.

    Exit code 2: a key or a value is wrong, or the file is there. 6: it can't be written.
    """
    target = folder / "site.yaml"
    if target.exists():
        raise _is_there(target)
    text = profile_text(profile)
    if settings:
        for setting in settings:
            text = _set(text, setting)
    elif sys.stdin.isatty():
        text = _asked(text)
    check(text)
    _write(target, text)
    name = shlex.quote(str(target))
    run = f"installer run harbor.tar --key release.pub --site {name}"
    click.echo(
        f"wrote {target}\n\nNext: look through it, put the files that it names in place, then"
    )
    click.echo(f"  {run} --plan      shows what would be done")
    click.echo(f"  {run}             does it")


@command.command("schema")
def schema() -> None:
    """Print the JSON Schema (draft 2020-12) of site.yaml, for editors.

    Keep it as site.schema.json and write `# yaml-language-server: $schema=site.schema.json` as the
    first line of site.yaml. It knows keys and types; what excludes each other is checked by
    `installer run --plan`.
    """
    print_json(site_schema())


@command.command("secrets")
@click.argument("name", required=False)
@site_option
@state_option
@click.option("--release", "key", metavar="NAMESPACE/NAME", help="Of several Harbors, which one.")
@output_option
def secrets(
    name: str | None, site_file: Path, state_folder: Path | None, key: str | None, output: str
) -> None:
    """List which secrets are kept of a Harbor, or print the one called NAME, such as adminPassword.

    They are those that the installer made, or was given for the first run: what people changed in
    Harbor afterwards it does not know. Nothing is asked of the cluster.
    """
    from installer.site import credentials  # noqa: PLC0415 (slow to import)
    from installer.site.model import read_site  # noqa: PLC0415
    from installer.site.state import State  # noqa: PLC0415

    site = read_site(site_file)
    harbors = [release.key for release in site.releases if release.harbor is not None]
    if (key is None and len(harbors) > 1) or (key is not None and key not in harbors):
        said = f"--release {key}: there is no such Harbor" if key else "there are several Harbors"
        raise InvalidInput(
            f"{site_file}: {said}", hint=f"--release takes one of {', '.join(harbors)}"
        )
    if not harbors:
        raise InvalidInput(f"{site_file}: there is no Harbor in it")
    state = State(state_folder_of(site, state_folder))
    kept = credentials.kept(state, key or harbors[0])
    if kept is None:
        raise PreflightFailed(
            f"{state.folder} has no secrets of {key or harbors[0]}",
            hint="the first `installer run` makes them; name another folder with --state",
        )
    if name is None:
        rows = [[one, about] for one, about in credentials.KEPT.items()]
        if output == "json":
            print_json({"release": key or harbors[0], "secrets": dict(rows)})
        else:
            print_table(f"secrets of {key or harbors[0]}", ["name", "what it is"], rows)
        return
    word = msgspec.to_builtins(kept).get(name) if name in credentials.KEPT else None
    if word is None:
        raise InvalidInput(f"no secret is called {name!r}", hint=", ".join(credentials.KEPT))
    if output == "json":
        print_json({"release": key or harbors[0], name: word})
    else:
        click.echo(word.rstrip("\n"))


def site_schema() -> dict[str, Any]:
    """JSON Schema of site.yaml, made from the model; descriptions come from its docstrings."""
    return json_schema(Site, "site.yaml of the Harbor air-gap installer")


def _set(text: str, setting: str) -> str:
    key, equals, value = setting.partition("=")
    if not equals:
        raise InvalidInput(
            f"--set {setting[:80]}: not KEY=VALUE",
            hint="for example --set releases[0].harbor.externalURL=https://harbor.site.example",
        )
    try:
        return with_value(text, key.strip(), value)
    except InvalidInput as error:
        raise InvalidInput(f"--set {error.message}", hint=error.hint) from None


def _asked(text: str) -> str:
    """The text with a person's answers; an answer that can't be is asked for again."""
    say("Return keeps what is in brackets. Everything else can be edited in the file afterwards.")
    for question in questions(text):
        while True:
            answer = click.prompt(question.words, default=question.default, err=True, type=str)
            if answer == question.default:
                break
            try:
                changed = with_value(text, question.key, answer)
                check(changed)
            except InvalidInput as error:
                report(error)
                continue
            text = changed
            break
    return text


def _write(target: Path, text: str) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InvalidInput(
            f"{target.parent}: is a file, not a folder", hint="choose another DIR"
        ) from None
    except OSError as error:
        raise _unwritable(target.parent, error) from error
    try:
        file = target.open("x", encoding="utf-8", newline="\n")
    except FileExistsError:
        raise _is_there(target) from None
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        with file:
            file.write(text)
    except OSError as error:
        # Half a file would stand in the way of the next attempt.
        with suppress(OSError):
            target.unlink()
        raise _unwritable(target, error) from error


def _is_there(target: Path) -> InvalidInput:
    return InvalidInput(
        f"{target}: already exists",
        hint="choose another DIR, edit the file, or remove it if it is no longer needed",
    )


def _unwritable(path: Path, error: OSError) -> TransferFailed:
    return TransferFailed(f"{path}: can't be written: {error.strerror or error}")
