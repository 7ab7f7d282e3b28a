"""Which images the objects of a rendered chart need, and where each is named.

An image that is missed is found out at the isolated site, by a pod that never starts; one that is
invented stops the build. So the rendered objects are read, never the chart's text, and each finding
carries its origin, which goes into the lock for people to check. Three places are looked at:

1. ``image`` fields in any object of any kind (pods, jobs, hooks, custom resources, image volumes);
2. environment variables and arguments whose name speaks of an image: so operators learn of the
   images of pods that they make later (``AGENT_INJECT_VAULT_IMAGE``,
   ``--acme-http01-solver-image``);
3. there, and in custom resources' ``…Image`` fields, values that can hardly be anything else: a
   host with a dot, a path, and a tag or digest.

Manifests embedded in ConfigMaps are read the same way if they are YAML. What an operator has
compiled in can't be seen here: such images are named in the spec.

Pure: no I/O.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from installer.documents import compose, plain
from installer.errors import InvalidInput
from installer.oci.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_NODES = 5_000_000
_SEPARATOR = re.compile(r"^---(?=\s|\Z)", re.MULTILINE)
_SOURCE = re.compile(r"^# Source: (\S+)", re.MULTILINE)
_DEFINITION = re.compile(r"^kind:\s*[\"']?CustomResourceDefinition\b", re.MULTILINE)
# Helm and Kubernetes take tabs before a line's end, a comment or a value; libyaml doesn't.
_TABS = re.compile(r"[ \t]*\t[ \t]*$|(?<=[:-])[ ]*\t[ \t]*|[ \t]*\t[ \t]*(?=#)", re.MULTILINE)
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+|[0-9]+")
_QUOTES = "\"'`;()"
_CONTAINERS = ("containers", "initContainers", "ephemeralContainers")
_NO_IMAGE = re.compile(
    r"pull|policy|secrets?|tags?|registry|repository|repositories|repo|digest|type|format|"
    r"size|path|dir|prefix|suffix|cache"
)
"""Words that make an option one about images, but not an image."""
_SWITCH = re.compile(
    r"true|false|yes|no|on|off|none|null|auto|always|never|default|enabled|disabled", re.IGNORECASE
)
_NUMBER_OR_ADDRESS = re.compile(r"[\d.]+|[^/]+:\d{4,5}")


@dataclass(frozen=True, order=True)
class Origin:
    """The field of an object that names an image."""

    kind: str
    name: str
    namespace: str
    """"" where the object says none."""
    path: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name} {self.path}"


@dataclass(frozen=True)
class FoundImage:
    """An image in a rendered object; ``text`` is how it is written there."""

    reference: Reference
    text: str
    origin: Origin


def find_images(rendered: str) -> list[FoundImage]:
    """Every place in ``helm template``'s output that names an image, in the order of the output.

    Raises InvalidInput for an ``image`` field that is no reference, and for output that is not
    YAML; both name the object or the template.
    """
    return [
        image
        for _, document in read_objects(rendered, definitions=False)
        for image in _in_document(document)
    ]


def read_objects(rendered: str, *, definitions: bool = True) -> Iterator[tuple[str, Any]]:
    """Read what ``helm template`` printed: each document with the template that it is from.

    ``definitions`` are large and name no image, so that they can be left out. Raises InvalidInput
    for output that is not YAML; it names the template and the line.
    """
    source, line = "rendered chart", 1
    for part in _SEPARATOR.split(rendered):
        if match := _SOURCE.search(part):
            source = match[1]
        if definitions or not _DEFINITION.search(part):
            for document in _documents(part, source, line):
                if document is not None:
                    yield source, document
        line += part.count("\n")


def _documents(text: str, name: str, first_line: int = 1) -> Iterator[Any]:
    for node in compose(_TABS.sub(_space, text), name, first_line=first_line):
        yield plain(node, name, max_nodes=_MAX_NODES, unique_keys=False)


def _space(match: re.Match[str]) -> str:
    at_end = match.end() == len(match.string) or match.string[match.end()] == "\n"
    return "" if at_end else " "


def _in_document(document: Any) -> Iterator[FoundImage]:
    if not isinstance(document, dict):
        return
    kind = str(document.get("kind") or "")
    if kind.endswith("List") and isinstance(document.get("items"), list):
        for item in document["items"]:
            yield from _in_document(item)
    elif kind != "CustomResourceDefinition":
        metadata = document.get("metadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        name, namespace = metadata.get("name"), metadata.get("namespace")
        yield from _Object(kind, str(name or ""), str(namespace or "")).images(document)


@dataclass(frozen=True)
class _Object:
    kind: str
    name: str
    namespace: str

    def images(self, document: dict[str, Any]) -> Iterator[FoundImage]:
        if self.kind in ("ConfigMap", "Secret"):
            data = document.get("data")
            for key, value in (data if isinstance(data, dict) else {}).items():
                yield from self._embedded(value, f"data[{key}]")
        else:
            yield from self._walk(document, "", in_container=False)

    def _walk(self, value: Any, path: str, *, in_container: bool) -> Iterator[FoundImage]:
        if isinstance(value, list):
            parent = path.rpartition(".")[2]
            for index, item in enumerate(value):
                name = item.get("name") if isinstance(item, dict) else None
                inside = f"{path}[{name if isinstance(name, str) else index}]"
                yield from self._walk(item, inside, in_container=parent in _CONTAINERS)
        elif isinstance(value, dict):
            for key, child in value.items():
                here = f"{path}.{key}" if path else key
                yield from self._field(key, child, here, in_container=in_container)
                yield from self._walk(child, here, in_container=False)

    def _field(
        self, key: str, value: Any, path: str, *, in_container: bool
    ) -> Iterator[FoundImage]:
        if key == "image" and isinstance(value, str):
            if value or in_container:  # elsewhere an empty image means the operator's own
                yield self._found(value, path)
        elif key == "image" and isinstance(value, dict):
            reference = value.get("reference")  # a volume made of an image
            if isinstance(reference, str) and reference:
                yield self._found(reference, f"{path}.reference")
        elif key == "env" and isinstance(value, list):
            for item in value:
                if isinstance(item, dict) and isinstance(item.get("value"), str):
                    name = str(item.get("name") or "")
                    yield from self._said(name, item["value"], f"{path}[{name}].value")
        elif key in ("args", "command"):
            yield from self._arguments(value, path)
        elif isinstance(value, str) and key.endswith(("Image", "imageName")):
            yield from self._said("", value, path)

    def _arguments(self, value: Any, path: str) -> Iterator[FoundImage]:
        words: list[tuple[str, str]] = []
        for index, item in enumerate([value] if isinstance(value, str) else value or ()):
            if isinstance(item, str):
                # One argument, or a script for a shell: its words are read like arguments.
                parts = item.split() if " " in item.strip() or "\n" in item else [item]
                words += [(part.strip(_QUOTES), f"{path}[{index}]") for part in parts]
        flag = ""
        for word, where in words:
            if word.startswith("-"):
                flag, equals, content = word.partition("=")
                if equals:
                    yield from self._said(flag, content.strip(_QUOTES), where)
                    flag = ""
            else:
                yield from self._said(flag, word, where)
                flag = ""

    def _said(self, name: str, value: str, path: str) -> Iterator[FoundImage]:
        """The images in the value of a variable or flag of that name."""
        for text in re.split(r"[,\s]+", value):
            if text and _is_image(name, text):
                yield self._found(text, path)

    def _embedded(self, value: Any, path: str) -> Iterator[FoundImage]:
        if not isinstance(value, str) or "image:" not in value or "kind:" not in value:
            return
        try:
            documents = list(_documents(value, path))
        except InvalidInput:
            return  # a template for something else, or a text about images
        for document in documents:
            if isinstance(document, dict) and "apiVersion" in document and "kind" in document:
                yield from self._walk(document, path, in_container=False)

    def _found(self, text: str, path: str) -> FoundImage:
        origin = Origin(self.kind, self.name, self.namespace, path)
        try:
            return FoundImage(Reference.parse(text), text, origin)
        except InvalidInput as error:
            raise InvalidInput(
                f"{origin}: {error.message}", hint="look at the values that this field comes from"
            ) from error


def _is_image(name: str, text: str) -> bool:
    """Whether a variable or flag of that name, with that value, stands for an image."""
    try:
        reference = Reference.parse(text)
    except InvalidInput:
        return False
    words = [word.lower() for word in _WORDS.findall(name)]
    if words and _NO_IMAGE.fullmatch(words[-1]):
        return False
    marked = reference.tag is not None or reference.digest is not None
    host, slash, _ = text.partition("/")
    if marked and slash and "." in host:
        return True
    at = next((i for i, word in enumerate(words) if word.endswith(("image", "images"))), None)
    if at is None or any(_NO_IMAGE.fullmatch(word) for word in words[at:]):
        return False
    if _SWITCH.fullmatch(text) or _NUMBER_OR_ADDRESS.fullmatch(text):
        return False
    return marked or at == len(words) - 1
