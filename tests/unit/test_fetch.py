"""Filling a laid-out file: resume, wrong bytes, cuts, kills, and nothing believed unhashed."""

from __future__ import annotations

import os
import random
import threading
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

import pytest

from bundler.fetch import Filled, Job, Journal, Observer, RateLimit, fill
from bundler.target import Target
from installer.bundle.digest import Digest
from installer.bundle.layout import layout
from installer.bundle.manifest import Member
from installer.errors import Corrupt, Interrupted, NotFound, TransferFailed
from tests.unit.test_layout import manifest_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MIB = 1024 * 1024
CONTENTS = [
    random.Random(n).randbytes(size) for n, size in enumerate([0, 1, 700, 3 * MIB, 9 * MIB])
]


class Site:
    """A file to fill, and sources that count what was asked of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.members = [Member(Digest.of(c).blob_path, len(c), Digest.of(c).hex) for c in CONTENTS]
        self.places = layout(manifest_of(tuple(self.members)), 100)
        self.served = 0
        self.target = Target(path.with_suffix(""), self.places.size)
        self.target.open()
        self.target.reserve()
        self.descriptor = os.open(path, os.O_RDWR)

    def stream(self, data: bytes, start: int) -> Iterator[bytes]:
        for position in range(start, len(data), 256 * 1024):
            piece = data[position : position + 256 * 1024]
            self.served += len(piece)
            yield piece

    def jobs(
        self, change: Callable[[int, Iterator[bytes]], Iterator[bytes]] = lambda _, x: x
    ) -> list[Job]:
        def opener(number: int) -> Callable[[int], Iterator[bytes]]:
            return lambda start: change(number, self.stream(CONTENTS[number], start))

        return [Job(e, opener(n), f"blob {n}") for n, e in enumerate(self.places.entries)]

    def run(self, jobs: list[Job], *, identity: str = "a") -> Filled:
        journal = Journal(self.path.with_suffix(".journal"), identity)
        try:
            return fill(self.target, jobs, journal, threads=3)
        finally:
            journal.close()

    def assert_complete(self) -> None:
        for entry, content in zip(self.places.entries, CONTENTS, strict=True):
            assert os.pread(self.descriptor, entry.member.size, entry.offset) == content


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "bundle.partial")
    with made.target:
        yield made
    os.close(made.descriptor)


TOTAL = sum(map(len, CONTENTS))


def cut_after(count: int, error: Exception) -> Callable[[int, Iterator[bytes]], Iterator[bytes]]:
    def change(number: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for sent, piece in enumerate(pieces):
            if number == len(CONTENTS) - 1 and sent == count:
                raise error
            yield piece

    return change


def test_fills_everything_once(site: Site) -> None:
    assert site.run(site.jobs()) == Filled(fetched=TOTAL, reused=0)
    site.assert_complete()


def test_a_second_run_fetches_nothing(site: Site) -> None:
    site.run(site.jobs())
    site.served = 0
    assert site.run(site.jobs()) == Filled(fetched=0, reused=TOTAL)
    assert site.served == 0
    site.assert_complete()


def test_bytes_count_as_what_they_are(site: Site) -> None:
    jobs = site.jobs()
    jobs[2] = replace(jobs[2], origin="made")
    jobs[3] = replace(jobs[3], origin="copied")
    jobs[4] = replace(jobs[4], local=lambda: iter([CONTENTS[4]]))
    sizes = [len(content) for content in CONTENTS]
    assert site.run(jobs) == Filled(
        fetched=sizes[0] + sizes[1], copied=sizes[3] + sizes[4], made=sizes[2]
    )
    assert site.run(jobs) == Filled(reused=TOTAL)


def test_goes_on_inside_a_blob_after_a_cut(site: Site) -> None:
    with pytest.raises(TransferFailed, match="line is dead"):
        site.run(site.jobs(cut_after(20, TransferFailed("line is dead"))))
    first = site.served
    filled = site.run(site.jobs())
    site.assert_complete()
    assert site.served - first == filled.fetched
    # At most the piece that was cut comes again, and one of each other thread that was stopped.
    assert site.served <= TOTAL + 3 * 256 * 1024
    assert filled.reused >= 20 * 256 * 1024


@pytest.mark.parametrize("torn", [b"", b"abc", b"\xff\xfe", b"0" * 64, b"0" * 64 + b" 99999999999"])
def test_a_torn_journal_costs_nothing_but_time(site: Site, torn: bytes) -> None:
    with pytest.raises(TransferFailed):
        site.run(site.jobs(cut_after(20, TransferFailed("cut"))))
    with site.path.with_suffix(".journal").open("ab") as stream:
        stream.write(torn)
    site.run(site.jobs())
    site.assert_complete()


def test_a_journal_that_lies_is_found_out(site: Site) -> None:
    site.run(site.jobs())
    entry = site.places.entries[-1]
    os.pwrite(site.descriptor, b"damaged", entry.offset + 5 * MIB)
    site.served = 0
    site.run(site.jobs())
    site.assert_complete()
    assert site.served == len(CONTENTS[-1])


def test_a_partial_of_another_layout_is_not_believed(site: Site) -> None:
    site.run(site.jobs(), identity="a")
    assert site.run(site.jobs(), identity="b").reused == 0


def test_wrong_bytes_are_refused_and_never_marked_done(site: Site) -> None:
    def change(number: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            yield piece[:-1] + bytes([piece[-1] ^ 1]) if number == 2 else piece

    for _ in range(2):
        with pytest.raises(Corrupt, match="blob 2"):
            site.run(site.jobs(change))
    site.run(site.jobs())
    site.assert_complete()


def test_too_many_bytes_do_not_run_into_the_next_member(site: Site) -> None:
    def change(number: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
        yield from pieces
        if number == 3:
            yield b"more"

    with pytest.raises(Corrupt, match="more than"):
        site.run(site.jobs(change))


def test_too_few_bytes(site: Site) -> None:
    def change(number: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
        return iter(list(pieces)[:-1]) if number == 3 else pieces

    with pytest.raises(TransferFailed, match="ended after"):
        site.run(site.jobs(change))


def test_the_first_failure_stops_the_others(site: Site) -> None:
    started = threading.Event()

    def change(number: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
        if number == 2:
            started.wait(5)
            raise TransferFailed("no such host")
        for piece in pieces:
            started.set()
            yield piece

    with pytest.raises(TransferFailed, match="no such host"):
        site.run(site.jobs(change))


def test_progress_adds_up_even_when_a_resumed_member_starts_again(site: Site) -> None:
    with pytest.raises(TransferFailed):
        site.run(site.jobs(cut_after(20, TransferFailed("cut"))))
    os.pwrite(site.descriptor, b"x", site.places.entries[-1].offset)
    moved: list[int] = []
    journal = Journal(site.path.with_suffix(".journal"), "a")
    fill(site.target, site.jobs(), journal, threads=2, observer=Counting(moved))
    journal.close()
    site.assert_complete()
    assert sum(moved) == TOTAL


class Counting(Observer):
    def __init__(self, moved: list[int]) -> None:
        self.moved = moved

    def advanced(self, job: Job, count: int) -> None:
        del job
        self.moved.append(count)


def test_interruption_is_its_own_error(site: Site) -> None:
    with pytest.raises(Interrupted):
        site.run(site.jobs(cut_after(3, Interrupted("stopped"))))


def test_what_is_lacking_is_named_at_the_end_and_all_else_is_there(site: Site) -> None:
    def change(number: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
        if number in (1, 4):
            raise NotFound(f"blob {number}: HTTP 404")
        return pieces

    with pytest.raises(NotFound, match=r"2 artefacts(?s:.*)blob 1: HTTP 404\n  blob 4") as lacking:
        site.run(site.jobs(change))
    assert "lock again" in lacking.value.hint
    site.served = 0
    filled = site.run(site.jobs())
    site.assert_complete()
    assert filled.fetched == site.served == len(CONTENTS[1]) + len(CONTENTS[4])


def test_bytes_that_were_wrong_once_are_fetched_again(site: Site) -> None:
    times = count()

    def change(number: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            wrong = number == 3 and next(times) == 0
            yield bytes(len(piece)) if wrong else piece

    filled = site.run(site.jobs(change))
    site.assert_complete()
    assert filled.fetched == TOTAL + len(CONTENTS[3])


def test_no_more_at_once_than_a_host_may_have(site: Site) -> None:
    now, most = [0], [0]
    lock = threading.Lock()

    def change(_: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        threading.Event().wait(0.02)
        yield from pieces
        with lock:
            now[0] -= 1

    jobs = [replace(job, host="one.example") for job in site.jobs(change)]
    journal = Journal(site.path.with_suffix(".journal"), "a")
    fill(site.target, jobs, journal, threads=4, per_host=2)
    journal.close()
    site.assert_complete()
    assert most[0] == 2


def test_the_rate_is_held_over_all_threads(site: Site) -> None:
    slept: list[float] = []
    limit = RateLimit(1_000_000, clock=lambda: 5.0, sleep=slept.append)
    journal = Journal(site.path.with_suffix(".journal"), "a")
    fill(site.target, site.jobs(), journal, threads=3, limit=limit)
    journal.close()
    # The clock stands still, so that each piece waits for all that came before it.
    assert max(slept) == pytest.approx(TOTAL / 1_000_000)
