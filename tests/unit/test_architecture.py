"""The rules between rooms: who imports whom is import-linter's, the rest is looked up here."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
MODULES = sorted(p for room in ("bundler", "installer") for p in (CHECKOUT / room).rglob("*.py"))
ONE_MODULE = {"docker": ("bundler/credentials.py", "installer/oci/docker_engine.py")}
"""Libraries that only one module of each side may know."""


def relative(path: Path) -> str:
    return path.relative_to(CHECKOUT).as_posix()


def test_import_rules() -> None:
    # A process of its own: in this one it would turn loggers off that other tests listen to.
    program = Path(sys.executable).with_name("lint-imports")
    found = subprocess.run(
        [program, "--config", "pyproject.toml", "--no-cache"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_module(path: Path) -> None:
    tree = ast.parse(path.read_text())
    name = relative(path)
    assert ast.get_docstring(tree), "a module opens with the idea behind it"
    assert not {"utils", "helpers", "manager"} & set(name.removesuffix(".py").split("/"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            spelled = f"{node.value.id}.{node.attr}"
            if spelled in ("sys.exit", "os.environ", "os.getenv", "sys.stdout", "sys.stderr"):
                places = (
                    ("installer/environment.py", "bundler/loader/boot.py")
                    if spelled == "os.environ"
                    else ()
                )
                assert "/cli/" in name or name in places, f"{name}:{node.lineno}: {spelled}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "input"), f"{name}:{node.lineno}: use the console"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            for imported in names:
                owners = ONE_MODULE.get((imported or "").split(".")[0], (name,))
                assert name in owners, f"{name}:{node.lineno}: only {owners} may import it"
