"""One executable file made from this very environment: the installer for machines without Python.

What is packed is what runs here (``bundler/python_environment.py``), with its own dynamic loader.
So the file asks nothing of the machine that it runs on but a Linux kernel, least of all its C
library (docs/adr/0009-one-file-installer.md).

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
import signal
import struct
import sys
import zipfile
from concurrent.futures import ProcessPoolExecutor
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from bundler.elf import loaded_part
from bundler.installer_format import COMPONENTS, PLACE
from bundler.python_environment import first_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bundler.python_environment import Environment

CONTENT = b"AIRGAP-CONTENT-1"
"""What the table begins with."""

_ALIGNMENT = 16
_LEVEL = 9
_LOCAL_HEADER = 30  # bytes before a member's name in a zip archive (APPNOTE.TXT, 4.3.7)
_HEADER, _ENTRY = struct.Struct("<16sQQ40s"), struct.Struct("<QQQ32s72s")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first that zip knows
_FIRST_MODULES = ("zlib", "_blake2")
"""Native modules with which boot.py unpacks and checks the others."""
# Without references, whose bits depend on what else this process has loaded. From 3.14 on code may
# hold what this version can't express.
_MARSHAL = 2 if sys.version_info < (3, 14) else marshal.version


def write(found: Environment, out: BinaryIO, progress: Callable[[int], None]) -> None:
    """Write the installer to a new file; ``progress`` is told the bytes of what is in the archive.

    Their sum is about ``found.size``.
    """
    first = _first_files(found)
    natives = {f"{name}.so": path for name, (path, _) in found.native.items()} | found.libraries
    later = {name: loaded_part(natives[name]) for name in sorted(natives.keys() - first.keys())}
    program = first_program().read_bytes()
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
            add_first(name, loaded_part(path))
        add_first("boot.zip", _boot_archive(found, later))
        for name, content in later.items():
            add(f"native/{name}", content)
        for name, content in _compiled(found.code):
            add(name, content)
        for name in _namespace_packages(found.code):
            add(f"{name}/", b"")
        for name, path in sorted(found.data.items()):
            add(name, path.read_bytes())
        add(COMPONENTS, msgspec.json.format(msgspec.json.encode(found.components), indent=1))
    key = hashlib.sha256(b"".join(table)).hexdigest()
    whole = out.seek(0, io.SEEK_END)
    out.seek(begin)
    out.write(_HEADER.pack(CONTENT, len(table), whole, key[:32].encode()) + b"".join(table))
    out.seek(program.index(PLACE) + len(PLACE))
    out.write(struct.pack("<Q", begin))


def _namespace_packages(code: Iterable[str]) -> list[str]:
    """Folders of modules that have no ``__init__``: zipimport finds only what has an entry."""
    names = set(code)
    folders = {parent for name in names for parent in PurePosixPath(name).parents[:-1]}
    return sorted(str(one) for one in folders if f"{one}/__init__.py" not in names)


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
