"""One connection: request heads in, answers out, ``sendfile`` from the held descriptor.

The bytes of a blob never pass through Python: the kernel copies them from the page cache to the
socket. With TLS they do pass, 256 KiB at a time. Every wait has an end: for a head, for a slow
reader, between requests.
"""

from __future__ import annotations

import logging
import re
import select
import socket
import ssl
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from installer.errors import AirgapError
from installer.serve.registry import Answer, ReadOnlyRegistry, error_answer, failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from installer.bundle.parts import BundleFile
    from installer.serve.registry import Span

log = logging.getLogger(__name__)
access_log = logging.getLogger("installer.serve.access")

IDLE_SECONDS = 90.0
"""Between two requests of a connection; Go's clients let go after 90 as well."""
HEAD_SECONDS = 15.0
"""For a whole request head, and for a TLS handshake."""
STALL_SECONDS = 60.0
"""Without a byte taken by the client."""
MIN_RATE = 1024
"""Bytes a second that a client has to take over a whole blob, once STALL_SECONDS have passed."""
MAX_HEAD = 32 * 1024
"""Bytes of a request line with its headers."""
_TLS_PIECE = 256 * 1024
_TLS_HANDSHAKE = 0x16
_DRAIN_SECONDS = 2.0
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*\r?\n\Z")
"""A header line of RFC 9112, without the folding that it declares obsolete."""


class _HeadTooLarge(Exception):
    """A request head over MAX_HEAD."""


class _HeadReader:
    """Reads request heads line by line, bounded in bytes and in time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()
        self._left = MAX_HEAD
        self._deadline = 0.0
        self.closed = False
        self.lines: list[bytes] = []
        """The lines of this head so far, as they came."""

    def begin(self) -> bytes:
        """Wait for the next request and give its first byte; empty when the client is gone."""
        self._left = MAX_HEAD
        self.lines.clear()
        if not self._buffer:
            self._deadline = time.monotonic() + IDLE_SECONDS
            self._fill()
        self._deadline = time.monotonic() + HEAD_SECONDS
        return bytes(self._buffer[:1])

    def readline(self, limit: int) -> bytes:
        """Read a line with its end; less when the client is gone."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0 and len(self._buffer) <= limit:
            searched = len(self._buffer)
            if searched > self._left:
                raise _HeadTooLarge
            if not self._fill():
                break
        size = min(end + 1 if end >= 0 else len(self._buffer), limit)
        line = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._left -= size
        if self._left < 0:
            raise _HeadTooLarge
        self.lines.append(line)
        return line

    def _fill(self) -> bool:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        data = self._connection.recv(16 * 1024)
        self._buffer += data
        return bool(data)

    def flush(self) -> None:
        """Nothing to do: it is what a handler calls on its files."""

    def close(self) -> None:
        """Forget what was read."""
        self.closed = True
        self._buffer.clear()


