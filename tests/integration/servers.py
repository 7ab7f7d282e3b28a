"""Debian's real servers and clients, each in a folder of its own and on a port that was free.

Everything here is a context manager that starts a program, waits until it answers, and ends it by
its process id; nothing of the machine's own Docker, containerd or registries is touched. What is
not installed raises ProgramMissing with the package to install, which the fixtures in conftest.py
turn into a skip.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING

from tests.programs import ProgramMissing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.upstream.certificates import Certificates

USER, PASSWORD = "robot", "let-me-in"
# docker-registry takes bcrypt only, which Python has no module for: this is of PASSWORD.
_HTPASSWD = "robot:$2b$04$m6iIdluGfX4SDKI.lDamW.T3JMqNCos5FFLHvbNqBOS9XW4o5USHm\n"
_PACKAGES = {
    "docker-registry": "docker-registry",
    "dockerd": "docker.io",
    "docker": "docker.io",
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "skopeo": "skopeo",
    "openssl": "openssl",
    "ganesha.nfsd": "nfs-ganesha-vfs",
    "busybox": "busybox-static",
    "debootstrap": "debootstrap",
    "gcc": "gcc",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "qemu-aarch64-static": "qemu-user-static",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "apt-get": "apt",
}
_NUMBERS = count()
_START_SECONDS = 60.0
_STOP_SECONDS = 15.0


def debian(name: str) -> Path:
    """Program of a Debian package; raises ProgramMissing with the package's name.

    The package's own file goes before PATH, where another client of the same name may lie.
    """
    for folder in ("/usr/bin", "/usr/sbin"):
        if os.access(f"{folder}/{name}", os.X_OK):
            return Path(folder, name)
    if found := shutil.which(name):
        return Path(found)
    raise ProgramMissing(f"{name} is missing: apt-get install {_PACKAGES[name]}")


def need_root(name: str) -> None:
    """Raise ProgramMissing for who is not root."""
    if os.geteuid() != 0:
        raise ProgramMissing(f"{name} needs root: run these tests as root")


@dataclass(frozen=True)
class DockerRegistry:
    """A running docker-registry: ``host`` is ``127.0.0.1:PORT``, ``storage`` its folder."""

    host: str
    storage: Path
    certificates: Certificates | None = None
    login: tuple[str, str] | None = None

    @property
    def url(self) -> str:
        """Where it answers, without a slash at the end."""
        return f"{'https' if self.certificates else 'http'}://{self.host}"


@contextmanager
def docker_registry(
    folder: Path, *, certificates: Certificates | None = None, login: bool = False
) -> Iterator[DockerRegistry]:
    """Run an empty docker-registry that allows deletion; ``login`` asks for USER and PASSWORD."""
    program = debian("docker-registry")
    storage = folder / "storage"
    storage.mkdir(parents=True)
    lines = [
        "version: 0.1",
        "log: {level: info, accesslog: {disabled: true}}",
        "storage:",
        f"  filesystem: {{rootdirectory: {storage}}}",
        "  delete: {enabled: true}",
        "http:",
        "  addr: 127.0.0.1:0",
    ]
    if certificates:
        named = f"certificate: {certificates.certificate}, key: {certificates.key}"
        lines.append(f"  tls: {{{named}}}")
    if login:
        (folder / "htpasswd").write_text(_HTPASSWD, encoding="ascii")
        lines.append(f"auth: {{htpasswd: {{realm: test, path: {folder / 'htpasswd'}}}}}")
    (folder / "config.yml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    log = folder / "log"
    found = ""

    def listening() -> bool:
        nonlocal found
        told = re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text(errors="replace"))
        found = told[1] if told else ""
        return bool(found)

    with _running([program, "serve", folder / "config.yml"], log, listening):
        yield DockerRegistry(found, storage, certificates, (USER, PASSWORD) if login else None)


@dataclass(frozen=True)
class Docker:
    """A Docker Engine of our own; ``host`` is what DOCKER_HOST wants."""

    folder: Path

    @property
    def host(self) -> str:
        """Address of the engine's socket."""
        return f"unix://{self.folder}/docker.sock"

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a client: this engine, and nobody's credentials."""
        own = {"DOCKER_HOST": self.host, "DOCKER_CONFIG": str(self.folder / "config")}
        left = {name: text for name, text in os.environ.items() if not name.startswith("DOCKER_")}
        return left | own

    def run(self, *arguments: str | Path) -> str:
        """Run Debian's docker client and give its output; raises RuntimeError with its errors."""
        return run(debian("docker"), *arguments, environment=self.environment)


