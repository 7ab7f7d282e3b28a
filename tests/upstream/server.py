"""An HTTP server on loopback that keeps a log of its requests and misbehaves on demand.

A subclass says what the right answer is; ``Fault`` objects bend it on its way out, so that tests of
fetching meet what networks do: refusals, cut and stalled bodies, wrong bytes, proxies that ignore
Range. Uploads are read whole before they are answered.
"""

from __future__ import annotations

import re
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping
    from email.message import Message
    from types import TracebackType

_SLICE = 1 << 18
_RANGE = re.compile(r"bytes=(\d*)-(\d*)\Z")


@dataclass
class Fault:
    """What goes wrong with requests whose ``path?query`` matches ``path`` (re.search).

    It leaves the first ``after`` of them alone, then hits ``times`` of them (None: all); ``hits``
    counts. Offsets are bytes of the answer's body, but ``flip_at`` is one of the whole content, so
    that a resumed range is wrong at the same place.
    """

    path: str
    method: str | None = None
    after: int = 0
    times: int | None = None
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    delay: float = 0
    drop: bool = False
    cut_after: int | None = None
    stall_after: int | None = None
    stall_for: float = 60
    flip_at: int | None = None
    replace: bytes | None = None
    no_range: bool = False
    bytes_per_second: int | None = None
    hits: int = 0
    seen: int = 0

    def strikes(self, method: str, target: str) -> bool:
        """Count the request and say whether it is hit."""
        if self.method not in (None, method) or not re.search(self.path, target):
            return False
        self.seen += 1
        if self.seen <= self.after or (self.times is not None and self.hits >= self.times):
            return False
        self.hits += 1
        return True


_NO_FAULT = Fault("")


@dataclass(frozen=True)
class Request:
    """A request with its whole body; ``path`` is without query and without the server's prefix."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Message
    body: bytes = b""

    def first(self, name: str) -> str | None:
        """First value of a query parameter."""
        values = self.query.get(name)
        return values[0] if values else None


@dataclass(frozen=True)
class Answer:
    """What to send; with ``ranged`` a Range header of the request is honoured."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    ranged: bool = False


@dataclass
class Logged:
    """One line of the log: what was asked, and how many bytes of body went out (and came in).

    It is written before the first byte is sent, so that a client that has its answer finds it;
    ``status`` stays 0 for a dropped request.
    """

    method: str
    target: str
    range: str | None
    authorized: bool
    received: int
    status: int = 0
    sent: int = 0


