"""One executable file made from this very environment: the installer for machines without Python.

What is packed is what runs here: this Python, the part of its standard library that a program
needs, the distributions that ``installer`` imports with all that they require, and the shared
libraries of all these with their own dynamic loader. So the file asks nothing of the machine that
it runs on but a Linux kernel, least of all its C library (docs/adr/0009-one-file-installer.md).

The file is (1) a static program, ``loader/unpack.c``, (2) a table, (3) a zip archive. The archive
begins with the files of the table: what Python needs until it can read the rest. Same environment,
same bytes: order, times and compression are fixed, and code is compiled with neutral file names.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import io
import marshal
import multiprocessing
import platform
import re
import signal
import ssl
import struct
import subprocess
import sys
import sysconfig
import zipfile
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib import machinery, metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from installer.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""Machines that have a first program, by their names in OCI platforms."""
PLACE = b"AIRGAP-LOADER-1\0"
"""Stands in the first program; the eight bytes behind it say where the table begins."""
CONTENT = b"AIRGAP-CONTENT-1"
"""What the table begins with."""
COMPONENTS = "components.json"
"""The archive's list of what was packed, for the bundle's SBOM."""

_IMPORT = re.compile(r"^ *(?:from|import) (\w+)", re.MULTILINE)
_PROJECT = "harbor-airgap"
_OWN = ("installer", "manifests")
_ALIGNMENT = 16
_LEVEL = 9
_LOCAL_HEADER = 30  # bytes before a member's name in a zip archive (APPNOTE.TXT, 4.3.7)
_HEADER, _ENTRY = struct.Struct("<16sQQ40s"), struct.Struct("<QQQ32s72s")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first that zip knows
_LEFT_OUT = frozenset(
    {"__pycache__", "distutils", "ensurepip", "idlelib", "lib-dynload", "lib2to3"}
    | {"pydoc_data", "site-packages", "dist-packages", "sqlite3", "test", "tests", "tkinter"}
    | {"turtle.py", "turtledemo", "unittest", "venv"}
)
_NATIVE_LEFT_OUT = (
    *("_test", "_xx", "xx", "_tkinter", "_curses", "_dbm", "_gdbm", "_sqlite3", "readline", "nis"),
    *("audioop", "ossaudiodev", "spwd", "_codecs_", "_crypt"),
)
"""Of the standard library: tests, and what is for terminals, sound or databases."""
_FIRST_MODULES = ("zlib", "_blake2")
"""Native modules with which boot.py unpacks and checks the others."""
_NAME_SERVICE = ("libnss_files.so.2", "libnss_dns.so.2")
"""Loaded by glibc before 2.34 when a host is looked up; no file names them."""
# Without references, whose bits depend on what else this process has loaded. From 3.14 on code may
# hold what this version can't express.
_MARSHAL = 2 if sys.version_info < (3, 14) else marshal.version


class Component(msgspec.Struct, frozen=True):
    """A part of the installer for the SBOM.

    ``kind`` is ``python`` for distributions of the package index, ``interpreter`` or ``library``.
    ``sha256`` is of the library's file, or of the lines ``sha256  path`` of a distribution's
    files, sorted. ``version`` and ``license`` are empty where they are not known.
    """

    kind: str
    name: str
    version: str
    license: str
    sha256: str


