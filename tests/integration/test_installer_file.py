"""The one-file installer where it has to run: machines without Python, old, new and hostile.

One bundle is built as a person does it, with the installer of this very environment in it.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import stat
import struct
import subprocess
import sys
import time
import urllib.request
import zipfile
import zlib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bundler import freeze, installer_file
from bundler.installer_format import ARCHITECTURES, PLACE
from installer.cli import VERBS
from installer.deploy import daemon
from tests import programs
from tests.integration import machines, servers, test_run_process
from tests.integration.machines import NOBODY, Machine
from tests.integration.test_run_process import ApiServer, api
from tests.unit.test_build import Builder
from tests.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["api"]  # the fixture
CHECKOUT = Path(__file__).parents[2]
BUNDLER = Path(sys.executable).with_name("bundler")
NAME = f"installer-linux-{ARCHITECTURES.get(platform.machine())}"
GIVEN = ("/mnt/out.tar", "--key", "/mnt/release.pub")
VERSION = f"{NAME}, version {metadata.version('harbor-airgap')}\n"
MACHINES = ("this one", "oldest Debian", "newest Debian", "only a tmpfs")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disk that is carried: bundle, installer and public key."""
    folder = tmp_path_factory.mktemp("connected")
    with Upstream(folder, helm=False, scale=0.5) as upstream:
        builder = Builder(folder, upstream)
        assert builder.lock().returncode == 0
        # The packed installer is kept from one run of the tests to the next.
        variables = {"AIRGAP_CACHE_DIR": str(programs.cache_folder() / "bundler")}
        subprocess.run(
            [BUNDLER, *builder.build_argv()], cwd=folder, env=os.environ | variables, check=True
        )
    carried = tmp_path_factory.mktemp("disk")
    carried.chmod(0o755)
    for name in ("out.tar", "release.pub", NAME):
        shutil.copy2(folder / name, carried / name)
    return carried


@pytest.fixture
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return _machine(request.param, tmp_path / "root")


def _machine(name: str, folder: Path) -> Machine:
    try:
        match name:
            case "this one":
                return Machine(Path("/"))
            case "oldest Debian":
                return Machine(machines.suite_root(machines.oldest()))
            case "newest Debian":
                return Machine(machines.suite_root(machines.NEWEST))
            case "only busybox":
                return Machine(machines.busybox(folder, temporary=False), proc=False)
            case "only a tmpfs":
                return Machine(machines.busybox(folder), proc=False, read_only=True)
            case _:
                return Machine(machines.busybox(folder))
    except programs.ProgramMissing as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("machine", [*MACHINES, "only busybox"], indirect=True)
def test_it_runs_on_any_linux(machine: Machine, disk: Path) -> None:
    for _ in "first start", "next start":
        done = machine.run(disk, f"/mnt/{NAME}", "verify", *GIVEN)
        assert (done.returncode, "verified: demo serial 1" in done.stderr) == (0, True), done.stderr


@pytest.mark.parametrize("machine", [*MACHINES, "busybox with /proc"], indirect=True)
@pytest.mark.parametrize("verb", ["verify", "inspect"])
def test_nobody_may_look_at_a_bundle(machine: Machine, disk: Path, verb: str) -> None:
    done = machine.run(disk, f"/mnt/{NAME}", verb, *GIVEN, "--output", "json", user=NOBODY)
    assert (done.returncode, '"serial": 1' in done.stdout) == (0, True), done.stderr


def test_it_serves_where_nothing_else_is(disk: Path, tmp_path: Path) -> None:
    """With its own DNS, TLS and threads; skopeo pulls from outside of the root."""
    machine = _machine("busybox with /proc", tmp_path / "root")
    ready = disk / "ready"
    listen = ("--listen", "127.0.0.1:0", "--ready-file", "/mnt/ready")
    command = machine.command(disk, f"/mnt/{NAME}", "serve", *GIVEN, *listen)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = _address(ready, lambda: process.poll() is None)
            options = ("--insecure-policy", "copy", "--src-tls-verify=false")
            source = f"docker://{address}/demo/core:v1.2.3"
            servers.skopeo(*options, source, f"dir:{tmp_path / 'pulled'}")
        finally:
            process.terminate()  # unshare and chroot have become the installer
            words = process.communicate(timeout=60)[1]
            ready.unlink(missing_ok=True)
    assert (process.returncode, "stopped" in words) == (0, True), words
    assert (tmp_path / "pulled" / "manifest.json").exists()


