"""The executor: what is done stays done, whatever ends a run."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from installer.deploy.plan import execute, look
from installer.errors import DeploymentFailed, Interrupted
from installer.site.journal import Journal


class Touch:
    """A step that makes a file."""

    def __init__(self, path: Path, error: BaseException | None = None) -> None:
        self.path = path
        self.error = error
        self.name = path.name
        self.sentence = f"Touch {path.name}"
        self.applied = 0

    def check(self) -> bool:
        return self.path.exists()

    def apply(self) -> str:
        self.applied += 1
        if self.error is not None:
            raise self.error
        self.path.touch()
        return f"touched {self.name}"


class Seen:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def started(self, step: Any) -> None:
        self.lines.append(f"start {step.name}")

    def finished(self, step: Any, note: str, *, changed: bool) -> None:
        self.lines.append(f"{'done' if changed else 'was'} {step.name} {note}".strip())


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl")


def events(journal: Journal) -> list[tuple[str, str]]:
    return [(line.event, line.step) for line in journal.lines()]


def test_steps_run_in_order_and_a_second_run_changes_nothing(
    tmp_path: Path, journal: Journal
) -> None:
    steps = [Touch(tmp_path / name) for name in "abc"]
    assert [planned.done for planned in look(steps)] == [False] * 3
    seen = Seen()
    report = execute(steps, journal, "sha256:1", seen)
    assert report.changed == ["a", "b", "c"]
    assert report.notes["b"] == "touched b"
    assert seen.lines[:2] == ["start a", "done a touched a"]
    assert events(journal) == [(e, s) for s in "abc" for e in ("started", "done")]
    again = execute(steps, journal, "sha256:1", Seen())
    assert again.changed == []
    assert again.unchanged == ["a", "b", "c"]
    assert [step.applied for step in steps] == [1, 1, 1]
    assert len(journal.lines()) == 6


def test_a_failure_is_noted_and_the_next_run_goes_on_there(
    tmp_path: Path, journal: Journal
) -> None:
    first, second = Touch(tmp_path / "a"), Touch(tmp_path / "b", DeploymentFailed("no room"))
    with pytest.raises(DeploymentFailed):
        execute([first, second], journal, "", Seen())
    assert journal.lines()[-1].text == "no room"
    assert journal.unfinished() is not None
    second.error = None
    assert execute([first, second], journal, "", Seen()).changed == ["b"]
    assert first.applied == 1
    assert journal.unfinished() is None


def test_an_interrupt_is_noted_and_says_how_to_go_on(tmp_path: Path, journal: Journal) -> None:
    with pytest.raises(Interrupted, match="Touch a") as caught:
        execute([Touch(tmp_path / "a", KeyboardInterrupt())], journal, "", Seen())
    assert caught.value.exit_code == 130
    assert "same command" in caught.value.hint
    assert events(journal)[-1] == ("interrupted", "a")


RUN = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from installer.deploy.plan import execute
    from installer.site.journal import Journal
    from tests.unit.test_deploy_plan import Seen, Touch

    class Slow(Touch):
        def apply(self) -> None:
            print("in", self.name, flush=True)
            time.sleep(60)

    folder = Path(sys.argv[1])
    steps = [Touch(folder / "a"), Slow(folder / "b"), Touch(folder / "c")]
    execute(steps, Journal(folder / "journal.jsonl"), "sha256:1", Seen())
""")


def test_after_kill_9_in_a_step_the_next_run_finishes(tmp_path: Path, journal: Journal) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"in b\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    unfinished = journal.unfinished()
    assert unfinished is not None
    assert unfinished.step == "b"
    steps = [Touch(tmp_path / name) for name in "abc"]
    report = execute(steps, journal, "sha256:1", Seen())
    assert report.unchanged == ["a"]
    assert report.changed == ["b", "c"]
    assert journal.unfinished() is None
