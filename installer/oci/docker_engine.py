"""Images of the Docker Engine on this machine, through Docker's own library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from installer.bundle.digest import CHUNK
from installer.errors import InvalidInput, NotFound, TransferFailed

if TYPE_CHECKING:
    from collections.abc import Iterator


def saved(name: str) -> Iterator[bytes]:
    """Chunks of the archive that ``docker save NAME`` writes.

    Raises InvalidInput without an engine, NotFound for an image that it doesn't have,
    TransferFailed for what else it says.
    """
    import docker  # noqa: PLC0415  # 180 ms: only for who asks for it
    import docker.errors  # noqa: PLC0415

    try:
        client = docker.from_env(timeout=600)
        try:
            client.api.inspect_image(name)  # asked for a missing one, get_image says 500
            yield from client.api.get_image(name, CHUNK)
        finally:
            client.close()
    except docker.errors.ImageNotFound as error:
        raise NotFound(f"docker: no image {name}", hint="`docker images` lists them") from error
    except docker.errors.APIError as error:
        raise TransferFailed(f"docker: {name}: {error.explanation or error}") from error
    except docker.errors.DockerException as error:
        raise InvalidInput(
            f"docker: the engine can't be reached: {error}", hint="is it running? see DOCKER_HOST"
        ) from error
