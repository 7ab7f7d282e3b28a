"""The listening side: accepts, counts and ends connections, one thread each.

The standard library's threading server is as fast as anything here, because ``connection`` leaves
the copying to the kernel.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import socketserver
import threading
import time
from contextlib import suppress
from functools import partial
from traceback import format_exc
from typing import TYPE_CHECKING, Any, Self

from installer.errors import InvalidInput, PreflightFailed
from installer.serve.check import ContentCheck
from installer.serve.connection import HEAD_SECONDS, Connection
from installer.serve.registry import ReadOnlyRegistry

if TYPE_CHECKING:
    import ssl

    from installer.oci.bundle_store import BundleStore

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 512
"""At once; above that the one that has been idle longest makes room."""
_STOP_SECONDS = 10.0


def parse_listen(text: str) -> tuple[str, int]:
    """Read ``host:port`` or ``[v6]:port``; raises InvalidInput."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or (":" in host and not bracketed):
        raise InvalidInput(
            f"not an address to listen on: {text[:100]!r}", hint="write it as 127.0.0.1:5000"
        )
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):  # noqa: PLR2004 (TCP)
        raise InvalidInput(f"not a port: {port[:20]!r}", hint="write it as 127.0.0.1:5000")
    return host.strip("[]"), int(port)


class _Listener(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Accepts connections, each in a thread; knows them all, so that they can be ended.

    Not http.server's HTTPServer: that asks DNS for its own name, which hangs on an isolated site.
    """

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def __init__(
        self, address: tuple[str, int], registry: ReadOnlyRegistry, tls: ssl.SSLContext | None
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._connection = partial(Connection, registry, self._note_idle)
        self._tls = tls
        self._lock = threading.Lock()
        self._open: dict[threading.Thread, socket.socket] = {}
        # In order of how long, the longest first. Nothing is lost when one of them is closed:
        # clients know that a server may do so between requests, and connect again.
        self._idle: dict[threading.Thread, None] = {}
        super().__init__(address, self._connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection; when there are too many, an idle one has to go.

        Not a limit for each address: a node that pulls many images leaves dozens of idle
        connections behind by itself, and many nodes may come through one address.
        """
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), daemon=True
        )
        with self._lock:
            full = len(self._open) >= MAX_CONNECTIONS and not self._drop_idle()
            if not full:
                self._open[thread] = request
                self._idle[thread] = None
        if full:
            log.warning("%d connections are busy, another was refused", MAX_CONNECTIONS)
            self.shutdown_request(request)
            return
        try:
            thread.start()
        except RuntimeError:  # no more threads
            self._forget(thread)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(threading.current_thread())

    def _forget(self, thread: threading.Thread) -> None:
        with self._lock:
            self._open.pop(thread, None)
            self._idle.pop(thread, None)

    def _note_idle(self, *, idle: bool) -> None:
        thread = threading.current_thread()
        with self._lock:
            if idle:
                self._idle.setdefault(thread)  # one that never said a word keeps its place
            else:
                self._idle.pop(thread, None)

    def _drop_idle(self) -> bool:
        """End the connection that has been idle longest, if there is one; under the lock."""
        thread = next(iter(self._idle), None)
        if thread is None:
            return False
        del self._idle[thread]
        _cut(self._open[thread])
        return True

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Do the TLS handshake, if any, in the connection's own thread."""
        if self._tls is None:
            self._connection(request, client_address, self)
            return
        request.settimeout(HEAD_SECONDS)
        try:
            secured = self._secured(self._tls, request)
        except (OSError, ValueError) as error:
            log.debug("%s: TLS handshake: %s", client_address[0], error)
            return
        with secured:
            self._connection(secured, client_address, self)

    def _secured(self, tls: ssl.SSLContext, request: socket.socket) -> ssl.SSLSocket:
        secured = tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        with self._lock:  # before the handshake, so that it can be cut short as well
            self._open[threading.current_thread()] = secured
        try:
            secured.do_handshake()
        except BaseException:
            secured.close()
            raise
        return secured

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a defect; the connection is closed, all others go on."""
        del request
        log.error("unexpected error while serving %s\n%s", client_address[0], format_exc())

    def end_connections(self) -> None:
        """Cut all connections and wait for their threads, which read from the bundles."""
        with self._lock:
            connections = dict(self._open)
        for connection in connections.values():
            _cut(connection)
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in connections:
            thread.join(max(0.0, deadline - time.monotonic()))


def _cut(connection: socket.socket) -> None:
    """End a connection that another thread uses, which sees it as closed by the client."""
    with suppress(OSError):
        # Not SSLSocket's own shutdown: that takes the TLS state away under the other thread.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


class BundleServer:
    """A read-only registry over the bundles of a store.

    ``listen`` is host and port, port 0 takes a free one. Without ``tls`` only loopback addresses
    are accepted, unless ``plain_http`` says that it is meant. Raises InvalidInput for that,
    PreflightFailed when the address can't be had. Access is logged at level INFO of the logger
    ``installer.serve.access``, trouble at ERROR of ``installer.serve``.
    """

    def __init__(
        self,
        store: BundleStore,
        listen: tuple[str, int] = ("127.0.0.1", 5000),
        *,
        tls: ssl.SSLContext | None = None,
        plain_http: bool = False,
    ) -> None:
        address = _resolve(listen)
        refuse_open_door(address[0], tls=tls is not None, plain_http=plain_http)
        self.check = ContentCheck(store.bundles)
        registry = ReadOnlyRegistry(store, self.check)
        try:
            self._listener = _Listener(address, registry, tls)
        except OSError as error:
            raise PreflightFailed(
                f"can't listen on {address[0]} port {address[1]}: {error.strerror}",
                hint="choose another --listen, or stop what listens there",
            ) from error
        self._scheme = "https" if tls else "http"
        self._thread = threading.Thread(
            target=self._listener.serve_forever, args=(0.1,), name="serve", daemon=True
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are listened on."""
        host, port = self._listener.server_address[:2]
        return str(host), int(port)

    @property
    def authority(self) -> str:
        """Host and port as they stand in a URL or an image reference."""
        host, port = self.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def url(self) -> str:
        """Base URL of the registry."""
        return f"{self._scheme}://{self.authority}"

    def start(self) -> None:
        """Serve, and check all content behind that; returns at once."""
        self._thread.start()
        self.check.start()

    def stop(self) -> None:
        """End all connections and the check; after that the bundles may be closed."""
        if self._thread.is_alive():
            self._listener.shutdown()
            self._thread.join()
        self._listener.server_close()
        self.check.stop()
        self._listener.end_connections()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def refuse_open_door(address: str, *, tls: bool, plain_http: bool) -> None:
    """Raise InvalidInput when others could reach a numeric address in the clear by oversight."""
    if not (tls or plain_http or ipaddress.ip_address(address).is_loopback):
        raise InvalidInput(
            f"{address} can be reached from other machines, and there is no TLS",
            hint="give --tls-cert and --tls-key, or say --plain-http if that is meant",
        )


def _resolve(listen: tuple[str, int]) -> tuple[str, int]:
    """Give the numeric address of a host name; raises InvalidInput."""
    host, port = listen
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InvalidInput(
            f"not an address of this machine: {host[:100]!r}", hint="write it as 127.0.0.1:5000"
        ) from error
    return str(found[0][4][0]), port
