"""Debian's docker-registry with its access log on, so that requests can be counted."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.bench.account import BenchFailed, Server, started
from tests.integration.servers import debian

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_REQUEST = re.compile(r'"(?:GET|HEAD|POST|PUT|PATCH|DELETE) /v2/')
_SENT = re.compile(r'"GET /v2/\S+ HTTP/1\.1" 20[06] (\d+)')
_SMALL_BUFFERS = """
ip link set lo up
echo 4096 65536 65536 > /proc/sys/net/ipv4/tcp_rmem
echo 4096 65536 65536 > /proc/sys/net/ipv4/tcp_wmem
exec "$@"
"""
_LISTENING = re.compile(r"listening on (127\.0\.0\.1:\d+)")


@dataclass(frozen=True)
class Registry:
    """A running registry."""

    server: Server
    log: Path

    @property
    def host(self) -> str:
        """``127.0.0.1:PORT``."""
        return self.server.host

    @property
    def url(self) -> str:
        """Where it answers, without a slash at the end."""
        return f"http://{self.host}"

    def requests(self) -> int:
        """How many requests it has answered so far."""
        return len(_REQUEST.findall(self.log.read_text(errors="replace")))

    def sent(self) -> int:
        """Bytes of bodies that it has sent so far, as far as its log goes."""
        return sum(int(size) for size in _SENT.findall(self.log.read_text(errors="replace")))


@contextmanager
def registry_of_small_buffers(
    folder: Path, storage: Path
) -> Iterator[tuple[Registry, tuple[str | Path, ...]]]:
    """Run one in a network of its own; gives the command that starts a client there as well.

    What a registry has sent is then with the client, but for some 100 KiB a connection: on
    loopback the kernel else holds megabytes that no client has seen.
    """
    if os.geteuid():
        raise BenchFailed("a network of its own needs root")
    within = (debian("unshare"), "--net", "sh", "-c", _SMALL_BUFFERS, "sh")
    with registry(folder, storage, within) as running:
        namespace = f"/proc/{running.server.pid}/ns/net"
        yield running, (debian("nsenter"), f"--net={namespace}", "--")


@contextmanager
def registry(
    folder: Path, storage: Path | None = None, within: tuple[str | Path, ...] = ()
) -> Iterator[Registry]:
    """Run one with its files in ``folder``; ``within`` is a command that starts it somewhere else.

    Its content is in ``storage``, empty or from an earlier run (default: a folder below).
    """
    folder.mkdir(parents=True, exist_ok=True)
    configuration, log = folder / "config.yml", folder / "log"
    configuration.write_text(
        "version: 0.1\n"
        "log: {level: info, accesslog: {disabled: false}}\n"
        f"storage: {{filesystem: {{rootdirectory: {storage or folder / 'storage'}}}}}\n"
        "http: {addr: '127.0.0.1:0'}\n",
        encoding="utf-8",
    )

    def answers() -> str:
        told = _LISTENING.search(log.read_text(errors="replace"))
        return told[1] if told else ""

    command = (*within, debian("docker-registry"), "serve", configuration)
    with started(command, log, answers) as server:
        yield Registry(server, log)
