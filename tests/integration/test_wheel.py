"""Both commands from a wheel in an environment of their own, away from the checkout."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.attacks.mutants import sample

CHECKOUT = Path(__file__).parents[2]


def run(folder: Path, *argv: str | Path) -> str:
    done = subprocess.run(
        argv, cwd=folder, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty environment with the wheel and the dependencies that it asks for."""
    folder = tmp_path_factory.mktemp("wheel")
    build: list[str | Path] = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        folder,
    ]
    subprocess.run([*build, CHECKOUT], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=True)
    pip: list[str | Path] = [
        folder / "env" / "bin" / "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    pinned: list[str | Path] = ["--constraint", folder / "constraints.txt"]
    names = (CHECKOUT / "requirements-dev.txt").read_text().splitlines()
    lines = [line.split(" ")[0] for line in names if "==" in line and not line.startswith("#")]
    (folder / "constraints.txt").write_text("\n".join(lines))
    subprocess.run([*pip, *pinned, wheel], check=True, capture_output=True)
    return folder


def test_bundler_brings_its_specs(environment: Path) -> None:
    bundler = environment / "env" / "bin" / "bundler"
    run(environment, bundler, "init", "harbor", "work")
    text = (environment / "work" / "bundle.yaml").read_text()
    assert text == (CHECKOUT / "manifests" / "bundles" / "harbor.yaml").read_text()
    (environment / "pass").write_text("words")
    run(environment, bundler, "keygen", "--passphrase-file", "pass")
    assert (environment / "release.pub").exists()


def test_installer_verifies(environment: Path) -> None:
    good = sample()
    (environment / "good.tar").write_bytes(good.data)
    (environment / "good.pub").write_bytes(good.key.public_pem())
    installer = environment / "env" / "bin" / "installer"
    assert "verified" in run(environment, installer, "verify", "good.tar", "--key", "good.pub")


@pytest.mark.parametrize("command", ["bundler", "installer"])
def test_every_verb_imports(environment: Path, command: str) -> None:
    program = environment / "env" / "bin" / command
    run(environment, program, "--version")
    for verb in __import__(f"{command}.cli", fromlist=["VERBS"]).VERBS:
        run(environment, program, verb, "--help")


def test_an_installer_can_be_packed(environment: Path) -> None:
    python = environment / "env" / "bin" / "python"
    code = "import bundler.python_environment as p; e = p.environment(); print(*e.code, *e.native)"
    names = run(environment, python, "-c", code).split()
    assert {"installer/cli/run.py", "msgspec._core", "zipfile.py"} < set(names)
    assert not [name for name in names if name.startswith(("bundler/", "pip/"))]


def test_the_modules_are_the_wheels(environment: Path) -> None:
    python = environment / "env" / "bin" / "python"
    shown = run(environment, python, "-c", "import bundler, installer, manifests; "
                "print(bundler.__file__, installer.__file__, manifests.__file__)")  # fmt: skip
    assert shown.count(str(environment)) == 3
