"""Debian's real Redis with a password and, if wanted, TLS; in a folder of its own.

It keeps nothing on the disk, and what it is told is in a file: a password in the command line would
be everybody's.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.integration.servers import free_port
from tests.programs import ProgramMissing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.upstream.certificates import Certificates

PASSWORD = "an-operators/own:2@of%a+kind"
"""Each of its signs has a meaning in a URL."""
LINES = (f'requirepass "{PASSWORD}"', 'save ""')


def redis_server() -> Path:
    """Debian's Redis; raises ProgramMissing."""
    program = Path("/usr/bin/redis-server")
    if not os.access(program, os.X_OK):
        raise ProgramMissing("redis-server is missing: apt-get install redis-server")
    return program


@dataclass(frozen=True)
class Redis:
    """A Redis, or a Sentinel, that listens at ``address``; ``lines`` of redis.conf say the rest."""

    folder: Path
    host: str
    port: int
    lines: tuple[str, ...] = LINES
    certificates: Certificates | None = None
    sentinel: bool = False

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def password_file(self) -> Path:
        return self.folder / "password"

    def command(self) -> list[str | Path]:
        """Write its configuration and the password's file; the command that starts it."""
        port = "tls-port" if self.certificates else "port"
        lines = [f"bind {self.host}", "port 0", f"{port} {self.port}", f"dir {self.folder}"]
        if tls := self.certificates:
            lines += [f"tls-cert-file {tls.certificate}", f"tls-key-file {tls.key}"]
            lines += [f"tls-ca-cert-file {tls.ca}"]
        self.folder.mkdir(exist_ok=True)
        for path, text in (
            (self.folder / "redis.conf", "\n".join([*lines, *self.lines]) + "\n"),
            (self.password_file, f"{PASSWORD}\n"),
        ):
            path.touch(mode=0o600)
            path.write_text(text)
        return [redis_server(), self.folder / "redis.conf", *(["--sentinel"] * self.sentinel)]


@contextmanager
def running(folder: Path, *lines: str, **how: Any) -> Iterator[Redis]:
    """Start one on loopback and wait until it listens; it is gone afterwards."""
    redis = Redis(folder, "127.0.0.1", free_port(), lines or LINES, **how)
    log = folder.with_suffix(".log")
    with log.open("wb") as out:
        process = subprocess.Popen(redis.command(), stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 30
        while not _listens(redis):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield redis
    finally:
        process.kill()  # it keeps nothing
        process.wait()


def _listens(redis: Redis) -> bool:
    try:
        socket.create_connection((redis.host, redis.port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True
