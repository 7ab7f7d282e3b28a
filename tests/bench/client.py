"""A plain registry client: pulls images by tag over one kept connection and throws them away.

A process of its own, with the standard library only. It costs as little as Python allows (bytes go
into one buffer), so that four of them load the server rather than the machine. With ``--check``
each blob is hashed as well, as a container runtime does. Prints blobs and bytes as JSON.

    python -I -S client.py [--check] HOST:PORT REPOSITORY:TAG...
"""

from __future__ import annotations

import hashlib
import http.client
import json
import sys
from typing import Any

_BUFFER = 1 << 20
_ACCEPT = {"Accept": "application/vnd.oci.image.manifest.v1+json"}


class PullFailed(Exception):
    """The registry did not give what it should."""


def get(connection: http.client.HTTPConnection, path: str) -> http.client.HTTPResponse:
    """Ask for a path; raises PullFailed unless it is there."""
    connection.request("GET", path, headers=_ACCEPT)
    answer = connection.getresponse()
    if answer.status != http.client.OK:
        raise PullFailed(f"{path}: HTTP {answer.status}: {answer.read(500)!r}")
    return answer


def drain(answer: http.client.HTTPResponse, described: dict[str, Any], *, check: bool) -> None:
    """Read a blob to its end; raises PullFailed for another size or digest."""
    view, seen, hasher = memoryview(bytearray(_BUFFER)), 0, hashlib.sha256()
    while count := answer.readinto(view):
        seen += count
        if check:
            hasher.update(view[:count])
    if seen != described["size"]:
        raise PullFailed(f"{described['digest']}: {seen} bytes, not {described['size']}")
    if check and f"sha256:{hasher.hexdigest()}" != described["digest"]:
        raise PullFailed(f"{described['digest']}: came as sha256:{hasher.hexdigest()}")


def pull(host: str, images: list[str], *, check: bool) -> dict[str, int]:
    """Pull all images; gives how many blobs and bytes came."""
    connection = http.client.HTTPConnection(host, timeout=60)
    blobs = size = 0
    for image in images:
        repository, _, tag = image.rpartition(":")
        manifest = json.loads(get(connection, f"/v2/{repository}/manifests/{tag}").read())
        for described in (manifest["config"], *manifest["layers"]):
            answer = get(connection, f"/v2/{repository}/blobs/{described['digest']}")
            drain(answer, described, check=check)
            blobs, size = blobs + 1, size + described["size"]
    connection.close()
    return {"blobs": blobs, "bytes": size}


def main(arguments: list[str]) -> None:
    """Read the command line and pull."""
    check = arguments[:1] == ["--check"]
    host, *images = arguments[check:]
    json.dump(pull(host, images, check=check), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
