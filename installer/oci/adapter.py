"""The adapter of requests with two things that registries need and it has no option for.

A body that comes too slowly counts as broken off: silence is bounded by the read timeout, but a
server that sends a byte now and then never runs into it (curl's ``--speed-limit`` and
``--speed-time``). And a CA that is named for a registry is trusted in addition to the usual ones,
also where it redirects to, as docker, containerd and skopeo do: a registry with a certificate of
the company sends its clients to storage with a public one.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, cast

from requests.adapters import HTTPAdapter

if TYPE_CHECKING:
    import http.client

    import requests
    import urllib3
    from typing_extensions import Buffer

    from installer.oci.http import Patience


class TooSlow(OSError):
    """Less came than a connection has to give."""


class Adapter(HTTPAdapter):
    """Sends requests; ``authorities`` are certificates in PEM that are trusted besides the usual.

    ``connections`` to one host are kept.
    """

    def __init__(self, patience: Patience, authorities: str, connections: int) -> None:
        self._patience = patience
        self._authorities = authorities
        self._classes: dict[type, type] = {}
        super().__init__(pool_maxsize=connections)

    def build_connection_pool_key_attributes(
        self,
        request: requests.PreparedRequest,
        verify: bool | str,  # noqa: FBT001 (the parent's)
        cert: str | tuple[str, str] | None = None,
    ) -> tuple[Any, Any]:
        """Name host and TLS settings of a connection."""
        host, settings = super().build_connection_pool_key_attributes(request, verify, cert)
        if self._authorities and host["scheme"] == "https":
            cast("dict[str, Any]", settings)["ca_cert_data"] = self._authorities
        return host, settings

    def get_connection_with_tls_context(self, *args: Any, **kw: Any) -> urllib3.HTTPConnectionPool:
        """Give the pool of a host, whose connections watch their speed."""
        pool = cast("Any", super().get_connection_with_tls_context(*args, **kw))
        pool.ConnectionCls = self._watched(type(pool).ConnectionCls)
        return cast("urllib3.HTTPConnectionPool", pool)

    def _watched(self, base: type) -> type:
        if base not in self._classes:
            response: Any = base.response_class  # type: ignore[attr-defined]
            patience = self._patience

            def respond(*args: Any, **kw: Any) -> http.client.HTTPResponse:
                found: http.client.HTTPResponse = response(*args, **kw)
                # Nothing is read yet: that begins when the caller asks for the status.
                found.fp = io.BufferedReader(_Watched(found.fp.detach(), patience))
                return found

            self._classes[base] = type(
                base.__name__, (base,), {"response_class": staticmethod(respond)}
            )
        return self._classes[base]


class _Watched(io.RawIOBase):
    """The bytes of one answer as they come from the wire, as long as they come quickly enough.

    Counted is the time that reading waits, not what the reader does in between. The wait for the
    first byte doesn't count: a server may think about it until the read timeout.
    """

    def __init__(self, raw: Any, patience: Patience) -> None:
        super().__init__()
        self._raw = raw
        self._clock = patience.clock
        self._limit = patience.speed_limit
        self._time = patience.speed_time
        self._started = False
        self._waited = 0.0
        self._count = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Buffer) -> int | None:
        """Read what there is; raises TooSlow."""
        began = self._clock()
        count: int | None = self._raw.readinto(buffer)
        if not self._started:
            self._started = True
            return count
        self._waited += self._clock() - began
        self._count += count or 0
        if self._waited >= self._time:
            if self._count < self._limit * self._waited:
                raise TooSlow(f"less than {self._limit} bytes a second for {self._waited:.0f} s")
            self._waited, self._count = 0.0, 0
        return count

    def close(self) -> None:
        """Let go of the socket."""
        self._raw.close()
        super().close()