class Connection(BaseHTTPRequestHandler):
    """Serves one connection to its end.

    ``note_idle`` is called with ``idle=True`` when a request is waited for, and with
    ``idle=False`` when its head is there.
    """

    protocol_version = "HTTP/1.1"
    wbufsize = 64 * 1024  # head and a small body leave in one piece
    disable_nagle_algorithm = True
    connection: socket.socket

    def __init__(
        self,
        registry: ReadOnlyRegistry,
        note_idle: Callable[..., None],
        *socket_client_server: Any,
    ) -> None:
        self.registry = registry
        self._note_idle = note_idle
        super().__init__(*socket_client_server)

    def setup(self) -> None:
        """Read through a reader with limits."""
        super().setup()
        self._plain = not isinstance(self.connection, ssl.SSLSocket)
        self.rfile.close()
        self._head = _HeadReader(self.connection)
        self.rfile: Any = self._head
        self.command, self.path, self.request_version = "", "", self.protocol_version

    def handle(self) -> None:
        """Answer requests until either side has enough."""
        try:
            self._requests()
        except (TimeoutError, ConnectionError, ssl.SSLError) as error:
            log.debug("%s: %s", self.client_address[0], error)
        except OSError as error:  # the disk, since all that a connection raises is above
            log.error("%s: %s", ascii(self.path[:200]), error.strerror)  # noqa: TRY400 (no traceback)

    def finish(self) -> None:
        """Close."""
        with suppress(OSError):  # what is still buffered goes to a client that is gone
            super().finish()

    def _requests(self) -> None:
        self.close_connection = False
        try:
            while not self.close_connection:
                self.close_connection = True
                self._note_idle(idle=True)
                first = self._head.begin()
                if not first:
                    return
                if self._plain and first[0] == _TLS_HANDSHAKE:
                    # docker and containerd try TLS first and fall back on this answer.
                    self.wfile.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
                    return
                self._one_request()
        except _HeadTooLarge:
            self._send(error_answer(431, "TOO_LARGE", "the request's head is too long"), last=True)

    def _one_request(self) -> None:
        self.raw_requestline = self._head.readline(MAX_HEAD + 1)
        if not self.parse_request():  # which has sent the error
            return
        if self.request_version == "HTTP/0.9" or not self._is_clear():
            self.send_error(400)
            return
        self._note_idle(idle=False)
        started = time.monotonic()
        headers = {name.lower(): value for name, value in self.headers.items()}
        # A body is never read, so what follows on this connection can't be told from it.
        length = headers.get("content-length", "")
        has_body = length.strip("0 \t") != "" or "transfer-encoding" in headers
        try:
            answer = self.registry.answer(self.command, self.path, headers)
        except AirgapError as error:
            log.error("%s: %s", ascii(self.path[:200]), error.message)  # noqa: TRY400 (no traceback)
            answer = failure(error)
        self._send(answer, last=has_body)
        if access_log.isEnabledFor(logging.INFO):
            access_log.info(
                "%s %s %d %d %.3f",
                self.client_address[0],
                ascii(f"{self.command} {self.path}"[:300]),
                answer.status,
                answer.size,
                time.monotonic() - started,
            )

    def _is_clear(self) -> bool:
        """Whether nobody can read this head otherwise: where it ends, and whether a body follows.

        The standard library's parser is one for mail: it passes over what it does not understand,
        or takes it for the body, and so a proxy could see a body where this server sees none.
        """
        fields = [line for line in self._head.lines[1:] if line not in (b"\r\n", b"\n", b"")]
        lengths = [value.strip(" \t") for value in self.headers.get_all("content-length", [])]
        return (
            all(_FIELD.match(line) for line in fields)
            and len(lengths) <= 1
            and all(length.isascii() and length.isdigit() for length in lengths)
        )

    def _send(self, answer: Answer, *, last: bool = False) -> None:
        self.connection.settimeout(STALL_SECONDS)
        self.send_response_only(answer.status)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.status != 304:  # noqa: PLR2004 (Not Modified has no length)
            self.send_header("Content-Length", str(answer.size))
        if last:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        has_body = self.command != "HEAD" and answer.status != 304  # noqa: PLR2004
        if has_body:
            self.wfile.write(answer.body)
        self.wfile.flush()
        if has_body and answer.span and not self._send_span(answer.span):
            self.close_connection = True
        if last:
            self._drain()

    def _send_span(self, span: Span) -> bool:
        """Send bytes of a bundle; False when the file has become shorter than it was."""
        send = self._send_plain if self._plain else self._send_tls
        position, end, start = span.offset, span.offset + span.size, time.monotonic()
        while position < end:
            sent = send(span.bundle.file, position, end - position)
            if not sent:
                log.error("%s: the file ends at byte %d", span.bundle.path, position)
                return False
            position += sent
            elapsed = time.monotonic() - start
            if elapsed > STALL_SECONDS and position - span.offset < MIN_RATE * elapsed:
                raise TimeoutError("the client is too slow")
        return True

    def _send_plain(self, file: BundleFile, position: int, count: int) -> int:
        while True:
            try:
                return file.send(self.connection.fileno(), position, count)
            except BlockingIOError:
                poll = select.poll()
                poll.register(self.connection, select.POLLOUT)
                if not poll.poll(STALL_SECONDS * 1000):
                    raise TimeoutError("the client takes nothing") from None

    def _send_tls(self, file: BundleFile, position: int, count: int) -> int:
        piece = file.read(min(count, _TLS_PIECE), position)
        self.connection.sendall(piece)
        return len(piece)

    def _drain(self) -> None:
        """Read what the client still sends, so that closing doesn't take the answer away."""
        self.wfile.flush()
        if not self._plain:
            return
        try:
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_DRAIN_SECONDS)
            deadline = time.monotonic() + _DRAIN_SECONDS
            while time.monotonic() < deadline and self.connection.recv(64 * 1024):
                pass
        except OSError:
            return

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the parser refuses, in the form of all other errors."""
        del message, explain
        self.request_version = self.protocol_version  # the parser's guess is 0.9, without headers
        self._send(error_answer(code, "UNSUPPORTED", "not a request that can be read"), last=True)

    def handle_expect_100(self) -> bool:
        """Don't ask for a body that is not read anyway; the answer itself follows."""
        return True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Stay quiet: requests are logged here, with what a client says made harmless."""
