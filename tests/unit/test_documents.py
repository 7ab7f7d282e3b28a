"""Files that people write: what is taken, and how each mistake is told."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from installer.documents import (
    MAX_BYTES,
    compose,
    locate_document,
    nearest,
    parse_document,
    plain,
    read_document,
)
from installer.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path


class Port(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    number: int = 0

    def __post_init__(self) -> None:
        if self.number > 65535:
            raise InvalidInput("no such port", hint="ports end at 65535")
        if self.number < 0:
            raise ValueError("negative")


class Site(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="camel"):
    api_version: Literal["site/v1"]
    kind: Literal["Site"]
    host_name: str = ""
    mode: Literal["serve", "push"] = "serve"
    expires: dt.date | None = None
    ports: tuple[Port, ...] = ()
    named: dict[str, Port | None] = {}
    free: dict[str, Any] = {}


HEAD = b"apiVersion: site/v1\nkind: Site\n"


def read(text: bytes) -> Site:
    return parse_document(HEAD + text, "site.yaml", Site)


def refusal(text: bytes) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        read(text)
    return caught.value


def test_a_good_document_is_read_with_its_types() -> None:
    site = read(
        b"hostName: a\nexpires: 2027-01-02\nports: [{name: web, number: 80}]\n"
        b"named: {a: {name: x}, b: }\nfree: {x: [1, 2.5, yes, ~, '1', 22:30], y: {z: 0x10}}\n"
    )
    assert site.expires == dt.date(2027, 1, 2)
    assert site.ports == (Port(name="web", number=80),)
    assert site.named == {"a": Port(name="x"), "b": None}
    # 22:30 is no number to base 60.
    assert site.free == {"x": [1, 2.5, True, None, "1", "22:30"], "y": {"z": 16}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"hostname: a\n", "site.yaml:3: hostname: unknown key, did you mean 'hostName'?"),
        (b"\nxyzzy: a\n", "site.yaml:4: xyzzy: unknown key"),
        (b"hostName: 7\n", "site.yaml:3: hostName: expected str, got int"),
        (b"hostName: [a]\n", "site.yaml:3: hostName: expected str, got array"),
        (b"mode: serv\n", "site.yaml:3: mode: expected one of serve, push, got 'serv'"),
        (b"ports: {a: b}\n", "site.yaml:3: ports: expected array, got object"),
        (
            b"ports:\n- name: a\n- nme: b\n",
            "site.yaml:5: ports[1].nme: unknown key, did you mean 'na",
        ),
        (b"ports:\n- number: 1\n", "site.yaml:4: ports[0]: the key 'name' is missing"),
        (
            b"named:\n  a:\n    name: x\n    number: x\n",
            "site.yaml:6: named.a.number: expected int",
        ),
        (b"ports: [{name: a, number: 70000}]\n", "site.yaml:3: ports[0]: no such port"),
        (b"ports: [{name: a, number: -1}]\n", "site.yaml:3: ports[0]: negative"),
        (b"expires: soon\n", "site.yaml:3: expires: invalid"),
        (
            b"mode: serve\nmode: push\n",
            "site.yaml:4: duplicate key 'mode', it is already in line 3",
        ),
        (b"free: {a: {b: 1, b: 2}}\n", "site.yaml:3: duplicate key 'b'"),
        (
            b"free: !!python/object/apply:os.system [id]\n",
            "site.yaml:3: the tag 'tag:yaml.org,2002:py",
        ),
        (b"free: {[a]: b}\n", "site.yaml:3: a key must be text"),
        (b"free: {a: b\n", "site.yaml:4: did not find expected ',' or '}'"),
        (b"free:\n\ta: b\n", "site.yaml:4: found character"),
        (b"---\nkind: Site\n", "site.yaml:4: a second document begins here"),
        (b"hostName: \xff\n", "site.yaml:3: not UTF-8 text"),
        (b"free: &a {b: *a}\n", "aliases that expand endlessly"),
        (b"free: {<<: 3}\n", "site.yaml:3: << takes a map"),
        (b"free: {a: " + b"9" * 5000 + b"}\n", "site.yaml:3: not a number that can be used"),
    ],
)
def test_mistakes_are_told_with_file_line_and_key(text: bytes, message: str) -> None:
    assert message in refusal(text).message


def test_a_tab_gets_the_hint_to_use_spaces() -> None:
    assert refusal(b"free:\n\ta: b\n").hint == "indent with spaces, not with tabs"


def test_all_mistakes_are_told_at_once_in_order() -> None:
    lines = refusal(b"mode: x\nhostname: a\nports: [{name: 1}]\n").message.splitlines()
    assert [line.split(":")[1] for line in lines] == ["3", "4", "5"]


def test_a_number_for_text_gets_the_hint_to_quote_it_and_never_shows_the_value() -> None:
    error = refusal(b"hostName: 12345678\n")
    assert "quotes" in error.hint
    assert "12345678" not in error.message + error.hint


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "site.yaml: the file is empty"),
        (b"# only a comment\n", "site.yaml: the file is empty"),
        (b"[1]\n", "site.yaml:1: expected object, got array"),
        (b"kind: Site\n", "site.yaml:1: apiVersion is missing, expected site/v1"),
        (b"apiVersion: site/v2\nkind: Site\nnew: 1\n", "site.yaml:1: apiVersion: expected site/v1"),
        (
            b"apiVersion: site/v1\nkind: BundleSpec\nname: x\n",
            "site.yaml:2: kind: expected Site, got",
        ),
        (b"x" * (MAX_BYTES + 1), "site.yaml: larger than"),
        (b"[" * 100_000, "nested deeper than"),
    ],
)
def test_another_kind_of_document_is_told_first_and_alone(data: bytes, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_document(data, "site.yaml", Site)
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_aliases_work_but_do_not_explode() -> None:
    good = read(b"free:\n  a: &x {k: v, w: 1}\n  b: *x\n  c: {<<: *x, w: 2}\n")
    assert good.free == {"a": {"k": "v", "w": 1}, "b": {"k": "v", "w": 1}, "c": {"k": "v", "w": 2}}
    laughs = b"free:\n  a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for level in range(1, 12):
        laughs += f"  a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n".encode()
    assert "aliases that expand endlessly" in refusal(laughs).message


def test_merge_keys_do_not_explode_and_may_not_turn_in_circles() -> None:
    merges = b"free:\n  a0: &a0 {k: v}\n"
    for level in range(1, 40):
        merges += f"  a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 9)}]}}\n".encode()
    assert read(merges).free["a39"] == {"k": "v"}
    assert read(b"free: &a {k: v, <<: *a}\n").free == {"k": "v"}


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="there is no such file") as caught:
        read_document(tmp_path / "site.yaml", Site, hint="installer init writes one")
    assert caught.value.hint == "installer init writes one"
    assert caught.value.exit_code == 2
    with pytest.raises(InvalidInput, match="can't be read"):
        read_document(tmp_path, Site)


def test_free_values_may_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text("# nothing\n")
    assert read_document(path, dict[str, Any]) == {}
    path.write_text("\ufeffa: {80: b, true: c}\n", encoding="utf-8")
    assert read_document(path, dict[str, Any]) == {"a": {"80": "b", "true": "c"}}


def test_lines_are_kept_for_later_checks() -> None:
    document = locate_document(
        HEAD + b"ports:\n- name: a\n- name: b\n  number: 2\n", "site.yaml", Site
    )
    assert document.where("ports", 1, "number") == "site.yaml:6"
    assert document.where("ports", 1, "missing") == "site.yaml:5"
    assert document.where() == "site.yaml:1"


def test_nearest_prefers_the_same_word_in_other_case() -> None:
    assert nearest("hostname", ["hostNames", "hostName"]) == "hostName"
    assert nearest("qqq", ["hostName"]) == ""


@given(
    st.recursive(
        # JSON has neither NaN nor infinity.
        st.none()
        | st.booleans()
        | st.integers()
        | st.text()
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(min_size=1), inner),
        max_leaves=20,
    )
)
def test_json_with_ascii_escapes_reads_as_itself(value: Any) -> None:
    text = msgspec.json.encode(value).decode()
    if not text.isascii() or "\x7f" in text or "\\u" in text or "e" in text.lower():
        return  # YAML's own rules about line breaks and exponents differ from JSON's
    (node,) = compose(text, "x")
    assert plain(node, "x") == value


@given(st.binary(max_size=200))
def test_no_bytes_bring_it_down(data: bytes) -> None:
    try:
        parse_document(data, "x", Site)
    except InvalidInput as error:
        assert error.message  # noqa: PT017 - whether it raises depends on the bytes
