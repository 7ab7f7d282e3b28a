"""The registry that nodes pull from, served from the bundle itself.

Harbor must never be the only source of its own images: a core pod that moves to another node while
Harbor is down could not be pulled. So the seed registry stays, also after the installation.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from installer.bundle.delta import refuse_gaps
from installer.deploy import daemon, systemd
from installer.errors import DeploymentFailed, PreflightFailed
from installer.site.authority import ensure_certificates, leaf_is_good, utc_now
from installer.site.http import NotAnswering, request
from installer.site.private import read_file, write_file
from installer.site.section import split_address
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from installer.bundle.archive import VerifiedBundle
    from installer.bundle.trust import TrustAnchor
    from installer.site.model import Serve, Site
    from installer.site.state import State

_PATIENCE = 60.0
_PAUSE = 0.2
_TIMEOUT = 5
SERVED = "seed/bundle.json"
"""Which bundle is served, in the state: one with newer databases is put beside it."""
DATABASES = "databases.tar"
"""Copy of a bundle with newer databases in the folder of the seed: its medium may be gone."""


class _Bundle(msgspec.Struct):
    digest: str


class ServedBundle(msgspec.Struct, frozen=True):
    """A bundle that is served: its path on this machine, its digest, and what it stands on."""

    path: str
    digest: str
    bases: tuple[ServedBundle, ...] = ()


class _Health(msgspec.Struct):
    """As much of the registry's ``/healthz`` as says what it serves."""

    bundles: list[_Bundle]


def key_file(state: State, anchor: TrustAnchor) -> Path:
    """Where the seed registry finds what its bundles are verified with."""
    return state.path("seed") / ("trust-root.json" if anchor.is_root else "release.pub")