def _address(ready: Path, lives: Callable[[], object]) -> str:
    """Wait until the server has written its URL; gives host and port."""
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert lives(), "the server ended"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return ready.read_text().strip().partition("://")[2]


@pytest.mark.parametrize("shell", ["this one", "busybox"])
def test_the_lines_in_the_readme_check_it_before_it_runs(
    disk: Path, tmp_path: Path, shell: str
) -> None:
    (tmp_path / "BUNDLE").symlink_to(disk / "out.tar")
    shutil.copy(disk / "release.pub", tmp_path)
    readme = _shell(tmp_path, "tar xOf BUNDLE README.txt", shell).stdout
    found = re.search(rf"Take out {NAME} and check it[^:]*:\n\n((?:  .*\n){{3}})\n", readme)
    assert found, readme
    lines = found[1]
    assert [word in lines for word in ("tar", "openssl", "sha256sum")] == [True] * 3
    done = _shell(tmp_path, lines, shell)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"Verified OK\n{NAME}: OK\n"
    assert _shell(tmp_path, f"./{NAME} --version", shell).returncode == 0
    for damaged, word in ((NAME, f"{NAME}: FAILED"), ("bundle.json", "Verification failure")):
        _flip(tmp_path / damaged, 1000)
        refused = _shell(tmp_path, "".join(lines.splitlines(keepends=True)[1:]), shell)
        assert word in refused.stdout + refused.stderr
        shutil.copy(disk / NAME, tmp_path)


