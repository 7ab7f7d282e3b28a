"""Bundles that the right key signed, by mistake or by malice, and that are refused all the same.

A signature says who vouches for bundle.json, not that it makes sense. What is signed here is read
differently by two JSON readers, places files where they don't belong, or costs more than it should.
The DER of a signature is not signed itself: whoever holds the file can write it in other ways.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from installer import errors
from installer.bundle.digest import Digest
from installer.bundle.manifest import Chart, Member, encode
from tests.attacks.mutants import Attack, resigned

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.attacks.mutants import Sample

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of the group of P-256 (SEC 2, section 2.4.2)."""
C = errors.Corrupt
_FORM = "not in canonical form"


def _text(old: bytes, new: bytes) -> Callable[[Sample], bytes]:
    """Sign bundle.json with a piece of its text replaced."""

    def make(good: Sample) -> bytes:
        assert old in good.payload
        return resigned(good, good.payload.replace(old, new, 1))

    return make


def _whole(change: Callable[[bytes], bytes]) -> Callable[[Sample], bytes]:
    return lambda good: resigned(good, change(good.payload))


def _serial(text: bytes) -> Callable[[Sample], bytes]:
    return _text(b'"serial": 7', b'"serial": ' + text)


def _name(text: bytes) -> Callable[[Sample], bytes]:
    return _text(b'"name": "harbor"', b'"name": ' + text)


def _fields(**changes: Any) -> Callable[[Sample], bytes]:
    """Sign a canonical bundle.json with other fields."""
    return lambda good: resigned(good, encode(msgspec.structs.replace(good.manifest, **changes)))


def _member(path: str, size: int = 8, sha256: str = Digest.of(b"x").hex) -> Callable[..., bytes]:
    """Sign a bundle.json with one more member, behind all others."""
    return lambda good: _fields(
        members=(*good.manifest.members, Member(path, size, sha256)),
    )(good)


def _again(change: Callable[[str], str]) -> Callable[[Sample], bytes]:
    """Sign a bundle.json that has its first member once more, under a changed path."""
    return lambda good: _fields(
        members=(
            *good.manifest.members,
            Member(change(good.manifest.members[0].path), 8, good.manifest.members[0].sha256),
        )
    )(good)


def _required(good: Sample) -> bytes:
    blob = next(m for m in good.manifest.members if m.path.startswith("blobs/"))
    return _fields(required=(blob,))(good)


def nested(depth: int) -> Callable[[Sample], bytes]:
    """Values of a profile, which may be any JSON, nested this deep, in canonical form."""

    def make(good: Sample) -> bytes:
        digest = next(m.digest for m in good.manifest.members if m.path.startswith("blobs/"))
        chart = Chart(
            str(digest), "", 1, "c", "1", "1", "", digest.hex, 1, {"default": {"nested": 0}}
        )
        text = encode(msgspec.structs.replace(good.manifest, charts=(chart,))).decode()
        lines = [" " * level + "[" for level in range(5, 5 + depth)]
        lines += [" " * (5 + depth) + "[]", *(line.replace("[", "]") for line in reversed(lines))]
        value = "\n".join(lines).strip()
        return resigned(good, text.replace('"nested": 0', f'"nested": {value}').encode())

    return make


def _der(change: Callable[[bytes], bytes]) -> Callable[[Sample], bytes]:
    """Write the DER of the good signature in another way, the Sigstore form along with it."""
    return lambda good: resigned(good, ders=[change(_short(good))])


def _short(good: Sample) -> bytes:
    """A signature without a zero in front of r or s, so that there is room for tricks."""
    while True:
        der = good.key._key.sign(good.payload, ec.ECDSA(hashes.SHA256()))
        if (
            der[1] == 0x44 and decode_dss_signature(der)[1] <= ORDER // 2
        ):  # two integers of 32 bytes, two bytes in front of each
            return der


def _numbers(change: Callable[[int, int], tuple[int, int]]) -> Callable[[Sample], bytes]:
    return _der(lambda der: encode_dss_signature(*change(*decode_dss_signature(der))))


def _zero_in_front(der: bytes) -> bytes:
    return bytes([0x30, der[1] + 1, 0x02, 0x21, 0x00]) + der[4:]


