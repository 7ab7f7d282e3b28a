"""The one place that knows the terminal: messages, tables, progress, and errors with exit codes.

Both commands use it. What a program may want goes to standard output, what a person watches to
standard error, so that ``--output json | jq`` works while a progress bar runs. Nothing moves on
the screen when standard error is not a terminal.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import click

from installer.errors import AirgapError, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import FrameType

DEBUG_VARIABLE = "AIRGAP_DEBUG"
_SIZE = re.compile(
    r"(?P<number>[0-9]{1,15}(?:\.[0-9]{1,6})?)\s*(?:(?P<unit>[kmgt])(?P<binary>i)?)?b?\Z",
    re.IGNORECASE,
)
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}

output_option = click.option(
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    help="table for people, json for programs.",
)


class LazyGroup(click.Group):
    """A group whose verbs are modules, imported when called: ``--help`` starts in 0.2 s."""

    def __init__(self, *args: Any, package: str = "", verbs: Mapping[str, str], **kw: Any) -> None:
        super().__init__(*args, **kw)
        self._package = package
        self._verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs in the order in which they are used."""
        del ctx
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module and give its command, which has the verb's name."""
        del ctx
        if cmd_name not in self._verbs:
            return None
        module = importlib.import_module(f"{self._package}.{cmd_name.replace('-', '_')}")
        command = module.command
        assert isinstance(command, click.Command)  # noqa: S101 (a verb's module defines `command`)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(self._verbs.items()))


def run_group(group: click.Group) -> NoReturn:
    """Run a command line and end the process with the documented exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(_exit_code(group))


def _terminate(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


def _exit_code(group: click.Group) -> int:  # noqa: PLR0911 (a code for each way to end)
    try:
        result = group.main(standalone_mode=False)
    except AirgapError as error:
        report(error)
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("\ninterrupted; run the same command again to go on", err=True)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _os_error(error)
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        click.echo(f"error: unexpected: {type(error).__name__}: {error}", err=True)
        click.echo(f"hint: this is a defect; {DEBUG_VARIABLE}=1 shows where", err=True)
        return 1
    return result if isinstance(result, int) else 0


def _os_error(error: OSError) -> int:
    if os.environ.get(DEBUG_VARIABLE):
        raise error
    where = f"{error.filename}: " if error.filename else ""
    click.echo(f"error: {where}{error.strerror or error}", err=True)
    if error.errno in _DISK_ERRORS:
        click.echo("hint: make room or replace the disk, then run it again", err=True)
        return 6
    return 2 if isinstance(error, FileNotFoundError | PermissionError) else 1


def report(error: AirgapError) -> None:
    """Print an error and its hint for a person."""
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)


def say(text: str) -> None:
    """Tell the person at the terminal something; goes to standard error."""
    click.echo(text, err=True)


def print_json(document: Any) -> None:
    """Print a document for programs."""
    click.echo(json.dumps(document, indent=2))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table for people; columns whose name ends in a unit are aligned to the right."""
    from rich.console import Console  # noqa: PLC0415 (rich takes 60 ms)
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column == "size" else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    width = None if sys.stdout.isatty() else 160
    Console(width=width, highlight=False).print(table)


def size_text(size: int) -> str:
    """Bytes for people: decimal units, as disks are sold."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:  # noqa: PLR2004 (the step between decimal units)
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


class SizeType(click.ParamType[int]):
    """A number of bytes as people write it: 700MB, 4GiB, 4096; decimal and binary units."""

    name = "size"

    def __init__(self, least: int = 1) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it; fails as click does for what is no size, or too small a one."""
        found = _SIZE.match(str(value))
        if found is None:
            self.fail(f"{value!r} is no size: write 4GiB, 700MB or a number of bytes", param, ctx)
        power = " kmgt".index((found["unit"] or " ").lower())
        size = int(float(found["number"]) * (1024 if found["binary"] else 1000) ** power)
        if size < self._least:
            self.fail(f"{value!r} is less than {self._least} bytes", param, ctx)
        return size


@contextmanager
def progress(
    description: str, total: int, *, items: bool = False
) -> Iterator[Callable[[int], None]]:
    """Show bytes done, rate and time left while the block runs; the callable takes bytes done.

    With ``items`` it is things that are counted. May be called from several threads. Silent when
    standard error is not a terminal.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415 (rich takes 60 ms)
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    done = (MofNCompleteColumn(),) if items else (DownloadColumn(), TransferSpeedColumn())
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *done,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)


def passphrase(file: str | None, variable: str, *, confirm: bool) -> bytes:
    """A passphrase from a file (without its last newline), the environment, or the terminal."""
    if file is not None:
        try:
            with open(file, "rb") as stream:  # noqa: PTH123 (click hands over a string)
                text = stream.read(4096).rstrip(b"\r\n")
        except OSError as error:
            raise InvalidInput(f"{file}: {error.strerror}") from error
        if not text:
            raise InvalidInput(f"{file}: the passphrase is empty")
        return text
    if value := os.environ.get(variable):
        return value.encode()
    if not sys.stdin.isatty():
        raise InvalidInput(
            "no passphrase given", hint=f"use --passphrase-file FILE, or set {variable}"
        )
    typed: str = click.prompt(
        "Passphrase", hide_input=True, confirmation_prompt=confirm, err=True, type=str
    )
    return typed.encode()
