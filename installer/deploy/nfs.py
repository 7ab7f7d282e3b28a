"""What an NFS export would let Harbor do, asked of the server itself and without mounting it.

A mount needs the kernel's NFS client and changes this machine, and an open port says little. NFS
version 4 needs neither a port mapper nor a mount protocol, so a handful of requests is enough: look
the folders up, read owners and free space, and let the server say (ACCESS) what each user may do.
No file is opened, made or locked; the session of 4.1 is handed back. The libraries that were looked
at speak version 3 only, or need a compiler; versions before 4 are not asked.

Sources: RFC 5531 (ONC RPC), RFC 7530 (NFS 4.0), RFC 8881 (NFS 4.1), RFC 4506 (XDR).
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from installer.deploy.preflight.quantities import gib, quantity
from installer.deploy.preflight.verdict import Check
from installer.errors import PreflightFailed
from installer.harbor.values import OWNERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from installer.deploy.preflight.verdict import State
    from installer.site.harbor import Nfs

_PATIENCE = 10.0
_MAX_ANSWER = 1 << 20
_LAST = 1 << 31
"""The bit of a record mark that says that no further fragment follows."""
_RESERVED = range(1023, 664, -1)
"""Exports are ``secure`` unless told otherwise: only root's ports are listened to."""
_DELAYS, _PAUSE = 5, 0.5
_MOUNTED_AS = re.compile(r"\A(?:nfsvers|vers|v)=?([0-9](?:\.[0-9])?)\Z")
_PROGRAM, _VERSION = 100003, 4
_CALL, _COMPOUND = 0, 1
_AUTH_SYS = 1

_ACCESS, _GETATTR, _LOOKUP, _PUTROOTFH = 3, 9, 15, 24
_EXCHANGE_ID, _CREATE_SESSION, _DESTROY_SESSION = 42, 43, 44
_SEQUENCE, _DESTROY_CLIENTID = 53, 57

_TYPE, _OWNER, _SPACE_AVAILABLE = 1, 36, 42
_FOLDER = 2
_LOOK, _MODIFY, _EXTEND = 2, 4, 8

_OK, _NOENT, _DELAY = 0, 2, 10008
_ERRORS = {
    1: "not permitted",
    2: "there is no such folder, or it is not exported to this machine",
    13: "access denied",
    20: "not a folder",
    10006: "the server has trouble of its own",
    10008: "the server asks to wait",
    10016: "it wants Kerberos",
    10021: "it does not speak this version of NFS",
}


class NfsRefused(PreflightFailed):
    """The server can't be asked, or says no: the message says which, without a place."""


@dataclass(frozen=True)
class Folder:
    """One folder of an export, and whether the user who shall have it may write there.

    ``owner`` is the server's word: a number, or a name where it maps users to names.
    """

    owner: str
    writable: bool

    def belongs_to(self, user: int) -> bool:
        """Whether it is this user's; by what the server permits where its word is a name."""
        return int(self.owner) == user if self.owner.isdecimal() else self.writable


@dataclass(frozen=True)
class Export:
    """``available`` are bytes for others than root, None if it is not said.

    ``root_writes``: root is root there, as far as the right to make folders tells. ``folders`` are
    those that were asked for and exist, by name.
    """

    available: int | None
    root_writes: bool
    folders: Mapping[str, Folder]


def examine_export(
    server: str, port: int, path: str, users: Mapping[str, int], *, minor: int = 1
) -> Export:
    """Look at ``path`` of a server and at the folders in it, each by the user it is meant for.

    ``minor`` is the version after the 4. Raises NfsRefused.
    """
    try:
        with _Connection(server, port, minor) as connection:
            return _examine(connection, [part for part in path.split("/") if part], users)
    except TimeoutError:
        raise NfsRefused(f"no answer within {_PATIENCE:.0f} s") from None
    except OSError as error:
        raise NfsRefused(error.strerror or str(error)) from None
    except (struct.error, IndexError, ValueError):
        raise NfsRefused("what answers does not speak NFS") from None


def minor_version(options: Sequence[str]) -> int | None:
    """The version after the 4 that a mount with these options asks for; None for one before 4."""
    chosen = [match[1] for option in options if (match := _MOUNTED_AS.match(option))]
    if not chosen:
        return 1
    major, _, minor = chosen[-1].partition(".")
    return int(minor or 0) if major == "4" else None