@dataclass(slots=True)
class Environment:
    """What will be packed.

    ``code`` and ``data`` are files by their name in the archive; ``native`` are modules by their
    full name, with their file and the libraries that it needs; ``libraries`` are shared libraries
    by the name under which they are asked for.
    """

    loader: Path
    python: Path
    code: dict[str, Path] = field(default_factory=dict)
    data: dict[str, Path] = field(default_factory=dict)
    native: dict[str, tuple[Path, tuple[str, ...]]] = field(default_factory=dict)
    libraries: dict[str, Path] = field(default_factory=dict)
    python_needs: tuple[str, ...] = ()
    digests: dict[Path, str] = field(default_factory=dict)
    components: list[Component] = field(default_factory=list)

    def digest(self) -> str:
        """One sha256 for everything that decides about the bytes of the installer."""
        whole = hashlib.sha256()
        loader = resources.files("bundler") / "loader"
        for own in (f"unpack-{platform.machine()}", "boot.py"):
            whole.update((loader / own).read_bytes())
        whole.update(Path(__file__).read_bytes())
        whole.update(f"{sys.version} {zlib.ZLIB_RUNTIME_VERSION}".encode())
        files = {"loader": self.loader, "python": self.python} | self.code | self.data
        files |= {f"{name} {needs}": path for name, (path, needs) in self.native.items()}
        for name, path in sorted((files | self.libraries).items()):
            whole.update(f"{name} {self.sha256(path)}\n".encode())
        return whole.hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        natives = [path for path, _ in self.native.values()]
        files = (*self.code.values(), *self.data.values(), *self.libraries.values(), *natives)
        return sum(path.stat().st_size for path in files)

    def sha256(self, path: Path) -> str:
        """The sha256 of a file; it is read once."""
        if path not in self.digests:
            with path.open("rb") as file:
                self.digests[path] = hashlib.file_digest(file, "sha256").hexdigest()
        return self.digests[path]


def environment() -> Environment:
    """Look at this environment; nothing is written.

    Raises InvalidInput when no installer can be made from it.
    """
    if not sys.platform.startswith("linux") or not _first_program().is_file():
        raise InvalidInput(
            f"no installer can be made on {sys.platform} {platform.machine()}", hint=_ELSEWHERE
        )
    python = Path(sys.executable).resolve()
    found = Environment(_interpreter(python), python)
    _standard_library(found)
    for distribution in _distributions():
        _add_distribution(found, distribution)
    found.python_needs = _needs(found, python)
    for name, (path, _) in sorted(found.native.items()):
        found.native[name] = (path, _needs(found, path))
    _add_name_service(found)
    found.components += _base_components(found)
    found.components.sort(key=lambda c: (c.kind, c.name))
    return found


_ELSEWHERE = "make it on another machine and give it with --installer, or build with --no-installer"


def write(found: Environment, out: BinaryIO, progress: Callable[[int], None]) -> None:
    """Write the installer to a new file; ``progress`` is told the bytes of what is in the archive.

    Their sum is about ``found.size``.
    """
    first = _first_files(found)
    natives = {f"{name}.so": path for name, (path, _) in found.native.items()} | found.libraries
    later = {name: _loaded_part(natives[name]) for name in sorted(natives.keys() - first.keys())}
    program = _first_program().read_bytes()
    begin = len(program) + -len(program) % _ALIGNMENT
    out.write(program.ljust(begin + _HEADER.size + _ENTRY.size * (len(first) + 1), b"\0"))
    table = []
    with zipfile.ZipFile(out, "w") as archive:

        def add(name: str, content: bytes) -> zipfile.ZipInfo:
            entry = _entry(name, zipfile.ZIP_DEFLATED)
            archive.writestr(entry, content, compresslevel=_LEVEL)
            progress(len(content))
            return entry

        def add_first(name: str, content: bytes) -> None:
            entry = add(f"first/{name}", content)
            at = entry.header_offset + _LOCAL_HEADER + len(entry.filename)
            sizes = (entry.compress_size, len(content))
            table.append(_ENTRY.pack(at, *sizes, _hash(content), name.encode()))

        for name, path in sorted(first.items()):
            add_first(name, _loaded_part(path))
        add_first("boot.zip", _boot_archive(found, later))
        for name, content in later.items():
            add(f"native/{name}", content)
        for name, content in _compiled(found.code):
            add(name, content)
        for name, path in sorted(found.data.items()):
            add(name, path.read_bytes())
        add(COMPONENTS, msgspec.json.format(msgspec.json.encode(found.components), indent=1))
    key = hashlib.sha256(b"".join(table)).hexdigest()
    whole = out.seek(0, io.SEEK_END)
    out.seek(begin)
    out.write(_HEADER.pack(CONTENT, len(table), whole, key[:32].encode()) + b"".join(table))
    out.seek(program.index(PLACE) + len(PLACE))
    out.write(struct.pack("<Q", begin))


