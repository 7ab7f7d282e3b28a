"""``site.yaml``: what is particular to one installation, typed strictly.

Three questions, asked in the order in which they come up on the site: which cluster, how do its
nodes get the images, what is installed there. Releases are a list because their order matters
(cert-manager before Harbor); Harbor is the one with a section of its own. A file that can't work
is refused before anything runs: unknown keys with the nearest known one, and everything with its
line.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import msgspec

from installer.documents import Document, key_path, load_document
from installer.errors import InvalidInput
from installer.oci.reference import Reference
from installer.site.harbor import Harbor, problems
from installer.site.section import PORTS, LocalFile, LocalFolder, Strict, absolute, split_address

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,51}[a-z0-9])?\Z")
"""A DNS label that also fits Helm's limit for release names (53)."""


class Cluster(Strict, frozen=True):
    """How the API server is reached; an empty ``context`` is the kubeconfig's current one."""

    kubeconfig: LocalFile
    context: str = ""


class Serve(Strict, frozen=True):
    """The installer serves the bundle itself.

    ``listen`` is host:port on this machine, ``address`` the host:port that nodes reach it under.
    ``service`` says who keeps it running: systemd, or a process in the background (``none``);
    ``auto`` takes systemd where it runs the machine.
    """

    listen: str
    address: str
    tls: bool = True
    service: Literal["auto", "systemd", "none"] = "auto"


class Push(Strict, frozen=True):
    """A registry of the site takes the bundle's content: host:port, with a prefix if wanted."""

    registry: str
    plain_http: bool = msgspec.field(default=False, name="plainHTTP")
    ca: LocalFile = ""
    username: str = ""
    password_file: LocalFile = ""


class Seed(Strict, frozen=True):
    """The registry that nodes pull from: exactly one of the two ways."""

    serve: Serve | None = None
    push: Push | None = None


class Nodes(Strict, frozen=True):
    """How nodes learn of the seed registry: containerd's folder of hosts, if this is a node."""

    containerd_certs_dir: LocalFolder = ""


class Release(Strict, frozen=True):
    """A chart of the bundle, installed under a name; ``timeout`` in seconds.

    ``name`` and ``namespace`` are the chart's name unless given; ``version`` is needed only when
    the bundle has several of the chart. ``profile`` is one of the chart's profiles in the bundle.
    """

    chart: str
    version: str = ""
    name: str = ""
    namespace: str = ""
    profile: str = ""
    values: dict[str, Any] = msgspec.field(default_factory=dict)
    timeout: int = 900
    harbor: Harbor | None = None

    @property
    def release_name(self) -> str:
        """Helm's name of the release."""
        return self.name or self.chart

    @property
    def release_namespace(self) -> str:
        """The namespace that the release lives in."""
        return self.namespace or self.chart

    @property
    def key(self) -> str:
        """What tells two releases of a site apart."""
        return f"{self.release_namespace}/{self.release_name}"


class Site(Strict, frozen=True):
    """One installation. ``channel`` empty: the site follows the channel of its first bundle."""

    api_version: Literal["site/v1"]
    kind: Literal["Site"]
    name: str
    cluster: Cluster
    seed: Seed
    releases: tuple[Release, ...]
    channel: str = ""
    nodes: Nodes = Nodes()

    @property
    def image_prefix(self) -> str:
        """What stands before an image's path at this site: host:port, or host:port/prefix."""
        if self.seed.serve is not None:
            return self.seed.serve.address
        return self.seed.push.registry if self.seed.push is not None else ""


def read_site(path: Path) -> Site:
    """Read and check site.yaml; paths in it become absolute, seen from the file's folder.

    Raises InvalidInput with file, line and key.
    """
    document = load_document(path, Site, hint="`installer site init` writes one to start from")
    site = document.value
    _check(document)
    return absolute(site, path.absolute().parent)


def _check(document: Document[Site]) -> None:
    """What types can't say; each complaint with its line."""
    site = document.value
    _check_name(document, site.name, ("name",))
    if (site.seed.serve is None) == (site.seed.push is None):
        raise InvalidInput(
            f"{document.where('seed')}: seed: give exactly one of serve and push",
            hint="serve needs nothing but this machine; push needs a registry that is there",
        )
    if not site.cluster.kubeconfig:
        raise InvalidInput(f"{document.where('cluster')}: cluster.kubeconfig: it is empty")
    _check_seed(document)
    if not site.releases:
        raise InvalidInput(f"{document.where('releases')}: releases: nothing to install")
    keys: set[str] = set()
    for index, release in enumerate(site.releases):
        at = ("releases", index)
        _check_name(document, release.release_name, (*at, "name"))
        _check_name(document, release.release_namespace, (*at, "namespace"))
        if release.key in keys:
            raise InvalidInput(
                f"{document.where(*at)}: releases[{index}]: {release.key} is there twice",
                hint="give each release of a namespace its own name",
            )
        keys.add(release.key)
        if release.timeout <= 0:
            raise InvalidInput(
                f"{document.where(*at, 'timeout')}: releases[{index}].timeout: seconds, above 0"
            )
        if release.chart == "harbor" and release.harbor is None:
            raise InvalidInput(
                f"{document.where(*at)}: releases[{index}]: the section harbor is missing",
                hint="write `harbor: {externalURL: https://harbor.example}`",
            )
        if release.harbor is not None:
            _check_url(document, release.harbor.external_url, index)
            for path, message, hint in problems(release.harbor):
                key = key_path(("harbor", *path))
                raise InvalidInput(
                    f"{document.where(*at, 'harbor', *path)}: releases[{index}].{key}: {message}",
                    hint=hint,
                )


def _check_seed(document: Document[Site]) -> None:
    serve, push = document.value.seed.serve, document.value.seed.push
    checks: list[tuple[str, Callable[[], object]]] = []
    if serve is not None:
        checks = [
            ("listen", lambda: split_address(serve.listen)),
            ("address", lambda: split_address(serve.address)),
            ("address", lambda: Reference.parse(f"{serve.address}/x")),
        ]
    if push is not None:
        checks = [("registry", lambda: _check_registry(push.registry))]
        if bool(push.username) != bool(push.password_file):
            raise InvalidInput(
                f"{document.where('seed', 'push')}: username and passwordFile belong together"
            )
    way = "serve" if serve is not None else "push"
    for key, check in checks:
        try:
            check()
        except InvalidInput as error:
            at = document.where("seed", way, key)
            raise InvalidInput(f"{at}: {key}: {error.message}", hint=error.hint) from None


def _check_registry(text: str) -> None:
    host, _, prefix = text.partition("/")
    split_address(host if ":" in host else f"{host}:443")
    if Reference.parse(f"{text}/x").host != host or prefix.endswith("/"):
        raise InvalidInput(
            f"not a registry: {text[:100]!r}", hint="for example registry.site:5000/airgap"
        )


def _check_name(document: Document[Site], name: str, path: tuple[str | int, ...]) -> None:
    if not _NAME.match(name):
        raise InvalidInput(
            f"{document.where(*path)}: {name[:80]!r} is not a name",
            hint="lower-case letters, digits and hyphens, at most 53, as Kubernetes wants it",
        )


def _check_url(document: Document[Site], url: str, index: int) -> None:
    at = document.where("releases", index, "harbor", "externalURL")
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
        good = good and (parts.port is None or parts.port in PORTS)
    except ValueError:
        good = False
    if not good or parts.username or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise InvalidInput(
            f"{at}: externalURL: not the URL of a host: {url[:100]!r}",
            hint="for example https://harbor.example or http://10.0.0.5:30002",
        )
