"""Newer vulnerability databases for a site that runs: a bundle that has nothing else.

It is signed, checked and remembered as any other, with serials of its own. The seed registry gets
the databases, where the scanner looks for them; then the scanner is asked which one it has, and has
to find what is planted. One that is empty, of another schema or spoilt by a failed download passes
for a database until then: it is taken away from the scanner, which fetches the good one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from installer.bundle.digest import CHUNK
from installer.deploy.harbor_access import access_to
from installer.deploy.kubectl import Kubectl
from installer.deploy.push import PushBundle
from installer.deploy.seed import DATABASES, SERVED, ServeBundle, ServedBundle, key_file
from installer.errors import AcceptanceFailed, AirgapError, PreflightFailed
from installer.harbor.vulnerability_data import (
    found_planted,
    repositories,
    scan_planted,
    scanner_data,
)
from installer.site.private import read_file, write_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from installer.bundle.manifest import Manifest
    from installer.bundle.parts import BundleFile
    from installer.deploy.plan import Advance, Step
    from installer.deploy.request import Request
    from installer.site.model import Release, Serve
    from installer.site.state import State

_PATIENCE = 900.0
"""Seconds for a scan: a large database comes before it."""
_CACHE = "/home/scanner/.cache/trivy"
_PROVEN = "databases-proven.json"
_TOLD = "databases.json"


class _Told(msgspec.Struct, frozen=True):
    """Where the scanner looks for each kind of database, without the registry's host."""

    repositories: dict[str, str] = {}


class _Proven(msgspec.Struct, frozen=True):
    """Digest of the database that a planted finding was found with, by release."""

    releases: dict[str, str] = {}


def remember_names(state: State, manifest: Manifest) -> None:
    """Keep under which names Harbor is told to look for databases; the state is held."""
    told = _Told(repositories(manifest.databases, ""))
    if state.read(_TOLD, _Told) != told:
        state.write(_TOLD, told)


def check_site(request: Request) -> None:
    """Refuse what can't be applied to this site; raises PreflightFailed.

    Databases have to have the names that Harbor was told when it was installed.
    """
    state, site = request.state, request.site
    if not state.serials.channel:
        raise PreflightFailed(
            f"{state.folder}: nothing was installed from here",
            hint="install Harbor first, from a bundle that has databases as well; see --state",
        )
    if not any(map(_scans, site.releases)):
        raise PreflightFailed("site.yaml: there is no Harbor with its own scanner")
    told = (state.read(_TOLD, _Told) or _Told()).repositories
    for kind, name in repositories(request.bundle.manifest.databases, "").items():
        if told.get(kind) != name:
            looks = f"looks for it as {told[kind][1:]}" if kind in told else "is told of none"
            raise PreflightFailed(
                f"{kind} is {name[1:]}, and Harbor's scanner {looks}",
                hint="take `databases` of this bundle's spec from that of Harbor's bundle, and "
                "run Harbor's bundle first if it had none",
            )
    if site.seed.serve is not None:
        _check_served(request)


def _check_served(request: Request) -> None:
    """Refuse what the seed registry couldn't serve beside Harbor's bundle."""
    state = request.state
    served = state.read(SERVED, ServedBundle)
    if served is None:
        raise PreflightFailed(
            f"{state.folder}: it is not known which bundle the seed registry serves",
            hint="run Harbor's own bundle once more, then this one",
        )
    if read_file(key_file(state, request.key)) != request.key.data:
        raise PreflightFailed(
            "the seed registry serves bundles that are signed with another key",
            hint="sign both with one key, or run Harbor's bundle of the new key first",
        )
    lacking = {one.path for one in request.bundle.manifest.required}
    for base in request.bundle.bases:
        if str(base.digest) in {served.digest, *(one.digest for one in served.bases)}:
            lacking -= {member.path for member in base.manifest.members}
    if lacking:
        raise PreflightFailed(
            f"{request.bundle.path}: a delta, {len(lacking)} blobs of which Harbor's bundle lacks",
            hint="the seed registry serves it beside Harbor's bundle and nothing else: build it "
            "whole, or since that bundle, and give that with --base",
        )


def steps_of(request: Request) -> list[Step]:
    """What is done after the bundle was verified."""
    serve, push = request.site.seed.serve, request.site.seed.push
    steps: list[Step] = []
    if serve is not None:
        steps.append(ServeDatabases(request, serve))
    elif push is not None:
        steps.append(PushBundle(push, request.bundle, request.meter))
    return steps + [RenewDatabase(request, one) for one in request.site.releases if _scans(one)]


def _scans(release: Release) -> bool:
    trivy = release.values.get("trivy")
    enabled = not isinstance(trivy, dict) or trivy.get("enabled") is not False
    return release.harbor is not None and enabled


