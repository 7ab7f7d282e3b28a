"""What is shown of a build: sparse lines, events, nothing; hosts by their speed."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from bundler.cli.fetching import Watch, time_text
from bundler.fetch import Job, Transfer
from installer.bundle.layout import Entry
from installer.bundle.manifest import Member
from installer.oci.http import Retry
from tests.terminal import run_in_terminal

if TYPE_CHECKING:
    from pathlib import Path

NAME = "blobs/sha256/" + "a" * 64
JOB = Job(
    Entry(Member(NAME, 1000, "a" * 64), 0),
    lambda _: iter(()),
    "ghcr.io/a/b@sha256:aaa…",
    None,
    "ghcr.io",
)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_lines_are_sparse_and_say_rate_and_time_left() -> None:
    clock, lines = Clock(), list[str]()
    watch = Watch("lines", lines.append, clock)
    with watch.fetching(1000):
        watch.started(JOB)
        for _ in range(25):
            clock.now += 1
            watch.advanced(JOB, 20)
    assert lines == [
        " 20 %  200 B of 1.0 kB, 20 B/s, 40 s left",
        " 40 %  400 B of 1.0 kB, 20 B/s, 30 s left",
    ]


def test_a_member_that_starts_again_goes_back() -> None:
    clock, lines = Clock(), list[str]()
    watch = Watch("lines", lines.append, clock)
    with watch.fetching(1000):
        watch.advanced(JOB, 500)
        watch.again(JOB, "wrong digest")
        watch.advanced(JOB, -500)
        clock.now += 10
        watch.advanced(JOB, 100)
    assert lines[0].startswith("wrong digest")
    assert lines[1].startswith(" 10 %  100 B of 1.0 kB")
    assert watch.restarts == 1


def test_events_are_json_and_quiet_is_quiet() -> None:
    for form in ("events", "quiet"):
        clock, lines = Clock(), list[str]()
        watch = Watch(form, lines.append, clock)
        with watch.fetching(1000):
            watch.started(JOB)
            clock.now += 5
            watch.advanced(JOB, 1000)
            watch.retried(Retry("ghcr.io", "HTTP 503", 1, 0.5))
            watch.finished(JOB, Transfer(fetched=1000, seconds=5))
            watch.note("no lock yet")
        names = [json.loads(line)["event"] for line in lines]
        expected = ["started", "progress", "retry", "finished", "note"]
        assert names == (expected if form == "events" else [])
        assert watch.hosts_document() == {
            "ghcr.io": {"fetched": 1000, "bytesPerSecond": 200, "retries": 1}
        }


_WORKING = """
import sys
from bundler.cli.fetching import Watch, form_for
watch = Watch(form_for(sys.argv[1], quiet=len(sys.argv) > 2))
with watch.working("packing", 100) as advance:
    advance(100)
"""


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (("table",), None),
        (("json",), ['{"event": "note", "text": "packing"}', ""]),
        (("table", "quiet"), [""]),
        (("json", "quiet"), [""]),
    ],
)
def test_a_bar_is_for_people_who_want_one(
    arguments: tuple[str, ...], lines: list[str] | None, tmp_path: Path
) -> None:
    shown = run_in_terminal(sys.executable, "-c", _WORKING, *arguments, cwd=tmp_path)
    assert shown.returncode == 0
    if lines is None:
        assert any("packing" in line and "100 bytes" in line for line in shown.lines), shown
    else:
        assert shown.lines == lines


def test_the_slowest_host_comes_first() -> None:
    watch = Watch("quiet")
    for host, seconds in (("fast.example", 1), ("slow.example", 10)):
        job = Job(JOB.entry, JOB.open, JOB.what, None, host)
        watch.finished(job, Transfer(fetched=5000, seconds=seconds))
    watch.retried(Retry("fast.example", "HTTP 503", 1, 0.5))
    assert watch.hosts_text() == (
        "slow.example 5.0 kB at 500 B/s a connection; "
        "fast.example 5.0 kB at 5.0 kB/s a connection, 1 failed tries"
    )


def test_times_for_people() -> None:
    assert [time_text(s) for s in (0.4, 59, 61, 3599.6, 7322)] == [
        "0 s", "59 s", "1 min 01 s", "1 h 00 min", "2 h 02 min",
    ]  # fmt: skip
