"""What was found about one thing, and what all of it comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from installer.errors import AirgapError, PreflightFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SHOWN = 5
State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """What was found about one thing; ``text`` is for people, ``hint`` says what to do.

    ``error`` is what a failed one is raised as, and so decides the exit code.
    """

    name: str
    state: State
    text: str
    hint: str = ""
    error: type[AirgapError] = PreflightFailed

    @classmethod
    def refused(cls, name: str, error: AirgapError) -> Check:
        """The failed check that an error stands for; what the error has besides is left out."""
        kinds = (kind for kind in type(error).__mro__ if issubclass(kind, AirgapError))
        kind = next(kind for kind in kinds if kind.__init__ is AirgapError.__init__)
        return cls(name, "failed", error.message, error.hint, kind)


def refusal(checks: Iterable[Check]) -> AirgapError | None:
    """One error for all failed checks, of the first one's kind; None when nothing failed."""
    failed = [check for check in checks if check.state == "failed"]
    if not failed:
        return None
    first = failed[0]
    if len(failed) == 1:
        return first.error(first.text, hint=first.hint)
    lines = [
        f"{check.name}: {check.text}" + (f"\n    -> {check.hint}" if check.hint else "")
        for check in failed
    ]
    return first.error(
        f"{len(failed)} checks failed:\n  " + "\n  ".join(lines),
        hint="nothing was changed; `installer preflight` shows all checks",
    )


def few(texts: Sequence[str], between: str = ", ") -> str:
    """Join the first texts, and say how many more there are."""
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return between.join(texts[:SHOWN]) + more
