"""Under which repository and tag each content of a bundle is found at the site.

An image keeps its path without its host: ``docker.io/goharbor/harbor-core:v2.14.4`` is
``goharbor/harbor-core:v2.14.4`` on the seed registry, which is also what containerd asks a mirror
of docker.io for. Charts, tools and files have names of their own. What upstream says of an image
or a chart (signatures, SBOMs) lies in its repository, as it did there. The same functions name
things for ``serve``, for a push into a registry and for the overlay, so that they can't disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from installer.errors import InvalidInput
from installer.oci.reference import Reference

if TYPE_CHECKING:
    from installer.bundle.manifest import Content, Manifest


@dataclass(frozen=True, slots=True)
class Named:
    """A content of the bundle with its repository (no host) and tag on the seed registry.

    ``tag`` is None for what is only ever named by its digest. ``upstream`` is the repository that
    it has with its host upstream, "" for what has none.
    """

    repository: str
    tag: str | None
    content: Content
    upstream: str = ""


def chart_tag(version: str) -> str:
    """A chart's version as a tag: ``+`` is not allowed in tags (Helm writes ``_``)."""
    return version.replace("+", "_")


def catalog(manifest: Manifest) -> tuple[Named, ...]:
    """Everything in the bundle by its name at the site, sorted.

    Raises InvalidInput when two contents claim one name, which ``bundler lock`` refuses as well.
    """
    names: list[Named] = []
    for image in manifest.images:
        reference = Reference.parse(image.reference)
        tag = reference.tag or (None if reference.digest else "latest")
        names.append(Named(reference.path, tag, image, reference.repository))
        names += [
            Named(reference.path, a.tag or None, a, reference.repository) for a in image.accessories
        ]
    for chart in manifest.charts:
        names.append(Named(f"charts/{chart.name}", chart_tag(chart.version), chart))
        names += [Named(f"charts/{chart.name}", a.tag or None, a) for a in chart.accessories]
    names += [Named(f"tools/{t.name}", t.platform.replace("/", "-"), t) for t in manifest.tools]
    for database in manifest.databases:
        reference = Reference.parse(database.reference)
        names.append(
            Named(reference.path, reference.tag or "latest", database, reference.repository)
        )
    names += [Named(f"files/{f.name.lower()}", "latest", f) for f in manifest.files]
    seen: dict[tuple[str, str], str] = {}
    for named in names:
        if named.tag is None:
            continue
        key = (named.repository, named.tag)
        if seen.setdefault(key, named.content.digest) != named.content.digest:
            raise InvalidInput(
                f"two different contents would be {named.repository}:{named.tag} at the site",
                hint="leave one of them out; hosts are not part of a name at the site",
            )
    order = {(n.repository, n.tag or "", n.content.digest, n.upstream): n for n in names}
    return tuple(order[key] for key in sorted(order))
