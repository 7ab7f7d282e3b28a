"""What fuzzing starts from and what it has found, read once more by each run of the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fuzz.__main__ import FINDINGS, NAMES
from tests.fuzz.targets import TARGETS, run

if TYPE_CHECKING:
    from pathlib import Path

KEPT = sorted(path for path in FINDINGS.rglob("*") if path.is_file())


def test_every_target_is_fuzzed() -> None:
    assert set(NAMES) == set(TARGETS)
    assert {path.parent.name for path in KEPT} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_seeds_are_read_or_refused(name: str) -> None:
    for seed in TARGETS[name].seeds():
        run(TARGETS[name], seed)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_is_good_as_it_is(name: str) -> None:
    """Else fuzzing would never get behind the first check."""
    good = 0
    for seed in TARGETS[name].seeds():
        try:
            TARGETS[name].read(seed)
        except Exception:  # noqa: BLE001, S112 - counted below
            continue
        good += 1
    assert good


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name[:16]}")
def test_what_was_found_is_mended(path: Path) -> None:
    run(TARGETS[path.parent.name], path.read_bytes())