def check_export(name: str, nfs: Nfs, port: int, minor: int, *, here: bool) -> Check:
    """Whether Harbor could work in the export; ``here``: this machine is one of those that mount.

    Elsewhere a refusal says little, and is a warning. So is little room: the export may grow
    before it is needed.
    """
    where = f"{nfs.server}:{nfs.path}"
    refused: State = "failed" if here else "warning"
    try:
        export = examine_export(nfs.server, port, nfs.path, OWNERS, minor=minor)
    except NfsRefused as error:
        hint = "is the folder there and exported to this machine and the nodes, for sec=sys?"
        return Check(name, refused, f"{where}: {error.message}", hint)
    foreign = [
        f"{folder} (user {user})"
        for folder, user in OWNERS.items()
        if not (there := export.folders.get(folder)) or not there.belongs_to(user)
    ]
    if foreign and not export.root_writes:
        text = f"{where}: root is nobody there, and these do not belong to their users: "
        hint = "make them on the server and `chown` them, or export it with no_root_squash"
        return Check(name, refused, text + ", ".join(foreign), hint)
    missing = [folder for folder in OWNERS if folder not in export.folders]
    text = f"{where}: {len(OWNERS) - len(missing)} of {len(OWNERS)} folders are there"
    text += ", the others will be made" if missing else ""
    if export.available is None:
        return Check(name, "ok", f"{text}; it does not say what is free")
    text += f"; {gib(export.available)} free"
    if export.available < quantity(nfs.size):
        hint = "make room there before it is needed, or declare less as storage.nfs.size"
        return Check(name, "warning", f"{text}, and {nfs.size} is declared", hint)
    return Check(name, "ok", text)


def _examine(connection: _Connection, names: Sequence[str], users: Mapping[str, int]) -> Export:
    top = connection.look(0, names)
    if top is None:
        raise NfsRefused(_ERRORS[_NOENT])
    folders: dict[str, Folder] = {}
    for name, user in users.items():
        if found := connection.look(user, [*names, name]):
            folders[name] = Folder(found.owner, found.writable)
    return Export(top.available, top.writable, folders)


@dataclass(frozen=True)
class _Found:
    owner: str
    available: int | None
    writable: bool


