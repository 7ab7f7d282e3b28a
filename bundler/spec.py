"""The spec: what a person wants in the bundle, read from ``bundle.yaml``.

The file's form is checked by types (bundler/spec_document.py), its sense here: names that point
nowhere, things said twice, sources that can't be meant. All of it is found before the network is
touched, and each error says file and line. ``Spec.digest`` stands for the meaning of the spec, so
that a lock can tell whether it still belongs to it: comments, order of keys and formatting don't
count, the content of values files and of local charts, tools and files does.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import msgspec

from bundler.platforms import named
from bundler.sources.chart_folder import CHART_FILE, pack_chart
from bundler.spec_document import BundleSpec, ImageSource, scheme_of
from installer.bundle.digest import Digest
from installer.documents import Document, load_document, nearest, read_document
from installer.errors import InvalidInput
from installer.oci.cosign import SigningIdentity
from installer.oci.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from bundler.spec_document import Chart, Tool, Verify

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?\Z")
_FILE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?\Z")
_KUBE_VERSION = re.compile(r"v?1\.\d{1,3}(?:\.\d{1,3})?\Z")
_AGE = re.compile(r"[1-9]\d{0,4}[hd]\Z")


@dataclass(frozen=True)
class Spec:
    """A spec that makes sense; all paths in it can be read."""

    path: Path
    document: BundleSpec
    profiles: dict[str, dict[str, Any]] = field(repr=False)
    """Values of each profile; ``default`` is always there."""
    images: dict[Reference, ImageSource]
    identities: dict[str, SigningIdentity]
    """Public keys by the path that the spec has."""

    def signer(self, reference: Reference) -> SigningIdentity | None:
        """Who has to have signed an image: as its entry says, else the first rule that fits."""
        entry = self.images.get(reference)
        if entry and entry.verify and entry.verify.key:
            return self.identities[entry.verify.key]
        for rule in self.document.verify.images:
            if matches(reference, rule.match):
                return self.identities[rule.key]
        return None

    def platforms(self, reference: Reference) -> tuple[str, ...]:
        """An image's platforms: of its entry, the first rule that fits, or else the bundle."""
        entry = self.images.get(reference)
        if entry and entry.platforms:
            return entry.platforms
        for rule in self.document.image_platforms:
            if matches(reference, rule.match):
                return rule.platforms
        return self.document.platforms

    def identity(self, verify: Verify | None) -> SigningIdentity | None:
        """The public key of an entry's ``verify``."""
        return self.identities[verify.key] if verify and verify.key else None

    @classmethod
    def load(cls, path: Path) -> Spec:
        """Read and check ``bundle.yaml``; raises InvalidInput with file and line."""
        document = load_document(
            path, BundleSpec, hint="`bundler init harbor` writes a spec to start from"
        )
        return _Sense(path, document).spec()

    def local(self, source: str) -> Path | None:
        """Path of a local source, relative to the spec's folder; None for an address."""
        return None if scheme_of(source) else self.path.parent / source

    def digest(self) -> Digest:
        """Digest of what the spec means, with the content of all local files.

        Reads these files; raises InvalidInput for one that has become unreadable.
        """
        meaning = msgspec.to_builtins(self.document)
        meaning["profiles"] = self.profiles
        meaning["images"] = [
            msgspec.to_builtins(source) | {"reference": str(image)}
            for image, source in self.images.items()
        ]
        meaning["tools"] = [
            msgspec.structs.asdict(tool) | {"sha256": str(tool.digest)}
            for tool in self.document.tools
        ]
        sources = [chart.source for chart in self.document.charts]
        sources += [tool.source for tool in self.document.tools]
        sources += [file.source for file in self.document.files]
        sources += [*self.identities]
        sources += [image.source for image in self.images.values() if image.source]
        sources += [c.verify.keyring for c in self.document.charts if c.verify and c.verify.keyring]
        meaning["local"] = {
            source: _sha256(path) for source in sources if (path := self.local(source)) is not None
        }
        return Digest.of(msgspec.json.encode(meaning, order="deterministic"))


