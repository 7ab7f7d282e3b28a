"""A plan is a list of steps; running it does what is not done yet, and can stop anywhere.

A step looks at the world to say whether it is done, so nothing has to be remembered for the next
run to go on: the journal is for people. A step that is done is not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from installer.errors import AirgapError, Interrupted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from installer.site.journal import Journal


Advance = Callable[[int], None]


class Step(Protocol):
    """One thing to do at the site.

    ``name`` is for the journal and scripts, ``sentence`` says to people what applying it does.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - said above

    @property
    def sentence(self) -> str: ...  # noqa: D102 - said above

    def check(self) -> bool:
        """Whether there is nothing to do. Changes nothing."""
        ...

    def apply(self) -> str:
        """Do it, whatever part of it was done before; gives a note for people, or nothing."""
        ...


@runtime_checkable
class Detailed(Protocol):
    """A step that can say more of what applying it changes."""

    def details(self) -> list[str]:
        """Lines for people, without secrets; changes nothing."""
        ...


def details(step: Step) -> list[str]:
    """What a step says of what it changes, nothing if it doesn't or can't."""
    if not isinstance(step, Detailed):
        return []
    try:
        return step.details()
    except AirgapError as error:
        return [f"what changes can't be told: {error.message}"]


class Meter(Protocol):
    """Makes something that is told the bytes done, of ``total``, while a long step runs."""

    def __call__(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """Begin to measure; the result takes bytes as they are done, from any thread."""
        ...


def unmeasured(description: str, total: int) -> AbstractContextManager[Advance]:
    """A meter for when nobody watches."""
    del description, total
    return nullcontext(lambda _: None)


class Observer(Protocol):
    """Is told of progress: the command line shows it."""

    def started(self, step: Step) -> None:
        """Report that a step is being applied."""
        ...

    def finished(self, step: Step, note: str, *, changed: bool) -> None:
        """Report that a step is done; ``changed`` is False when it was done before."""
        ...


@dataclass(frozen=True)
class Planned:
    """A step with what its check said, and what it would change if it has more to say."""

    step: Step
    done: bool
    details: tuple[str, ...] = ()


@dataclass
class Report:
    """Names of the steps that were applied and of those that were done before; notes by step."""

    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)


def look(steps: Iterable[Step]) -> list[Planned]:
    """Check every step and apply none."""
    planned = []
    for step in steps:
        done = step.check()
        planned.append(Planned(step, done, () if done else tuple(details(step))))
    return planned


def execute(
    steps: Sequence[Step],
    journal: Journal,
    bundle: str,
    observer: Observer,
    report: Report | None = None,
) -> Report:
    """Apply in order what its check finds undone; ``bundle`` is the digest for the journal.

    ``report`` is that of steps before, which is continued. What a step raises goes on, after the
    journal has it; KeyboardInterrupt becomes Interrupted.
    """
    report = Report() if report is None else report
    for step in steps:
        try:
            if step.check():
                report.unchanged.append(step.name)
                observer.finished(step, "", changed=False)
                continue
            observer.started(step)
            journal.append("started", bundle=bundle, step=step.name)
            note = step.apply()
        except KeyboardInterrupt:
            journal.append("interrupted", bundle=bundle, step=step.name)
            raise Interrupted(
                f"interrupted during: {step.sentence}",
                hint="run the same command again: it goes on where it stopped",
            ) from None
        except AirgapError as error:
            journal.append("failed", bundle=bundle, step=step.name, text=error.message)
            raise
        journal.append("done", bundle=bundle, step=step.name)
        report.changed.append(step.name)
        if note:
            report.notes[step.name] = note
        observer.finished(step, note, changed=True)
    return report
