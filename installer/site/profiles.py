"""Profiles to start a ``site.yaml`` from, and changes to its text that leave the comments alone.

A profile is a file that people read: its comments are the documentation at the site. So a value is
changed where it stands in the text, by the positions that YAML's nodes have, and everything around
it stays as it was written. What a key may be is the model's business alone: the key is looked up in
its types, the value is written as that type is written in YAML, and the result is read as
``installer run`` will read it.
"""

from __future__ import annotations

import re
import sys
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec.inspect as types
import yaml

from installer.documents import compose, key_path, nearest, plain
from installer.errors import InvalidInput
from installer.site.model import Site, read_site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from yaml.nodes import Node

PROFILES = {
    "minimal": "a trial: one node port, nothing kept",
    "demo": "NFS, PostgreSQL, HAProxy, its own certificate",
    "production": "ingress, two of each, PostgreSQL and Redis over TLS",
}
"""Name and a few words on each file in manifests/sites."""

_HARBOR = ("releases", 0, "harbor")
_QUESTIONS: dict[tuple[str | int, ...], str] = {
    ("name",): "Name of this site",
    ("cluster", "kubeconfig"): "Kubeconfig of the cluster, a file",
    ("seed", "serve", "address"): "This machine, as nodes reach it (host:port)",
    (*_HARBOR, "externalURL"): "URL under which people reach Harbor",
    (*_HARBOR, "expose", "ingressClass"): "Class of the ingress controller",
    (*_HARBOR, "storage", "nfs", "server"): "NFS server",
    (*_HARBOR, "storage", "nfs", "path"): "Path that it exports",
    (*_HARBOR, "database", "host"): "PostgreSQL server, by the name in its certificate",
    (*_HARBOR, "redis", "addresses"): "Redis (host:port)",
    (*_HARBOR, "loadBalancer", "haproxy", "nodes"): "Nodes behind HAProxy, with commas between",
}
"""Keys whose value in a profile can't be right for any site, and what to ask for them."""

_NAME = "site.yaml"
_STEP = re.compile(r"\[(\d{1,6})\]|(?:\A|\.)((?:[^.\[\]\\]|\\.)+)", re.DOTALL)
_SECRET = re.compile(r"passw|passphrase|pwd|secret|token|credential|key\Z", re.IGNORECASE)
_NO_SECRET = re.compile(r"\Aexisting|\A(?:topology)?key\Z|(?:name|file|path)\Z", re.IGNORECASE)
"""Keys that name a Secret or a file, and those that Kubernetes itself has."""
_TELLTALE = re.compile(r"://[^/?#\s@]*:[^/?#\s@]*@|-----BEGIN [A-Z ]*PRIVATE KEY-----")


@dataclass(frozen=True)
class Question:
    """A value that has to be looked at: its key, words for people, and what the profile has."""

    key: str
    words: str
    default: str


class _Dumper(yaml.SafeDumper):
    """Writes text so that every reader of YAML takes it for the same text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Anchors are for machines."""
        del data
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # YAML 1.2, which editors read, knows more numbers than 1.1.
    quoted = not text.isprintable() or _is_number(text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if quoted else None)


_Dumper.add_representer(str, _represent_text)


def profile_text(profile: str) -> str:
    """Text of a profile's file; ``profile`` is a key of PROFILES."""
    return (resources.files("manifests") / "sites" / f"{profile}.yaml").read_text("utf-8")


def questions(text: str) -> Iterator[Question]:
    """What a person has to be asked for a site.yaml: those of its keys that differ everywhere."""
    values = plain(_root(text), _NAME)
    for steps, words in _QUESTIONS.items():
        found: Any = values
        for step in steps:
            if isinstance(found, dict):
                found = found.get(step)
            else:
                there = isinstance(found, list) and isinstance(step, int) and step < len(found)
                found = found[step] if there else None
        if found is not None:
            default = ",".join(map(str, found)) if isinstance(found, list) else str(found)
            yield Question(key_path(steps), words, default)


