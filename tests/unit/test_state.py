from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from installer.bundle.manifest import Manifest
from installer.errors import (
    Corrupt,
    InvalidInput,
    PreflightFailed,
    Rollback,
    TransferFailed,
    WrongChannel,
)
from installer.site import credentials
from installer.site.journal import Journal
from installer.site.private import private_folder, read_file, write_file
from installer.site.state import State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def manifest(serial: int, channel: str = "stable") -> Manifest:
    return Manifest(
        api_version="bundle/v1",
        kind="Bundle",
        name="harbor",
        channel=channel,
        serial=serial,
        created="2026-01-31T12:00:00Z",
        platforms=("linux/amd64",),
        signature_area=1024,
        members=(),
    )


def mode(path: Path) -> int:
    return path.lstat().st_mode & 0o777


# Private files


@pytest.mark.parametrize("umask", [0, 0o777])
def test_files_are_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        folder = private_folder(tmp_path / "state") if umask == 0 else tmp_path
        write_file(folder / "secret", b"x")
    finally:
        os.umask(before)
    assert mode(folder / "secret") == 0o600
    if umask == 0:
        assert mode(folder) == 0o700


def test_a_wide_folder_is_narrowed(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o755)
    private_folder(tmp_path / "state")
    assert mode(tmp_path / "state") == 0o700


def test_a_link_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "state").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidInput, match="not a folder of user"):
        private_folder(tmp_path / "state")


def test_a_link_in_place_of_a_file_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("kept")
    (tmp_path / "secrets.json").symlink_to(tmp_path / "victim")
    write_file(tmp_path / "secrets.json", b"new")
    assert (tmp_path / "victim").read_text() == "kept"
    assert not (tmp_path / "secrets.json").is_symlink()


def test_a_link_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(InvalidInput):
        read_file(tmp_path / "link")


def test_content_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_file(tmp_path / "a", b"old")

    def broken() -> Iterator[bytes]:
        yield b"new"
        raise Corrupt("no")

    with pytest.raises(Corrupt):
        write_file(tmp_path / "a", broken())
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_is_not_there_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(TransferFailed, match="none/a"):
        write_file(tmp_path / "none" / "a", b"")


# Journal


def test_a_torn_last_line_is_left_out_and_then_cut_off(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("started", step="seed")
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b'{"time":"2026-01-31T12:00:00Z","event":"do')
    assert [line.event for line in journal.lines()] == ["started"]
    journal.append("done", step="seed", bundle="sha256:0")
    assert [line.event for line in journal.lines()] == ["started", "done"]
    assert mode(tmp_path / "journal.jsonl") == 0o600


def test_damage_in_the_middle_is_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("started")
    journal.append("done")
    data = bytearray((tmp_path / "journal.jsonl").read_bytes())
    data[0] ^= 1
    (tmp_path / "journal.jsonl").write_bytes(data)
    with pytest.raises(Corrupt, match="jsonl:1"):
        journal.lines()


@pytest.mark.parametrize(
    ("events", "step"),
    [
        ((), None),
        ((("started", "a"), ("done", "a")), None),
        ((("started", "a"),), "a"),
        ((("started", "a"), ("failed", "a")), "a"),
        ((("started", "a"), ("failed", "a"), ("run", "")), None),
        ((("started", "a"), ("done", "a"), ("started", "b"), ("interrupted", "b")), "b"),
    ],
)
def test_the_step_that_a_run_stopped_in_is_found(
    tmp_path: Path, events: tuple[tuple[str, str], ...], step: Any
) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    for event, name in events:
        journal.append(event, step=name)
    line = journal.unfinished()
    assert (line.step if line else None) == step


# State


