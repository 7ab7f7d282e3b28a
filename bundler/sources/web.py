"""Files from web servers: chart repositories, release pages, mirrors.

The same client as for registries, with its proxies, certificates, retries and timeouts; a body
that breaks off is gone on with by Range where the server can.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from installer.errors import Corrupt, InvalidInput
from installer.oci.hosts import Endpoint
from installer.oci.http import BrokenOff, Client, Retry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from installer.oci.auth import Credentials
    from installer.oci.hosts import RegistryHosts
    from installer.oci.http import Answer, Notice, Patience

_OK, _PARTIAL, _NOTHING_LEFT = 200, 206, 416


def is_url(source: str) -> bool:
    """Whether a source is fetched over HTTP, rather than a path."""
    return source.startswith(("https://", "http://"))


class Web:
    """Downloads by URL, for many threads; one client, with its connections, per server.

    A server that ``registries.yaml`` knows is reached as is said there: by its CA, client
    certificate and proxy. ``credentials`` finds the login for a server that asks for one.
    """

    def __init__(
        self,
        hosts: RegistryHosts,
        patience: Patience | None = None,
        notice: Notice | None = None,
        credentials: Callable[[str], Credentials | None] | None = None,
    ) -> None:
        self._hosts = hosts
        self._credentials = credentials
        self._patience = patience
        self._notice = notice
        self._lock = threading.Lock()
        self._clients: dict[str, Client] = {}
        self._open = ExitStack()

    def close(self) -> None:
        """Close every connection."""
        self._open.close()

    def stream(self, url: str, start: int = 0) -> Iterator[bytes]:
        """Chunks from byte ``start`` on, gone on with after a cut; the digest is not checked.

        A server that doesn't know ranges is read from the beginning, and the start left out.
        Raises NotFound, Unavailable or TransferFailed.
        """
        client = self._client(url)
        patience = client.patience
        seen, failures = start, 0
        while True:
            before = seen
            answer = patience.persist(partial(self._ask, client, url, seen), self._notice)
            try:
                with answer:
                    if answer.status == _NOTHING_LEFT:
                        return
                    skip = seen if answer.status == _OK else 0
                    for chunk in answer.chunks():
                        if skip < len(chunk):
                            seen += len(chunk) - skip
                            yield chunk[skip:]
                        skip = max(0, skip - len(chunk))
            except BrokenOff as error:
                failures = failures + 1 if seen == before else 1
                if failures >= patience.attempts:
                    error.add(f"; tried {failures} times without another byte")
                    raise
                pause = patience.pause(failures)
                if self._notice is not None:
                    self._notice(Retry(error.host, error.message, failures, pause))
                patience.sleep(pause)
            else:
                return

    def _ask(self, client: Client, url: str, start: int) -> Answer:
        return client.request(
            "GET",
            url,
            what=urlsplit(url).netloc + urlsplit(url).path,
            accepted=(_OK, _PARTIAL, _NOTHING_LEFT) if start else (_OK,),
            headers={"Range": f"bytes={start}-"} if start else {},
        )

    def download(self, url: str) -> Iterator[bytes]:
        """All chunks; the digest is for the caller to check."""
        return self.stream(url)

    def read(self, url: str, limit: int) -> bytes:
        """Read a document of at most ``limit`` bytes whole; raises Corrupt when it has more."""
        data = bytearray()
        for chunk in self.download(url):
            data += chunk
            if len(data) > limit:
                raise Corrupt(f"{urlsplit(url).netloc}: {urlsplit(url).path}: over {limit} bytes")
        return bytes(data)

    def _client(self, url: str) -> Client:
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise InvalidInput(f"not a URL: {url[:200]!r}: {error}") from error
        if "@" in parts.netloc:
            # The URL would go into the lock and the bundle: it is not even repeated here.
            raise InvalidInput(
                f"a URL at {parts.hostname} carries a user name or a password",
                hint="sources are written into the bundle: use a mirror without login, or a file",
            )
        origin = f"{parts.scheme}://{parts.netloc}"
        with self._lock:
            if origin not in self._clients:
                own = next(iter(self._hosts.endpoints(parts.netloc)))
                # A mirror of a registry under this name says nothing about a server of that name.
                endpoint = replace(own, api=origin, prefix="")
                if own.host != parts.netloc:
                    endpoint = Endpoint(origin)
                login = self._credentials(parts.netloc) if self._credentials else None
                client = Client(parts.netloc, endpoint, login, self._patience)
                self._clients[origin] = client
                self._open.callback(client.close)
            return self._clients[origin]
