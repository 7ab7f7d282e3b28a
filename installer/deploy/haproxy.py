"""HAProxy in front of the node ports: one file, checked by HAProxy before it counts.

Whoever runs HAProxy has a configuration that works, so theirs is kept beside ours, ours replaces
it only after HAProxy itself found it good, and the old one comes back when the service refuses the
new one. Nothing from ``site.yaml`` reaches the file but hosts, ports and a path that are read as
such: there is no quoting that could be got wrong.
"""

from __future__ import annotations

import ipaddress
import re
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from contextlib import suppress
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from installer.deploy import systemd
from installer.environment import closed_environment
from installer.errors import AirgapError, DeploymentFailed, InvalidInput, PreflightFailed
from installer.site.harbor import Expose
from installer.site.private import read_file, write_file
from installer.site.section import split_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from installer.site.harbor import HAProxy, Harbor

_SERVICE = "haproxy"
_OLDEST = (2, 4)
"""`default-path` came with it; RHEL 9, Debian 12 and Ubuntu 22.04 have it or newer."""
_READABLE = 0o644
_KEPT = ".before-harbor-airgap"
_PATIENCE = 15.0
_PAUSE = 0.2
_TIMEOUT = 60
_SHOWN = 1000
_UNCHECKED = (
    "HAProxy is not installed here, so nothing has checked the configuration: "
    "`haproxy -c -f haproxy.cfg` does"
)

_PART = re.compile(r"^#\[(\w+)\]\n", re.MULTILINE)
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\Z")
_SPECIAL = frozenset(" \"'\\#$")
"""What HAProxy gives a meaning in a word (configuration.txt, 2.2: quoting and escaping)."""
_OWNER = re.compile(rb"# harbor-airgap (\S+): ")
_WORDS = re.compile(r"^\[(ALERT|WARNING)\]\s*\(\d+\) : (.+)$", re.MULTILINE)


def configuration(harbor: Harbor, certificate_file: str) -> str:
    """Give the whole haproxy.cfg; ``certificate_file`` is relative to it, or absolute.

    That file is chain and key as PEM; with ``passthrough`` it isn't mentioned. Raises InvalidInput
    for what a line of HAProxy's can't hold or what HAProxy would take otherwise than it was meant.
    """
    haproxy = _section(harbor)
    expose = harbor.expose or Expose()
    terminate = haproxy.mode == "terminate"
    public = _public(harbor.external_url)
    addresses = _addresses(haproxy)
    words = {
        **{key: _address(text, key) for key, text in addresses.items()},
        "certificate": _file(certificate_file),
        "host": public,
        "url": f"https://{public}",
        "servers": _servers(haproxy, expose.http_port if terminate else expose.https_port),
    }
    template = resources.files("manifests").joinpath("haproxy", "haproxy.cfg").read_text("utf-8")
    parts = _PART.split(template)
    wanted = {"always", haproxy.mode, *addresses}
    named = zip(parts[1::2], parts[2::2], strict=True)
    return Template("".join(body for name, body in named if name in wanted)).substitute(words)


def _public(url: str) -> str:
    """Host of the URL, with its port if it names one; raises InvalidInput."""
    parts = None
    with suppress(ValueError):
        parts = urlsplit(url)
    # What is left of it beside scheme and host could only be a path, a query or a fragment.
    if parts is None or url.rstrip("/").lower() != f"https://{parts.netloc.lower()}":
        raise InvalidInput(
            f"externalURL: not https:// and a host: {url[:100]!r}",
            hint="HAProxy, or Harbor behind it, speaks TLS",
        )
    if re.search(r":\d+\Z", parts.netloc):
        return _address(parts.netloc, "externalURL")
    host, _ = split_address(f"{parts.netloc}:443")
    return _host(host, "externalURL")


def _section(harbor: Harbor) -> HAProxy:
    if harbor.load_balancer is None:
        raise InvalidInput("harbor.loadBalancer: it is missing")
    return harbor.load_balancer.haproxy


