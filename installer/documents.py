"""YAML read strictly: for files that people write, and for what charts hold and Helm prints.

A person who misspells a key must hear of it at once, with file, line and the key that was probably
meant: at an isolated site there is nobody to ask. So a document is composed into nodes, which know
their line, the nodes are walked together with the type that is expected, and every difference found
on the way is told in one go. Only then msgspec makes the value.

YAML is also a language that can hurt. Depth and aliases are bounded before a tree is built (a
thousand brackets overflow a parser's stack, ten lines of aliases expand to gigabytes), tags that
construct things don't exist here, duplicate keys are refused where YAML libraries let the last one
win in silence. Values in errors would leak passwords: errors name types and keys.
"""

from __future__ import annotations

import difflib
import re
import types
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import msgspec
import yaml

from installer.errors import AirgapError, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from yaml.nodes import Node

T = TypeVar("T")

MAX_BYTES = 1024 * 1024
"""Size of a file that a person writes; far above any real one."""
_MAX_DEPTH = 100
_MAX_NODES = 200_000
_MAX_ERRORS = 10
_CORE = "tag:yaml.org,2002:"
_AT = re.compile(r" - at `.*", re.DOTALL)
_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_BASE):  # type: ignore[misc]  # the C loader is there or not only at run time
    """Knows null, bool, int, float and text: a date stays the text that was written."""

    yaml_implicit_resolvers: ClassVar = {
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag not in (f"{_CORE}timestamp", f"{_CORE}value")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


@dataclass(frozen=True)
class Document(Generic[T]):
    """A value together with where each of its parts was written."""

    value: T
    name: str
    root: Node | None

    def where(self, *path: str | int) -> str:
        """``file:line`` of a key path, or of the nearest part of it that was written."""
        node, line = self.root, 1
        if node is not None:
            line = node.start_mark.line + 1
        for step in path:
            child: Node | None = None
            if isinstance(node, yaml.MappingNode) and isinstance(step, str):
                for key, value in _pairs(node, self.name):
                    if key.value == step:
                        child, line = value, key.start_mark.line + 1
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
                child = node.value[step] if step < len(node.value) else None
                line = child.start_mark.line + 1 if child is not None else line
            if child is None:
                break
            node = child
        return f"{self.name}:{line}"


def read_document(path: Path, type_: type[T], *, hint: str = "") -> T:
    """Read a YAML file as ``type_`` (a msgspec Struct, or ``dict`` for free-form values).

    Raises InvalidInput, which names file, line and key, also if the file is missing: ``hint`` then
    says what to do.
    """
    return load_document(path, type_, hint=hint).value


def parse_document(data: bytes, name: str, type_: type[T]) -> T:
    """The same from bytes; ``name`` stands for the file in errors."""
    return locate_document(data, name, type_).value


def load_document(path: Path, type_: type[T], *, hint: str = "") -> Document[T]:
    """Like ``read_document``, but keep the lines for checks that come later."""
    return locate_document(read_bounded(path, hint=hint), str(path), type_)


def read_bounded(path: Path, *, limit: int = MAX_BYTES, hint: str = "") -> bytes:
    """Bytes of a file of at most ``limit`` bytes; raises InvalidInput if that can't be had."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise InvalidInput(
            f"{path}: there is no such file", hint=hint or "check the path that was given"
        ) from None
    except OSError as error:
        raise InvalidInput(f"{path}: can't be read: {error.strerror or error}") from error
    if len(data) > limit:
        raise InvalidInput(f"{path}: larger than {limit} bytes", hint="is this the right file?")
    return data


def locate_document(data: bytes, name: str, type_: type[T]) -> Document[T]:
    """Like ``parse_document``, but keep the lines for checks that come later."""
    if len(data) > MAX_BYTES:
        raise InvalidInput(f"{name}: larger than {MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidInput(f"{name}:{line}: not UTF-8 text") from error
    nodes = compose(text, name)
    if len(nodes) > 1:
        line = nodes[1].start_mark.line + 1
        raise InvalidInput(f"{name}:{line}: a second document begins here, only one is read")
    root = nodes[0] if nodes else None
    value = plain(root, name) if root is not None else None
    if value is None:
        if get_origin(type_) is dict or type_ is dict:
            return Document(msgspec.convert({}, type_), name, root)
        raise InvalidInput(f"{name}: the file is empty")
    check = _Check(name)
    if root is not None and check.kind_holds(root, type_):
        check.walk(root, type_, ())
    if check.errors:
        check.fail()
    return Document(msgspec.convert(value, type_), name, root)


def compose(text: str, name: str, *, first_line: int = 1) -> list[Node]:
    """Nodes of every document in a YAML text; raises InvalidInput with the line of what is wrong.

    ``first_line`` is where the text begins in the file that ``name`` names.
    """
    try:
        depth = 0
        # The events come one by one, without recursion: what is too deep is seen in time.
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > _MAX_DEPTH:
                    raise InvalidInput(f"{name}: nested deeper than {_MAX_DEPTH} levels")
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
        return [node for node in yaml.compose_all(text, Loader=_Loader) if node is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f":{mark.line + first_line}" if mark is not None else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
        line = text.splitlines()[mark.line : mark.line + 1] if mark is not None else []
        hint = "indent with spaces, not with tabs" if line and "\t" in line[0] else ""
        raise InvalidInput(f"{name}{at}: {problem}", hint=hint) from None


def plain(node: Node, name: str, *, max_nodes: int = _MAX_NODES, unique_keys: bool = True) -> Any:
    """Plain Python value of a node: dict, list, str, int, float, bool or None.

    Keys are text as written. Raises InvalidInput for duplicate keys (unless ``unique_keys`` is
    false: then the last one wins, as in Helm), for unknown tags, and for aliases that expand to
    more than ``max_nodes`` or into themselves.
    """
    budget = iter(range(max_nodes))

    def value_of(node: Node, depth: int) -> Any:
        if next(budget, None) is None or depth > _MAX_DEPTH:
            raise InvalidInput(
                f"{name}:{node.start_mark.line + 1}: too large, or aliases that expand endlessly"
            )
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_CORE}map":
            return {
                k.value: value_of(v, depth + 1) for k, v in _pairs(node, name, unique=unique_keys)
            }
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_CORE}seq":
            return [value_of(child, depth + 1) for child in node.value]
        return _scalar(node, name)

    return value_of(node, 0)


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant, or nothing."""
    words = list(known)
    for candidate in words:
        if candidate.lower() == word.lower():
            return candidate
    close = difflib.get_close_matches(word, words, 1, 0.6)
    return close[0] if close else ""


def key_path(path: Sequence[str | int]) -> str:
    """``charts[0].version`` of its steps."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".")


def _pairs(
    node: yaml.MappingNode, name: str, *, unique: bool = True, merged: set[int] | None = None
) -> Iterator[tuple[Node, Node]]:
    """Key and value nodes, merge keys (``<<``) resolved; raises InvalidInput for duplicates.

    ``merged`` are maps that were merged already: once more would add nothing but time.
    """
    own: dict[str, Node] = {}
    others: list[Node] = []
    merged = {id(node)} if merged is None else merged
    for key, value in node.value:
        at = f"{name}:{key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise InvalidInput(f"{at}: a key must be text")
        if key.tag == f"{_CORE}merge":
            others.extend(value.value if isinstance(value, yaml.SequenceNode) else [value])
            continue
        if unique and key.value in own:
            before = own[key.value].start_mark.line + 1
            raise InvalidInput(f"{at}: duplicate key {key.value!r}, it is already in line {before}")
        own[key.value] = key
        yield key, value
    for other in others:
        if not isinstance(other, yaml.MappingNode):
            raise InvalidInput(f"{name}:{other.start_mark.line + 1}: << takes a map")
        if id(other) in merged:
            continue
        merged.add(id(other))
        for key, value in _pairs(other, name, unique=unique, merged=merged):
            if key.value not in own:
                own[key.value] = key
                yield key, value


def _scalar(node: Node, name: str) -> Any:
    tag, text = node.tag.removeprefix(_CORE), node.value
    at = f"{name}:{node.start_mark.line + 1}"
    if not isinstance(node, yaml.ScalarNode) or tag not in ("null", "bool", "int", "float", "str"):
        raise InvalidInput(f"{at}: the tag {node.tag[:80]!r} is not allowed")
    if tag == "null":
        return None
    if tag == "bool":
        return text.lower() in ("yes", "true", "on")
    # YAML 1.1 reads 22:30 as a number to base 60; nobody who writes it means that.
    if tag == "str" or ":" in text:
        return text
    digits = text.replace("_", "")
    try:
        if tag == "float":
            return float(re.sub(r"\.(inf|nan)", r"\1", digits, flags=re.IGNORECASE))
        unsigned = digits.lstrip("+-")
        octal = len(unsigned) > 1 and unsigned[0] == "0" and unsigned.isdigit()
        return int(digits, 8 if octal else 0)
    except ValueError:
        raise InvalidInput(f"{at}: not a number that can be used") from None


def _optional(type_: Any) -> tuple[Any, bool]:
    """The type without ``None`` and annotations, and whether ``None`` was among it."""
    while get_origin(type_) is Annotated:
        type_ = get_args(type_)[0]
    if get_origin(type_) not in (Union, types.UnionType):
        return type_, False
    rest = [part for part in get_args(type_) if part is not type(None)]
    nullable = len(rest) < len(get_args(type_))
    return (_optional(rest[0])[0] if len(rest) == 1 else type_), nullable


def _of_mapping(type_: Any) -> Any:
    """Where a word or a mapping may stand: the type of the mapping."""
    if get_origin(type_) not in (Union, types.UnionType):
        return type_
    structs = [part for part in get_args(type_) if hasattr(part, "__struct_config__")]
    return structs[0] if len(structs) == 1 else type_


class _Check:
    """Walks nodes and type side by side and collects what differs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.errors: list[tuple[int, str, str]] = []

    def error(self, node: Node, path: Sequence[str | int], text: str, hint: str = "") -> None:
        line = node.start_mark.line + 1
        where = f"{self.name}:{line}: {key_path(path)}: " if path else f"{self.name}:{line}: "
        self.errors.append((line, where + text, hint))

    def fail(self) -> None:
        self.errors.sort(key=lambda error: error[0])
        lines = [message for _, message, _ in self.errors]
        if len(lines) > _MAX_ERRORS:
            lines[_MAX_ERRORS:] = [f"and {len(lines) - _MAX_ERRORS} more"]
        hints = [hint for _, _, hint in self.errors if hint]
        raise InvalidInput("\n".join(lines), hint=hints[0] if hints else "")

    def kind_holds(self, node: Node, type_: Any) -> bool:
        """Check ``apiVersion`` and ``kind`` first: of another kind, every other key is wrong."""
        if not (isinstance(type_, type) and issubclass(type_, msgspec.Struct)):
            return True
        if not isinstance(node, yaml.MappingNode):
            return True  # walk says so
        written = {key.value: value for key, value in _pairs(node, self.name)}
        for field in msgspec.structs.fields(type_):
            if field.encode_name not in ("apiVersion", "kind"):
                continue
            allowed = get_args(field.type) if get_origin(field.type) is Literal else ()
            value = written.get(field.encode_name)
            if allowed and value is None:
                text = f"{field.encode_name} is missing, expected {' or '.join(allowed)}"
                self.error(node, (), text, f"write `{field.encode_name}: {allowed[0]}` at the top")
            elif allowed and value is not None and value.value not in allowed:
                got = value.value if isinstance(value, yaml.ScalarNode) else "something else"
                text = f"expected {' or '.join(allowed)}, got {str(got)[:80]}"
                self.error(value, (field.encode_name,), text)
        return not self.errors

    def walk(self, node: Node, type_: Any, path: tuple[str | int, ...]) -> None:
        inner, nullable = _optional(type_)
        inner = _of_mapping(inner) if isinstance(node, yaml.MappingNode) else inner
        if inner is Any:
            return
        if nullable and node.tag == f"{_CORE}null":
            return
        origin, arguments = get_origin(inner) or inner, get_args(inner)
        before = len(self.errors)
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            if isinstance(node, yaml.MappingNode):
                self._struct(node, inner, path)
        elif origin is dict and len(arguments) == 2 and isinstance(node, yaml.MappingNode):  # noqa: PLR2004 - key and value
            for key, value in _pairs(node, self.name):
                self.walk(value, arguments[1], (*path, key.value))
        elif origin in (list, tuple, set, frozenset) and isinstance(node, yaml.SequenceNode):
            alike = arguments and (origin is not tuple or arguments[1:] == (...,))
            for index, child in enumerate(node.value if alike else ()):
                self.walk(child, arguments[0], (*path, index))
        if len(self.errors) == before:
            self._convert(node, type_, inner, path)

    def _struct(self, node: yaml.MappingNode, struct: Any, path: tuple[str | int, ...]) -> None:
        fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
        written = set()
        for key, value in _pairs(node, self.name):
            if key.value in fields:
                written.add(key.value)
                self.walk(value, fields[key.value].type, (*path, key.value))
            elif struct.__struct_config__.forbid_unknown_fields:
                meant = nearest(key.value, fields)
                text = f"unknown key, did you mean {meant!r}?" if meant else "unknown key"
                self.error(key, (*path, key.value), text, f"known here: {', '.join(fields)}")
        for name, field in fields.items():
            if field.required and name not in written:
                self.error(node, path, f"the key {name!r} is missing")

    def _convert(self, node: Node, type_: Any, inner: Any, path: tuple[str | int, ...]) -> None:
        """Let msgspec judge what has no parts of its own, or whose parts are right."""
        value = plain(node, self.name)
        try:
            msgspec.convert(value, type_)
        except msgspec.ValidationError as error:
            text = _AT.sub("", str(error)).replace("`", "")
            hint = ""
            if get_origin(inner) is Literal and isinstance(value, str):
                words = [str(word) for word in get_args(inner)]
                text = f"expected one of {', '.join(words)}, got {value[:80]!r}"
                hint = f"did you mean {nearest(value, words)!r}?" if nearest(value, words) else ""
            elif text.startswith("Expected array, got") and not isinstance(value, dict):
                hint = "a list is wanted: put it in brackets"
            elif text.startswith("Expected str") and isinstance(value, int | float):
                hint = "YAML takes this for a number or a yes/no: put it in quotes"
            self.error(node, path, text[:1].lower() + text[1:], hint)
        except AirgapError as error:
            self.error(node, path, error.message, error.hint)
