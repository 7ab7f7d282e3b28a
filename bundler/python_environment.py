"""What of this very environment makes up an installer: nothing is written, only looked at.

That is this Python, the part of its standard library that a program needs, the distributions that
``installer`` imports with all that they require, and the shared libraries of all these with the
dynamic loader that belongs to them. ``bundler/freeze.py`` makes one file of it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import re
import ssl
import subprocess
import sys
import sysconfig
import zlib
from dataclasses import dataclass, field
from importlib import machinery, metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bundler import elf
from bundler.installer_format import Component
from installer.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

_ELSEWHERE = "make it on another machine and give it with --installer, or build with --no-installer"
_IMPORT = re.compile(r"^ *(?:from|import) (\w+)", re.MULTILINE)
_PROJECT = "harbor-airgap"
_OWN = ("installer", "manifests")
_NOT_USED = frozenset({"pygments", "markdown-it-py", "mdurl"})
"""What rich colours source code and renders Markdown with: it imports them only then."""
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
_NAME_SERVICE = ("libnss_files.so.2", "libnss_dns.so.2")
"""Loaded by glibc before 2.34 when a host is looked up; no file names them."""


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
        here = Path(__file__).parent
        modules = ("elf", "freeze", "installer_format", "loader/boot", "python_environment")
        for own in (first_program(), *(here / f"{name}.py" for name in modules)):
            whole.update(own.read_bytes())
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
    if not sys.platform.startswith("linux") or not first_program().is_file():
        raise InvalidInput(
            f"no installer can be made on {sys.platform} {platform.machine()}", hint=_ELSEWHERE
        )
    python = Path(sys.executable).resolve()
    found = Environment(elf.interpreter(python), python)
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


def first_program() -> Path:
    """The static program that an installer for this machine begins with."""
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
    seen = {(name, "") for name in _NOT_USED}
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