def _shell(folder: Path, lines: str, which: str) -> subprocess.CompletedProcess[str]:
    """Run lines in a shell; that of busybox knows only busybox's programs, and openssl."""
    path = "/usr/bin:/bin"
    if which == "busybox":
        path = str(folder / "bin")
        if not (folder / "bin").exists():
            (folder / "bin").mkdir()
            (folder / "bin" / "openssl").symlink_to(servers.debian("openssl"))
            for name in ("sh", "tar", "grep", "sed", "sha256sum"):
                (folder / "bin" / name).symlink_to(servers.debian("busybox"))
    shell = Path(path.partition(":")[0]) / "sh"
    environment = {"PATH": path, "AIRGAP_UNPACK_DIR": str(folder / "unpacked")}
    return subprocess.run(
        [shell, "-c", lines],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def _flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


class Started:
    """Starts of the installer with a folder to unpack into; ``run`` gives what it printed."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.program, self.base = program, folder / "unpacked"

    def run(
        self,
        *arguments: str,
        program: str | Path = "",
        cwd: Path | None = None,
        variables: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        environment = {"AIRGAP_UNPACK_DIR": str(self.base)} | (variables or {})
        command = [program or self.program, *(arguments or ("--version",))]
        return subprocess.run(
            command,
            env=environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def works(self, **variables: str) -> None:
        done = self.run(variables=variables)
        assert (done.returncode, done.stdout, done.stderr) == (0, VERSION, ""), done

    @property
    def folder(self) -> Path:
        (found,) = self.base.iterdir()
        return found


@pytest.fixture
def started(disk: Path, tmp_path: Path) -> Started:
    return Started(disk / NAME, tmp_path)


def test_what_was_unpacked_is_private_and_used_again(started: Started) -> None:
    os.umask(0o002)
    started.works()
    os.umask(0o022)
    assert stat.S_IMODE(started.base.stat().st_mode) == 0o700
    assert stat.S_IMODE(started.folder.stat().st_mode) == 0o700
    files = {path: path.stat() for path in started.folder.iterdir()}
    assert {"installer", "python", "boot.zip", "libc.so.6"} <= {path.name for path in files}
    assert {stat.S_IMODE(status.st_mode) for status in files.values()} == {0o700}
    started.works()
    assert {path: path.stat().st_mtime_ns for path in started.folder.iterdir()} == {
        path: status.st_mtime_ns for path, status in files.items()
    }


def test_nothing_that_lies_there_is_believed(started: Started, tmp_path: Path) -> None:
    started.works()
    good = {path.name: path.read_bytes() for path in started.folder.iterdir()}
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    victim.chmod(0o700)

    def link(path: Path) -> None:
        path.unlink()
        path.symlink_to(victim)

    def hard_link(path: Path) -> None:
        path.unlink()
        path.hardlink_to(victim)

    def fifo(path: Path) -> None:
        path.unlink()
        os.mkfifo(path, 0o700)

    tricks: list[Callable[[Path], object]] = [
        link,
        hard_link,
        fifo,
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(good[path.name][:-1]),
        lambda path: path.chmod(0o722),
        lambda path: _flip(path, path.stat().st_size // 2),
    ]
    # The first three are looked at by unpack.c, the others by boot.py; all at once, since each
    # start takes a moment.
    names = ("python", "libc.so.6", "boot.zip", "_struct.so", "_datetime.so")
    for trick in tricks:
        for name in names:
            trick(started.folder / name)
        started.works()
        for name in names:
            found = started.folder / name
            assert (found.read_bytes(), found.is_symlink()) == (good[name], False)
            assert stat.S_IMODE(found.stat().st_mode) == 0o700
    assert victim.read_text() == "untouched"
    assert {path.name for path in started.folder.iterdir()} == set(good)  # nothing unfinished


def test_a_folder_that_others_can_write_to_is_refused(started: Started, tmp_path: Path) -> None:
    def refused(why: str) -> None:
        done = started.run()
        assert (done.returncode, done.stdout) == (6, "")
        assert why in done.stderr
        assert "AIRGAP_UNPACK_DIR" in done.stderr

    started.base.mkdir(mode=0o700)
    started.base.chmod(0o770)
    refused("not this user's alone")
    started.base.chmod(0o700)
    tmp_path.chmod(0o777)
    refused("others can write to a folder above")
    tmp_path.chmod(0o1777)
    started.works()
    started.folder.chmod(0o705)
    refused("not this user's alone")
    started.folder.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(started.folder, NOBODY, NOBODY)
        refused("not this user's alone")
        os.chown(started.folder, 0, 0)
    started.base.rename(tmp_path / "elsewhere")
    started.base.symlink_to(tmp_path / "elsewhere")
    refused("not this user's alone")
    started.base = Path("relative")
    refused("not an absolute path")


def test_what_somebody_put_there_before_is_passed_over(disk: Path, tmp_path: Path) -> None:
    machine = _machine("only busybox", tmp_path / "root")
    for place in ("var/tmp", "dev/shm"):
        (machine.root / place).mkdir(parents=True)
        (machine.root / place).chmod(0o1777)
    planted = machine.root / "var" / "tmp" / f"harbor-airgap-{NOBODY}"
    planted.mkdir()
    planted.chmod(0o777)
    done = machine.run(disk, f"/mnt/{NAME}", "--version", user=NOBODY)
    assert (done.returncode, done.stdout) == (0, VERSION), done
    assert list(planted.iterdir()) == []
    assert (machine.root / "dev" / "shm" / planted.name).is_dir()


def test_a_file_system_that_starts_no_programs_is_named(disk: Path, tmp_path: Path) -> None:
    machine = _machine("busybox with /proc", tmp_path / "root")
    remount = "/bin/busybox mount -o remount,mode=1777,noexec /tmp"
    script = f"{remount}; AIRGAP_UNPACK_DIR=/tmp/u /mnt/{NAME} --version"
    done = machine.run(disk, "/bin/sh", "-c", script)
    assert (done.returncode, "starts no programs (noexec)" in done.stderr) == (6, True), done


def test_a_full_disk_is_told_and_leaves_no_half_file(disk: Path, tmp_path: Path) -> None:
    machine = _machine("busybox with /proc", tmp_path / "root")
    script = (
        "/bin/busybox mount -o remount,mode=1777,size=3m /tmp; "
        f"AIRGAP_UNPACK_DIR=/tmp/u /mnt/{NAME} --version; echo $?; /bin/busybox ls /tmp/u/*"
    )
    done = machine.run(disk, "/bin/sh", "-c", script)
    assert "has no room" in done.stderr
    code, *names = done.stdout.split()
    assert (code, [n for n in names if re.search(r"\.\d\d+$", n)]) == ("6", [])


def test_a_damaged_installer_says_so(started: Started, disk: Path, tmp_path: Path) -> None:
    whole = (disk / NAME).read_bytes()
    broken = tmp_path / "broken"
    for size in (20_000, 1_000_000, len(whole) - 1, len(whole) + 1):
        broken.write_bytes(whole[:size].ljust(size, b"x"))
        broken.chmod(0o755)
        done = started.run(program=broken)
        assert (done.returncode, done.stdout) == (4, ""), done
        assert "compare its sha256 with bundle.json" in done.stderr
    with zipfile.ZipFile(disk / NAME) as archive:
        places = [archive.getinfo(n).header_offset + 500 for n in ("first/libc.so.6", "typing.pyc")]
    for place in places:
        broken.write_bytes(whole)
        _flip(broken, place)
        done = started.run(program=broken)
        assert (done.returncode, "this installer is damaged" in done.stderr) == (4, True), done
        assert "Traceback" not in done.stderr


def test_it_is_found_however_it_is_started(started: Started, disk: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a: b'c"
    odd.mkdir()
    shutil.copy2(disk / NAME, odd / "installer")
    (tmp_path / "link").symlink_to(odd / "installer")
    for program in (odd / "installer", tmp_path / "link", "./installer"):
        done = started.run(program=program, cwd=odd)
        assert (done.returncode, done.stdout) == (0, VERSION.replace(NAME, "installer")), done


def test_the_environment_changes_nothing(started: Started, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('from outside')")
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('from outside')")
    outside = str(tmp_path)
    started.works(
        PYTHONPATH=outside, PYTHONHOME=outside, PYTHONSTARTUP=f"{outside}/json.py",
        PYTHONVERBOSE="1", PYTHONINSPECT="1", LD_PRELOAD=f"{outside}/none.so",
        LD_LIBRARY_PATH=outside, LD_DEBUG="all", LC_ALL="xx_XX.none",
    )  # fmt: skip


def test_many_starts_at_once(started: Started) -> None:
    command = [str(started.program), "--version"]
    environment = {"AIRGAP_UNPACK_DIR": str(started.base)}
    many = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    assert [process.communicate(timeout=60)[0] for process in many] == [VERSION] * 8


def test_every_verb_imports(started: Started) -> None:
    for verb in VERBS:
        done = started.run(verb, "--help")
        assert (done.returncode, done.stderr) == (0, ""), f"{verb}: {done}"


def test_the_same_environment_gives_the_same_bytes(disk: Path, tmp_path: Path) -> None:
    """With another cache, another folder and other hashes of strings."""
    code = (
        "import pathlib, contextlib\n"
        "from bundler import installer_file\n"
        "from bundler.cache import BlobCache\n"
        "show = lambda size: contextlib.nullcontext(lambda done: None)\n"
        "print(installer_file.make(BlobCache(pathlib.Path('cache')), show).digest.hex)\n"
    )
    again = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert again.stdout.strip() == installer_file.read(disk / NAME).digest.hex


def test_it_is_small(disk: Path) -> None:
    assert (disk / NAME).stat().st_size <= 25_000_000


def test_the_first_programs_are_what_their_source_says(tmp_path: Path) -> None:
    """With the compiler of Debian 12, bit for bit."""
    try:
        for name in ("gcc", "aarch64-linux-gnu-gcc"):
            servers.debian(name)
    except programs.ProgramMissing as missing:
        pytest.skip(str(missing))
    shutil.copy(CHECKOUT / "Makefile", tmp_path)
    loader = tmp_path / "bundler" / "loader"
    loader.mkdir(parents=True)
    shutil.copy(CHECKOUT / "bundler" / "loader" / "unpack.c", loader)
    subprocess.run(["make", "loader"], cwd=tmp_path, check=True, capture_output=True)
    for machine in ARCHITECTURES:
        kept = CHECKOUT / "bundler" / "loader" / f"unpack-{machine}"
        assert (loader / kept.name).read_bytes() == kept.read_bytes(), machine


def test_the_first_program_for_arm64_unpacks_and_goes_on(tmp_path: Path) -> None:
    """In an emulator; a script of this machine stands for the dynamic loader."""
    try:
        emulator = servers.debian("qemu-aarch64-static")
    except programs.ProgramMissing as missing:
        pytest.skip(str(missing))
    files = {
        "installer": b'#!/bin/sh\nprintf "%s\\n" "$@"\nenv\nexit 42\n',
        "boot.zip": bytes(100_000),
    }
    installer = tmp_path / "installer"
    installer.write_bytes(_around(files))
    installer.chmod(0o755)
    variables = {"AIRGAP_UNPACK_DIR": str(tmp_path / "unpacked"), "PYTHONPATH": "/evil"}
    for _ in "first start", "next start":
        done = subprocess.run(
            [emulator, installer, "verify", "a b"],
            env=variables, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 42, done.stderr
        (folder,) = (tmp_path / "unpacked").iterdir()
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
        lines = done.stdout.splitlines()
        assert lines[:3] == ["--library-path", str(folder), f"{folder}/python"]
        assert {"verify", "a b", f"PYTHONPATH={folder}/boot.zip"} < set(lines)
        assert "/evil" not in done.stdout
        _flip(folder / "boot.zip", 50_000)


def _around(files: dict[str, bytes]) -> bytes:
    """An installer for arm64 with these files in its table, and no archive."""
    program = (CHECKOUT / "bundler" / "loader" / "unpack-aarch64").read_bytes()
    begin = len(program) + -len(program) % 16
    at = begin + freeze._HEADER.size + len(files) * freeze._ENTRY.size
    table, content = b"", b""
    for name, data in files.items():
        packed = zlib.compress(data, 9, -15)
        place = at + len(content)
        digest = freeze._hash(data)
        table += freeze._ENTRY.pack(place, len(packed), len(data), digest, name.encode())
        content += packed
    header = freeze._HEADER.pack(freeze.CONTENT, len(files), at + len(content), b"k" * 32)
    patched = program.replace(PLACE + bytes(8), PLACE + struct.pack("<Q", begin))
    return patched.ljust(begin, b"\0") + header + table + content


def test_it_stays_in_the_background(disk: Path, tmp_path: Path) -> None:
    """As ``run`` starts the seed registry where there is no systemd: with an empty environment."""
    ready, pid_file = tmp_path / "ready", tmp_path / "serve.pid"
    words = (disk / NAME, "serve", disk / "out.tar", "--key", disk / "release.pub")
    listen = ("--listen", "127.0.0.1:0", "--ready-file", ready)
    process = daemon.start([str(w) for w in (*words, *listen)], tmp_path / "log", pid_file)
    try:
        address = _address(ready, lambda: daemon.running(pid_file))
        assert daemon.running(pid_file) == process
        with urllib.request.urlopen(f"http://{address}/v2/", timeout=30) as answer:
            assert answer.status == 200
    finally:
        daemon.stop(pid_file)
    assert daemon.running(pid_file) is None


def test_a_run_starts_it_again_as_the_seed_registry(
    disk: Path,
    tmp_path: Path,
    helm: Path,
    kubectl: Path,
    api: ApiServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the bundle's Helm and kubectl, up to where a real cluster would have to answer."""
    monkeypatch.setattr(test_run_process, "INSTALLER", disk / NAME)
    carried = test_run_process.Carried(tmp_path, helm, kubectl)
    bundle, address = carried.bundle(), f"127.0.0.1:{servers.free_port()}"
    serve = {"listen": address, "address": address, "tls": False, "service": "none"}
    carried.site(api.host, {"serve": serve})
    done = carried.run("run", bundle)
    (pid_file,) = carried.state.folder.rglob("serve.pid")
    try:
        seed = daemon.running(pid_file)
        assert seed is not None, done.stderr
        assert seed.command[:2] == (str(disk / NAME), "serve")
        with urllib.request.urlopen(f"http://{address}/v2/", timeout=30) as answer:
            assert answer.status == 200
    finally:
        daemon.stop(pid_file)
