"""Chart values: merged as Helm merges them, and checked for keys that the chart doesn't know.

Helm accepts any key and ignores the unknown ones in silence: a misspelt ``expose.tsl`` deploys
without TLS. Most charts (Harbor's too) have no schema, so the chart's default values are taken for
one. They say more than it seems: an empty map or list, ``null`` and ``""`` invite anything, a key
in a comment is an option that is off, and a map that is handed to Kubernetes as it is (annotations,
resources, security contexts) belongs to Kubernetes, which checks it itself.

Pure: no I/O.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from installer.documents import key_path, nearest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

KeyPath = tuple[str, ...]

_COMMENT = re.compile(r"( *)(#+) *(?P<text>.*?)\s*\Z")
_OPTION = re.compile(r"([a-z_][\w./-]*):(?: |\Z)")
_KEY = re.compile(r"( *)[\"']?([A-Za-z_][\w./-]*)[\"']?:(?:\s|\Z)")
_MARGIN = 2
_FREE = re.compile(
    r"(annotations|labels|selector|resources|requests|limits|securitycontext|affinity|"
    r"strategy|parameters|probe|env|environment|envvars|configmap|data)\Z",
    re.IGNORECASE,
)


class UnknownKey(NamedTuple):
    """A key of the user's that the chart doesn't know, and what may have been meant (or "")."""

    path: str
    suggestion: str


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge values files, later ones over earlier ones, as ``helm -f a -f b`` does.

    Maps merge, everything else is replaced. A null stays: it deletes only from the chart's own
    defaults (``coalesce``).
    """
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            before = result.get(key)
            if isinstance(before, dict) and isinstance(value, dict):
                result[key] = merge(before, value)
            else:
                result[key] = merge(value) if isinstance(value, dict) else value
    return result


def coalesce(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Put the user's values over a chart's defaults as Helm does: a null deletes the default."""
    result = dict(defaults)
    for key, value in values.items():
        before = result.get(key)
        if value is None:
            result.pop(key, None)
        elif isinstance(before, dict) and isinstance(value, dict):
            result[key] = coalesce(before, value)
        else:
            result[key] = coalesce({}, value) if isinstance(value, dict) else value
    return result


def unknown_keys(
    values: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    commented: Collection[KeyPath] = (),
) -> list[UnknownKey]:
    """Keys in ``values`` that the chart doesn't know, in the order in which they were written.

    ``defaults`` are the chart's default values with those of its subcharts, ``commented`` the
    result of ``commented_keys`` for them.
    """
    options = frozenset(commented)
    return list(_unknown(values, defaults, defaults, (), options))


def commented_keys(text: str) -> frozenset[KeyPath]:
    """Paths of the keys that stand in comments of a values.yaml: options that are off.

    A comment belongs to the map in which it stands by its indentation. Keys deeper in a
    commented-out block are not listed: they are below one that is.
    """
    found: set[KeyPath] = set()
    stack: list[tuple[int, str]] = []
    block, marks = -1, ""  # column of the key whose commented-out content follows
    for line in text.splitlines():
        if not (comment := _COMMENT.match(line)):
            block = -1
            if match := _KEY.match(line):
                indent = len(match[1])
                stack = [entry for entry in stack if entry[0] < indent]
                stack.append((indent, match[2]))
            continue
        column, content = comment.start("text"), comment["text"]
        if not content or (0 <= block < column and comment[2] == marks):
            continue
        option = _OPTION.match(content)
        block, marks = (column if option or content.startswith("-") else -1), comment[2]
        if option:
            # Where lines are commented out from the margin on, only the text has an indentation.
            margin = not comment[1] and column > _MARGIN
            indent = column - _MARGIN if margin else len(comment[1])
            parents = tuple(name for at, name in stack if at < indent)
            found.add((*parents, option[1]))
    return frozenset(found)


def _unknown(
    values: Mapping[str, Any],
    known: Mapping[str, Any],
    root: Mapping[str, Any],
    path: KeyPath,
    commented: frozenset[KeyPath],
) -> Iterator[UnknownKey]:
    for key, value in values.items():
        here = (*path, key)
        if here in commented and key not in known:
            continue
        if key not in known:
            yield UnknownKey(key_path(here), _suggestion(key, known, root, path, commented))
            continue
        default = known[key]
        # A map as it is written for Kubernetes, or one that the chart leaves empty, takes any key.
        invited = not isinstance(default, dict) or not default or _FREE.search(key)
        if isinstance(value, dict) and not invited:
            yield from _unknown(value, default, root, here, commented)


def _suggestion(
    key: str,
    known: Mapping[str, Any],
    root: Mapping[str, Any],
    path: KeyPath,
    commented: frozenset[KeyPath],
) -> str:
    siblings = [*known, *(entry[-1] for entry in commented if entry[:-1] == path)]
    if meant := nearest(key, siblings):
        return key_path((*path, meant))
    # Moved rather than misspelt: the same name further down, or in one other place only.
    below = [found for found in _paths(known, path) if found[-1] == key]
    anywhere = [found for found in _paths(root, ()) if found[-1] == key]
    for candidates in (below, anywhere):
        if len(candidates) == 1:
            return key_path(candidates[0])
    return ""


def _paths(values: Mapping[str, Any], path: KeyPath) -> Iterator[KeyPath]:
    for key, value in values.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from _paths(value, (*path, key))