def _addresses(haproxy: HAProxy) -> dict[str, str]:
    """What HAProxy listens on, by key of site.yaml; raises InvalidInput for a port used twice.

    The kernel would let HAProxy have it twice and give each half of the connections.
    """
    if not haproxy.listen:
        raise InvalidInput("loadBalancer.haproxy.listen: it is empty")
    named = {"listen": haproxy.listen, "redirect": haproxy.redirect, "stats": haproxy.stats}
    addresses = {key: text for key, text in named.items() if text}
    ports: dict[int, str] = {}
    for key, text in addresses.items():
        port = split_address(text)[1]
        if port in ports:
            raise InvalidInput(
                f"loadBalancer.haproxy: {ports[port]} and {key} have the same port, {port}",
                hint="give each a port of its own; redirect and stats may be empty",
            )
        ports[port] = key
    return addresses


def _servers(haproxy: HAProxy, port: int) -> str:
    lines: dict[str, str] = {}
    for node in haproxy.nodes:
        host = _host(node.removeprefix("[").removesuffix("]"), "nodes")
        # A server's name may have what an address has, but for the brackets.
        name = host.strip("[]")
        if name in lines:
            raise InvalidInput(f"loadBalancer.haproxy.nodes: {name} is there twice")
        lines[name] = f"    server {name} {host}:{port} check\n"
    if not lines:
        raise InvalidInput("loadBalancer.haproxy.nodes: none is given")
    return "".join(lines.values()).removesuffix("\n")


def _address(text: str, key: str) -> str:
    host, port = split_address(text)
    return f"{_host(host, key)}:{port}"


def _host(text: str, key: str) -> str:
    """Write an address or a name as HAProxy reads it, IPv6 in brackets; raises InvalidInput."""
    with suppress(ValueError):
        address = ipaddress.ip_address(text)
        if address.version == 4:  # noqa: PLR2004 - the number is its name
            return str(address)
        if not getattr(address, "scope_id", None):
            return f"[{address}]"
    name = text.lower()
    # What ends in a number is an address that is wrong, no name (URL standard, "ends in a number").
    if not _NAME.match(name) or name.rpartition(".")[2].isdigit():
        raise InvalidInput(
            f"{key}: neither a host name nor an IP address: {text[:100]!r}",
            hint="for example 10.0.0.5, fd00::5 or node-1.site.example",
        )
    return name


def _file(path: str) -> str:
    if not path or not path.isprintable() or _SPECIAL & set(path):
        raise InvalidInput(
            f"HAProxy's configuration can't hold the path {path[:200]!r}",
            hint="no spaces, quotes, backslashes, # or $ in it",
        )
    return path


