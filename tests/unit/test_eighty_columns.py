"""What is shown on a terminal of 80 columns: nothing runs over, and no name loses its end."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest

from tests.bundles import make_bundle
from tests.terminal import run_in_terminal
from tests.upstream.images import image, layer

if TYPE_CHECKING:
    from pathlib import Path

LONG = (
    "registry.corp.example:5000/platform/team-observability/"
    "opentelemetry-collector-contrib:v0.137.0-20261127"
)


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    for name, serial in (("old", 1), ("new", 2)):
        images = {LONG: image([layer(900, name)]), "docker.io/a/b:1": image([layer(900, "same")])}
        _, pem = make_bundle(tmp_path / f"{name}.tar", images, serial=serial)
    (tmp_path / "release.pub").write_bytes(pem)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "words", "name"),
    [
        ("installer", ("inspect", "new.tar"), LONG),
        ("bundler", ("inspect", "new.tar"), LONG),
        ("bundler", ("diff", "old.tar", "new.tar"), LONG.rpartition(":")[0]),
    ],
)
def test_tables_with_long_references(
    bundles: Path, command: str, words: tuple[str, ...], name: str
) -> None:
    code = f"from {command}.cli import main; main()"
    argv = (sys.executable, "-c", code, *words, "--key", "release.pub")
    shown = run_in_terminal(*argv, cwd=bundles)
    assert shown.returncode == 0, shown.lines
    assert max(map(len, shown.lines)) <= 80, shown.lines
    at = next(n for n, line in enumerate(shown.lines) if "registry.corp" in line)
    column = shown.lines[at].index("registry.corp")
    pieces = (re.split(r"\s{2}", line[column:])[0].strip() for line in shown.lines[at : at + 5])
    assert "".join(pieces).startswith(name)


_FETCHING = """
import time
from bundler.cli.fetching import Watch
from bundler.fetch import Job
from installer.bundle.layout import Entry
from installer.bundle.manifest import Member
watch = Watch("terminal")
member = Member("blobs/sha256/" + "a" * 64, 119 * 10**9, "a" * 64)
job = Job(Entry(member, 0), iter, "registry.example/a/very/long/name@sha256:" + "a" * 40, host="r")
with watch.fetching(120 * 10**9):
    watch.started(job)
    watch.advanced(job, 101 * 10**8)
    time.sleep(0.3)  # a rate needs two moments
    watch.advanced(job, 10**7)
"""


def test_bars_of_large_blobs_are_a_line_each(tmp_path: Path) -> None:
    shown = run_in_terminal(sys.executable, "-c", _FETCHING, cwd=tmp_path)
    assert shown.returncode == 0, shown.lines
    rows = [line for line in shown.lines if "GB" in line]
    assert any("10.1/119.0 GB" in row and "B/s" in row for row in rows), shown.lines
    assert all(re.search(r"\d\.\d/\d+\.\d GB", row) for row in rows), rows
