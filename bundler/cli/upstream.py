"""What ``lock`` and ``build`` share: registries and cache, from options and environment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
from platformdirs import user_cache_path, user_config_path

from bundler.cache import BlobCache
from bundler.credentials import RegistryLogins
from bundler.sources.upstream import Upstream
from installer.documents import read_document
from installer.oci.hosts import RegistryConfig, RegistryHosts

if TYPE_CHECKING:
    from installer.oci.http import Notice, Patience

CACHE_VARIABLE = "AIRGAP_CACHE_DIR"
DOCKER_VARIABLE = "DOCKER_CONFIG"
_APPLICATION = "harbor-airgap"

AUTHFILE_VARIABLE = "REGISTRY_AUTH_FILE"
_AUTHFILE = f"{__name__}.authfile"

Command = TypeVar("Command", bound=Callable[..., object])


def registry_config_option(command: Command) -> Command:
    """Options that say how upstream is reached: ``--registry-config`` and ``--authfile``."""

    def keep(context: click.Context, _: click.Parameter, value: Path | None) -> None:
        context.meta[_AUTHFILE] = value

    config = click.option(
        "--registry-config",
        type=click.Path(path_type=Path),
        help="Where registries are reached from here. "
        "Default: registries.yaml in the user's settings.",
    )
    authfile = click.option(
        "--authfile",
        envvar=AUTHFILE_VARIABLE,
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        callback=keep,
        expose_value=False,
        help="Logins. Default: those of `docker login`, then of `podman login`.",
    )
    return config(authfile(command))


def open_upstream(
    folder: Path,
    registry_config: Path | None,
    *,
    patience: Patience | None = None,
    notice: Notice | None = None,
) -> Upstream:
    """The way to upstream for a spec in ``folder``, with the options of this command.

    ``notice`` is told of failed requests that are sent again. Raises InvalidInput for a wrong
    config.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    cache = Path(chosen) if chosen else user_cache_path(_APPLICATION)
    logins = RegistryLogins(_login_files())
    return Upstream(
        _hosts(registry_config),
        BlobCache(cache),
        folder,
        logins,
        patience=patience,
        notice=notice,
    )


def _login_files() -> list[Path]:
    """Where logins may be: the one file that was named, or those of docker and podman."""
    context = click.get_current_context(silent=True)
    if chosen := context.meta.get(_AUTHFILE) if context else None:
        return [chosen]
    docker = Path(os.environ.get(DOCKER_VARIABLE) or Path.home() / ".docker")
    podman = [os.environ.get("XDG_RUNTIME_DIR"), os.environ.get("XDG_CONFIG_HOME")]
    folders = [Path(folder) for folder in podman if folder] + [Path.home() / ".config"]
    return [docker / "config.json", *(folder / "containers" / "auth.json" for folder in folders)]


def _hosts(registry_config: Path | None) -> RegistryHosts:
    if registry_config is None:
        registry_config = user_config_path(_APPLICATION) / "registries.yaml"
        if not registry_config.exists():
            return RegistryHosts()
    return RegistryHosts(read_document(registry_config, RegistryConfig), registry_config.parent)
