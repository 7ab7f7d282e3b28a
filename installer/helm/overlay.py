"""Chart values that make a chart take its images from the seed registry, by digest.

Charts have no common way to say "take all images from there", so the overlay is derived from the
chart's own values: wherever they describe an image that the bundle has, the description is replaced
by one that renders to ``SEED/path:tag@sha256:…``. Three forms are known:

1. a map with ``repository`` and ``tag`` (Harbor, most charts), perhaps with ``registry`` and
   ``digest`` beside (Bitnami), perhaps with a prefix elsewhere (csi-driver-nfs: ``baseRepo``);
2. a map with only ``name``, host and namespace being elsewhere (cert-manager);
3. text under ``image`` (or ``…Image``), as in init containers that a user adds.

What the values don't describe can't be replaced here. That is no risk but an error: the caller
renders again and refuses to deploy if any image is left that the bundle doesn't have.

Pure: no I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from installer.errors import InvalidInput
from installer.helm.values import coalesce, merge
from installer.oci.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Scopes = tuple[Mapping[str, Any], ...]
    """The maps on the way from the values' root to an image: prefixes may be found in them."""

_HOSTS = ("imageRegistry", "baseRepo", "baseRepository", "registry")
_NAMESPACES = ("imageNamespace",)


def image_overlay(
    defaults: Mapping[str, Any],
    values: Mapping[str, Any],
    mapping: Callable[[Reference], Reference | None],
    app_version: str = "",
) -> dict[str, Any]:
    """Values to put over ``values`` so that images come from where ``mapping`` says.

    ``defaults`` and ``values`` are the chart's and the user's; ``app_version`` stands for missing
    tags. ``mapping`` gives for an image its place in the seed registry with tag and digest, or None
    for one that the bundle doesn't have.
    """
    walk = _Walk(mapping, app_version)
    merged = coalesce(defaults, values)
    overlay = walk.map(merged, (merged,))
    # A registry for all images would be put before the one that was just written.
    shared = merged.get("global")
    if walk.registry and isinstance(shared, dict) and shared.get("imageRegistry"):
        overlay = merge(overlay, {"global": {"imageRegistry": walk.registry}})
    return overlay


class _Walk:
    def __init__(self, mapping: Callable[[Reference], Reference | None], app_version: str) -> None:
        self.mapping = mapping
        self.app_version = app_version
        self.registry = ""

    def map(self, values: Mapping[str, Any], scopes: Scopes) -> dict[str, Any]:
        overlay: dict[str, Any] = {}
        for key, value in values.items():
            changed = self.value(key, value, scopes)
            if changed is not None:
                overlay[key] = changed
        return overlay

    def value(self, key: str, value: Any, scopes: Scopes) -> Any:
        """What to put over the value, or None if there is nothing to change in it."""
        if isinstance(value, str):
            return self.text(value) if key == "image" or key.endswith("Image") else None
        if isinstance(value, list):
            # Helm replaces a list as a whole, so that the rest of it is repeated here.
            changed = [self.value("", item, scopes) for item in value]
            if all(item is None for item in changed):
                return None
            return [
                merge(old, new) if isinstance(new, dict) else old if new is None else new
                for old, new in zip(value, changed, strict=True)
            ]
        if not isinstance(value, dict):
            return None
        image = self.image(key, value, scopes)
        return merge(self.map(value, (*scopes, value)), image) or None

    def text(self, text: str) -> str | None:
        try:
            reference = Reference.parse(text)
        except InvalidInput:
            return None
        target = self.mapping(reference)
        return str(target) if target else None

    def image(self, key: str, value: Mapping[str, Any], scopes: Scopes) -> dict[str, Any]:
        for reference in self.candidates(key, value, scopes):
            if target := self.mapping(reference):
                return self.described(target, value)
        return {}

    def described(self, target: Reference, value: Mapping[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = {"repository": target.repository}
        if "registry" in value:
            result = {"registry": target.host, "repository": target.path}
            self.registry = target.host
        digest = str(target.digest) if target.digest else ""
        if "digest" in value:
            return result | {"tag": target.tag or "", "digest": digest}
        # Templates print ``repository:tag`` and nothing else: the digest goes with the tag.
        tag = f"{target.tag or 'latest'}@{digest}" if digest else target.tag
        return result | {"tag": tag}

    def candidates(self, key: str, value: Mapping[str, Any], scopes: Scopes) -> Iterator[Reference]:
        """References that the chart may render for this map, the most likely one first."""
        repository, name = value.get("repository"), value.get("name")
        if isinstance(repository, str) and repository:
            names = list(_prefixed(repository, value, scopes))
        elif isinstance(name, str) and name and "repository" in value:
            hosts, namespaces = _words(scopes, _HOSTS), _words(scopes, _NAMESPACES)
            names = ["/".join((*hosts[:1], *namespaces[:1], name))]
        elif key.lower().endswith("image") and isinstance(name, str) and "tag" in value:
            names = list(_prefixed(name, value, scopes))
        else:
            return
        tag, digest = value.get("tag"), value.get("digest")
        tags = [str(tag)] if tag not in (None, "") else self._implied_tags()
        for full in names:
            for text in tags:
                suffix = f"@{digest}" if digest and "@" not in text else ""
                try:
                    yield Reference.parse(f"{full}:{text}{suffix}")
                except InvalidInput:
                    continue

    def _implied_tags(self) -> list[str]:
        if not self.app_version:
            return ["latest"]
        return [self.app_version, f"v{self.app_version.removeprefix('v')}", "latest"]


def _prefixed(repository: str, value: Mapping[str, Any], scopes: Scopes) -> Iterator[str]:
    """The repository with the registry that stands beside it, above it, or in ``global``."""
    shared = scopes[0].get("global")
    hosts = [
        shared.get("imageRegistry") if isinstance(shared, dict) else None,
        value.get("registry"),
    ]
    if repository.startswith("/"):
        hosts += _words(scopes, _HOSTS)
    yield from (
        f"{host.rstrip('/')}/{repository.lstrip('/')}"
        for host in hosts
        if isinstance(host, str) and host
    )
    yield repository.lstrip("/")


def _words(scopes: Scopes, keys: tuple[str, ...]) -> list[str]:
    """What stands under one of the keys in the maps around, the nearest first."""
    found = [scope.get(key) for scope in reversed(scopes) for key in keys]
    return [word.rstrip("/") for word in found if isinstance(word, str) and word]
