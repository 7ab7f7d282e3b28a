"""What takes from this machine what a run put there: hosts.toml, the seed, HAProxy's file."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

# What is private there says how files are called: here they must be called the same.
from installer.deploy import daemon, systemd
from installer.deploy.haproxy import _KEPT, InstallHAProxy, _Kept, _owner, _program, _run
from installer.deploy.nodes import hosts_toml
from installer.deploy.removal import Remains
from installer.deploy.systemd import _UNITS
from installer.errors import DeploymentFailed, PreflightFailed, TransferFailed
from installer.site.private import read_file, write_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from installer.site.harbor import Harbor
    from installer.site.model import Site
    from installer.site.state import State

_WORDS = 1000


class ForgetHost:
    """Take containerd's folder of a registry host away, if the installer wrote it."""

    def __init__(self, folder: Path, host: str, *, here: bool) -> None:
        """``folder`` is that of all hosts; ``here`` says that a containerd reads it."""
        self._folder = folder / host
        self._host = host
        self._here = here
        self.name = f"uninstall:nodes:{host}"
        self.sentence = f"Remove {self._folder}"

    def check(self) -> bool:
        """Whether nothing of ours is there."""
        return not self._folder.is_dir() or not (self._is_ours() or self._is_empty())

    def apply(self) -> str:
        """Remove it; what else lies in the folder stays. Raises TransferFailed."""
        try:
            # hosts.toml last: by it the rest is known as ours when this is interrupted.
            for name in ("ca.crt", "hosts.toml"):
                (self._folder / name).unlink(missing_ok=True)
            with suppress(OSError):  # something else lies in it
                self._folder.rmdir()
        except OSError as error:
            raise TransferFailed(f"{self._folder}: {error.strerror}") from error
        if self._here:
            return ""
        return f"delete /etc/containerd/certs.d/{self._host} on each node, where it was copied to"

    def _is_ours(self) -> bool:
        written = read_file(self._folder / "hosts.toml")
        ways = ((tls, ca) for tls in (True, False) for ca in (True, False))
        return written in [hosts_toml(self._host, tls=tls, ca=ca).encode() for tls, ca in ways]

    def _is_empty(self) -> bool:
        return not any(self._folder.iterdir())


class StopSeed:
    """Stop the seed registry of the site and remove its systemd unit."""

    name = "uninstall:seed"
    sentence = "Stop the seed registry: nothing of the site pulls from it any more"

    def __init__(self, site: Site, state: State) -> None:
        self._serves = site.seed.serve is not None
        self._pid_file = state.path("seed") / "serve.pid"
        self._unit = systemd.unit_name(site.name)
        self._file = _UNITS / self._unit

    def was_ours(self) -> bool:
        """Whether the installer serves the site's images, by site.yaml or in fact."""
        return self._serves or not self.check()

    def preflight(self) -> None:
        """Raises PreflightFailed for a unit that this user can't stop."""
        if self._file.exists() and not systemd.is_there():
            raise PreflightFailed(
                f"{self._file}: systemd does not run this machine, or we are not root",
                hint="run it as root",
            )

    def check(self) -> bool:
        """Whether neither a process of ours nor a unit is there."""
        return daemon.running(self._pid_file) is None and not self._file.exists()

    def apply(self) -> str:
        """Stop it; raises DeploymentFailed."""
        daemon.stop(self._pid_file)
        self._pid_file.unlink(missing_ok=True)
        if self._file.exists():
            self._control("disable", "--now", self._unit)
            self._file.unlink(missing_ok=True)
            self._control("daemon-reload")
        return "the bundle's file is no longer read: it may be put away"

    @staticmethod
    def _control(*arguments: str) -> None:
        if complaint := systemd.control(*arguments):
            raise DeploymentFailed(f"systemctl {' '.join(arguments)}: {complaint}")


class RestoreHAProxy(InstallHAProxy):
    """Give this machine's HAProxy the configuration back that it had before ours."""

    def __init__(self, harbor: Harbor, key: str) -> None:
        super().__init__(harbor, key, lambda: None)
        self.name = f"uninstall:loadbalancer:{key}"

    @property
    def sentence(self) -> str:
        """What applying it does."""
        return f"Give HAProxy its configuration of before back, {self._file}"

    def preflight(self) -> None:
        """Raises PreflightFailed if it should be done, but this machine's systemd isn't ours."""
        if not self.check() and not systemd.is_there():
            raise PreflightFailed(
                "loadBalancer.haproxy: systemd does not run this machine, or we are not root",
                hint="run it as root where HAProxy runs, or write service: false: it is left as "
                "it is then",
            )

    def check(self) -> bool:
        """Whether there is nothing to give back, or nothing that may be touched."""
        if not self._haproxy.service:
            return True
        if self._is_in_place():
            return self._before() is None
        return not self._pending.exists()

    def apply(self) -> str:
        """Put the file back and reload; ours is there again when HAProxy refuses that.

        Raises DeploymentFailed with HAProxy's words.
        """
        ours, before = _Kept(self._file), self._before()
        if self._is_in_place() and before is not None:
            _check_configuration(before)
            write_file(self._pending, b"")
            kept = _Kept(before)
            write_file(self._file, kept.data or b"", mode=kept.mode)
        if complaint := systemd.control("reload-or-restart", "haproxy"):
            ours.restore()
            systemd.control("reload-or-restart", "haproxy")
            self._pending.unlink(missing_ok=True)
            raise DeploymentFailed(
                f"HAProxy does not start with its configuration of before: {complaint}",
                hint="ours is in place again; write service: false to leave it",
            )
        self._pem.unlink(missing_ok=True)
        if before is not None and read_file(before) == read_file(self._file):
            before.unlink()
        self._pending.unlink(missing_ok=True)
        return ""

    def remains(self) -> Iterator[Remains]:
        """Files that stay, unless ``apply`` removes them."""
        if self._haproxy.service and not self.check():
            return
        if self._is_in_place():
            note = "HAProxy goes on with it: give it another one"
            if not self._haproxy.service:
                note = "and where it was copied to: stop HAProxy there, or give it another one"
            yield Remains("HAProxy", str(self._file), note)
        if self._pem.exists():
            yield Remains("HAProxy", str(self._pem), "holds the private key: delete it")
        for path in self._all_before():
            yield Remains("HAProxy", str(path), "the configuration of before")

    def _is_in_place(self) -> bool:
        return _owner(read_file(self._file)) == self._key

    def _all_before(self) -> list[Path]:
        """What was kept, as InstallHAProxy names it, the latest last."""
        found: list[Path] = []
        while True:
            number = f"-{len(found) + 1}" if found else ""
            path = self._file.with_name(f"{self._file.name}{_KEPT}{number}")
            if not path.exists():
                return found
            found.append(path)

    def _before(self) -> Path | None:
        found = self._all_before()
        return found[-1] if found else None


def _check_configuration(path: Path) -> None:
    """Let HAProxy read it where it lies: files that it names may be gone."""
    binary = _program()
    if binary is None:
        return
    result = _run(binary, path.parent, "-c", "-f", str(path))
    if result.returncode:
        raise DeploymentFailed(
            f"HAProxy refuses its configuration of before, {path}:\n"
            f"  {result.stderr.strip()[:_WORDS]}",
            hint="put it right, or write service: false in site.yaml to leave ours in place",
        )
