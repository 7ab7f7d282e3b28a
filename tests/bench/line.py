"""A line that is far and not good: 20 ms before each answer, and one request in a hundred fails.

A process of its own in front of a registry, with the standard library only; connections are kept
on both sides. ``tc netem`` would be simpler, but not every kernel has it. What fails is counted
over all requests, so that each contender meets the same share.

    python -I -S line.py REGISTRY PORT_FILE
"""

from __future__ import annotations

import http.client
import itertools
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_DELAY = 0.020
_FAILS = 100
_PIECE = 256 * 1024
_PASSED_ON = ("Accept", "Range", "Content-Type")
_PASSED_BACK = ("Content-Type", "Content-Length", "Content-Range", "Docker-Content-Digest")
_asked = itertools.count(1)
_own = threading.local()


class Line(BaseHTTPRequestHandler):
    """Passes one request after the other on."""

    protocol_version = "HTTP/1.1"
    registry = ""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the parent's name
        """Keep quiet."""

    def do_GET(self) -> None:  # http.server's name
        """Wait, fail or pass on."""
        time.sleep(_DELAY)
        if next(_asked) % _FAILS == 0:
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        connection = getattr(_own, "connection", None)
        if connection is None:
            connection = _own.connection = http.client.HTTPConnection(self.registry, timeout=60)
        headers = {name: value for name in _PASSED_ON if (value := self.headers.get(name))}
        connection.request(self.command, self.path, headers=headers)
        answer = connection.getresponse()
        self.send_response(answer.status)
        for name in _PASSED_BACK:
            if value := answer.getheader(name):
                self.send_header(name, value)
        self.end_headers()
        while piece := answer.read(_PIECE):
            self.wfile.write(piece)

    do_HEAD = do_GET  # noqa: N815


def main(registry: str, port_file: str) -> None:
    """Serve until it is ended."""
    Line.registry = registry
    server = ThreadingHTTPServer(("127.0.0.1", 0), Line)
    path = Path(port_file)
    path.with_suffix(".new").write_text(f"127.0.0.1:{server.server_address[1]}")
    path.with_suffix(".new").rename(path)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