JSON: dict[str, Attack] = {
    "key twice": Attack(_text(b'"serial": 7', b'"serial": 9,\n "serial": 7'), C, _FORM),
    "key twice, once escaped": Attack(
        _text(b'"serial": 7', b'"serial": 7,\n "seri\\u0061l": 9'), C, _FORM
    ),
    "key in another case": Attack(
        _text(b'"serial": 7', b'"serial": 7,\n "Serial": 9'), C, "unknown field `Serial`"
    ),
    "key unknown": Attack(_text(b'"serial": 7', b'"serial": 7,\n "evil": 1'), C, "`evil`"),
    "key missing": Attack(_text(b' "serial": 7,\n', b""), C, "missing required field `serial`"),
    "keys in another order": Attack(
        _text(b' "kind": "Bundle",\n "name": "harbor"', b' "name": "harbor",\n "kind": "Bundle"'),
        C,
        _FORM,
    ),
    "default written out": Attack(_text(b'"members"', b'"expires": "",\n "members"'), C, _FORM),
    "nested without end": Attack(_whole(lambda _: b"[" * 1_000_000), C, "bundle.json: "),
    "nested without end where any value may be": Attack(nested(5_000), C, "recursion"),
    "nested just too deep to be written": Attack(nested(991), C, "recursion"),
    "number that no float holds": Attack(_serial(b"1e400"), C, "out of range"),
    "number of a thousand digits": Attack(_serial(b"9" * 1000), C, "bundle.json: "),
    "number beyond 2 to the 53": Attack(_serial(b"9007199254740993"), C, "serial .*out of range"),
    "number with a fraction of zero": Attack(_serial(b"7.0"), C, "bundle.json: "),
    "number with an exponent": Attack(_serial(b"7e0"), C, "bundle.json: "),
    "number with a zero in front": Attack(_serial(b"07"), C, "bundle.json: JSON is malformed"),
    "number below zero": Attack(_serial(b"-7"), C, "serial .*out of range"),
    "zero below zero": Attack(_serial(b"-0"), C, _FORM),
    "number as text": Attack(_serial(b'"7"'), C, "Expected `int`, got `str`"),
    "NaN": Attack(_serial(b"NaN"), C, "bundle.json: JSON is malformed"),
    "Infinity": Attack(_serial(b"Infinity"), C, "bundle.json: JSON is malformed"),
    "null for a number": Attack(_serial(b"null"), C, "Expected `int`, got `null`"),
    "invalid UTF-8": Attack(_name(b'"harb\xffr"'), C, "bundle.json: "),
    "overlong UTF-8": Attack(_name(b'"harb\xc1\xafr"'), C, "bundle.json: "),
    "surrogate in UTF-8": Attack(_name(b'"harb\xed\xa0\x80r"'), C, "bundle.json: "),
    "half a surrogate pair": Attack(_name(b'"harb\\ud800r"'), C, "bundle.json: "),
    "escape that is not needed": Attack(_name(b'"harb\\u006fr"'), C, _FORM),
    "slash escaped": Attack(_text(b"linux/amd64", b"linux\\/amd64"), C, _FORM),
    "control character": Attack(_name(b'"harb\nr"'), C, "bundle.json: "),
    "byte-order mark": Attack(_whole(lambda p: b"\xef\xbb\xbf" + p), C, "JSON is malformed"),
    "UTF-16": Attack(_whole(lambda p: p.decode().encode("utf-16")), C, "bundle.json: "),
    "comment": Attack(_text(b'"serial": 7', b'"serial": 7 /* 8 */'), C, "JSON is malformed"),
    "trailing comma": Attack(_text(b'"linux/amd64"\n', b'"linux/amd64",\n'), C, "malformed"),
    "trailing bytes": Attack(_whole(lambda p: p + b"x"), C, "JSON is malformed"),
    "trailing spaces": Attack(_whole(lambda p: p + b" "), C, _FORM),
    "second document": Attack(_whole(lambda p: p + p), C, "JSON is malformed"),
    "compact": Attack(_whole(lambda p: json.dumps(json.loads(p)).encode()), C, _FORM),
    "CR LF": Attack(_whole(lambda p: p.replace(b"\n", b"\r\n")), C, _FORM),
    "empty": Attack(_whole(lambda _: b""), C, "bundle.json: "),
    "a list": Attack(_whole(lambda _: b"[]\n"), C, "Expected `object`, got `array`"),
}
"""Two readers could understand these bytes differently, or fall over them."""

