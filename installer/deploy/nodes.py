"""How the nodes' containerd learns of registries: one folder with ``hosts.toml`` a host.

The seed registry is one; a Harbor is another if its certificate has an authority of its own, so
that nodes can pull what people push there.

``server`` names the registry itself, so that a pull which fails there ends there: containerd
would otherwise go on to the host of that name. On a node the folder is written in place; from
another machine it is laid out in the state folder, with a sentence on where it belongs. containerd
reads it at each pull, nothing is restarted (containerd, docs/hosts.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from installer.errors import DeploymentFailed, InvalidInput, TransferFailed
from installer.site.private import read_file, write_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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


@dataclass(frozen=True)
class _Told:
    """A registry host as containerd shall know it; ``ca`` gives PEM, None if not there yet."""

    host: str
    tls: bool
    ca: Callable[[], bytes | None]

    def files(self) -> dict[str, bytes] | None:
        """Content of its folder, nothing if nothing has to be told, None if it can't be yet."""
        ca = self.ca()
        if ca is None:
            return None
        files = {"hosts.toml": hosts_toml(self.host, tls=self.tls, ca=bool(ca)).encode()}
        return files | ({"ca.crt": ca} if ca else {})


class TellNodes:
    """Write containerd's folders for the seed registry and each Harbor, here or for copying."""

    def __init__(
        self,
        site: Site,
        state: State,
        ca: Callable[[], bytes | None],
        *,
        harbors: Sequence[tuple[str, Callable[[], bytes | None]]] = (),
        later: str = "",
    ) -> None:
        """``ca`` gives the seed's CA certificate (PEM), None when it is not there yet or none.

        ``harbors`` are the hosts of external URLs, each with the same for its certificate; empty
        bytes say that nodes know the authority, so that there is nothing to tell. ``later`` is the
        key of a release whose Harbor gets its certificate only then: of the seed they know already.
        """
        self.name = f"nodes:{later}" if later else "nodes"
        self._state = state
        seed = site.seed
        tls = seed.serve.tls if seed.serve else not (seed.push and seed.push.plain_http)
        own_ca = (seed.serve is not None and seed.serve.tls) or bool(seed.push and seed.push.ca)
        authority = (lambda: ca() or None) if own_ca else bytes
        told = _Told(site.image_prefix.partition("/")[0], tls, authority)
        self._seed = [] if later else [told]
        # What the seed needs goes before: without it nothing runs.
        known = {host: _Told(host, tls=True, ca=ca) for host, ca in harbors}
        self._harbors = [harbor for host, harbor in known.items() if host != told.host]
        certs = site.nodes.containerd_certs_dir
        self._here = bool(certs)
        self._folder = Path(certs) if certs else state.path("nodes")

    @property
    def sentence(self) -> str:
        """What applying it does."""
        harbors = [told for told in self._harbors if not self._seed or told.ca() != b""]
        hosts = [told.host for told in (*self._seed, *harbors)]
        where = f"in {self._folder}" if self._here else "lay out files for each node"
        return f"Tell containerd of {', '.join(hosts)}: {where}"

    def _folders(self) -> dict[Path, dict[str, bytes] | None]:
        """What has to be where, None for what is not there yet."""
        folders = {self._folder / told.host: told.files() for told in self._seed}
        for told in self._harbors:
            files = told.files()
            if files is None or "ca.crt" in files:
                folders[self._folder / told.host] = files
        return folders

    def check(self) -> bool:
        """Whether the files are there as they should be."""
        return all(
            files is not None
            and all(read_file(folder / name) == data for name, data in files.items())
            for folder, files in self._folders().items()
        )

    def apply(self) -> str:
        """Write them; gives what a person has to do on each node, if anything.

        Raises DeploymentFailed if a certificate authority is not there yet.
        """
        if not self._here:
            self._state.subfolder("nodes")
        elif not self._folder.is_dir():
            raise InvalidInput(
                f"{self._folder}: there is no such folder",
                hint="nodes.containerdCertsDir is what containerd has as `config_path`; leave it "
                "out if this machine is no node",
            )
        folders = self._folders()
        for folder, files in folders.items():
            if files is None:
                raise DeploymentFailed(
                    f"{folder.name}: there is no certificate authority to tell the nodes",
                    hint="the step that makes it comes before this one: run the installer again",
                )
            try:
                folder.mkdir(mode=0o755, exist_ok=True)
            except OSError as error:
                raise TransferFailed(f"{folder}: {error.strerror}") from error
            # hosts.toml last: from then on it counts.
            for name, data in sorted(files.items()):
                write_file(folder / name, data, mode=_READABLE)
        if self._here:
            return ""
        word = "folder" if len(folders) == 1 else "folders"
        return (
            f"copy the {word} {', '.join(map(str, folders))} to /etc/containerd/certs.d/ on each "
            "node now (containerd's `config_path` must name that folder; no restart is needed)"
        )