class InstallHAProxy:
    """Write HAProxy's configuration and certificate, and let this machine's HAProxy read them.

    ``key`` is the release's, ``tls`` gives PEM of the chain, leaf first, and its key; None before
    it is made. With ``passthrough`` it isn't asked.
    """

    def __init__(self, harbor: Harbor, key: str, tls: Callable[[], bytes | None]) -> None:
        self._harbor = harbor
        self._haproxy = _section(harbor)
        self._key = key
        self._tls = tls
        self._file = Path(self._haproxy.file)
        self._pem = self._file.with_name(f"harbor-{key.replace('/', '-')}.pem")
        # There while files are new and HAProxy may not have read them: a run that ends in between
        # leaves it behind, and the next one reloads.
        self._pending = self._file.with_name(f".{self._file.name}{_KEPT}.pending")
        self.name = f"loadbalancer:{key}"

    @property
    def sentence(self) -> str:
        """What applying it does."""
        foreign = self._is_foreign(read_file(self._file))
        kept = f", what is there now is kept as {self._file.name}{_KEPT}" if foreign else ""
        then = "and reload it" if self._haproxy.service else "for copying"
        return f"Write HAProxy's configuration, {self._file}, {then}{kept}"

    def preflight(self) -> None:
        """Refuse what can't become a load balancer, before anything is changed.

        Raises InvalidInput for what the configuration can't hold, PreflightFailed for a file of
        another release, a machine without systemd or HAProxy, or an address that is taken.
        """
        self._text()
        old = read_file(self._file)
        owner = _owner(old)
        if owner not in (None, self._key):
            raise PreflightFailed(
                f"{self._file}: it is the load balancer of release {owner}",
                hint="one HAProxy stands before one Harbor: give this one another file, with "
                "service: false",
            )
        if not self._haproxy.service:
            return
        if not systemd.is_there():
            raise PreflightFailed(
                "loadBalancer.haproxy: systemd does not run this machine, or we are not root",
                hint="write service: false: the files are written then, and you start HAProxy",
            )
        binary = _program()
        if binary is None:
            raise PreflightFailed(
                "loadBalancer.haproxy: HAProxy is not installed here",
                hint="install the system's package haproxy, or write service: false",
            )
        _check_version(binary)
        self._check_addresses(old)

    def check(self) -> bool:
        """Whether the files are as they should be, and HAProxy runs with them."""
        pem = self._certificate()
        if pem is None and self._haproxy.mode == "terminate":
            return False
        return (
            not self._pending.exists()
            and read_file(self._file) == self._text().encode()
            and read_file(self._pem) == pem
            and (not self._haproxy.service or _is_active())
        )

    def apply(self) -> str:
        """Write both and reload; gives what a person should know.

        Raises DeploymentFailed with HAProxy's words, PreflightFailed for an address that is taken;
        what was there before is then there again.
        """
        text, pem = self._text(), self._certificate()
        if pem is None and self._haproxy.mode == "terminate":
            raise DeploymentFailed("HAProxy: there is no certificate for externalURL yet")
        notes = self._try_out(text, pem)
        old = _Kept(self._file)
        if self._haproxy.service:
            # Once more: a reload that doesn't get its ports is one that systemctl calls good.
            self._check_addresses(old.data)
        if self._is_foreign(old.data):
            notes.append(f"the configuration that was there is kept as {self._keep(old)}")
        old_pem = _Kept(self._pem)
        was_active = self._haproxy.service and _is_active()
        try:
            write_file(self._pending, b"")
            _put(self._pem, pem)
            write_file(self._file, text.encode(), mode=_READABLE)
            if self._haproxy.service:
                self._reload()
            self._pending.unlink()
        except AirgapError:
            old_pem.restore()
            old.restore()
            if self._haproxy.service:
                systemd.control("reload-or-restart" if was_active else "stop", _SERVICE)
            self._pending.unlink(missing_ok=True)
            raise
        if not self._haproxy.service:
            names = self._file.name if pem is None else f"{self._file.name} and {self._pem.name}"
            notes.append(
                f"{names} in {self._file.parent} belong into one folder of the machine that "
                "HAProxy runs on, /etc/haproxy as a rule; reload HAProxy then"
            )
            if pem is not None:
                notes.append(f"{self._pem.name} holds the private key: mode 0600, owner root")
        return "; ".join(notes)

    def _text(self) -> str:
        text = configuration(self._harbor, self._pem.name)
        return (
            f"# harbor-airgap {self._key}: written by the installer, "
            f"which overwrites what is changed here\n{text}"
        )

    def _certificate(self) -> bytes | None:
        return self._tls() if self._haproxy.mode == "terminate" else None

    def _is_foreign(self, data: bytes | None) -> bool:
        return data is not None and _owner(data) != self._key

    def _try_out(self, text: str, pem: bytes | None) -> list[str]:
        """Let HAProxy read the new files while the old ones still count; gives its warnings."""
        binary = _program()
        if binary is None:
            return [_UNCHECKED]
        with tempfile.TemporaryDirectory(prefix="harbor-airgap-") as name:
            folder = Path(name)
            write_file(folder / self._file.name, text.encode())
            _put(folder / self._pem.name, pem)
            result = _run(binary, folder, "-c", "-f", str(folder / self._file.name))
            told = result.stderr.replace(name, str(self._file.parent))
        words = [(level, line) for level, line in _WORDS.findall(told)]
        if result.returncode:
            alerts = "\n  ".join(line for level, line in words if level == "ALERT")
            raise DeploymentFailed(
                f"HAProxy refuses its new configuration:\n  {(alerts or told.strip())[:_SHOWN]}",
                hint="nothing was changed; the certificate is checked with it, and may be the one",
            )
        return [f"HAProxy warns: {line[:_SHOWN]}" for level, line in words if level == "WARNING"]

    def _check_addresses(self, old: bytes | None) -> None:
        """Refuse addresses that are taken; what our HAProxy has, by its file, it may go on with."""
        ours = (old or b"").decode(errors="replace") if _owner(old) and _is_active() else ""
        for key, text in _addresses(self._haproxy).items():
            bind = re.escape(f"    bind {_address(text, key)}")
            if not re.search(rf"^{bind}(?: |$)", ours, re.MULTILINE):
                _check_free(key, text)

    def _keep(self, old: _Kept) -> Path:
        """Keep what somebody else wrote, under a name that has nothing else."""
        number = 1
        while True:
            name = f"{self._file.name}{_KEPT}{f'-{number}' if number > 1 else ''}"
            copy = self._file.with_name(name)
            there = read_file(copy)
            if there is None:
                write_file(copy, old.data or b"", mode=old.mode)
            if there in (None, old.data):
                return copy
            number += 1

    def _reload(self) -> None:
        """Let HAProxy read its files, and wait until it listens; raises DeploymentFailed."""
        for action in ("reload-or-restart", "enable"):
            if complaint := systemd.control(action, _SERVICE):
                raise DeploymentFailed(
                    f"systemctl {action} {_SERVICE}: {complaint}",
                    hint=f"`journalctl --unit={_SERVICE}` says more; the files are as before",
                )
        # A reload succeeds before the new process has its sockets, and also if it doesn't get them.
        end = time.monotonic() + _PATIENCE
        for key, text in _addresses(self._haproxy).items():
            while not _listens(text):
                if time.monotonic() > end:
                    raise DeploymentFailed(
                        f"HAProxy does not listen on {text} (loadBalancer.haproxy.{key})",
                        hint=f"does the service read {self._file}? `systemctl cat {_SERVICE}` and "
                        f"`journalctl --unit={_SERVICE}` say more; the files are as before",
                    )
                time.sleep(_PAUSE)


