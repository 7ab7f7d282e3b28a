"""What answers at an NFS port and is none, or says what nobody expects."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from installer.deploy import nfs
from installer.deploy.nfs import NfsRefused, examine_export, minor_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def answering(answer: Callable[[bytes], bytes]) -> Iterator[int]:
    """A server that answers each request, without its record mark, with these bytes; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            channel, _ = listening.accept()
            with channel, suppress(ConnectionError):
                while mark := channel.recv(4):
                    size = struct.unpack(">I", mark)[0] & 0x7FFFFFFF
                    request = b""
                    while len(request) < size:
                        request += channel.recv(size - len(request))
                    said = answer(request)
                    if not said:
                        return
                    channel.sendall(said)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(10)
        assert not thread.is_alive()


def record(data: bytes) -> bytes:
    return struct.pack(">I", 0x80000000 | len(data)) + data


def refusal(answer: Callable[[bytes], bytes]) -> str:
    with answering(answer) as port, pytest.raises(NfsRefused) as refused:
        examine_export("127.0.0.1", port, "/x", {})
    return refused.value.message


def replied(*numbers: int) -> Callable[[bytes], bytes]:
    return lambda request: record(request[:4] + struct.pack(f">{len(numbers)}I", *numbers))


def test_who_answers_something_else_is_named() -> None:
    assert refusal(lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n") == (
        "what answers does not speak NFS"
    )
    assert "closed" in refusal(lambda _: b"")
    assert "does not speak NFS" in refusal(lambda _: record(b""))
    assert "does not speak NFS" in refusal(lambda _: record(b"\0" * 100))
    assert refusal(replied(1, 1, 1, 1)) == "the server refuses this machine"
    assert refusal(replied(1, 0, 0, 0, 2, 2, 3)) == "it speaks NFS 2 to 3, not 4"
    assert refusal(replied(1, 0, 0, 0, 1)) == "another service than NFS answers"
    assert "version of NFS" in refusal(replied(1, 0, 0, 0, 0, 10021, 0, 0))
    assert "NFS error 4711" in refusal(replied(1, 0, 0, 0, 0, 4711, 0, 0))


def test_an_answer_without_end_is_not_kept() -> None:
    assert "does not speak NFS" in refusal(lambda _: struct.pack(">I", 0xFFFFFFFF))
    piece = struct.pack(">I", 1 << 19) + b"\0" * (1 << 19)
    assert "does not speak NFS" in refusal(lambda _: piece * 3)


def test_nobody_there_and_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setattr(nfs, "_PATIENCE", 0.2)
        with pytest.raises(NfsRefused, match="no answer"):
            examine_export("127.0.0.1", port, "/x", {})
    with pytest.raises(NfsRefused, match="refused"):
        examine_export("127.0.0.1", port, "/x", {})
    with pytest.raises(NfsRefused, match=r"not known|resolution"):
        examine_export("nobody.invalid", port, "/x", {})


@given(st.binary(max_size=200))
def test_only_our_own_error_comes_out(data: bytes) -> None:
    with answering(lambda request: record(request[:4] + data)) as port, suppress(NfsRefused):
        examine_export("127.0.0.1", port, "/x", {"registry": 10000}, minor=0)


@pytest.mark.parametrize(
    ("options", "minor"),
    [
        (["hard"], 1),
        (["hard", "nfsvers=4.1"], 1),
        (["vers=4.2"], 2),
        (["nfsvers=4"], 0),
        (["v4.0"], 0),
        (["nfsvers=3"], None),
        (["nfsvers=3", "nfsvers=4.1"], 1),
    ],
)
def test_the_version_is_that_of_the_mount(options: list[str], minor: int | None) -> None:
    assert minor_version(options) == minor
