"""What ``lock`` and ``build`` share: registries and cache, from options and environment."""

from __future__ import annotations

import os
from pathlib import Path

import click
from platformdirs import user_cache_path, user_config_path

from bundler.cache import BlobCache
from bundler.credentials import DockerLogins
from bundler.sources.upstream import Upstream
from installer.documents import read_document
from installer.oci.hosts import RegistryConfig, RegistryHosts

CACHE_VARIABLE = "AIRGAP_CACHE_DIR"
DOCKER_VARIABLE = "DOCKER_CONFIG"
_APPLICATION = "harbor-airgap"

registry_config_option = click.option(
    "--registry-config",
    type=click.Path(path_type=Path),
    help="Where registries are reached from here. Default: registries.yaml in the user's settings.",
)


def open_upstream(folder: Path, registry_config: Path | None) -> Upstream:
    """The way to upstream for a spec in ``folder``; logins are those of ``docker login``.

    Raises InvalidInput for a wrong config.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    cache = Path(chosen) if chosen else user_cache_path(_APPLICATION)
    logins = DockerLogins(Path(os.environ.get(DOCKER_VARIABLE) or Path.home() / ".docker"))
    return Upstream(_hosts(registry_config), BlobCache(cache), folder, logins)


def _hosts(registry_config: Path | None) -> RegistryHosts:
    if registry_config is None:
        registry_config = user_config_path(_APPLICATION) / "registries.yaml"
        if not registry_config.exists():
            return RegistryHosts()
    return RegistryHosts(read_document(registry_config, RegistryConfig), registry_config.parent)