class _Kept:
    """A file as it was, or that there was none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.data = read_file(path)
        self.mode = 0 if self.data is None else stat.S_IMODE(path.stat().st_mode)

    def restore(self) -> None:
        _put(self._path, self.data, mode=self.mode)


def _put(path: Path, data: bytes | None, *, mode: int = 0o600) -> None:
    if data is None:
        path.unlink(missing_ok=True)
    else:
        write_file(path, data, mode=mode)


def _owner(data: bytes | None) -> str | None:
    """Key of the release whose configuration it is, None for what somebody else wrote."""
    match = _OWNER.match(data or b"")
    return match[1].decode(errors="replace") if match else None


def _program() -> Path | None:
    found = shutil.which(_SERVICE, path=closed_environment(Path("/"))["PATH"])
    return Path(found) if found else None


def _check_version(binary: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="harbor-airgap-") as name:
        told = _run(binary, Path(name), "-v").stdout
    match = re.search(r"version (\d+)\.(\d+)", told)
    if match and (int(match[1]), int(match[2])) < _OLDEST:
        raise PreflightFailed(
            f"{binary}: version {match[1]}.{match[2]} is too old",
            hint=f"{_OLDEST[0]}.{_OLDEST[1]} or newer is needed",
        )


def _run(binary: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [binary, *arguments],
            env=closed_environment(folder),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeploymentFailed(f"{binary} {arguments[0]}: {error}") from error


def _is_active() -> bool:
    return systemd.is_there() and not systemd.control("is-active", "--quiet", _SERVICE)


def _check_free(key: str, text: str) -> None:
    host, port = split_address(text)
    try:
        for family, kind, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        raise PreflightFailed(
            f"loadBalancer.haproxy.{key}: {text}: {error.strerror}",
            hint="name a free port and an address of this machine (0.0.0.0 is all of them); "
            "`ss -ltnp` shows who listens",
        ) from error


def _listens(text: str) -> bool:
    # To connect to 0.0.0.0 or :: is to connect to this machine.
    try:
        socket.create_connection(split_address(text), timeout=_PAUSE * 5).close()
    except OSError:
        return False
    return True
