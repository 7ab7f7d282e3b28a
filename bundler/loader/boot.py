"""The first Python code of the one-file installer: from here on everything comes from that file.

``unpack.c`` starts Python with this module in ``boot.zip``. Python code is read straight from the
zip archive in the installer's file. Native modules can't be: each is unpacked into the private
folder when it is first imported, together with the libraries that it needs, and what lies there
is hashed at every start before it is loaded. ``contents``, which ``bundler/freeze.py`` writes
beside this module, says what there is.

Only built-in and frozen modules exist until ``start`` has run.
"""

import _frozen_importlib_external as external  # importlib's loaders, before there is an importlib
import _thread
import encodings
import os
import sys
import zipimport

import contents  # type: ignore[import-not-found]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_CHUNK = 1 << 20


def start() -> None:
    """Make the archive the only place that code comes from, and run the command line."""
    archive, folder = sys.argv[1:3]
    sys.argv[:] = [archive, *sys.argv[3:]]
    # These were for this process alone, not for the programs that it starts.
    for name in ("PYTHONHOME", "PYTHONPATH"):
        del os.environ[name]
    sys.path[:] = [archive]
    encodings.__path__.append(f"{archive}/encodings")
    # Built-in and frozen modules first, as always; then these, then the archive.
    sys.meta_path.insert(2, _NativeModules(archive, folder))  # type: ignore[arg-type]
    # As every frozen program has it: whoever starts sys.executable gets this installer again.
    sys.executable = archive
    sys.frozen = True  # type: ignore[attr-defined]

    try:
        from installer.cli import main  # noqa: PLC0415 (can't be found before)
    except Exception as error:  # noqa: BLE001 (damaged code may raise anything)
        os.write(2, f"error: this installer is damaged: {error}\n".encode())
        os.write(2, b"hint: compare its sha256 with bundle.json, and copy it again\n")
        os._exit(4)
    main()


class _NativeModules:
    """Finds native modules by their full name, and puts them into the folder before."""

    def __init__(self, archive: str, folder: str) -> None:
        self._archive, self._folder = archive, folder
        self._good: set[str] = set()

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        """The spec of a native module; None for all others (importlib.abc.MetaPathFinder)."""
        del path, target
        if name not in contents.MODULES:
            return None
        files = contents.MODULES[name]
        for file in files:
            if file not in self._good:
                self._put(file)
                self._good.add(file)
        place = f"{self._folder}/{files[-1]}"
        loader = external.ExtensionFileLoader(name, place)
        return external.spec_from_file_location(name, place, loader=loader)

    def _put(self, file: str) -> None:
        """Leave a good file as it is; write any other anew. Raises OSError, ImportError."""
        digest = contents.DIGESTS.get(file)
        place = f"{self._folder}/{file}"
        if digest is None or _is_good(place, digest):  # unpack.c has looked at it if there is none
            return
        data = zipimport.zipimporter(self._archive).get_data(f"{self._archive}/native/{file}")
        if _digest([data]) != digest:
            raise ImportError(f"{self._archive} was changed while it ran: {file} differs")
        unfinished = f"{place}.{os.getpid()}.{_thread.get_ident()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(unfinished, flags, 0o700)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.rename(unfinished, place)  # noqa: PTH104 (there is no pathlib yet)
        except OSError:
            os.unlink(unfinished)  # noqa: PTH108 (the same)
            raise
        finally:
            os.close(descriptor)


def _is_good(place: str, digest: bytes) -> bool:
    """Whether a file is there, of this user alone, and has this content."""
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        status = os.fstat(descriptor)
        if (status.st_uid, status.st_mode, status.st_nlink) != (os.geteuid(), 0o100700, 1):
            return False
        return _digest(iter(lambda: os.read(descriptor, _CHUNK), b"")) == digest
    finally:
        os.close(descriptor)


def _digest(chunks: "Iterable[bytes]") -> bytes:
    from _blake2 import blake2b  # noqa: PLC0415 (itself found by _NativeModules, or built in)

    found = blake2b(digest_size=32)
    for chunk in chunks:
        found.update(chunk)
    return found.digest()