class _Connection:
    """One TCP connection, and for 4.1 a session on it."""

    def __init__(self, server: str, port: int, minor: int) -> None:
        self._minor = minor
        self._channel = _connect(server, port)
        self._client = b""
        self._session = b""
        self._sequence = 0

    def __enter__(self) -> Self:
        try:
            if self._minor:
                self._open_session()
        except BaseException:
            self._channel.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if self._session and kind is None:
                # A server that keeps them forgets them by itself when their lease ends.
                with suppress(OSError, NfsRefused, struct.error, IndexError, ValueError):
                    self._call(0, [(_DESTROY_SESSION, self._session)])
                    self._call(0, [(_DESTROY_CLIENTID, self._client)])
        finally:
            self._channel.close()

    def look(self, user: int, names: Sequence[str]) -> _Found | None:
        """What is at a path below the root, by a user; None if nothing is."""
        wanted = struct.pack(">III", 2, 1 << _TYPE, 1 << _OWNER - 32 | 1 << _SPACE_AVAILABLE - 32)
        rights = _LOOK | _MODIFY | _EXTEND
        operations = [(_PUTROOTFH, b""), *((_LOOKUP, _opaque(name.encode())) for name in names)]
        operations += [(_ACCESS, struct.pack(">I", rights)), (_GETATTR, wanted)]
        status, answer = self._ask(user, operations)
        if status == _NOENT:
            return None
        if status != _OK:
            raise NfsRefused(_ERRORS.get(status, f"NFS error {status}"))
        for _ in range(len(names) + 1):
            answer.skip_result()
        _, _, _supported, granted = answer.numbers(4)
        return _attributes(answer, writable=granted == rights)

    def _ask(self, user: int, operations: list[tuple[int, bytes]]) -> tuple[int, _Reader]:
        """Do the operations in the session, if there is one; again where it is asked to wait."""
        for _ in range(_DELAYS):
            sequence: list[tuple[int, bytes]] = []
            if self._minor:
                self._sequence += 1
                slot = struct.pack(">IIII", self._sequence, 0, 0, 0)
                sequence = [(_SEQUENCE, self._session + slot)]
            status, answer = self._call(user, [*sequence, *operations])
            if status != _DELAY:
                break
            time.sleep(_PAUSE)
        if self._minor:
            answer.skip_result(16 + 5 * 4)
        return status, answer

    def _open_session(self) -> None:
        owner = secrets.token_bytes(8) + _opaque(b"harbor-airgap " + secrets.token_hex(8).encode())
        status, answer = self._call(0, [(_EXCHANGE_ID, owner + struct.pack(">III", 0, 0, 0))])
        if status != _OK:
            raise NfsRefused(_ERRORS.get(status, f"NFS error {status}"))
        answer.numbers(2)
        self._client = answer.take(8)
        first = answer.take(4)
        # No padding, 64 KiB each way, a few operations, one request at a time, no RDMA.
        channel = struct.pack(">7I", 0, 1 << 16, 1 << 16, 1 << 12, 32, 1, 0)
        callback = struct.pack(">III", 0x40000000, 1, 0)  # a program of ours, without login
        asked = self._client + first + struct.pack(">I", 0) + channel + channel + callback
        status, answer = self._call(0, [(_CREATE_SESSION, asked)])
        if status != _OK:
            raise NfsRefused(_ERRORS.get(status, f"NFS error {status}"))
        answer.numbers(2)
        self._session = answer.take(16)

    def _call(self, user: int, operations: Sequence[tuple[int, bytes]]) -> tuple[int, _Reader]:
        """Send one COMPOUND; its status, and its results from the first on."""
        xid = secrets.randbits(32)
        body = struct.pack(">6I", xid, _CALL, 2, _PROGRAM, _VERSION, _COMPOUND)
        login = struct.pack(">I", 0) + _opaque(b"installer") + struct.pack(">III", user, user, 0)
        body += struct.pack(">I", _AUTH_SYS) + _opaque(login) + struct.pack(">II", 0, 0)
        body += _opaque(b"") + struct.pack(">II", self._minor, len(operations))
        body += b"".join(struct.pack(">I", code) + arguments for code, arguments in operations)
        self._channel.sendall(struct.pack(">I", _LAST | len(body)) + body)
        answer = _Reader(b"".join(self._records()))
        answered, kind, denied = answer.numbers(3)
        if answered != xid or kind != 1:
            raise ValueError("not an answer")
        if denied:
            raise NfsRefused("the server refuses this machine")
        answer.numbers(1)
        answer.opaque()
        (state,) = answer.numbers(1)
        if state == 2:  # noqa: PLR2004 - PROG_MISMATCH of RFC 5531
            low, high = answer.numbers(2)
            raise NfsRefused(f"it speaks NFS {low} to {high}, not 4")
        if state:
            raise NfsRefused("another service than NFS answers")
        (status,) = answer.numbers(1)
        answer.opaque()
        answer.numbers(1)
        return status, answer

    def _records(self) -> Iterator[bytes]:
        room = _MAX_ANSWER
        while True:
            (mark,) = struct.unpack(">I", self._receive(4))
            size = mark & ~_LAST
            room -= size
            if room < 0:
                raise ValueError("too long")
            yield self._receive(size)
            if mark & _LAST:
                return

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._channel.recv(size - len(data))
            if not piece:
                raise NfsRefused("the connection was closed: is it NFS, and open to this machine?")
            data += piece
        return data


class _Reader:
    """XDR, from the front on; raises struct.error or IndexError where it ends too early."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        if self._at + size > len(self._data):
            raise IndexError("too short")
        self._at += size
        return self._data[self._at - size : self._at]

    def numbers(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f">{count}I", self.take(4 * count))

    def opaque(self) -> bytes:
        (size,) = self.numbers(1)
        return self.take(size + -size % 4)[:size]

    def skip_result(self, more: int = 0) -> None:
        """An operation's number and status, and ``more`` bytes that it has in success."""
        self.numbers(1)
        (status,) = self.numbers(1)
        if status == _OK:
            self.take(more)


def _attributes(answer: _Reader, *, writable: bool) -> _Found:
    _operation, _status, words = answer.numbers(3)
    given = answer.numbers(words)
    values = _Reader(answer.opaque())
    owner, available = "", None

    def has(attribute: int) -> bool:
        word = attribute // 32
        return word < words and bool(given[word] & 1 << attribute % 32)

    # In the order of their numbers, as they are encoded.
    if has(_TYPE) and values.numbers(1) != (_FOLDER,):
        raise NfsRefused(_ERRORS[20])
    if has(_OWNER):
        owner = values.opaque().decode("utf-8", "replace")
    if has(_SPACE_AVAILABLE):
        (available,) = struct.unpack(">Q", values.take(8))
    return _Found(owner, available, writable)


def _opaque(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data + b"\0" * (-len(data) % 4)


def _connect(server: str, port: int) -> socket.socket:
    if os.geteuid() == 0:
        for own in _RESERVED:
            try:
                return socket.create_connection(
                    (server, port), timeout=_PATIENCE, source_address=("", own)
                )
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                    break
    return socket.create_connection((server, port), timeout=_PATIENCE)
