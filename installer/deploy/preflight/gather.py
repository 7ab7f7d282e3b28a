"""Questions are asked side by side; none waits for another for ever."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, TypeVar

from installer.errors import AirgapError, PreflightFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

DEADLINE = 180.0
"""Seconds for questions that are asked side by side; each has a shorter one of its own."""
_GRACE = 5.0
"""Seconds for questions to end when nobody waits any more: their files are about to go."""
T = TypeVar("T")


def gather(
    calls: Mapping[str, Callable[[], T]], seconds: float = DEADLINE
) -> dict[str, T | AirgapError]:
    """Make all calls side by side; what one refuses, or that it is too slow, is its answer."""
    answers: dict[str, T | AirgapError] = {}
    unexpected: list[BaseException] = []

    def call(name: str, ask: Callable[[], T]) -> None:
        try:
            answers[name] = ask()
        except AirgapError as error:
            answers[name] = error
        except OSError as error:
            answers[name] = PreflightFailed(error.strerror or str(error))
        except BaseException as error:  # noqa: BLE001 - it is raised below, where somebody waits
            unexpected.append(error)

    # Daemons: one that hangs in the resolver must not keep the program from ending.
    threads = {
        name: threading.Thread(target=call, args=(name, ask), daemon=True)
        for name, ask in calls.items()
    }
    for thread in threads.values():
        thread.start()
    try:
        _join(threads.values(), seconds)
    except BaseException:
        _join(threads.values(), _GRACE)
        raise
    if unexpected:
        raise unexpected[0]
    late = PreflightFailed(f"no answer within {seconds:.0f} s")
    return {name: answers.get(name, late) for name in calls}


def _join(threads: Iterable[threading.Thread], seconds: float) -> None:
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