class ServeBundle:
    """Keep ``installer serve`` running in the background, with this bundle.

    ``command`` starts the installer itself (program and leading arguments), ``key`` is
    what the bundle was verified with, a public key or a trust root.
    """

    name = "seed"

    def __init__(
        self,
        site: Site,
        serve: Serve,
        state: State,
        bundle: VerifiedBundle | ServedBundle,
        **how: Any,
    ) -> None:
        self._site = site
        self._serve = serve
        self._state = state
        self._bundle = bundle
        self._command: Sequence[str] = how["command"]
        self._key: TrustAnchor = how["key"]
        self._folder = state.path("seed")
        self._key_file = key_file(state, self._key)
        self._pid_file = self._folder / "serve.pid"
        wanted = serve.service == "systemd" or (serve.service == "auto" and systemd.is_there())
        self._unit = systemd.unit_name(site.name) if wanted else ""

    @property
    def sentence(self) -> str:
        """What applying it does."""
        how = "as a systemd service" if self._unit else "in the background"
        return f"Serve the bundle to the nodes at {self._serve.address}, {how}"

    def ca(self) -> bytes | None:
        """Certificate of the authority that signed the server's, None without TLS."""
        return read_file(self._folder / "ca.crt") if self._serve.tls else None

    def refuse_gaps(self) -> None:
        """Raise PreflightFailed when a delta's bases lack something that it requires."""
        if not isinstance(self._bundle, ServedBundle):
            refuse_gaps(self._bundle)

    def preflight(self) -> None:
        """Refuse what can't be served, before anything is changed.

        Raises PreflightFailed for an address that another program listens on, InvalidInput for a
        path of the bundle that no systemd unit can hold.
        """
        if self._unit:
            systemd.unit_text(self._site.name, self._arguments())
        if self._listens_here():
            return
        host, port = split_address(self._serve.listen)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        except OSError as error:
            raise PreflightFailed(
                f"seed.serve.listen: {self._serve.listen}: {error.strerror}",
                hint="name a free port and an address of this machine (0.0.0.0 is all of them); "
                "`ss -ltnp` shows who listens",
            ) from error

    def check(self) -> bool:
        """Whether it is served, by a process of ours, and with a certificate that lasts."""
        host = split_address(self._serve.address)[0]
        if self._serve.tls and not leaf_is_good(self._folder, [host], utc_now()):
            return False
        if read_file(self._key_file) != self._key.data:
            return False
        return self._is_ours() and self._served() == self._digests()

    def apply(self) -> str:
        """Start it, or start it anew, and wait until it answers; raises DeploymentFailed."""
        folder = self._state.subfolder("seed")
        if read_file(self._key_file) != self._key.data:
            (folder / DATABASES).unlink(missing_ok=True)  # another key signed it
        write_file(self._key_file, self._key.data)
        mine = _served(self._bundle)
        self._state.write(SERVED, mine)
        if self._serve.tls:
            host = split_address(self._serve.address)[0]
            subject = f"seed registry of {self._site.name}"
            ensure_certificates(folder, subject, [host], utc_now())
        log = folder / "serve.log"
        daemon.stop(self._pid_file)
        if self._unit:
            systemd.install(self._unit, systemd.unit_text(self._site.name, self._arguments()))
        else:
            daemon.start(self._arguments(), log, self._pid_file)
        end = time.monotonic() + _PATIENCE
        while self._served() != self._digests():
            alive = self._is_ours()
            if not alive or time.monotonic() >= end:
                state = "does not answer" if alive else "ended"
                words = daemon.last_words(log) if not self._unit else ""
                raise DeploymentFailed(
                    f"the seed registry {state} at {self._serve.address}\n  {words}".rstrip(),
                    hint="is seed.serve.listen free, and seed.serve.address an address of this "
                    "machine?",
                )
            time.sleep(_PAUSE)
        paths = " and ".join(str(b.path) for b in (self._bundle, *self._bundle.bases))
        verb, where = (
            ("are", "where they are: leave them")
            if self._bundle.bases
            else ("is", "where it is: leave it")
        )
        return f"{paths} {verb} served from {where} there"

    def _arguments(self) -> list[str]:
        arguments = [
            *self._command,
            "serve",
            str(Path(self._bundle.path).absolute()),
            *([str(self._folder / DATABASES)] if self._databases() else []),
            *(f"--base={Path(base.path).absolute()}" for base in self._bundle.bases),
            f"--{'trust-root' if self._key.is_root else 'key'}={self._key_file}",
            *(f"--accepted={digest}" for digest in sorted(self._digests())),
            f"--listen={self._serve.listen}",
        ]
        if self._serve.tls:
            arguments.append(f"--tls-cert={self._folder / 'tls.crt'}")
            arguments.append(f"--tls-key={self._folder / 'tls.key'}")
        else:
            arguments.append("--plain-http")
        return arguments

    def _is_ours(self) -> bool:
        if self._unit:
            return systemd.is_active(self._unit, self._arguments())
        process = daemon.running(self._pid_file)
        return process is not None and list(process.command) == self._arguments()

    def _listens_here(self) -> bool:
        """Whether a seed of this site has the address, with this bundle or an earlier one."""
        listen = f"--listen={self._serve.listen}"
        process = daemon.running(self._pid_file)
        if process is not None and listen in process.command:
            return True
        return bool(self._unit) and systemd.is_active_with(self._unit, listen)

    def _databases(self) -> str:
        """Digest of the bundle with newer databases that is served beside, or nothing."""
        kept = self._state.read(f"seed/{DATABASES}.json", ServedBundle)
        return kept.digest if kept and (self._folder / DATABASES).is_file() else ""

    def _digests(self) -> set[str]:
        mine = {str(bundle.digest) for bundle in (self._bundle, *self._bundle.bases)}
        return mine | {self._databases()} - {""}

    def _served(self) -> set[str]:
        """Digests of the bundles that are served at the address as nodes see it."""
        url = f"{'https' if self._serve.tls else 'http'}://{self._serve.address}/healthz"
        try:
            answer = request(
                url, str(self._folder / "ca.crt") if self._serve.tls else "", timeout=_TIMEOUT
            )
            health = decode_json(answer.body, _Health)
        except (NotAnswering, msgspec.DecodeError, UnicodeDecodeError):
            return set()
        return {bundle.digest for bundle in health.bundles} if answer.good else set()


def _served(bundle: VerifiedBundle | ServedBundle) -> ServedBundle:
    bases = tuple(_served(base) for base in bundle.bases)
    return ServedBundle(str(Path(bundle.path).absolute()), str(bundle.digest), bases)
