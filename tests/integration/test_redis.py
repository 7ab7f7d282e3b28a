"""A real Redis is asked as Harbor will ask it: what can't work is said before a change."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from installer.deploy import redis as asked
from installer.errors import PreflightFailed
from installer.site import harbor
from tests.integration.servers import free_port
from tests.programs import ProgramMissing
from tests.redis import LINES, PASSWORD, Redis, redis_server, running
from tests.upstream.certificates import make_certificates

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _redis() -> None:
    try:
        redis_server()
    except ProgramMissing as missing:
        pytest.skip(str(missing))


def section(there: Redis, **more: Any) -> harbor.Redis:
    given = {"addresses": [there.address], "passwordFile": str(there.password_file)} | more
    return msgspec.convert({k: v for k, v in given.items() if v is not None}, harbor.Redis)


def ask(there: Redis, **more: Any) -> str:
    return asked.ask(section(there, **more), there.address)


def refused(there: Redis, **more: Any) -> str:
    with pytest.raises(PreflightFailed) as caught:
        ask(there, **more)
    text = f"{caught.value.message} -> {caught.value.hint}"
    assert PASSWORD not in text
    return text


def test_a_password_is_right_wrong_or_missing(tmp_path: Path) -> None:
    with running(tmp_path / "r") as there:
        assert ask(there) == f"{there.address} answers"
        assert "NOAUTH" in refused(there, passwordFile=None)
        wrong = tmp_path / "wrong"
        wrong.write_text("guessed\n")
        assert "WRONGPASS" in refused(there, passwordFile=str(wrong))
        assert "WRONGPASS" in refused(there, username="nobody")


@pytest.mark.parametrize("word", ["two words", "12345678", "@home", "a: b", "a #b", "'a'", "yes"])
def test_a_password_that_would_be_another_one_in_the_pods(tmp_path: Path, word: str) -> None:
    there = Redis(tmp_path, "127.0.0.1", free_port())
    there.password_file.write_text(f"{word}\n")
    text = refused(there)
    assert "would reach Harbor's pods as another one" in text
    assert word not in text.replace(str(there.password_file), "")


def test_a_user_of_its_acl_logs_in_by_name(tmp_path: Path) -> None:
    user = f'user harbor on ">{PASSWORD}" ~* &* +@all'
    with running(tmp_path / "r", user, *LINES) as there:
        assert ask(there, username="harbor") == f"{there.address} answers"


def test_a_redis_without_a_password_refuses_one(tmp_path: Path) -> None:
    with running(tmp_path / "r", 'save ""') as there:
        assert ask(there, passwordFile=None)
        assert "it has no password" in refused(there)


@pytest.fixture(params=["1.2", "1.3"])
def secured(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Redis]:
    tls = make_certificates(tmp_path / "tls", ["127.0.0.1"])
    lines = (*LINES, "tls-auth-clients no", f"tls-protocols TLSv{request.param}")
    with running(tmp_path / "r", *lines, certificates=tls) as there:
        yield there


def test_tls_is_verified_as_harbor_does(secured: Redis, tmp_path: Path) -> None:
    assert secured.certificates is not None
    ca = str(secured.certificates.ca)
    assert ask(secured, tls=True, ca=ca) == f"{secured.address} answers over TLS"
    other = make_certificates(tmp_path / "other")
    assert "its certificate is refused: " in refused(secured, tls=True, ca=str(other.ca))
    assert "its certificate is refused: " in refused(secured, tls=True)
    assert "no answer of a Redis" in refused(secured)
    empty = tmp_path / "empty"
    empty.touch()
    assert "redis.ca: " in refused(secured, tls=True, ca=str(empty))


def test_a_certificate_for_another_name_is_refused(tmp_path: Path) -> None:
    tls = make_certificates(tmp_path / "tls", ["redis.test"])
    with running(tmp_path / "r", *LINES, "tls-auth-clients no", certificates=tls) as there:
        assert "IP address mismatch" in refused(there, tls=True, ca=str(tls.ca))


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_redis_that_wants_a_clients_certificate_says_so(tmp_path: Path, version: str) -> None:
    tls = make_certificates(tmp_path / "tls", ["127.0.0.1"])
    lines = (*LINES, f"tls-protocols TLSv{version}")  # tls-auth-clients is yes unless told
    with running(tmp_path / "r", *lines, certificates=tls) as there:
        assert "tls-auth-clients no" in refused(there, tls=True, ca=str(tls.ca))


def test_tls_is_not_spoken_everywhere(tmp_path: Path) -> None:
    tls = make_certificates(tmp_path / "tls", ["127.0.0.1"])
    with running(tmp_path / "r") as there:
        assert "no TLS: " in refused(there, tls=True, ca=str(tls.ca))


def test_nobody_there_is_another_thing_than_somebody_else(tmp_path: Path) -> None:
    nobody = Redis(tmp_path, "127.0.0.1", free_port())
    with pytest.raises(asked.Unreachable, match="Connection refused"):
        ask(nobody, passwordFile=None)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        other = Redis(tmp_path, "127.0.0.1", server.getsockname()[1])
        assert "no answer of a Redis" in refused(other, passwordFile=None)
        thread.join()


def test_sentinel_names_the_master_that_is_asked(tmp_path: Path) -> None:
    with running(tmp_path / "r") as master:
        lines = (f"sentinel monitor plant 127.0.0.1 {master.port} 1",)
        with running(tmp_path / "s", *lines, sentinel=True) as there:
            password = str(master.password_file)
            how = {"sentinelMaster": "plant", "passwordFile": password}
            text = f"{there.address} names the master {master.address}, which answers"
            assert ask(there, **how) == text
            assert "knows no master 'other'" in refused(there, **how | {"sentinelMaster": "other"})
        assert "is it a Sentinel?" in refused(master, **how)
