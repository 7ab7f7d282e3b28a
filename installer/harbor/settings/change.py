"""One difference between what site.yaml wants and what Harbor says, with how it is made.

An area (projects, robots, …) reads Harbor and yields what it finds: a ``Change`` for what is not as
the file wants it, a ``Remark`` for what people should know, above all for what somebody made by
hand: that is left alone. The comparison itself is pure: texts of Harbor in, lines out.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Apply = Callable[[], str]
    """Makes it so; gives a note for people, or nothing."""

NOTHING = "-"
"""Stands for what is empty or not there."""


@dataclass(frozen=True)
class Line:
    """One key that differs, in words for people: never a secret."""

    key: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.key}: {self.before} -> {self.after}"


@dataclass(frozen=True)
class Change:
    """What is to be made of one thing."""

    what: str
    lines: tuple[Line, ...]
    apply: Apply
    new: bool = False

    @property
    def sentence(self) -> str:
        """What is done."""
        return f"{'make' if self.new else 'change'} {self.what}"


@dataclass(frozen=True)
class Remark:
    """Something that is not changed."""

    text: str


def unmanaged(what: str) -> Remark:
    """What is there and not in the file."""
    return Remark(f"{what}: not in the file, left as it is")


def words(value: Any) -> str:
    """A value of Harbor's for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(map(words, value)) or NOTHING
    return NOTHING if value in ("", None) else str(value)


def size_words(size: Any) -> str:
    """Bytes of a quota for people: exact, in the largest unit that is; -1 is unlimited."""
    if not isinstance(size, int):
        return NOTHING
    if size < 0:
        return "unlimited"
    unit, names = size, ["", "Ki", "Mi", "Gi", "Ti", "Pi"]
    while unit and unit % 1024 == 0 and len(names) > 1:
        unit //= 1024
        names.pop(0)
    return f"{unit}{names[0]}"


def day_words(seconds: Any) -> str:
    """Seconds since 1970 for people; nothing for none."""
    if not isinstance(seconds, int) or seconds <= 0:
        return NOTHING
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.strftime("%Y-%m-%d" if seconds % 86400 == 0 else "%Y-%m-%dT%H:%M:%SZ")


def lines(pairs: Iterable[tuple[str, Any, Any]]) -> tuple[Line, ...]:
    """A line for each (key, before, after) that differs."""
    return tuple(
        Line(key, words(before), words(after)) for key, before, after in pairs if before != after
    )
