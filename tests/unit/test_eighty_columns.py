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