class ServeDatabases:
    """Serve the bundle beside the one that Harbor was installed from, out of the state folder."""

    name = "seed"

    def __init__(self, request: Request, serve: Serve) -> None:
        self._bundle = request.bundle
        self._state = request.state
        self._meter = request.meter
        self._serve = serve
        self.sentence = f"Serve the new databases beside the bundle at {serve.address}"
        main = self._state.read(SERVED, ServedBundle) or ServedBundle("", "")
        how = {"command": request.command, "key": request.key}
        self._seed = ServeBundle(request.site, serve, self._state, main, **how)

    def check(self) -> bool:
        """Whether they are served already."""
        kept = self._state.read(f"seed/{DATABASES}.json", ServedBundle)
        return (
            kept is not None
            and kept.digest == str(self._bundle.digest)
            and (self._state.path("seed") / DATABASES).is_file()
            and self._seed.check()
        )

    def apply(self) -> str:
        """Copy the bundle, so that its medium can go, and serve it; raises as ServeBundle does."""
        folder = self._state.subfolder("seed")
        with self._meter("copying", self._bundle.file.size) as advance:
            write_file(folder / DATABASES, _copied(self._bundle.file, advance))
        digest = str(self._bundle.digest)
        kept = ServedBundle(str(folder / DATABASES), digest)
        self._state.write(f"seed/{DATABASES}.json", kept)
        self._seed.apply()
        return f"a copy is served from {folder / DATABASES}: the medium can go"


def _copied(file: BundleFile, advance: Advance) -> Iterator[bytes]:
    """The file that was verified, whole and from the descriptor that is held."""
    position = 0
    while chunk := file.read(CHUNK, position):
        yield chunk
        position += len(chunk)
        advance(len(chunk))


class RenewDatabase:
    """Let the scanner of one Harbor fetch the database, and prove that it finds something."""

    def __init__(self, request: Request, release: Release) -> None:
        self._request = request
        self._release = release
        self.name = f"scanner:{release.key}"
        self.sentence = f"Renew the scanner's database of {release.key}, and find what is planted"
        databases = request.bundle.manifest.databases
        self._wanted = next((one for one in databases if one.kind == "trivy-db"), None)

    def check(self) -> bool:
        """Whether the scanner has this database, and has proven it."""
        wanted = self._wanted
        if wanted is None:
            return True
        proven = self._request.state.read(_PROVEN, _Proven) or _Proven()
        if proven.releases.get(self._release.key) != wanted.digest:
            return False
        try:
            return self._is_there()
        except AirgapError:
            return False

    def apply(self) -> str:
        """Scan what is planted, twice if need be; raises AcceptanceFailed."""
        if self._wanted is None:
            return ""
        trouble = self._attempt()
        note = ""
        if trouble:
            self._clear()
            note = f"the scanner's own copy was taken away, because {trouble}; "
            if trouble := self._attempt():
                raise AcceptanceFailed(
                    f"{self._release.key}: {trouble}, also after its copy was taken away",
                    hint="can the pods of Harbor reach the seed registry? `kubectl logs` of "
                    "harbor-trivy says more",
                )
        proven = self._request.state.read(_PROVEN, _Proven) or _Proven()
        releases = {**proven.releases, self._release.key: self._wanted.digest}
        self._request.state.write(_PROVEN, _Proven(releases))
        return f"{note}it works with the database of {self._wanted.updated_at}"

    def _attempt(self) -> str:
        """What is wrong with the scanner's database after a scan; nothing if it is as it should."""
        access = access_to(self._request.site, self._request.state, self._release.key)
        with access.client() as client, access.registry() as registry:
            try:
                report = scan_planted(client, registry, patience=_PATIENCE)
            except AcceptanceFailed as error:
                return error.message
            if not found_planted(report):
                return "a scan does not find what is planted"
        return "" if self._is_there() else "the scanner has another database"

    def _is_there(self) -> bool:
        access = access_to(self._request.site, self._request.state, self._release.key)
        with access.client() as client:
            moment = scanner_data(client).updated_at
        wanted = self._wanted
        if moment is None or wanted is None:
            return False
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ") == wanted.updated_at

    def _clear(self) -> None:
        """Take the databases away from the scanner's pods; raises DeploymentFailed."""
        state, site = self._request.state, self._request.site
        binary = state.path("tools") / "kubectl"
        if not binary.is_file():
            raise PreflightFailed(
                f"{binary}: is not there, and the scanner's copy has to be taken away",
                hint="run Harbor's own bundle once more, then this one",
            )
        kubectl = Kubectl(binary, site.cluster, state.subfolder("work") / "kube-cache")
        namespace = self._release.release_namespace
        for pod in kubectl.pods(namespace):
            labels = pod["metadata"].get("labels") or {}
            if (labels.get("release"), labels.get("component")) == (
                self._release.release_name,
                "trivy",
            ):
                name = pod["metadata"]["name"]
                folders = [f"{_CACHE}/db", f"{_CACHE}/java-db"]
                remove = ["rm", "-rf", *folders]
                kubectl.run("exec", f"--namespace={namespace}", name, "-c", "trivy", "--", *remove)
