"""What is known of one thing, and how many things are asked side by side.

No line has a value of the site in it: of values that differ only the keys are named.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import msgspec

from installer.errors import AirgapError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PATIENCE = 10
"""Seconds for one question."""
SOON = timedelta(days=30)
"""What ends within this time is a warning."""
WORDS = 300
"""Characters of somebody else's words."""
SHORT = len("sha256:") + 12
RUN_AGAIN = "run `installer run` with this bundle and site.yaml"
SHOWN = 3

State = Literal["ok", "warning", "failed"]


class Line(msgspec.Struct, frozen=True):
    """What is known of one thing; ``group`` and ``name`` together tell it from all others.

    ``text`` is one sentence for people, ``hint`` what to do, empty where nothing is to be done.
    """

    group: str
    name: str
    state: State
    text: str
    hint: str = ""


@dataclass(frozen=True)
class Status:
    """All lines in the order in which people read them."""

    lines: tuple[Line, ...]

    @property
    def reachable(self) -> bool:
        """Whether the cluster could be asked."""
        return all(line.state == "ok" for line in self.lines if _is_api(line))

    @property
    def failed(self) -> tuple[Line, ...]:
        """The lines that say that something does not work."""
        return tuple(line for line in self.lines if line.state == "failed")


@dataclass(frozen=True)
class Part:
    """Some lines that are found together; ``group`` and ``name`` say what could not be asked."""

    group: str
    name: str
    ask: Callable[[], Iterable[Line]]


def ask_all(parts: Iterable[Part], seconds: float) -> Iterator[Line]:
    """Ask all parts at once; one that raises an AirgapError, or is too slow, is a failed line."""
    end = time.monotonic() + seconds
    asked = [(part, _Answer(part)) for part in parts]
    for _, answer in asked:
        answer.start()
    for part, answer in asked:
        answer.join(max(0.0, end - time.monotonic()))
        if answer.is_alive():
            yield Line(part.group, part.name, "failed", f"no answer within {seconds:.0f} s")
        elif answer.error is not None:
            raise answer.error
        else:
            yield from answer.lines


class _Answer(threading.Thread):
    """Asks one part; a daemon, so that one that hangs does not keep the program from ending."""

    def __init__(self, part: Part) -> None:
        super().__init__(daemon=True)
        self._part = part
        self.lines: list[Line] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        part = self._part
        try:
            # What was found before something failed is told as well.
            self.lines.extend(part.ask())
        except (AirgapError, OSError) as error:
            self.lines.append(refused(part.group, part.name, error))
        except BaseException as error:  # noqa: BLE001 - the thread that waits raises it
            self.error = error


def refused(group: str, name: str, error: AirgapError | OSError) -> Line:
    """What could not be asked."""
    if isinstance(error, AirgapError):
        return Line(group, name, "failed", " ".join(error.message.split()), error.hint)
    return Line(group, name, "failed", str(error))


def _is_api(line: Line) -> bool:
    return (line.group, line.name) == ("cluster", "api")


def days(span: timedelta) -> str:
    """Whole days in words."""
    return "1 day" if span.days == 1 else f"{span.days} days"


def few(names: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def first_line(text: str) -> str:
    """The beginning of a message."""
    return text.split("\n", 1)[0][:WORDS]
