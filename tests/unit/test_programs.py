from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests import programs
from tests.upstream import charts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRGAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def counting(runs: list[Path]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        runs.append(folder)
        (folder / "tool").write_bytes(b"#!/bin/true\n")

    return make


def test_made_once(cached: Path) -> None:
    runs: list[Path] = []
    for _ in range(2):
        folder = programs._made("tool-1", ("tool",), counting(runs))
        assert folder == cached / "tool-1"
    assert len(runs) == 1
    assert json.loads((folder / "record.json").read_bytes())["tool"]["size"] == 12


@pytest.mark.parametrize("damage", ["flip", "cut", "record", "gone"])
def test_damaged_is_made_again(cached: Path, damage: str) -> None:
    runs: list[Path] = []
    tool = programs._made("tool-1", ("tool",), counting(runs)) / "tool"
    match damage:
        case "flip":
            tool.write_bytes(b"#!/bin/trues")
        case "cut":
            tool.write_bytes(b"#!/bin")
        case "record":
            (cached / "tool-1" / "record.json").write_bytes(b"{")
        case "gone":
            tool.unlink()
    programs._made("tool-1", ("tool",), counting(runs))
    assert len(runs) == 2
    assert tool.read_bytes() == b"#!/bin/true\n"


def test_failure_leaves_nothing(cached: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "tool").write_bytes(b"half")
        raise programs.ProgramMissing("no")

    with pytest.raises(programs.ProgramMissing):
        programs._made("tool-1", ("tool",), fail)
    assert [path.name for path in cached.iterdir()] == [".locks"]


@pytest.mark.usefixtures("cached")
def test_without_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(programs.ProgramMissing, match=r"oras v1\.3\.\d+ .* install Go"):
        programs.go_program.__wrapped__("oras")


@pytest.mark.usefixtures("cached")
def test_go_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "go").write_text("#!/bin/sh\necho proxy is down >&2; exit 1\n")
    (tmp_path / "go").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(programs.ProgramMissing, match="proxy is down"):
        programs.go_program.__wrapped__("crane")


@pytest.mark.usefixtures("cached")
def test_package_missing_or_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    other = programs._Layer("no-such-package", "1.0")
    monkeypatch.setitem(programs._LAYERS, 3, other)
    with pytest.raises(programs.ProgramMissing, match=r"--no-deps no-such-package==1\.0"):
        programs._from_layer.__wrapped__(3, "helm")
    monkeypatch.setitem(programs._LAYERS, 3, programs._Layer("pytest", "0.1"))
    with pytest.raises(programs.ProgramMissing, match=r"pytest is .* another version"):
        programs._from_layer.__wrapped__(3, "helm")


def test_unknown_name() -> None:
    with pytest.raises(programs.ProgramMissing, match="no program 'hlm'"):
        programs.program("hlm")


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert programs.main(["hlm"]) == 1
    assert "no program 'hlm'" in capsys.readouterr().err


@pytest.mark.parametrize(("major", "version"), [(4, "v4.3.1"), (3, "v3.19.0")])
def test_chart_renders_what_it_says(major: int, version: str, tmp_path: Path) -> None:
    try:
        helm = programs.helm(major)
    except programs.ProgramMissing as error:
        pytest.skip(str(error))

    def run(*arguments: str | Path) -> str:
        done = subprocess.run([helm, *arguments], capture_output=True, text=True, check=True)
        return done.stdout

    assert run("version", "--short").startswith(version)
    (tmp_path / "chart.tgz").write_bytes(charts.chart(tag="v7"))
    run("lint", tmp_path / "chart.tgz")
    given = ["core.secret=0123456789abcdef"]
    for profile, setting in (
        ("default", []),
        ("metrics", ["metrics.enabled=true"]),
        ("nodeport", ["expose.type=nodePort"]),
    ):
        settings = [part for item in given + setting for part in ("--set", item)]
        settings.append("--is-upgrade")  # the migration runs only then
        rendered = run("template", "x", tmp_path / "chart.tgz", *settings)
        installed = run("template", "x", tmp_path / "chart.tgz", *settings[:-1])
        assert "demo/migrate" in rendered
        assert "demo/migrate" not in installed
        assert rendered == run("template", "x", tmp_path / "chart.tgz", *settings)
        found = set(re.findall(r"[a-z./]*demo/[a-z-]+:v7", rendered))
        normalised = {name if "." in name.split("/")[0] else f"docker.io/{name}" for name in found}
        assert normalised == charts.images_of("v7", [profile])
        assert "apiVersion: v1\t\n" in rendered
    renders = [run("template", "x", tmp_path / "chart.tgz") for _ in range(2)]
    assert renders[0] != renders[1]  # the secret is random unless it is given