class LoopbackServer:
    """A threading server on a free port of 127.0.0.1, to be used in a ``with`` statement.

    ``tls`` is a server-side context; ``prefix`` a path below which everything is served. Leaving
    the block closes every connection, waits for every thread, and raises what a handler raised.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None, prefix: str = "") -> None:
        self.prefix = prefix
        self.faults: list[Fault] = []
        self.log: list[Logged] = []
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.errors: list[BaseException] = []
        self._tls = tls
        self._server = _Server(self, tls)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def answer(self, request: Request) -> Answer:
        """Give the right answer to a request."""
        raise NotImplementedError

    @property
    def host(self) -> str:
        """``127.0.0.1:PORT``."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        """Where it is served, without a slash at the end."""
        return f"{'https' if self._tls else 'http'}://{self.host}{self.prefix}"

    def fail(self, path: str, **how: Any) -> Fault:
        """Add a fault; the first one that strikes is used."""
        fault = Fault(path, **how)
        with self.lock:
            self.faults.append(fault)
        return fault

    def count(self, method: str, path: str = "") -> int:
        """Requests so far with this method whose ``path?query`` matches (re.search)."""
        with self.lock:
            return sum(
                item.method == method and bool(re.search(path, item.target)) for item in self.log
            )

    @property
    def bytes_sent(self) -> int:
        """Bytes of answers' bodies so far."""
        with self.lock:
            return sum(item.sent for item in self.log)

    def struck(self, method: str, target: str) -> Fault | None:
        """Find the fault that hits this request."""
        with self.lock:
            return next((fault for fault in self.faults if fault.strikes(method, target)), None)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.close_connections()
        self._server.server_close()
        if self.errors and error is None:
            raise RuntimeError("the test server itself failed") from self.errors[0]


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 128

    def __init__(self, owner: LoopbackServer, tls: ssl.SSLContext | None) -> None:
        self.owner = owner
        self._tls = tls
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def server_bind(self) -> None:
        # HTTPServer would look up the host's name, which may ask a name server.
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "localhost", int(self.server_address[1])

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self._tls:
            # The handshake is left to the thread of the connection.
            connection = self._tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        with self.owner.lock:
            self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        with self.owner.lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        with self.owner.lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        del request, client_address
        error = sys.exception()
        if error and not isinstance(error, OSError):  # a client that went away is none of ours
            self.owner.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the parent's name
        """Keep quiet: the log is a list."""

    def _serve(self) -> None:
        owner = self.server.owner
        body = self._body()
        split = urlsplit(self.path)
        authorized = "Authorization" in self.headers
        logged = Logged(self.command, self.path, self.headers.get("Range"), authorized, len(body))
        with owner.lock:
            owner.log.append(logged)
        fault = owner.struck(self.command, self.path) or _NO_FAULT
        if fault.delay:
            owner.closing.wait(fault.delay)
        if fault.drop:
            self.close_connection = True
            return
        if fault.status:
            answer = Answer(fault.status, fault.headers, fault.body)
        elif not split.path.startswith(owner.prefix):
            answer = Answer(404)
        else:
            path = split.path.removeprefix(owner.prefix)
            query = parse_qs(split.query, keep_blank_values=True)
            answer = owner.answer(Request(self.command, path, query, self.headers, body))
        self._send(answer, fault, logged)

    # Names are http.server's.
    do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = _serve  # noqa: N815

    def _send(self, answer: Answer, fault: Fault, logged: Logged) -> None:
        status, headers, body = answer.status, dict(answer.headers), memoryview(answer.body)
        if fault.replace is not None:
            body = memoryview(fault.replace)
        if fault.flip_at is not None and fault.flip_at < len(body):
            flipped = bytearray(body)
            flipped[fault.flip_at] ^= 1
            body = memoryview(flipped)
        if answer.ranged and not fault.no_range:
            headers["Accept-Ranges"] = "bytes"
            if self.command == "GET" and (found := _RANGE.match(self.headers.get("Range", ""))):
                whole, bounds = len(body), _bounds(found, len(body))
                if bounds is None:
                    status, body = 416, memoryview(b"")
                    headers["Content-Range"] = f"bytes */{whole}"
                else:
                    status, body = 206, body[bounds[0] : bounds[1] + 1]
                    headers["Content-Range"] = f"bytes {bounds[0]}-{bounds[1]}/{whole}"
        logged.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:  # which has no body and no length
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self._write(body, fault, logged)

    def _write(self, body: memoryview, fault: Fault, logged: Logged) -> None:
        """Send the body as the fault wants it."""
        wait, rate = self.server.owner.closing.wait, fault.bytes_per_second
        stops = [at for at in (fault.cut_after, fault.stall_after) if at is not None]
        stop = min(len(body), *stops) if stops else len(body)
        began = time.monotonic()
        while logged.sent < stop:
            start = logged.sent
            end = min(stop, start + (max(1, rate // 20) if rate else _SLICE))
            logged.sent = end
            self.wfile.write(body[start:end])
            if rate and wait(max(0, began + end / rate - time.monotonic())):
                break
        if fault.stall_after is not None:
            wait(fault.stall_for)
        if logged.sent < len(body):
            self.close_connection = True

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline() not in (b"\r\n", b"\n", b""):
                pass  # trailers
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))


def _bounds(found: re.Match[str], size: int) -> tuple[int, int] | None:
    """First and last byte of a Range, or None if it can't be satisfied (RFC 9110, 14.1.2)."""
    first, last = found.groups()
    if not first:
        return (max(0, size - int(last)), size - 1) if last and int(last) and size else None
    start, end = int(first), min(int(last), size - 1) if last else size - 1
    return (start, end) if start <= end else None