@contextmanager
def dockerd(*options: str) -> Iterator[Docker]:
    """Run a Docker Engine without a bridge: containers have the host's network or none."""
    need_root("dockerd")
    program = debian("dockerd")
    for needed in ("containerd", "runc", "docker"):
        debian(needed)
    with _short_folder("dockerd") as folder:
        docker = Docker(folder)
        (folder / "config").mkdir()
        (folder / "daemon.json").write_text("{}", encoding="ascii")
        command: list[str | Path] = [
            program,
            f"--config-file={folder}/daemon.json",
            f"--data-root={folder}/data",
            f"--exec-root={folder}/exec",
            f"--host={docker.host}",
            f"--pidfile={folder}/pid",
            # The machine's firewall, routes and interfaces stay as they are.
            *("--bridge=none", "--iptables=false", "--ip6tables=false"),
            *("--ip-forward=false", "--ip-masq=false"),
            *options,
        ]

        def answers() -> bool:
            return _succeeds(debian("docker"), "version", environment=docker.environment)

        with _running(command, folder / "log", answers):
            yield docker


@dataclass(frozen=True)
class Containerd:
    """A containerd of our own, without CRI."""

    folder: Path

    @property
    def address(self) -> str:
        """Path of its socket."""
        return f"{self.folder}/containerd.sock"

    def ctr(self, *arguments: str | Path) -> str:
        """Run ctr in the namespace that Kubernetes uses; raises RuntimeError with its errors."""
        return run(debian("ctr"), "--address", self.address, "--namespace", "k8s.io", *arguments)


@contextmanager
def containerd() -> Iterator[Containerd]:
    """Run a containerd with its own root, state and socket."""
    need_root("containerd")
    program = debian("containerd")
    with _short_folder("containerd") as folder:
        started = Containerd(folder)
        configuration = f"""version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{started.address}"
[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"
"""
        (folder / "config.toml").write_text(configuration, encoding="utf-8")

        def answers() -> bool:
            return _succeeds(debian("ctr"), "--address", started.address, "version")

        command: list[str | Path] = [program, "--config", folder / "config.toml"]
        with _running(command, folder / "log", answers):
            yield started


def skopeo(*arguments: str | Path) -> str:
    """Run skopeo without anybody's credentials or policy; raises RuntimeError with its errors."""
    program = debian("skopeo")
    with tempfile.TemporaryDirectory(prefix="skopeo-") as name:
        environment = os.environ | {"REGISTRY_AUTH_FILE": f"{name}/auth.json", "TMPDIR": name}
        return run(program, "--insecure-policy", *arguments, environment=environment)


def run(program: Path, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> str:
    """Run a client to its end and give its output; raises RuntimeError with its errors."""
    done = subprocess.run(
        [program, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        command = " ".join(str(part) for part in (program.name, *arguments))
        raise RuntimeError(f"{command}: exit {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def free_port() -> int:
    """Find a port of 127.0.0.1 that nobody listens on, for programs that can't choose one.

    It is below those that the kernel gives to connections (ip_local_port_range), and processes of
    one test run ask for different ones: so nobody takes it before the program listens.
    """
    first = 10_000 + os.getpid() % 220 * 100
    for number in islice(_NUMBERS, 100):
        port = first + number % 100
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no port is free from {first} to {first + 99}")


def _succeeds(program: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> bool:
    try:
        run(program, *arguments, environment=environment)
    except RuntimeError:
        return False
    return True


@contextmanager
def _running(command: list[str | Path], log: Path, answers: Callable[[], bool]) -> Iterator[int]:
    """Run a server until the block ends, which begins when it answers; gives its process id."""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not answers():
            if process.poll() is not None or time.monotonic() > deadline:
                state = "ended" if process.poll() is not None else "does not answer"
                told = log.read_text(errors="replace")[-3000:]
                raise RuntimeError(f"{Path(command[0]).name} {state}: {told}")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _short_folder(name: str) -> Iterator[Path]:
    """Make a folder whose path leaves room for a socket's name (108 bytes in all).

    Mounts that a daemon left behind are undone before it is removed.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    try:
        yield folder
    finally:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
        mounted = [line.split()[4] for line in mounts]
        for point in sorted((m for m in mounted if m.startswith(f"{folder}/")), reverse=True):
            with suppress(subprocess.CalledProcessError):
                subprocess.run(["umount", "--lazy", point], check=True)
        shutil.rmtree(folder)
