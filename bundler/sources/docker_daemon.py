"""The local Docker daemon as a source, through the docker SDK; an export is streamed, never stored.

``DOCKER_HOST`` and the other variables of docker's client say which daemon it is.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from installer.errors import NotFound, TransferFailed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

_CHUNK = 1 << 20
_TIMEOUT = 600
"""Seconds of silence: the daemon packs large layers before it says anything."""


class DockerDaemon:
    """The daemon that the environment names; a context manager. Raises TransferFailed."""

    def __init__(self) -> None:
        import docker  # noqa: PLC0415 (slow to import, and seldom needed)

        self._errors: Any = docker.errors.DockerException
        self._missing: Any = docker.errors.ImageNotFound
        try:
            self._client: Any = docker.from_env(timeout=_TIMEOUT)
        except self._errors as error:
            raise self._failed(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def image_id(self, name: str) -> str:
        """Digest by which the daemon knows an image; raises NotFound."""
        return str(self._image(name).id)

    def save(self, name: str) -> io.BufferedReader:
        """The image as the tar of ``docker save``."""
        named = not name.startswith("sha256:")
        try:
            chunks = self._image(name).save(chunk_size=_CHUNK, named=named and name)
        except self._errors as error:
            raise self._failed(error) from error
        return io.BufferedReader(_Stream(chunks), _CHUNK)

    def _image(self, name: str) -> Any:
        try:
            return self._client.images.get(name)
        except self._missing as error:
            raise NotFound(
                f"the Docker daemon has no image {name}", hint="`docker images` lists what it has"
            ) from error
        except (self._errors, OSError) as error:
            raise self._failed(error) from error

    @staticmethod
    def _failed(error: Exception) -> TransferFailed:
        return TransferFailed(
            f"the Docker daemon can't be asked: {error}",
            hint="see that it runs, and that DOCKER_HOST names it",
        )


class _Stream(io.RawIOBase):
    """Chunks as a file that is read once."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            try:
                self._rest = next(self._chunks)
            except StopIteration:
                return 0
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
