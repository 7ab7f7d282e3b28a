"""JSON into structs, from any thread.

msgspec examines a struct type when it first meets it, and does so without a lock: two threads that
decode the same new type at the same moment crash the process (msgspec 0.22: a null pointer in its
extension, which ended `bundler lock` now and then). So types are examined here, one at a time, and
all JSON with a type comes through here.
"""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

_ONE_AT_A_TIME = threading.Lock()
_DECODERS: dict[object, msgspec.json.Decoder[Any]] = {}


def decode_json(data: bytes | str, type_: type[T]) -> T:
    """Read a JSON text as ``type_``; raises msgspec.DecodeError or UnicodeDecodeError."""
    with _ONE_AT_A_TIME:
        decoder: msgspec.json.Decoder[T] | None = _DECODERS.get(type_)
        if decoder is None:
            decoder = _DECODERS[type_] = msgspec.json.Decoder(type_)
    return decoder.decode(data)
