"""What all sections of ``site.yaml`` have in common: strictness, paths, addresses.

A path is marked in its type. So one walk makes all of them absolute, and another one finds those
that are missing, before anything is done with the first of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin
from urllib.parse import urlsplit

import msgspec

from installer.environment import variable
from installer.errors import InvalidInput
from installer.site.private import VARIABLE

T = TypeVar("T")

PORTS = range(1, 65536)

LocalFile = Annotated[str, msgspec.Meta(extra={"local": "file"})]
"""A file on this machine that is read; relative to site.yaml until ``absolute``, may be empty."""
OnceFile = Annotated[str, msgspec.Meta(extra={"local": "once"})]
"""The same for a secret that is only read while something is made; later it may be gone."""
LocalFolder = Annotated[str, msgspec.Meta(extra={"local": "folder"})]
"""The same for a folder."""
OutputFile = Annotated[str, msgspec.Meta(extra={"local": "output"})]
"""The same for a file that will be written."""


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A section: unknown keys are refused."""


def absolute(value: T, folder: Path) -> T:
    """The same with every path absolute, seen from ``folder``; raises InvalidInput for ~nobody."""
    if isinstance(value, tuple):
        return type(value)(absolute(item, folder) for item in value)
    if not isinstance(value, msgspec.Struct):
        return value
    changes: dict[str, Any] = {}
    for field in msgspec.structs.fields(value):
        item = getattr(value, field.name)
        if item and _kind(field.type) and not _is_variable(field.name, item):
            changes[field.name] = str(folder / _expanded(item, field.encode_name))
        else:
            changes[field.name] = absolute(item, folder)
    return msgspec.structs.replace(value, **changes)


def check_paths(value: Any, at: str = "") -> None:
    """Raise InvalidInput for a file or folder that is not there; ``at`` is the key so far."""
    if isinstance(value, tuple):
        for index, item in enumerate(value):
            check_paths(item, f"{at}[{index}]")
    if not isinstance(value, msgspec.Struct):
        return
    for field in msgspec.structs.fields(value):
        item, kind = getattr(value, field.name), _kind(field.type)
        key = f"{at}.{field.encode_name}".lstrip(".")
        if not kind:
            check_paths(item, key)
        elif item and _is_variable(field.name, item):
            if variable(item.removeprefix(VARIABLE)) is None and kind != "once":
                hint = "export it, also for later runs"
                raise InvalidInput(f"{key}: {item}: there is no such variable", hint=hint)
        elif item and not _is_there(Path(item), kind):
            raise InvalidInput(f"{key}: {item}: there is no such {kind}", hint="see site.yaml")


def split_address(text: str) -> tuple[str, int]:
    """Host and port of ``host:port`` (IPv6 in brackets); raises InvalidInput."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port not in PORTS or port is None or parts.netloc != text or "@" in text:
        raise InvalidInput(f"not a host:port: {text[:100]!r}", hint="for example 10.0.0.5:5000")
    return host, port


def _expanded(text: str, key: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InvalidInput(f"{key}: {text[:200]}: there is no such user") from error


def _is_variable(name: str, text: str) -> bool:
    """Whether it is a variable of the environment that has the secret, and not a file."""
    return text.startswith(VARIABLE) and name.endswith("_file")


def _kind(type_: Any) -> str:
    """``file``, ``once``, ``folder``, ``output``, or nothing for what is no path."""
    if get_origin(type_) is not Annotated:
        return ""
    metas = (meta for meta in get_args(type_)[1:] if isinstance(meta, msgspec.Meta))
    return next((str((meta.extra or {}).get("local", "")) for meta in metas), "")


def _is_there(path: Path, kind: str) -> bool:
    if kind == "output":
        return path.parent.is_dir()
    return kind == "once" or (path.is_dir() if kind == "folder" else path.is_file())
