"""Threads that meet a type at the same moment: a crash has to happen in a process of its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
_MEET = """
import sys, threading, msgspec
from installer.structs import decode_json

sys.setswitchinterval(1e-6)
DATA = b'{"config":{"digest":"b","size":3},"layers":[{"digest":"b","size":3}]}'


def meet(number):
    part = msgspec.defstruct(f"Part{number}", [("digest", str), ("size", int)])
    whole = msgspec.defstruct(f"Whole{number}", [("config", part), ("layers", list[part])])
    begin, read = threading.Barrier(4), []

    def decode():
        begin.wait()
        read.append(CALL)

    threads = [threading.Thread(target=decode) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(read) == 4 and all(one.layers[0].size == 3 for one in read)


for number in range(150):
    meet(number)
"""


def meet(call: str) -> int:
    program = _MEET.replace("CALL", call)
    return subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, check=False
    ).returncode


def test_threads_may_meet_a_type_at_the_same_moment() -> None:
    assert meet("decode_json(DATA, whole)") == 0


MODULES = [p for room in ("bundler", "installer") for p in (CHECKOUT / room).rglob("*.py")]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(CHECKOUT).as_posix())
def test_nobody_decodes_a_type_elsewhere(path: Path) -> None:
    if path.name == "structs.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "msgspec.json.decode":
            typed = len(node.args) > 1 or any(k.arg == "type" for k in node.keywords)
            assert not typed, f"{path.name}:{node.lineno}: use installer.structs.decode_json"
        name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        assert name != "msgspec.json.Decoder", f"{path.name}: use installer.structs.decode_json"
