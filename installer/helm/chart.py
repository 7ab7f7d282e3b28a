"""What a packaged chart says about itself, read from the archive in memory.

Nothing is extracted: a chart comes from a stranger, and an archive can hold links, absolute paths
and bombs. The limits are Helm's own (100 MiB for a chart, 5 MiB for a file in it; pkg/chart/loader/
archive in Helm 4), so that what Helm takes is taken.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from installer.documents import compose, plain, read_bounded
from installer.errors import InvalidInput
from installer.helm.values import coalesce, commented_keys, merge
from installer.tar import UNREADABLE, CautiousHeader, members

MAX_ARCHIVE_BYTES = 20 * 1024 * 1024
"""Compressed; the largest published charts have about 1 MiB."""
MAX_CHART_BYTES = 100 * 1024 * 1024
MAX_FILE_BYTES = 5 * 1024 * 1024
_MAX_FILES = 20_000
_MAX_SUBCHARTS = 5
"""How deep subcharts may lie in each other."""

# Order of the fields in Helm's struct, which is the order in the JSON that it writes.
_FIELDS = (
    "name",
    "home",
    "sources",
    "version",
    "description",
    "keywords",
    "maintainers",
    "icon",
    "apiVersion",
    "condition",
    "tags",
    "appVersion",
    "deprecated",
    "annotations",
    "kubeVersion",
    "dependencies",
    "type",
)
_MAINTAINER = ("name", "email", "url")
_DEPENDENCY = (
    "name",
    "version",
    "repository",
    "condition",
    "tags",
    "enabled",
    "import-values",
    "alias",
)
_NO_TEXT = frozenset({"sources", "keywords", "deprecated", "tags", "enabled", "import-values"})


@dataclass(frozen=True)
class ChartArchive:
    """A packaged chart: what Chart.yaml says, and its default values."""

    name: str
    version: str
    app_version: str
    """``appVersion``, "" if the chart has none."""
    kube_version: str
    """Constraint on the cluster's version, "" for any."""
    type: str
    """``application`` or ``library``; only the first can be installed."""
    metadata: dict[str, Any] = field(repr=False)
    values: dict[str, Any] = field(repr=False)
    """Default values; those of subcharts are below their alias or name, overridden as in Helm."""
    commented: frozenset[tuple[str, ...]] = field(repr=False)
    """Keys that values.yaml mentions in comments: options that are off."""

    @classmethod
    def read(cls, source: Path | bytes, name: str = "") -> ChartArchive:
        """Read a chart's ``.tgz``; ``name`` stands for it in errors. Raises InvalidInput."""
        if isinstance(source, Path):
            data = read_bounded(source, limit=MAX_ARCHIVE_BYTES, hint="give a chart's .tgz")
            return _chart(_files(data, name or str(source)), name or str(source), 0)
        return _chart(_files(source, name or "chart"), name or "chart", 0)

    @property
    def config(self) -> bytes:
        """Config blob of the chart as an OCI artefact: Chart.yaml in JSON, as Helm writes it."""
        text = msgspec.json.encode(_ordered(self.metadata, _FIELDS))
        # Go's encoder escapes these, so that JSON can stand in HTML.
        for character in "<>&\u2028\u2029":
            text = text.replace(character.encode(), f"\\u{ord(character):04x}".encode())
        return text


def _files(data: bytes, name: str) -> dict[str, bytes]:
    """Files of an archive by their path below the chart's folder."""
    if len(data) > MAX_ARCHIVE_BYTES:
        raise InvalidInput(f"{name}: larger than {MAX_ARCHIVE_BYTES} bytes")
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            content = stream.read(MAX_CHART_BYTES + 1)
        if len(content) > MAX_CHART_BYTES:
            raise InvalidInput(f"{name}: unpacks to more than {MAX_CHART_BYTES} bytes")
        tar = io.BytesIO(content)
        with tarfile.open(fileobj=tar, mode="r:", tarinfo=CautiousHeader) as archive:
            return _members(archive, name)
    except UNREADABLE as error:
        raise InvalidInput(f"{name}: not a packaged chart: {error}") from error


def _members(archive: tarfile.TarFile, name: str) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for count, member in enumerate(members(archive)):
        path = PurePosixPath(member.name)
        if count > _MAX_FILES:
            raise InvalidInput(f"{name}: more than {_MAX_FILES} files")
        if path.is_absolute() or ".." in path.parts or "\\" in member.name:
            raise InvalidInput(f"{name}: unsafe path {member.name[:200]!r}")
        if member.isdir():
            continue
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
            raise InvalidInput(f"{name}: {member.name[:200]!r} is a link, a device or sparse")
        if member.size > MAX_FILE_BYTES:
            raise InvalidInput(f"{name}: {member.name[:200]!r} has over {MAX_FILE_BYTES} bytes")
        inside = "/".join(path.parts[1:])
        if not inside:
            continue
        if inside in files:
            raise InvalidInput(f"{name}: {member.name[:200]!r} is there twice")
        content = archive.extractfile(member)
        files[inside] = content.read() if content is not None else b""
    return files