MANIFESTS: dict[str, Attack] = {
    "version of the format unknown": Attack(
        _text(b"bundle/v1", b"bundle/v2"), C, "Invalid enum value 'bundle/v2'"
    ),
    "kind unknown": Attack(_text(b'"Bundle"', b'"Lock"'), C, "Invalid enum value 'Lock'"),
    "path climbs out": Attack(_member("../evil"), C, "unsafe member path '../evil'"),
    "path climbs out in the middle": Attack(_member("a/../../b"), C, "unsafe member path"),
    "path absolute": Attack(_member("/etc/cron.d/evil"), C, "unsafe member path '/etc"),
    "path with a drive": Attack(_member("c:evil"), C, "unsafe member path 'c:evil'"),
    "path with a backslash": Attack(_member("a\\b"), C, "unsafe member path"),
    "path with an empty part": Attack(_member("a//b"), C, "unsafe member path 'a//b'"),
    "path of a folder": Attack(_member("a/"), C, "unsafe member path 'a/'"),
    "path hidden": Attack(_member(".bashrc"), C, "unsafe member path '.bashrc'"),
    "path that looks like an option": Attack(_member("-rf"), C, "unsafe member path '-rf'"),
    "path with a line break": Attack(_member("a\nb"), C, "unsafe member path"),
    "path with a line break at its end": Attack(_member("a\n"), C, "unsafe member path"),
    "path with a zero": Attack(_member("a\0b"), C, "unsafe member path"),
    "path in Unicode": Attack(_member("bundle\uff0ejson"), C, "unsafe member path"),
    "path empty": Attack(_member(""), C, "unsafe member path ''"),
    "path too long": Attack(_member("a" * 101), C, "unsafe member path"),
    "path of bundle.json": Attack(_member("bundle.json"), C, "'bundle.json' is reserved"),
    "path of a signature": Attack(_member("bundle.json.2.sig"), C, "is reserved"),
    "path of a signature in another case": Attack(_member("Bundle.JSON.sig"), C, "is reserved"),
    "member twice": Attack(_again(str), C, "is there twice"),
    "member twice in another case": Attack(_again(str.upper), C, "is there twice"),
    "blob under another name": Attack(
        _member("blobs/sha256/" + "0" * 64), C, "member blobs/sha256/0+ has digest"
    ),
    "blob under a name of capitals": Attack(
        _member(
            Digest.of(b"x").blob_path.replace(Digest.of(b"x").hex, Digest.of(b"x").hex.upper())
        ),
        C,
        "has digest",
    ),
    "blob of another algorithm": Attack(_member("blobs/sha512/" + "0" * 64), C, "has digest"),
    "digest in capitals": Attack(_member("x", 1, "A" * 64), C, "not a sha256 digest"),
    "digest with a line break": Attack(_member("x", 1, "a" * 64 + "\n"), C, "not a sha256 digest"),
    "size below zero": Attack(_member("x", -512), C, "size out of range"),
    "size beyond 2 to the 53": Attack(_member("x", 2**53), C, "size out of range"),
    "size of a terabyte": Attack(_member("x", 2**40), C, "it was cut off"),
    "size of all that there is": Attack(_member("x", 2**53 - 1), C, "it was cut off"),
    "blob that is in the bundle and required": Attack(_required, C, "is in the bundle as well"),
    "required that is no blob": Attack(
        _fields(required=(Member("etc/passwd", 1, "0" * 64),)), C, "is no blob"
    ),
    "signature area of another size": Attack(
        _fields(signature_area=65536), C, "stands at 8192, not at 65536"
    ),
    "signature area of nothing": Attack(_fields(signature_area=0), C, "signatureArea out of range"),
    "signature area without end": Attack(
        _fields(signature_area=2**53 - 1), C, "signatureArea out of range"
    ),
    "created at no time": Attack(_fields(created="yesterday"), C, "not a time: 'yesterday'"),
    "created on no day": Attack(_fields(created="2026-02-30T00:00:00Z"), C, "not a time"),
    "expires at no time": Attack(_fields(expires="never"), C, "not a time: 'never'"),
    "time in digits of another script": Attack(
        _fields(created="\u0662\u0660\u0662\u0666-01-02T03:04:05Z"), C, "in its one form"
    ),
    "time in a form of its own": Attack(_fields(created="2026-1-2T3:4:5Z"), C, "in its one form"),
    "members left out": Attack(_fields(members=()), C, "it was extended"),
}
"""Canonical, but nothing that may be placed, read or believed."""

DER: dict[str, Attack] = {
    "trailing byte": Attack(_der(lambda d: d + b"\0"), C, "not a DER signature"),
    "trailing byte inside": Attack(
        _der(lambda d: bytes([0x30, d[1] + 1]) + d[2:] + b"\0"), C, "not a DER signature"
    ),
    "zero in front of r": Attack(_der(_zero_in_front), C, "not a DER signature"),
    "length in two bytes": Attack(
        _der(lambda d: b"\x30\x81" + d[1:]), C, "not a DER signature"
    ),
    "length indefinite": Attack(
        _der(lambda d: b"\x30\x80" + d[2:] + b"\0\0"), C, "not a DER signature"
    ),
    "something behind the numbers": Attack(
        _der(lambda d: bytes([0x30, d[1] + 2]) + d[2:] + b"\x05\0"), C, "not a DER signature"
    ),
    "a set for a sequence": Attack(_der(lambda d: b"\x31" + d[1:]), C, "not a DER signature"),
    "r negative": Attack(_der(lambda d: d[:4] + b"\xff" + d[5:]), C, "not a DER signature"),
    "r and s raw": Attack(_der(lambda d: d[4:36] + d[38:]), C, "not a DER signature"),
    "cut off": Attack(_der(lambda d: d[:-1]), C, "not a DER signature"),
    "r and s zero": Attack(_numbers(lambda _r, _s: (0, 0)), C, "not a DER signature"),
    "s zero": Attack(_numbers(lambda r, _: (r, 0)), C, "not a DER signature"),
    "r of the group's order": Attack(_numbers(lambda _, s: (ORDER, s)), C, "not a DER signature"),
    "s in its upper half": Attack(_numbers(lambda r, s: (r, ORDER - s)), C, "not in canonical DER"),
}  # fmt: skip
"""Other ways to write a signature."""

SIGNED = {
    f"{group}: {name}": attack
    for group, attacks in (("JSON", JSON), ("manifest", MANIFESTS), ("DER", DER))
    for name, attack in attacks.items()
}