def _compiled(code: dict[str, Path]) -> Iterator[tuple[str, bytes]]:
    """Compiled modules in the order of their names, on all cores: that takes the longest."""
    pool = ProcessPoolExecutor(
        mp_context=multiprocessing.get_context("spawn"), initializer=_belong_to_the_parent
    )
    try:
        jobs = sorted((name, str(path)) for name, path in code.items())
        for (name, _), content in zip(jobs, pool.map(_compile, jobs, chunksize=64), strict=True):
            yield f"{name}c", content
    finally:
        pool.shutdown(cancel_futures=True)


def _belong_to_the_parent() -> None:
    """A worker ends when this process tells it to, or dies (prctl(2), PR_SET_PDEATHSIG)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _compile(job: tuple[str, str]) -> bytes:
    name, path = job
    return _code(Path(path).read_bytes(), name)


def _first_files(found: Environment) -> dict[str, Path]:
    """What Python needs until boot.py runs and can unpack the rest."""
    first = {"installer": found.loader, "python": found.python}
    needs = list(found.python_needs)
    for module in _FIRST_MODULES:
        if module in found.native:  # else it is built in
            first[f"{module}.so"], more = found.native[module]
            needs += more
    return first | {name: found.libraries[name] for name in needs}


def _entry(name: str, compression: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.create_system, entry.external_attr = 3, 0o100644 << 16  # as on any Unix
    entry.compress_type = compression
    return entry


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()


def _first_program() -> Path:
    return Path(str(resources.files("bundler"))) / "loader" / f"unpack-{platform.machine()}"


def _standard_library(found: Environment) -> None:
    root = Path(sysconfig.get_path("stdlib"))
    for path in _walk(root, _LEFT_OUT):
        if path.suffix == ".py" and not path.parent.name.startswith("config-"):
            found.code[path.relative_to(root).as_posix()] = path
    folder = Path(sysconfig.get_config_var("DESTSHARED") or root / "lib-dynload")
    for path in sorted(folder.glob("*.so")):
        if (name := _module_name(path.name)) and not name.startswith(_NATIVE_LEFT_OUT):
            found.native[name] = (path, ())


def _walk(folder: Path, left_out: Collection[str] = ("__pycache__",)) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name in left_out:
            continue
        if path.is_dir():
            yield from _walk(path, left_out)
        else:
            yield path


def _module_name(file: str) -> str | None:
    """The module that a native file is, by its name; None for other libraries."""
    for suffix in machinery.EXTENSION_SUFFIXES:
        if file.endswith(suffix):
            return file.removesuffix(suffix)
    return None


def _distributions() -> list[metadata.Distribution]:
    """The distributions that ``installer`` imports, with all that they require, by name."""
    providers = metadata.packages_distributions()
    open_names = {(_PROJECT, "")}
    for package in _OWN:
        for path in _walk(_folder(package)):
            if path.suffix == ".py":
                for name in _imported(path):
                    open_names |= {(canonicalize_name(d), "") for d in providers.get(name, ())}
    chosen: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, str]] = set()
    while open_names - seen:
        name, extra = min(open_names - seen)
        seen.add((name, extra))
        try:
            distribution = chosen.setdefault(name, metadata.distribution(name))
        except metadata.PackageNotFoundError as error:
            raise InvalidInput(f"{name} is required and not installed", hint=_ELSEWHERE) from error
        if name == _PROJECT:
            continue  # it requires what bundler needs as well
        for line in distribution.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                needed = canonicalize_name(requirement.name)
                open_names |= {(needed, e) for e in ("", *requirement.extras)}
    return [chosen[name] for name in sorted(chosen)]


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    assert places  # noqa: S101 (they are our own packages)
    return Path(places[0])


def _imported(path: Path) -> set[str]:
    """Top-level names that a module imports, wherever in it; a name too many does no harm."""
    return set(_IMPORT.findall(path.read_text(encoding="utf-8")))


def _add_distribution(found: Environment, distribution: metadata.Distribution) -> None:
    name, lines = distribution.metadata["Name"], []
    if distribution.files is None:
        raise InvalidInput(
            f"{name}: the environment doesn't say which files belong to it",
            hint="install with pip into a fresh virtual environment",
        )
    files = {
        file.as_posix(): Path(str(distribution.locate_file(file)))
        for file in distribution.files
        if ".." not in file.parts
    }
    if name == _PROJECT:
        # It may be installed as a link to its sources, and bundler stays here.
        files = {n: p for n, p in files.items() if ".dist-info/" in n}
        for package in _OWN:
            root = _folder(package)
            files |= {p.relative_to(root.parent).as_posix(): p for p in _walk(root)}
    for file, path in sorted(files.items()):
        if not _add_file(found, file, path):
            continue
        lines.append(f"{found.sha256(path)}  {file}\n")
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    found.components.append(
        Component("python", name, distribution.version, _license(distribution), digest)
    )


def _add_file(found: Environment, file: str, path: Path) -> bool:
    """Put a distribution's file where it belongs; gives whether it is packed at all."""
    parts = file.split("/")
    if parts[0].endswith(".dist-info"):
        # What names, versions and licences are known by; the rest says how it was installed here.
        wanted = parts[1] in ("METADATA", "licenses") or parts[1].startswith(("LICEN", "NOTICE"))
    else:
        wanted = not ({"__pycache__", "tests"} & set(parts)) and not file.endswith((".pyi", ".pyc"))
    if not wanted or not path.is_file():
        return False
    if file.endswith(".py"):
        found.code[file] = path
    elif file.endswith(".so") and (name := _module_name(parts[-1])):
        found.native[".".join((*parts[:-1], name))] = (path, ())
    elif ".so" not in parts[-1]:
        found.data[file] = path
    return True


