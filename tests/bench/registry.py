"""Debian's docker-registry with its access log on, so that requests can be counted."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.bench.account import Server, started
from tests.integration.servers import debian

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_REQUEST = re.compile(r'"(?:GET|HEAD|POST|PUT|PATCH|DELETE) /v2/')
_SENT = re.compile(r'"GET /v2/\S+ HTTP/1\.1" 20[06] (\d+)')
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
def registry(folder: Path) -> Iterator[Registry]:
    """Run one with its content in ``folder``, empty or from an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    configuration, log = folder / "config.yml", folder / "log"
    configuration.write_text(
        "version: 0.1\n"
        "log: {level: info, accesslog: {disabled: false}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'storage'}}}}}\n"
        "http: {addr: '127.0.0.1:0'}\n",
        encoding="utf-8",
    )

    def answers() -> str:
        told = _LISTENING.search(log.read_text(errors="replace"))
        return told[1] if told else ""

    command = (debian("docker-registry"), "serve", configuration)
    with started(command, log, answers) as server:
        yield Registry(server, log)
