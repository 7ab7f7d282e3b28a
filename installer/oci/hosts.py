"""Where a registry's name leads: to the host itself, or to mirrors that a person wrote down.

An image keeps its name (``docker.io/goharbor/harbor-core``) wherever its bytes come from; only
this table knows that they come from a mirror. It is data: nothing is opened or looked up here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from installer.errors import InvalidInput
from installer.oci.reference import DEFAULT_HOST

DIRECT = "direct"
"""Proxy of a host that is reached without one, whatever the environment says."""
_PROXY_FORM = "write http://host:port, or direct"
_DOCKER_HUB = "registry-1.docker.io"
_ALIASES = ("index.docker.io", _DOCKER_HUB)
_HOST = re.compile(r"[A-Za-z0-9.-]+(?::[0-9]{1,5})?\Z|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?\Z")
_LOOPBACK = re.compile(r"(?:localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]+)?\Z")
_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)*\Z")


class RegistryEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One host of ``registries.yaml``: its endpoints in order, and how all of them are reached.

    ``ca`` is a file of trusted certificates, ``cert`` and ``key`` are a client certificate,
    ``proxy`` is ``http://host:port``, or ``direct`` for none; without it the environment decides.
    """

    endpoints: tuple[str, ...] = ()
    ca: str = ""
    cert: str = ""
    key: str = ""
    proxy: str = ""


class RegistryConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of ``registries.yaml``: hosts as image references name them."""

    registries: dict[str, RegistryEntry] = {}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a registry's API is: ``api`` ends in ``/v2``, ``prefix`` goes before repositories.

    ``ca`` is a file of certificates that are trusted there (see Client for what else is), ``cert``
    and ``key`` what is shown there, ``proxy`` the way to it ("": what the environment says).
    """

    api: str
    prefix: str = ""
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    proxy: str = ""

    @property
    def certificate(self) -> str | tuple[str, str] | None:
        """The client certificate as requests takes it."""
        if self.cert is None:
            return None
        return (str(self.cert), str(self.key)) if self.key else str(self.cert)

    @property
    def host(self) -> str:
        """Host and port that are spoken to."""
        return urlsplit(self.api).netloc

    @classmethod
    def parse(cls, url: str, ca: Path | None = None) -> Endpoint:
        """Read an endpoint's URL as containerd does; raises InvalidInput.

        ``https://mirror/ghcr`` serves ``/ghcr/v2/NAME``. A path that has a ``v2`` of its own is
        taken as it is: ``https://harbor/v2/ghcr`` serves ``/v2/ghcr/NAME``, as Harbor's proxy
        projects do.
        """
        try:
            parts = urlsplit(url)
            port_fits = parts.port is None or parts.port > 0
        except ValueError:
            raise InvalidInput("an endpoint is not a URL", hint=_FORM) from None
        if parts.username is not None or parts.password is not None:
            # The URL is not repeated: it has a password in it.
            raise InvalidInput(
                f"the endpoint at {parts.hostname} carries a user name or a password",
                hint="log in with `docker login` and leave the URL without them",
            )
        if parts.scheme not in ("http", "https") or not _HOST.match(parts.netloc) or not port_fits:
            raise InvalidInput(f"not an endpoint: {url[:200]!r}", hint=_FORM)
        path = parts.path.rstrip("/")
        if parts.query or parts.fragment or not _PATH.match(path) or "/." in path:
            raise InvalidInput(f"not an endpoint: {url[:200]!r}: bad path or a query", hint=_FORM)
        segments = path.split("/")[1:]
        before = segments.index("v2") if "v2" in segments else len(segments)
        root = "/".join((f"{parts.scheme}://{parts.netloc}", *segments[:before], "v2"))
        return cls(root, "".join(f"{part}/" for part in segments[before + 1 :]), ca)


_FORM = "write it as https://host[:port][/path], or http:// for one without TLS"


class RegistryHosts:
    """Endpoints of every registry host, from ``registries.yaml`` or by the usual rules.

    ``folder`` is where relative ``ca`` paths start: the folder of the file. Raises InvalidInput
    for a wrong host or endpoint, naming it.
    """

    def __init__(self, config: RegistryConfig | None = None, folder: Path | None = None) -> None:
        self._known: dict[str, tuple[Endpoint, ...]] = {}
        for name, entry in (config.registries if config else {}).items():
            host = _canonical(name)
            if not _HOST.match(host):
                raise InvalidInput(
                    f"registries: not a host: {name[:200]!r}",
                    hint="the key is what stands before the first slash of an image: ghcr.io",
                )
            if host in self._known:
                raise InvalidInput(f"registries: {name} and another name for it are both listed")
            ca, cert, key = (
                (folder or Path()) / file if file else None
                for file in (entry.ca, entry.cert, entry.key)
            )
            try:
                _check_reach(entry)
                endpoints = tuple(Endpoint.parse(url, ca) for url in entry.endpoints)
            except InvalidInput as error:
                raise InvalidInput(
                    f"registries: {name}: {error.message}", hint=error.hint
                ) from error
            self._known[host] = tuple(
                replace(endpoint, cert=cert, key=key, proxy=entry.proxy)
                for endpoint in endpoints or (_usual(host, ca),)
            )

    def endpoints(self, host: str) -> tuple[Endpoint, ...]:
        """Endpoints of a host in the order in which they are to be tried, at least one."""
        host = _canonical(host)
        return self._known.get(host) or (_usual(host, None),)


def _check_reach(entry: RegistryEntry) -> None:
    if entry.key and not entry.cert:
        raise InvalidInput("`key` without `cert`", hint="name the client certificate as well")
    proxy = entry.proxy
    if not proxy or proxy == DIRECT:
        return
    try:
        parts = urlsplit(proxy)
    except ValueError:
        raise InvalidInput("proxy: not a URL", hint=_PROXY_FORM) from None
    if parts.username is not None or parts.password is not None:
        # Not repeated: it has a password in it.
        raise InvalidInput(
            "proxy: carries a user name or a password",
            hint="put a proxy with a login into HTTPS_PROXY",
        )
    if parts.scheme not in ("http", "https") or not _HOST.match(parts.netloc) or parts.path:
        raise InvalidInput(f"proxy: not a proxy: {proxy[:200]!r}", hint=_PROXY_FORM)


def _canonical(host: str) -> str:
    return DEFAULT_HOST if host in _ALIASES else host


def _usual(host: str, ca: Path | None) -> Endpoint:
    """Give a host without endpoints its own: TLS, but not on loopback, as docker and crane do."""
    if host == DEFAULT_HOST:
        return Endpoint.parse(f"https://{_DOCKER_HUB}", ca)
    scheme = "http" if ca is None and _LOOPBACK.match(host) else "https"
    return Endpoint.parse(f"{scheme}://{host}", ca)