def _license(distribution: metadata.Distribution) -> str:
    known = distribution.metadata
    text = "".join(known.get_all("License-Expression") or known.get_all("License") or [])
    if not text or "\n" in text:
        classifiers = known.get_all("Classifier") or []
        text = " AND ".join(c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License"))
    return text


def _base_components(found: Environment) -> Iterator[Component]:
    digest = found.sha256(found.python)
    yield Component("interpreter", "cpython", platform.python_version(), "PSF-2.0", digest)
    libraries = found.libraries | {found.loader.name: found.loader}
    versions = _debian_versions(libraries.values())
    known = {"libc.so.6": platform.libc_ver()[1], "libz.so.1": zlib.ZLIB_RUNTIME_VERSION}
    known |= dict.fromkeys(("libcrypto.so.3", "libssl.so.3"), ssl.OPENSSL_VERSION.split()[1])
    for name, path in libraries.items():
        own = platform.python_version() if name.startswith("libpython") else ""
        version = versions.get(path) or known.get(name, own)
        yield Component("library", name, version, "", found.sha256(path))


def _debian_versions(paths: Iterable[Path]) -> dict[Path, str]:
    """Versions of the Debian packages that files belong to; none where there is no dpkg."""
    # Before /usr was merged libraries were installed in /lib, and so dpkg still knows them.
    names = {str(p).removeprefix(prefix): p for p in paths for prefix in ("/usr", "")}
    try:
        owners = _dpkg_query("--search", *names)
        packages = sorted({line.partition(": ")[0] for line in owners})
        shown = _dpkg_query("--show", "--showformat=${binary:Package} ${Version}\\n", *packages)
    except OSError:
        return {}
    versions = dict(line.split(" ", 1) for line in shown if " " in line)
    found = {}
    for line in owners:
        package, _, name = line.partition(": ")
        if name in names and package in versions:
            found[names[name]] = versions[package]
    return found


def _dpkg_query(*arguments: str) -> list[str]:
    # Files that belong to no package make it end with 1, and say nothing else of the others.
    command = ["dpkg-query", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()


def _interpreter(program: Path) -> Path:
    """The dynamic loader that a program names (ELF gABI, PT_INTERP)."""
    data = program.read_bytes()
    for kind, offset, size in _segments(data):
        if kind == 3:  # noqa: PLR2004 (PT_INTERP)
            return Path(data[offset : offset + size].rstrip(b"\0").decode()).resolve()
    raise InvalidInput(f"{program}: has no dynamic loader", hint=_ELSEWHERE)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Type, offset and size in the file of each segment of a 64-bit ELF file (ELF-64, 2.3)."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise InvalidInput("a library is no 64-bit little-endian ELF file", hint=_ELSEWHERE)
    (at,) = struct.unpack_from("<Q", data, 32)
    size, number = struct.unpack_from("<HH", data, 54)
    for i in range(number):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", data, at + i * size)
        yield kind, offset, length


def _loaded_part(path: Path) -> bytes:
    """A program or library without what is never loaded: symbols for debuggers, section names."""
    data = path.read_bytes()
    end = max(offset + size for _, offset, size in _segments(data))
    head = bytearray(data[:end])
    struct.pack_into("<Q", head, 40, 0)  # no section headers: offset, number, names
    struct.pack_into("<HH", head, 60, 0, 0)
    return bytes(head)


def _needs(found: Environment, path: Path) -> tuple[str, ...]:
    """Names of the libraries that a program or library needs, as its dynamic loader finds them."""
    listed = subprocess.run(
        [str(found.loader), "--list", str(path)], capture_output=True, text=True, check=False
    )
    if listed.returncode and "statically linked" not in listed.stdout + listed.stderr:
        raise InvalidInput(f"{path}: {listed.stderr.strip()[:300]}", hint=_ELSEWHERE)
    needs = []
    for line in listed.stdout.splitlines():
        name, arrow, rest = line.strip().partition(" => ")
        place = rest.rpartition(" (0x")[0]
        if not arrow or "/" in name:
            continue  # the loader itself, and what the kernel maps
        if not place:
            raise InvalidInput(f"{path}: needs {name}, which is not found", hint=_ELSEWHERE)
        found.libraries.setdefault(name, Path(place).resolve())
        needs.append(name)
    return tuple(needs)


def _add_name_service(found: Environment) -> None:
    folder = found.libraries["libc.so.6"].parent
    there = tuple(name for name in _NAME_SERVICE if (folder / name).is_file())
    found.libraries |= {name: folder / name for name in there}
    if "_socket" in found.native:
        path, needs = found.native["_socket"]
        found.native["_socket"] = (path, (*needs, *there))


def _boot_archive(found: Environment, later: dict[str, bytes]) -> bytes:
    """What Python starts with: boot.py, what it has to know, and the first codecs."""
    boot = resources.files("bundler") / "loader" / "boot.py"
    modules = {n: (*needs, f"{n}.so") for n, (_, needs) in sorted(found.native.items())}
    digests = {name: _hash(content) for name, content in later.items()}
    members = {
        "boot.pyc": _code(boot.read_bytes(), "boot.py"),
        "contents.pyc": _code(
            f"MODULES = {modules!r}\nDIGESTS = {digests!r}\n".encode(), "contents.py"
        ),
    }
    for name in ("__init__", "aliases", "ascii", "latin_1", "utf_8"):
        file = f"encodings/{name}.py"
        members[f"{file}c"] = _code(found.code[file].read_bytes(), file)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in sorted(members.items()):
            archive.writestr(_entry(name, zipfile.ZIP_STORED), content)
    return buffer.getvalue()


def _code(source: bytes, name: str) -> bytes:
    """A .pyc that is never compared with its source (PEP 552: hash-based, unchecked)."""
    code = compile(source, name, "exec", dont_inherit=True)
    flags, sourceless = struct.pack("<I", 1), bytes(8)
    return importlib.util.MAGIC_NUMBER + flags + sourceless + marshal.dumps(code, _MARSHAL)