def test_looking_at_a_state_creates_nothing(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    assert state.serials.highest == {}
    assert state.journal.lines() == []
    assert credentials.kept(state, "harbor/harbor") is None
    state.check_history(manifest(1), channel="", allow_downgrade=False)
    assert not (tmp_path / "state").exists()


def test_the_highest_serial_counts_for_each_channel(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    with state.held():
        state.record(manifest(5))
        state.check_history(manifest(5), channel="", allow_downgrade=False)
        with pytest.raises(Rollback):
            state.check_history(manifest(4), channel="", allow_downgrade=False)
        state.check_history(manifest(4), channel="", allow_downgrade=True)
        state.record(manifest(4))
        assert state.serials.highest == {"stable": 5}
        with pytest.raises(WrongChannel):
            state.check_history(manifest(9, "edge"), channel="", allow_downgrade=False)
        state.check_history(manifest(9, "edge"), channel="edge", allow_downgrade=False)
        state.record(manifest(9, "edge"))
        assert state.serials.highest == {"stable": 5, "edge": 9}
        assert state.serials.channel == "edge"


def test_a_damaged_file_is_never_taken_for_an_empty_one(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    with state.held():
        state.record(manifest(5))
        state.path("serials.json").write_text('{"channel": ')
        with pytest.raises(Corrupt, match="serials"):
            state.check_history(manifest(1), channel="", allow_downgrade=False)


HOLDER = textwrap.dedent("""
    import sys, time
    from collections.abc import Iterator
    from pathlib import Path
    from installer.site.state import State
    with State(Path(sys.argv[1])).held():
        print("held", flush=True)
        time.sleep(60)
""")


def test_one_installer_at_a_time_and_a_killed_one_does_not_count(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(state.folder)], stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(PreflightFailed, match=f"process {holder.pid} on "), state.held():
            pytest.fail("two hold it")
        holder.kill()
        holder.wait()
    with state.held():
        assert mode(state.folder) == 0o700
        assert all(mode(path) == 0o600 for path in state.folder.iterdir())


# Secrets


@pytest.fixture(scope="module")
def made() -> credentials.HarborSecrets:
    return credentials.generate()


def test_secrets_have_the_lengths_that_harbor_wants(made: credentials.HarborSecrets) -> None:
    values = made.values()
    assert len(values["secretKey"]) == 16
    assert len(values["core"]["xsrfKey"]) == 32
    assert len(values["core"]["secret"]) == 16
    assert "BEGIN RSA PRIVATE KEY" in values["core"]["tokenKey"]
    assert "BEGIN CERTIFICATE" in values["core"]["tokenCert"]
    password = values["harborAdminPassword"]
    assert any(c.isupper() for c in password)
    assert any(c.isdigit() for c in password)


def test_no_two_secrets_are_alike(made: credentials.HarborSecrets) -> None:
    other = credentials.generate()
    texts = [text for text in (*made.texts(), *other.texts()) if text]
    assert len(texts) == len(set(texts))


def test_secrets_are_kept_and_those_of_others_stay(
    tmp_path: Path, made: credentials.HarborSecrets
) -> None:
    state = State(tmp_path / "state")
    with state.held():
        credentials.keep(state, "a/a", made)
        credentials.keep(state, "b/b", credentials.generate(admin_password="Chosen-1-word"))
        assert credentials.kept(state, "a/a") == made
        second = credentials.kept(state, "b/b")
        assert second is not None
        assert second.admin_password == "Chosen-1-word"
        assert mode(state.path("secrets.json")) == 0o600


def test_secrets_do_not_show(made: credentials.HarborSecrets) -> None:
    assert not any(text and text in repr(made) + str([made]) for text in made.texts())


@pytest.mark.parametrize("word", ["short1A", "alllower1", "ALLUPPER1", "NoDigits", "", "A1" * 80])
def test_a_password_that_harbor_would_refuse_is_refused_here(tmp_path: Path, word: str) -> None:
    (tmp_path / "p").write_text(word)
    with pytest.raises(InvalidInput, match="Harbor takes") as caught:
        credentials.read_password(tmp_path / "p")
    assert not word or word not in caught.value.message


def test_a_password_file_loses_its_newline(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("Good-Word-1\n")
    assert credentials.read_password(tmp_path / "p") == "Good-Word-1"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"secretKey": "not-a-secure-key"}, "secretKey"),
        ({"harborAdminPassword": "Harbor12345"}, "harborAdminPassword"),
        ({"harborAdminPassword": ""}, "harborAdminPassword"),
        ({"database": {"type": "internal", "internal": {"password": "changeit"}}}, "database.int"),
        ({"database": {"type": "external", "external": {"password": "password"}}}, "database.ext"),
        ({"registry": {"credentials": {"password": "harbor_registry_password"}}}, "registry.cre"),
    ],
)
def test_published_secrets_are_refused(
    made: credentials.HarborSecrets, change: dict[str, Any], key: str
) -> None:
    good = made.values()
    good["database"]["type"] = "internal"
    credentials.check_defaults(good, "harbor/harbor")
    with pytest.raises(InvalidInput, match=key):
        credentials.check_defaults(good | change, "harbor/harbor")


def test_an_existing_kubernetes_secret_takes_the_place_of_one(
    made: credentials.HarborSecrets,
) -> None:
    values = made.values() | {
        "harborAdminPassword": "Harbor12345",
        "existingSecretAdminPassword": "mine",
        "database": {
            "type": "external",
            "external": {"password": "password", "existingSecret": "mine"},
        },
    }
    credentials.check_defaults(values, "harbor/harbor")


def test_secrets_survive_a_round_trip_and_unknown_fields_do_not(
    made: credentials.HarborSecrets,
) -> None:
    data = msgspec.json.encode(made)
    assert msgspec.json.decode(data, type=credentials.HarborSecrets) == made
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(data[:-1] + b',"x":1}', type=credentials.HarborSecrets)