class _Sense:
    """Checks that need more than one key, or the file system."""

    def __init__(self, path: Path, document: Document[BundleSpec]) -> None:
        self.path = path
        self.document = document
        self.written = document.value
        self.identities: dict[str, SigningIdentity] = {}

    def fail(self, where: tuple[str | int, ...], text: str, hint: str = "") -> InvalidInput:
        return InvalidInput(f"{self.document.where(*where)}: {text}", hint=hint)

    def spec(self) -> Spec:
        written = self.written
        self.name(("name",), written.name)
        self.name(("channel",), written.channel)
        if written.kube_version and not _KUBE_VERSION.match(written.kube_version):
            raise self.fail(
                ("kubeVersion",), "kubeVersion is not a version", "write 1.34 or 1.34.4"
            )
        self.platforms()
        profiles = self.profiles()
        for index, chart in enumerate(written.charts):
            self.chart(("charts", index), chart, profiles)
        for index, tool in enumerate(written.tools):
            self.tool(("tools", index), tool)
        self.files()
        self.databases()
        images = self.images()
        self.unique([chart.name for chart in written.charts], "charts")
        # Programs for several platforms share a name: which one each is for, the lock finds out.
        tools = [f"{t.name} of {t.source}, {t.member or 'itself'}" for t in written.tools]
        self.unique(tools, "tools")
        self.unique([database.kind for database in written.databases], "databases")
        self.unique([file.name for file in written.files], "files")
        if written.charts and not any(tool.name == "helm" for tool in written.tools):
            hint = "the site deploys with the Helm that the bundle brings: add it under tools"
            raise self.fail(("charts",), "there are charts, but no tool named helm", hint)
        self.rules()
        return Spec(self.path, written, profiles, images, self.identities)

    def rules(self) -> None:
        for index, rule in enumerate(self.written.verify.images):
            self.key(("verify", "images", index, "key"), rule.key)
        for index, exclude in enumerate(self.written.exclude):
            if not exclude.reason.strip():
                raise self.fail(("exclude", index, "reason"), "say why it stays out")

    def files(self) -> None:
        for index, file in enumerate(self.written.files):
            where = ("files", index)
            if not _FILE_NAME.match(file.name):
                raise self.fail((*where, "name"), f"{file.name[:200]!r} is no plain file name")
            if scheme_of(file.source):
                raise self.fail(
                    (*where, "source"), "a file is taken from this machine, not fetched"
                )
            self.file((*where, "source"), file.source)

    def databases(self) -> None:
        for index, database in enumerate(self.written.databases):
            at = ("databases", index, "source")
            if self.reference(at, database.source).version == "latest":
                hint = "trivy-db has tag 2, trivy-java-db 1, trivy-checks 1"
                raise self.fail(at, f"{database.source}: say which tag", hint)
            if not _AGE.match(database.max_age):
                hint = "a number with h or d: 36h, 7d"
                raise self.fail(("databases", index, "maxAge"), "maxAge is no age", hint)
            self.verify(("databases", index), database.verify)

    def images(self) -> dict[Reference, ImageSource]:
        found = []
        for index, image in enumerate(self.written.images):
            source = ImageSource(reference=image) if isinstance(image, str) else image
            self.verify(("images", index), source.verify)
            self.unique(source.platforms, "images", index, "platforms")
            if source.source and not source.source.startswith("docker://"):
                self.scheme(("images", index, "source"), source.source, ("docker",))
                self.archive(("images", index, "source"), source.source)
            if source.source and source.verify:
                hint = "signatures are found in registries"
                raise self.fail(("images", index, "verify"), "an image on this machine", hint)
            found.append((self.reference(("images", index), source.reference), source))
        self.unique([str(reference) for reference, _ in found], "images")
        return dict(found)

    def archive(self, where: tuple[str | int, ...], source: str) -> None:
        if not (self.path.parent / source).is_dir():
            self.file(where, source)
        elif not (self.path.parent / source / "index.json").is_file():
            raise self.fail(where, f"{source}: is no OCI image layout: it has no index.json")

    def verify(
        self, where: tuple[str | int, ...], verify: Verify | None, *, chart: str = ""
    ) -> None:
        if verify is None:
            return
        at = (*where, "verify")
        if (verify.key is None) == (verify.keyring is None):
            raise self.fail(at, "verify needs a key or a keyring, one of them")
        if verify.key is not None:
            if chart and chart != "oci":
                hint = "a chart repository has no place for them: name a keyring, or a sha256"
                raise self.fail(at, "cosign's signatures are of charts in registries", hint)
            self.key((*at, "key"), verify.key)
        elif not chart:
            raise self.fail(at, "a keyring is for charts", "name a `key`, as cosign.pub")
        else:
            self.file((*at, "keyring"), verify.keyring or "")

    def key(self, where: tuple[str | int, ...], source: str) -> None:
        path = self.file(where, source)
        try:
            self.identities[source] = SigningIdentity.parse(path.read_bytes(), source)
        except InvalidInput as error:
            raise self.fail(where, error.message, error.hint) from error
        except OSError as error:
            raise self.fail(where, f"{source}: {error.strerror}") from error

    def name(self, where: tuple[str | int, ...], name: str) -> None:
        if not _NAME.match(name):
            hint = "lower-case letters, digits, and . _ - between them, at most 63"
            raise self.fail(where, f"{name[:200]!r} can't be a name", hint)

    def unique(self, names: Sequence[str], *where: str | int) -> None:
        for index, name in enumerate(names):
            if name in names[:index]:
                first = self.document.where(*where, names.index(name)).rpartition(":")[2]
                raise self.fail((*where, index), f"{name} is there twice, first in line {first}")

    def platforms(self) -> None:
        if not named(self.written.platforms):
            hint = "name these as well, images and tools have to be for them: [linux/amd64, all]"
            raise self.fail(("platforms",), "`all` does not say what the site's nodes are", hint)
        self.unique(self.written.platforms, "platforms")
        for index, rule in enumerate(self.written.image_platforms):
            self.unique(rule.platforms, "imagePlatforms", index, "platforms")

    def profiles(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {"default": {}}
        for name, profile in self.written.profiles.items():
            where = ("profiles", name)
            self.name(where, name)
            if profile is None:
                found[name] = {}
            elif profile.values is not None and profile.values_file is not None:
                raise self.fail(where, f"profile {name} has values and a valuesFile: keep one")
            elif profile.values_file is not None:
                path = self.file((*where, "valuesFile"), profile.values_file)
                found[name] = read_document(path, dict[str, Any])
            else:
                found[name] = profile.values or {}
        return found

    def chart(self, where: tuple[str | int, ...], chart: Chart, profiles: Iterable[str]) -> None:
        self.name((*where, "name"), chart.name)
        self.scheme((*where, "source"), chart.source, ("https", "http", "oci"))
        self.verify(where, chart.verify, chart=chart.kind)
        try:
            _ = chart.digest
        except InvalidInput as error:
            raise self.fail((*where, "sha256"), error.message, "64 hex digits") from error
        if chart.kind == "file":
            self.chart_file((*where, "source"), chart.source)
            if chart.version is not None:
                text = f"chart {chart.name} is a local file: its version is in it"
                raise self.fail((*where, "version"), text, "remove the key version")
        elif chart.version is None:
            text = f"chart {chart.name} needs a version"
            raise self.fail(where, text, "an exact one, as `version: 1.19.1`")
        elif not re.fullmatch(r"v?\d+\.\d+\.\d+[0-9A-Za-z.+-]*", chart.version):
            text = f"{chart.version[:100]!r} is no exact version"
            raise self.fail((*where, "version"), text, "ranges move: write one, as 1.19.1")
        elif chart.source.endswith(".tgz"):
            hint = "give the repository's address, or download the archive and give its path"
            raise self.fail((*where, "source"), f"{chart.source} is an archive", hint)
        if not chart.profiles:
            raise self.fail((*where, "profiles"), f"chart {chart.name} has no profile to render")
        for index, profile in enumerate(chart.profiles):
            if profile not in profiles:
                meant = nearest(profile, profiles)
                hint = f"did you mean {meant!r}?" if meant else f"known: {', '.join(profiles)}"
                text = f"chart {chart.name}: there is no profile {profile[:100]!r}"
                raise self.fail((*where, "profiles", index), text, hint)

    def tool(self, where: tuple[str | int, ...], tool: Tool) -> None:
        self.name((*where, "name"), tool.name)
        if tool.member is not None and (
            tool.member.startswith("/") or ".." in tool.member.split("/") or not tool.member
        ):
            raise self.fail((*where, "member"), f"{tool.member[:200]!r} is no path in an archive")
        try:
            _ = tool.digest
        except InvalidInput as error:
            raise self.fail((*where, "sha256"), error.message, "64 hex digits") from error
        if tool.sha256 is not None and tool.sha256_from is not None:
            raise self.fail(where, f"tool {tool.name} has sha256 and sha256From: keep one")
        self.scheme((*where, "source"), tool.source, ("https", "http"))
        if not scheme_of(tool.source):
            self.file((*where, "source"), tool.source)
            if tool.sha256_from is not None:
                raise self.fail((*where, "sha256From"), "sha256From is for sources to download")
        elif tool.sha256_from is not None:
            # Fetched over plain HTTP, a checksum protects from nothing.
            if scheme_of(tool.sha256_from) != "https":
                raise self.fail((*where, "sha256From"), "sha256From must be an https:// address")
        elif tool.sha256 is None:
            hint = "or sha256From, the address of the published checksum, which the lock will pin"
            raise self.fail(where, f"tool {tool.name} is downloaded: it needs a sha256", hint)

    def scheme(self, where: tuple[str | int, ...], source: str, known: tuple[str, ...]) -> None:
        scheme = scheme_of(source)
        if scheme and scheme not in known:
            text = f"{scheme}:// is no source that is known here"
            raise self.fail(where, text, f"{', '.join(k + '://' for k in known)} or a path")

    def reference(self, where: tuple[str | int, ...], text: str) -> Reference:
        try:
            return Reference.parse(text)
        except InvalidInput as error:
            raise self.fail(where, error.message, error.hint) from error

    def chart_file(self, where: tuple[str | int, ...], source: str) -> None:
        if not (self.path.parent / source / CHART_FILE).is_file():
            self.file(where, source)

    def file(self, where: tuple[str | int, ...], source: str) -> Path:
        path = self.path.parent / source
        if not source or not path.is_file():
            hint = f"paths are relative to {self.path.parent}/"
            raise self.fail(where, f"there is no file {source[:300]!r}", hint)
        return path


def matches(reference: Reference, pattern: str) -> bool:
    """Whether a pattern (``*``, ``?``) is of this image: of its repository, or all of it."""
    return any(fnmatchcase(name, pattern) for name in (reference.repository, str(reference)))


def _sha256(path: Path) -> str:
    if (path / CHART_FILE).is_file():
        return Digest.of(pack_chart(path)).hex
    try:
        # A layout is named by its index: everything below has its digest in there.
        with (path / "index.json" if path.is_dir() else path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InvalidInput(f"{path}: can't be read: {error.strerror or error}") from error
