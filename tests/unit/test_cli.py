"""The commands as processes: exit codes, one-line errors, nothing of a traceback or a secret."""

from __future__ import annotations

import json
import os
import pty
import select
import stat
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.attacks.mutants import MUTANTS, sample

if TYPE_CHECKING:
    from pathlib import Path

GOOD = sample()


def run(*argv: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    code = f"from {argv[0]}.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *argv[1:]],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good.tar").write_bytes(GOOD.data)
    (tmp_path / "release.pub").write_bytes(GOOD.key.public_pem())
    return tmp_path


def verify(folder: Path, bundle: str, *more: str) -> subprocess.CompletedProcess[str]:
    return run("installer", "verify", bundle, "--key", "release.pub", *more, cwd=folder)


def test_a_good_bundle(folder: Path) -> None:
    done = verify(folder, "good.tar")
    assert done.returncode == 0, done.stderr
    assert "verified: harbor serial 7 of channel stable" in done.stderr
    document = json.loads(verify(folder, "good.tar", "--output", "json").stdout)
    assert document["verified"] is True
    assert document["signers"] == [GOOD.key.public.key_id]


@pytest.mark.parametrize(
    ("attack", "code"),
    [
        ("unsigned", 3),
        ("signed by another key", 3),
        ("truncated inside the last block", 4),
        ("content changed", 4),
        ("member turned into a symbolic link", 4),
    ],
)
def test_refusals_have_their_exit_codes(folder: Path, attack: str, code: int) -> None:
    (folder / "bad.tar").write_bytes(MUTANTS[attack].make(GOOD))
    for verb in ("verify", "inspect"):
        if verb == "inspect" and attack == "content changed":
            continue  # inspect reads no contents
        done = run("installer", verb, "bad.tar", "--key", "release.pub", cwd=folder)
        assert done.returncode == code, done.stderr
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


@pytest.mark.parametrize(
    "argv",
    [
        ("installer", "verify", "none.tar", "--key", "release.pub"),
        ("installer", "verify", "good.tar", "--key", "none.pub"),
        ("installer", "verify", "good.tar", "--key", "good.tar"),
        ("installer", "verify", "good.tar"),
        ("installer", "verfy"),
        ("bundler", "keygen"),
        ("bundler", "keygen", "--passphrase-file", "none"),
        ("bundler", "lock", "none.yaml"),
        ("bundler", "build", "none.yaml", "--key", "k", "--out", "o"),
    ],
    ids=" ".join,
)
def test_wrong_use_is_exit_code_2(folder: Path, argv: tuple[str, ...]) -> None:
    done = run(*argv, cwd=folder, BUNDLER_PASSPHRASE="")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.lower().count("error:") == 1


def test_inspect_shows_and_prints_json(folder: Path) -> None:
    shown = run("installer", "inspect", "good.tar", "--key", "release.pub", cwd=folder)
    assert "harbor  serial 7" in shown.stdout
    assert "by nobody: " in shown.stdout
    made = run("bundler", "inspect", "good.tar", "--key", "release.pub", cwd=folder)
    assert made.stdout == shown.stdout
    printed = run(
        "installer", "inspect", "good.tar", "--key", "release.pub", "--output", "json", cwd=folder
    )
    assert json.loads(printed.stdout)["serial"] == 7


def test_keygen_writes_an_encrypted_key_once(folder: Path) -> None:
    (folder / "p").write_text("very secret words\n")
    made = run("bundler", "keygen", "--out", "my.key", "--passphrase-file", "p", cwd=folder)
    assert made.returncode == 0, made.stderr
    key = folder / "my.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert "ENCRYPTED" in key.read_text()
    assert "very secret words" not in made.stderr + made.stdout
    before = key.read_bytes()
    again = run("bundler", "keygen", "--out", "my.key", "--passphrase-file", "p", cwd=folder)
    assert again.returncode == 2
    assert key.read_bytes() == before


def test_keygen_keeps_private_and_public_apart(folder: Path) -> None:
    (folder / "p").write_text("words\n")
    for out in ("new.pub", "release.key"):  # release.pub is there already
        done = run("bundler", "keygen", "--out", out, "--passphrase-file", "p", cwd=folder)
        assert done.returncode == 2, done.stderr
        assert not (folder / out).exists()


def test_what_is_no_file_does_not_hang(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    assert verify(folder, "pipe").returncode == 2


def typed(folder: Path, *lines: str) -> tuple[int, str]:
    """Run keygen on a terminal of its own and type a line at each prompt."""
    code = "from bundler.cli import main; main()"
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, "keygen", "--out", "t.key"],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "BUNDLER_PASSPHRASE"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown, waiting = "", list(lines)
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        if select.select([ours], [], [], 0.1)[0]:
            with suppress(OSError):
                shown += os.read(ours, 1000).decode()
        if waiting and shown.endswith(": "):
            os.write(ours, waiting.pop(0).encode() + b"\n")
            shown += "\n"
    if process.poll() is None:
        process.kill()
    os.close(ours)
    return process.wait(), shown


def test_keygen_asks_twice_on_a_terminal(folder: Path) -> None:
    code, shown = typed(folder, "tide table", "tide table")
    assert code == 0, shown
    assert "tide table" not in shown
    assert (folder / "t.key").exists()


def test_keygen_notices_a_typing_error(folder: Path) -> None:
    code, shown = typed(folder, "tide table", "tide tabel", "tide table", "tide table")
    assert "do not match" in shown
    assert code == 0, shown


@pytest.mark.parametrize("command", ["bundler", "installer"])
def test_help_lists_the_verbs(command: str, tmp_path: Path) -> None:
    done = run(command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    for verb in __import__(f"{command}.cli", fromlist=["VERBS"]).VERBS:
        assert f"  {verb} " in done.stdout
        asked = run(command, verb, "--help", cwd=tmp_path)
        assert asked.returncode == 0, asked.stderr
        assert "Usage:" in asked.stdout


def test_init_writes_the_spec_that_is_asked_for(tmp_path: Path) -> None:
    done = run("bundler", "init", "harbor-platform", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "name: csi-driver-nfs" in (tmp_path / "bundle.yaml").read_text()
    older = run("bundler", "init", "harbor-platform", "other", "--version=2.14", cwd=tmp_path)
    assert older.returncode == 2
    assert "there is no spec of harbor-platform for it" in older.stderr
    assert not (tmp_path / "other").exists()
