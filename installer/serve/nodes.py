"""What a node needs to be told, so that it takes images from here under their usual names."""

from __future__ import annotations

from pathlib import PurePosixPath

CERTS_D = PurePosixPath("/etc/containerd/certs.d")
"""Where containerd looks when its ``config_path`` says so, as most distributions have it."""


def hosts_toml_path(upstream: str) -> PurePosixPath:
    """Where the hosts.toml of an upstream registry (``docker.io``) belongs on a node."""
    return CERTS_D / upstream / "hosts.toml"


def hosts_toml(url: str, *, ca: str = "") -> str:
    """A hosts.toml that sends containerd to this registry; ``ca`` is a path on the node.

    ``server`` is this registry as well: by default it would be the upstream one, and on an
    isolated site that takes minutes to fail when something is missing here.
    """
    trusted = f'ca = "{ca}"\n' if ca else ""
    return (
        f'server = "{url}"\n{trusted}\n'
        f'[host."{url}"]\n'
        f'  capabilities = ["pull", "resolve"]\n' + (f"  {trusted}" if ca else "")
    )