def with_value(text: str, key: str, value: str) -> str:
    """Text of a site.yaml with ``key`` set, for example ``releases[0].harbor.storage.nfs.server``.

    For a key that takes text the value is that text; a list of texts has commas between them;
    everything else is YAML (``true``, ``30002``, ``{}``, ``null``). A key that is not there yet is
    added to what it belongs to. Raises InvalidInput for a key that is not known; whether the value
    is right is seen by ``check``.
    """
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidInput(f"{key}: the value is not UTF-8 text") from None
    steps, type_ = _look_up(key)
    return _edited(text, steps, _parsed(type_, value))


def check(text: str) -> None:
    """Raise InvalidInput unless ``installer run`` would take it; its files need not be there yet.

    Also for what looks like a secret in chart values: site.yaml is for everybody to read.
    """
    with tempfile.TemporaryDirectory(prefix="harbor-airgap-") as folder:
        path = Path(folder) / _NAME
        path.write_text(text, encoding="utf-8")
        try:
            site = read_site(path)
        except InvalidInput as error:
            # Line and file are those of a text that nobody has seen.
            message = re.sub(rf"(?m)^{re.escape(str(path))}:\d+: ", "", error.message)
            raise InvalidInput(message, hint=error.hint) from None
    for index, release in enumerate(site.releases):
        for found in _secrets(release.values, (), suspicious=False):
            raise InvalidInput(
                f"{key_path(('releases', index, 'values', *found))}: this looks like a secret",
                hint="the installer generates them; others go into a Secret of the cluster, whose "
                "name many charts take, or into a file that a key like passwordFile names",
            )


def _look_up(key: str) -> tuple[list[str | int], types.Type]:
    """Steps of a key, and the type that the model has for it."""
    written = _STEP.findall(key)
    if "".join(match[0] for match in _STEP.finditer(key)) != key or not key:
        raise InvalidInput(
            f"{key[:100]!r} is not a key", hint="for example releases[0].harbor.externalURL"
        )
    steps: list[str | int] = []
    type_ = _bare(types.type_info(Site))
    for index, name in written:
        step: str | int = int(index) if index else re.sub(r"\\(.)", r"\1", name)
        if isinstance(type_, types.StructType) and isinstance(step, str):
            fields = {field.encode_name: field.type for field in type_.fields}
            if step not in fields:
                meant = nearest(step, fields)
                raise InvalidInput(
                    f"{key_path([*steps, step])}: unknown key"
                    + (f", did you mean {meant!r}?" if meant else ""),
                    hint=f"known here: {', '.join(fields)}",
                )
            type_ = _bare(fields[step])
        elif isinstance(type_, types.VarTupleType) and (index or name.isdecimal()):
            step, type_ = int(index or name), _bare(type_.item_type)
        elif isinstance(type_, types.DictType | types.AnyType):
            type_ = types.AnyType()
        else:
            is_list = isinstance(type_, types.VarTupleType)
            what = "a list: write [0] for its first" if is_list else "no map that has keys"
            raise InvalidInput(f"{key_path(steps)}: this is {what}")
        steps.append(step)
    return steps, type_


def _bare(type_: types.Type) -> types.Type:
    """The type without what is said about it, and without None."""
    if isinstance(type_, types.Metadata):
        return _bare(type_.type)
    if isinstance(type_, types.UnionType):
        return _bare(next(t for t in type_.types if not isinstance(t, types.NoneType)))
    return type_


def _parsed(type_: types.Type, text: str) -> Any:
    """The value that a person means; where it can't be one of the type, the text itself."""
    if isinstance(type_, types.StrType | types.LiteralType):
        return text
    if (
        isinstance(type_, types.VarTupleType)
        and isinstance(_bare(type_.item_type), types.StrType)
        and not text.startswith("[")
    ):
        return [item for item in map(str.strip, text.split(",")) if item]
    try:
        nodes = compose(text, _NAME)
        return plain(nodes[0], _NAME) if len(nodes) == 1 else text
    except InvalidInput:
        return text


