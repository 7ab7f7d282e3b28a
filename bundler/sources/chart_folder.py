"""A chart in a folder, packed as ``helm package`` packs it, but always to the same bytes.

Helm writes the time of packing into the archive; here times, owners and modes are fixed and the
names sorted, so that the same files give the same digest. ``.helmignore`` counts, with Helm's rules
(patterns of a name, of a path from the chart's folder, ``dir/``, ``!`` for exceptions; no ``**``).
Subcharts have to lie in ``charts/``: nothing is fetched for a chart, and Helm refuses to render one
whose dependencies are missing.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import yaml

from installer.errors import InvalidInput
from installer.helm.chart import MAX_CHART_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHART_FILE = "Chart.yaml"
_IGNORE = ".helmignore"


def pack_chart(folder: Path) -> bytes:
    """The chart as a ``.tgz``; raises InvalidInput for what is no chart, and for links."""
    try:
        name = _name(folder)
        packed = io.BytesIO()
        total = 0
        with (
            gzip.GzipFile("", "wb", 6, packed, mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for path, inner in _files(folder):
                data = path.read_bytes()
                total += len(data)
                if total > MAX_CHART_BYTES:
                    raise InvalidInput(f"{folder}: is over {MAX_CHART_BYTES} bytes: no chart")
                entry = tarfile.TarInfo(f"{name}/{inner}")
                entry.size, entry.mode = len(data), 0o644
                archive.addfile(entry, io.BytesIO(data))
        return packed.getvalue()
    except OSError as error:
        raise InvalidInput(f"{folder}: {error.strerror}: {error.filename}") from error


def _name(folder: Path) -> str:
    try:
        told = yaml.safe_load((folder / CHART_FILE).read_bytes())
    except yaml.YAMLError as error:
        raise InvalidInput(f"{folder / CHART_FILE}: not YAML: {error}") from error
    name = told.get("name") if isinstance(told, dict) else None
    if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
        raise InvalidInput(f"{folder / CHART_FILE}: has no usable name")
    return name


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files of the chart with their path in it, Chart.yaml first, then by name."""
    ignored = folder / _IGNORE
    rules = [
        line.strip()
        for line in (ignored.read_text(encoding="utf-8").splitlines() if ignored.is_file() else ())
        if line.strip() and not line.lstrip().startswith("#")
    ]
    found: list[tuple[Path, str]] = []
    waiting = [folder]
    while waiting:
        for path in waiting.pop().iterdir():
            inner = path.relative_to(folder).as_posix()
            if path.is_symlink():
                raise InvalidInput(
                    f"{path}: is a link, which does not travel", hint="copy the file"
                )
            if _is_ignored(inner, rules, is_dir=path.is_dir()):
                continue
            if path.is_dir():
                waiting.append(path)
            elif path.is_file():
                found.append((path, inner))
    yield from sorted(found, key=lambda item: (item[1] != CHART_FILE, item[1]))


def _is_ignored(inner: str, rules: list[str], *, is_dir: bool) -> bool:
    """As Helm decides (internal/ignore): the last rule doesn't win, any that fits does.

    A rule that begins with ``!`` ignores whatever does not fit it.
    """
    for rule in rules:
        negated = rule.startswith("!")
        pattern = rule.removeprefix("!")
        only_folders = pattern.endswith("/")
        pattern = pattern.rstrip("/")
        name = inner if "/" in pattern else inner.rpartition("/")[2]
        fits = fnmatchcase(name, pattern.removeprefix("/")) and (is_dir or not only_folders)
        if fits != negated and not (negated and only_folders and not is_dir):
            return True
    return False
