"""What an upgrade would change, for people: versions, images, values and objects.

Values are told by their paths only, objects by kind and name: either may hold secrets. Labels that
name the chart's own version say nothing about an object and are left out of the comparison.

Pure: no I/O.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from installer.errors import PreflightFailed
from installer.helm.images import find_images, read_objects

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SUPPORTED_MINORS = 2
"""Harbor's documentation: an upgrade may start from the two minor versions before."""
_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?")
_NOISE = ("chart", "helm.sh/chart", "app.kubernetes.io/version")
_IMAGE = re.compile(r"(?:\A|\.)image\.(?:repository|tag)\Z")
_SHOWN = 12


def version_of(text: str) -> tuple[int, int, int] | None:
    """Major, minor and patch of an application's version, None for what has none ("dev")."""
    match = _VERSION.match(text)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def check_jump(key: str, old: str, new: str) -> None:
    """Refuse what Harbor can't upgrade from ``old`` to ``new`` (versions of the application).

    Raises PreflightFailed for a downgrade and for a jump over more than two minor versions. A
    version that is no number is not judged.
    """
    before, after = version_of(old), version_of(new)
    if before is None or after is None or before == after:
        return
    if after < before:
        raise PreflightFailed(
            f"release {key}: Harbor {old} can't be downgraded to {new}: the tables of its database "
            "only move forward",
            hint="`installer undo` with the older bundle goes back, with the database of then",
        )
    jump = after[1] - before[1]
    if after[0] != before[0] or jump > SUPPORTED_MINORS:
        step = f"{before[0]}.{before[1] + SUPPORTED_MINORS}"
        raise PreflightFailed(
            f"release {key}: from Harbor {old} to {new} is too far: an upgrade may start from "
            f"{SUPPORTED_MINORS} minor versions before",
            hint=f"upgrade with a bundle of Harbor {step} first"
            if after[0] == before[0]
            else "see Harbor's documentation on migration",
        )


def changed_values(old: Mapping[str, Any], new: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Give a line for each value that is new, gone or other: its path after ``+``, ``-``, ``~``."""
    for key in sorted({*old, *new}, key=str):
        path = f"{at}.{key}" if at else str(key)
        was, will = old.get(key), new.get(key)
        if was == will:
            continue
        if isinstance(was, dict) or isinstance(will, dict):
            yield from changed_values(
                was if isinstance(was, dict) else {}, will if isinstance(will, dict) else {}, path
            )
            if not (isinstance(was or {}, dict) and isinstance(will or {}, dict)):
                yield f"~ {path}"
        elif not _IMAGE.search(path):  # images are counted by themselves
            yield f"{'+' if was is None else '-' if will is None else '~'} {path}"


def changed_images(old: str, new: str) -> tuple[list[str], list[str], list[str]]:
    """Paths of the images that come, go and change between two renderings."""
    before, after = _images(old), _images(new)
    both = before.keys() & after.keys()
    return (
        sorted(after.keys() - both),
        sorted(before.keys() - both),
        sorted(path for path in both if before[path] != after[path]),
    )


def changed_objects(old: str, new: str) -> tuple[list[str], list[str], list[str]]:
    """``Kind/name`` of the objects that come, go and change; hooks are no part of a release."""
    before, after = _objects(old), _objects(new)
    both = before.keys() & after.keys()
    return (
        sorted(after.keys() - both),
        sorted(before.keys() - both),
        sorted(name for name in both if before[name] != after[name]),
    )


def summary(what: str, changes: tuple[list[str], list[str], list[str]]) -> str:
    """One line: how many come, go and change, with the names of those that come and go."""
    parts = []
    for names, word in zip(changes, ("added", "removed", "changed"), strict=True):
        shown = names if word != "changed" or len(names) <= _SHOWN else names[:_SHOWN]
        more = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
        parts.append(f"{len(names)} {word}" + (f" ({', '.join(shown)}{more})" if names else ""))
    return f"{what}: {', '.join(parts)}"


def _images(rendered: str) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for image in find_images(rendered):
        name = image.reference.path
        found[name] = found.get(name, frozenset()) | {str(image.reference)}
    return found


def _objects(rendered: str) -> dict[str, Any]:
    found = {}
    for _, document in read_objects(rendered):
        if not isinstance(document, dict):
            continue
        metadata = document.get("metadata") or {}
        if "helm.sh/hook" in (metadata.get("annotations") or {}):
            continue
        found[f"{document.get('kind')}/{metadata.get('name')}"] = _without_noise(document)
    return found


def _without_noise(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_noise(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: {k: v for k, v in item.items() if k not in _NOISE}
        if key == "labels" and isinstance(item, dict)
        else _without_noise(item)
        for key, item in value.items()
    }