def _yaml(files: dict[str, bytes], path: str, name: str) -> tuple[dict[str, Any], str]:
    where = f"{name}: {path}"
    try:
        text = files.get(path, b"").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{where}: not UTF-8 text") from error
    nodes = compose(text, where)
    value = plain(nodes[0], where, unique_keys=False) if nodes else None
    if value is None:
        return {}, text
    if not isinstance(value, dict):
        raise InvalidInput(f"{where}: expected a map")
    return value, text


def _chart(files: dict[str, bytes], name: str, depth: int) -> ChartArchive:
    if depth > _MAX_SUBCHARTS:
        raise InvalidInput(f"{name}: subcharts nested deeper than {_MAX_SUBCHARTS}")
    if "Chart.yaml" not in files:
        raise InvalidInput(f"{name}: not a packaged chart: there is no Chart.yaml in it")
    metadata, _ = _yaml(files, "Chart.yaml", name)
    for key in ("name", "version"):
        if not metadata.get(key):
            raise InvalidInput(f"{name}: Chart.yaml has no {key!r}")
    # Charts of apiVersion v1 keep their dependencies in a file of their own.
    if requirements := _yaml(files, "requirements.yaml", name)[0].get("dependencies"):
        metadata.setdefault("dependencies", requirements)
    for key, kind in (("maintainers", list), ("dependencies", list), ("annotations", dict)):
        found = metadata.get(key) or kind()
        parts = found if isinstance(found, list) and kind is list else ()
        if not isinstance(found, kind) or not all(isinstance(part, dict) for part in parts):
            wanted = "a list of maps" if kind is list else "a map"
            raise InvalidInput(f"{name}: Chart.yaml: {key} is not {wanted}")
    values, text = _yaml(files, "values.yaml", name)
    commented = set(commented_keys(text))
    shared: dict[str, Any] = {}
    for alias, sub in _subcharts(files, metadata, name, depth):
        own = values.get(alias)
        values[alias] = coalesce(sub.values, own if isinstance(own, dict) else {})
        shared = merge(shared, _map(sub.values.get("global")))
        commented |= {(alias, *path) for path in sub.commented}
        commented |= {path for path in sub.commented if path[0] == "global"}
        values["global"] = _map(values.get("global"))
        values.setdefault("tags", {})
    if shared:
        values["global"] = merge(shared, values["global"])
    return ChartArchive(
        str(metadata["name"]),
        str(metadata["version"]),
        str(metadata.get("appVersion") or ""),
        str(metadata.get("kubeVersion") or ""),
        str(metadata.get("type") or "application"),
        metadata,
        values,
        frozenset(commented),
    )


def _subcharts(
    files: dict[str, bytes], metadata: dict[str, Any], name: str, depth: int
) -> list[tuple[str, ChartArchive]]:
    """Subcharts with the key below which their values lie; one may be there under many aliases."""
    folders: dict[str, dict[str, bytes]] = {}
    for path, content in files.items():
        top, _, rest = path.partition("/")
        entry, _, inside = rest.partition("/")
        if top != "charts" or not entry or entry[0] in "_.":
            continue
        if inside:
            folders.setdefault(entry, {})[inside] = content
        elif entry.endswith(".tgz"):
            folders[entry] = _files(content, f"{name}: {path}")
    subcharts = [
        _chart(inside, f"{name}: charts/{entry}", depth + 1) for entry, inside in folders.items()
    ]
    dependencies = [d for d in metadata.get("dependencies") or () if isinstance(d, dict)]
    found: list[tuple[str, ChartArchive]] = []
    for sub in subcharts:
        aliases = [
            str(d.get("alias") or sub.name) for d in dependencies if d.get("name") == sub.name
        ]
        found.extend((alias, sub) for alias in aliases or [sub.name])
    return found


def _map(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _ordered(source: dict[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    """Known fields in Helm's order, without the empty ones; text where Helm has text."""
    result: dict[str, Any] = {}
    for key in fields:
        value = source.get(key)
        if key == "maintainers":
            value = [_ordered(m, _MAINTAINER) for m in value or ()]
        elif key == "dependencies":
            value = [{"repository": ""} | d for d in value or ()]
            value = [_ordered(d, _DEPENDENCY) for d in value]
        elif key == "annotations":
            value = {k: str(v) for k, v in sorted((value or {}).items())}
        elif key not in _NO_TEXT and value is not None:
            value = str(value)
        if value or key == "repository":
            result[key] = value
    return result
