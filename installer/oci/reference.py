"""Names of images as people and charts write them, normalised as Docker and containerd do.

``goharbor/harbor-core:v2.14.4``, ``docker.io/goharbor/harbor-core:v2.14.4`` and the quoted form
in a chart are one image; comparing them as strings misses and invents images. The grammar is
that of the distribution project's ``reference`` package, which also takes a first part with a
capital letter for a host (``UP/x``). docker-image-py was looked at and is not maintained.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from installer.bundle.digest import Digest
from installer.errors import InvalidInput

DEFAULT_HOST = "docker.io"
_HOST = re.compile(
    r"(?:localhost|[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*"
    r"|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?\Z"
)
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")
_MAX_NAME = 255


@dataclass(frozen=True, order=True, slots=True)
class Reference:
    """A repository on a host with a tag, a digest, or both.

    ``host`` is as written (``docker.io`` where none was), ``path`` the repository on it,
    ``tag`` and ``digest`` what follows; neither stands for ``latest`` until asked for.
    """

    host: str
    path: str
    tag: str | None = None
    digest: Digest | None = None

    def __str__(self) -> str:
        return (
            f"{self.host}/{self.path}"
            + (f":{self.tag}" if self.tag else "")
            + (f"@{self.digest}" if self.digest else "")
        )

    @property
    def repository(self) -> str:
        """Host and path without tag or digest."""
        return f"{self.host}/{self.path}"

    @property
    def version(self) -> str:
        """What to ask the registry for: the digest if there is one, else the tag or ``latest``."""
        return str(self.digest) if self.digest else self.tag or "latest"

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference; raises InvalidInput that says which part is wrong."""
        rest, at, digest_text = text.partition("@")
        digest = Digest.parse(digest_text) if at else None
        name, tag = rest, None
        slash = rest.rfind("/")
        colon = rest.rfind(":")
        if colon > slash:
            name, tag = rest[:colon], rest[colon + 1 :]
            if not _TAG.match(tag):
                raise InvalidInput(f"not an image reference: {text[:300]!r}: bad tag {tag[:140]!r}")
        first, found, remainder = name.partition("/")
        is_host = "." in first or ":" in first or first == "localhost" or first != first.lower()
        if found and is_host:
            host, path = first, remainder
        else:
            host, path = DEFAULT_HOST, name
        if host in ("index.docker.io", "registry-1.docker.io"):
            host = DEFAULT_HOST
        if host == DEFAULT_HOST and "/" not in path:
            path = f"library/{path}"
        if not _HOST.match(host):
            raise InvalidInput(f"not an image reference: {text[:300]!r}: bad host {host[:100]!r}")
        if not _PATH.match(path) or len(host) + 1 + len(path) > _MAX_NAME:
            raise InvalidInput(f"not an image reference: {text[:300]!r}: bad name {path[:100]!r}")
        return cls(host, path, tag, digest)

    def pinned(self, digest: Digest) -> Reference:
        """Give the same reference with this digest besides its tag."""
        return replace(self, digest=digest)
