"""Debian's docker-registry as a real peer, on loopback or inside a network namespace."""

from __future__ import annotations

import socket
import subprocess
import time
from typing import TYPE_CHECKING, Self

import requests

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.upstream.certificates import Certificates

_TRIES = 5


class Registry:
    """A running ``docker-registry`` with its own storage; a context manager."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        """Start it on a free port of ``host``; raises RuntimeError when it does not answer."""
        folder.mkdir(parents=True, exist_ok=True)
        for _ in range(_TRIES):  # between choosing a port and taking it, another may be quicker
            self.host = f"{host}:{_free_port(host)}"
            self.url = f"http://{self.host}"
            configuration = folder / "registry.yml"
            configuration.write_text(configuration_text(folder, self.host))
            with (folder / "registry.log").open("ab") as log:
                self._process = subprocess.Popen(
                    ["docker-registry", "serve", str(configuration)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            if _answers(self.url, lambda: self._process.poll() is None):
                return
            self.close()
        raise RuntimeError(f"docker-registry does not start: see {folder / 'registry.log'}")

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def configuration_text(folder: Path, address: str, certificates: Certificates | None = None) -> str:
    """Text of a ``docker-registry`` configuration with storage below ``folder``."""
    tls = (
        f", tls: {{certificate: {certificates.certificate}, key: {certificates.key}}}"
        if certificates
        else ""
    )
    return (
        "version: 0.1\n"
        "log: {level: warn}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'storage'}}}, "
        "delete: {enabled: true}}\n"
        f'http: {{addr: "{address}"{tls}}}\n'
    )


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _answers(url: str, alive: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    with requests.Session() as session:
        session.trust_env = False
        while time.monotonic() < deadline and alive():
            try:
                if session.get(f"{url}/v2/", timeout=2).ok:
                    return True
            except requests.ConnectionError:
                time.sleep(0.05)
    return False