def _root(text: str) -> Node:
    return compose(text, _NAME)[0]


def _edited(text: str, steps: list[str | int], value: Any) -> str:
    """Text with the value at the place that the steps lead to."""
    node: Node | None = _root(text)
    flow, start, done = False, 0, 0
    while done < len(steps) and isinstance(node, yaml.CollectionNode):
        flow = flow or bool(node.flow_style)
        child, start = _child(text, node, steps[done])
        if child is None and isinstance(node, yaml.MappingNode):
            return _inserted(text, node, _nested(steps[done:], value), flow=flow)
        if child is None:
            raise InvalidInput(
                f"{key_path(steps[: done + 1])}: there are only {len(node.value)} in the profile",
                hint="set the whole list, or write the file and edit it",
            )
        node, done = child, done + 1
    if node is None:
        raise ValueError("a profile is not empty")
    # What is left of the steps is below a null, or below a chart value that becomes a map.
    written = _written(_nested(steps[done:], value), flow=flow)
    if not isinstance(node, yaml.CollectionNode) or node.flow_style:
        start = node.start_mark.index
    separator = " " if text[start - 1] == ":" else ""
    return text[:start] + separator + written + text[_end(node) :]


def _child(text: str, node: yaml.CollectionNode, step: str | int) -> tuple[Node | None, int]:
    """The part of a map or list that a step leads to, and where all that is its own begins."""
    if isinstance(node, yaml.MappingNode):
        for key, item in node.value:
            if key.value == str(step):
                return item, text.index(":", key.end_mark.index) + 1
        return None, 0
    index = int(step) if str(step).isdecimal() else len(node.value)
    child = node.value[index] if index < len(node.value) else None
    return child, child.start_mark.index if child else 0


def _inserted(text: str, node: yaml.MappingNode, entry: dict[str, Any], *, flow: bool) -> str:
    """Text with one more entry at the end of a map."""
    if flow:
        at = node.end_mark.index - 1
        written = _written(entry, flow=True)[1:-1]
        return text[:at] + (", " if node.value else "") + written + text[at:]
    at = text.find("\n", _end(node))
    at = len(text) if at < 0 else at
    ((key, value),) = entry.items()
    indent = " " * node.start_mark.column
    line = f"{indent}{_written(key, flow=False)}: {_written(value, flow=False)}"
    return f"{text[:at]}\n{line}{text[at:]}"


def _nested(steps: list[str | int], value: Any) -> Any:
    for step in reversed(steps):
        value = {str(step): value}
    return value


def _written(value: Any, *, flow: bool) -> str:
    """YAML in one line, also right inside of brackets if ``flow``."""
    inside = flow or isinstance(value, dict | list)
    text: str = yaml.dump(
        [value] if inside else value,
        Dumper=_Dumper,
        default_flow_style=True if inside else None,
        allow_unicode=True,
        sort_keys=False,
        width=sys.maxsize,
    )
    text = text.removesuffix("...\n").removesuffix("\n")
    return text[1:-1] if inside else text


def _end(node: Node) -> int:
    """Where a node's text ends: that of a block ends with its last part, not with the next key."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    index: int = node.end_mark.index
    return index


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return bool(re.match(r"0[ox][0-9a-fA-F_]+\Z", text))
    return True


def _secrets(value: Any, path: tuple[str | int, ...], *, suspicious: bool) -> Iterator[Any]:
    """Paths of texts under a key that speaks of a secret, of private keys, of URLs with a login."""
    if isinstance(value, dict):
        for key, item in value.items():
            # The value of an environment variable is called as the variable is.
            called = str(value.get("name", "")) if key == "value" else key
            speaks = bool(_SECRET.search(called)) and not _NO_SECRET.search(called)
            yield from _secrets(item, (*path, key), suspicious=speaks)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _secrets(item, (*path, index), suspicious=suspicious)
    elif isinstance(value, str) and value and (suspicious or _TELLTALE.search(value)):
        yield path
