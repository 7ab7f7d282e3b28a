"""How the nodes' containerd learns of the seed registry: one folder with ``hosts.toml`` a host.

``server`` names the seed registry itself, so that a pull which fails there ends there: containerd
would otherwise go on to the host of that name. On a node the folder is written in place; from
another machine it is laid out in the state folder, with a sentence on where it belongs. containerd
reads it at each pull, nothing is restarted (containerd, docs/hosts.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from installer.errors import InvalidInput, TransferFailed
from installer.site.private import read_file, write_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from installer.site.model import Site
    from installer.site.state import State

_READABLE = 0o644


def hosts_toml(host: str, *, tls: bool, ca: bool) -> str:
    """Give containerd's hosts.toml for a registry host; ``ca`` if ca.crt lies beside it."""
    url = f"{'https' if tls else 'http'}://{host}"
    lines = [
        f'server = "{url}"',
        "",
        f'[host."{url}"]',
        '  capabilities = ["pull", "resolve"]',
    ]
    if ca:
        lines.append('  ca = "ca.crt"')
    return "\n".join(lines) + "\n"


class TellNodes:
    """Write the seed registry's folder for containerd, here or for copying."""

    name = "nodes"

    def __init__(self, site: Site, state: State, ca: Callable[[], bytes | None]) -> None:
        """``ca`` gives the seed's CA certificate (PEM), None when it is not there yet or none."""
        self._state = state
        self._ca = ca
        seed = site.seed
        self._tls = seed.serve.tls if seed.serve else not (seed.push and seed.push.plain_http)
        self._own_ca = (seed.serve is not None and seed.serve.tls) or bool(
            seed.push and seed.push.ca
        )
        self._host = site.image_prefix.partition("/")[0]
        certs = site.nodes.containerd_certs_dir
        self._here = certs is not None
        self._folder = (Path(certs) if certs else state.path("nodes")) / self._host

    @property
    def sentence(self) -> str:
        """What applying it does."""
        what = f"Tell containerd where {self._host} is"
        return f"{what}: {self._folder}" if self._here else f"{what}: lay out files for each node"

    def _files(self) -> dict[str, bytes]:
        files = {"hosts.toml": hosts_toml(self._host, tls=self._tls, ca=self._own_ca).encode()}
        if self._own_ca:
            files["ca.crt"] = self._ca() or b""
        return files

    def check(self) -> bool:
        """Whether the files are there as they should be."""
        files = self._files()
        return all(files.values()) and all(
            read_file(self._folder / name) == data for name, data in files.items()
        )

    def apply(self) -> str:
        """Write them; gives what a person has to do on each node, if anything."""
        if not self._here:
            self._state.subfolder("nodes")
        elif not self._folder.parent.is_dir():
            raise InvalidInput(
                f"{self._folder.parent}: there is no such folder",
                hint="nodes.containerdCertsDir is what containerd has as `config_path`; leave it "
                "out if this machine is no node",
            )
        try:
            self._folder.mkdir(mode=0o755, exist_ok=True)
        except OSError as error:
            raise TransferFailed(f"{self._folder}: {error.strerror}") from error
        # hosts.toml last: from then on it counts.
        for name, data in sorted(self._files().items()):
            write_file(self._folder / name, data, mode=_READABLE)
        if self._here:
            return ""
        return (
            f"copy the folder {self._folder} to /etc/containerd/certs.d/ on each node now "
            "(containerd's `config_path` must name that folder; no restart is needed)"
        )
