"""What somebody elsewhere needs to help with a site, in one file, and none of the site's secrets.

Three sieves, one after the other. Secrets of the cluster are never read, only listed. What is
structured is blanked by the names of its keys. And every text, whatever it is, goes through one
place where all secrets that the site knows are cut out in each form in which programs write them,
together with what looks like a login, a token or a private key. What can't be had is noted in a
member of its own: whoever needs help has a site where something does not answer.
"""

from __future__ import annotations

import base64
import io
import json
import os
import platform
import subprocess
import tarfile
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import msgspec
import yaml

from installer.bundle.digest import CHUNK
from installer.deploy import systemd
from installer.deploy.cluster import ClusterInfo
from installer.deploy.harbor import HarborParts
from installer.deploy.release import HelmRelease
from installer.documents import read_bounded, read_document
from installer.environment import closed_environment
from installer.errors import AirgapError, DeploymentFailed, InvalidInput, TransferFailed
from installer.helm.images import read_objects
from installer.redaction import SECRET_KEY, Redaction, blanked, redact, secret_texts
from installer.site import credentials
from installer.site.private import write_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from installer.deploy.context import Context
    from installer.deploy.status.line import Status
    from installer.site.model import Release

MAX_LOGS = 100_000_000
"""Bytes of all logs together."""
_MAX_LOG = 10_000_000
_TAILS = (5000, 500, 50)
"""Lines of a log; fewer where the lines are so long that they would not fit."""
_LOG_SECONDS = 300.0
"""After this time no more logs are asked for: a cluster that stalls at each one has many."""
_TIMEOUT = 20
_LOG_TIME = 30.0
_JOURNALCTL = "journalctl"
_WORDS = 600
_KUBE_VERSION = "1.34.0"
"""To render for when the cluster can't be asked."""

_KINDS = {
    "pods": "pods",
    "events": "events",
    "workloads": "deployments,statefulsets,daemonsets,replicasets,jobs,cronjobs",
    "claims": "persistentvolumeclaims",
    "services": "services,endpointslices",
    "ingresses": "ingresses",
}


@dataclass(frozen=True)
class Summary:
    """Names and sizes (bytes) of the members, and what could not be had, a sentence each."""

    members: tuple[tuple[str, int], ...]
    missing: tuple[str, ...]


def collect(context: Context, site_file: Path, status: Status, out: Path, now: datetime) -> Summary:
    """Write the file (tar.gz, mode 0600), whole or not at all.

    Raises InvalidInput if there is something at ``out`` already, Corrupt if the state's own
    secrets can't be read, so that nobody would know what to leave out, and TransferFailed.
    """
    check_out(out)
    reachable = status.reachable
    deployed = dict(_deployed(context)) if reachable else {}
    unread: list[str] = []
    redaction = Redaction(known_secrets(context, deployed, unread))
    with tempfile.TemporaryFile(dir=context.workspace) as stream:
        with _Archive(stream, f"support-{context.site.name}", redaction, now) as archive:
            archive.missing += unread
            _Gathering(context, archive, reachable=reachable).gather(site_file, status, deployed)
        stream.seek(0)
        _place(out, stream)
    return Summary(tuple(archive.members), tuple(archive.missing))


def check_out(out: Path) -> None:
    """Refuse a place where the file can't appear, before the work; raises InvalidInput."""
    if os.path.lexists(out):
        raise InvalidInput(
            f"{out}: is there already", hint="name another file: nothing is replaced"
        )
    if not out.parent.is_dir():
        raise InvalidInput(f"{out.parent}: there is no such folder")


def _place(out: Path, stream: IO[bytes]) -> None:
    # The name is taken first, and only if it is free; a hard link would do that in one step, but
    # not on the sticks that people carry.
    try:
        os.close(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    except FileExistsError:
        check_out(out)
        raise
    except OSError as error:
        raise TransferFailed(f"{out}: can't be written: {error.strerror}") from error
    try:
        write_file(out, iter(lambda: stream.read(CHUNK), b""))
    except BaseException:
        out.unlink(missing_ok=True)
        raise


# What nobody shall see


def known_secrets(
    context: Context, deployed: dict[str, dict[str, Any]], unread: list[str]
) -> tuple[str, ...]:
    """Every secret that is known here; ``deployed`` are the values of releases.

    What can't be read is noted in ``unread``. Raises Corrupt for damaged secrets of the state.
    """
    site = context.site
    trees: list[Any] = [*deployed.values(), *(release.values for release in site.releases)]
    words: list[str] = []
    found: list[str] = []
    for chart in context.bundle.manifest.charts:
        trees += chart.profiles.values()
    for release in site.releases:
        if release.harbor is not None:
            kept = credentials.kept(context.state, release.key)
            found += secret_texts({}, kept.texts() if kept else ())
    files = [*_secret_files(site), *map(str, context.state.folder.rglob("*.key"))]
    for name in files:
        try:
            words.append(read_bounded(Path(name)).decode(errors="replace").strip())
        except InvalidInput as error:
            unread.append(f"{error.message}: what it holds was not looked for in the texts")
    try:
        kubeconfig = read_document(Path(site.cluster.kubeconfig), dict[str, Any])
    except InvalidInput as error:
        unread.append(f"{error.message}: what it holds was not looked for in the texts")
    else:
        trees.append(kubeconfig)
        words += _client_keys(kubeconfig)
    found += secret_texts({"trees": trees, "password": words})
    return (*found, *words)


def _secret_files(section: Any) -> Iterator[str]:
    """Files that site.yaml names for passwords, tokens and keys, if they are there."""
    if isinstance(section, tuple):
        for item in section:
            yield from _secret_files(item)
    elif isinstance(section, msgspec.Struct):
        for name in section.__struct_fields__:
            value = getattr(section, name)
            if name == "key" or (name.endswith("_file") and SECRET_KEY.search(name)):
                if value and os.path.lexists(value):
                    yield value
            else:
                yield from _secret_files(value)


def _client_keys(kubeconfig: dict[str, Any]) -> Iterator[str]:
    for user in kubeconfig.get("users") or ():
        inner = user.get("user") if isinstance(user, dict) else None
        data = str((inner or {}).get("client-key-data") or "")
        if data:
            yield data
            try:
                yield base64.b64decode(data).decode(errors="replace").strip()
            except ValueError:
                continue


# The file


@dataclass
class _Archive:
    """A tar.gz that is being written; all that goes in is redacted here."""

    stream: IO[bytes]
    folder: str
    redaction: Redaction
    now: datetime
    members: list[tuple[str, int]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._tar = tarfile.open(fileobj=self.stream, mode="w:gz")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.missing = [self.redaction(line) for line in self.missing]
        if self.missing and kind is None:
            self._add("missing.txt", "\n".join(self.missing) + "\n")
        self._tar.close()

    def add(self, name: str, make: Callable[[], Any]) -> None:
        """Add what it gives: text as it is, None not at all, everything else as JSON.

        What can't be had is noted.
        """
        try:
            content = make()
        except AirgapError as error:
            self.missing.append(f"{name}: {' '.join(error.message.split())}")
        except (OSError, subprocess.TimeoutExpired) as error:
            self.missing.append(f"{name}: {error}")
        else:
            if isinstance(content, str):
                self._add(name, content)
            elif content is not None:
                document = self.redaction.document(blanked(content))
                text = json.dumps(document, indent=1, ensure_ascii=False)
                self._add(name, f"{text}\n")

    def shown(self, document: Any) -> str:
        """A document as YAML, blanked, for ``add``."""
        cleaned = self.redaction.document(blanked(document))
        # Without line breaks of YAML's making, which would split what is looked for.
        shown: str = yaml.safe_dump(cleaned, sort_keys=False, allow_unicode=True, width=2**31 - 1)
        return shown

    def _add(self, name: str, text: str) -> None:
        data = self.redaction(text).encode(errors="replace")
        member = tarfile.TarInfo(f"{self.folder}/{name}")
        member.size, member.mode, member.mtime = len(data), 0o600, int(self.now.timestamp())
        self._tar.addfile(member, io.BytesIO(data))
        self.members.append((name, len(data)))


class _Gathering:
    """Goes through the site; ``reachable`` says whether the cluster can be asked."""

    def __init__(self, context: Context, archive: _Archive, *, reachable: bool) -> None:
        self._context = context
        self._archive = archive
        self._reachable = reachable
        self._kubectl = context.kubectl
        self._info = ClusterInfo(_KUBE_VERSION, ())
        self._room = MAX_LOGS
        self._end = time.monotonic() + _LOG_SECONDS

    def gather(self, site_file: Path, status: Status, deployed: dict[str, dict[str, Any]]) -> None:
        """Add everything, what concerns most people first."""
        add, site = self._archive.add, self._context.site
        add("status.json", partial(msgspec.to_builtins, status.lines))
        add("versions.json", self._versions)
        if self._reachable:
            add("cluster.json", self._cluster)
        else:
            self._archive.missing.append("all that only the cluster knows: it can't be reached")
        add("site.yaml", partial(self._site, site_file))
        add("journal.jsonl", self._journal)
        add("seed.log", self._seed_log)
        for release in site.releases:
            folder = f"releases/{release.key.replace('/', '.')}"
            add(f"{folder}/values.json", partial(self._values, release))
            add(f"{folder}/values-deployed.json", partial(deployed.get, release.key))
            add(f"{folder}/objects.yaml", partial(self._objects, release))
            add(f"{folder}/companion.yaml", partial(self._companion, release))
            if self._reachable:
                where = (release.release_name, release.release_namespace)
                add(f"{folder}/history.json", partial(self._context.helm.history, *where))
        if self._reachable:
            namespaces = tuple(dict.fromkeys(r.release_namespace for r in site.releases))
            add("nodes.json", self._nodes)
            add("volumes.json", partial(self._volumes, namespaces))
            for namespace in namespaces:
                self._namespace(namespace)

    # Of this machine

    def _versions(self) -> dict[str, Any]:
        bundle, manifest = self._context.bundle, self._context.bundle.manifest
        return {
            "installer": metadata.version("harbor-airgap"),
            "python": platform.python_version(),
            "system": platform.platform(),
            "helm": ".".join(map(str, self._context.helm.version())),
            "kubectl": self._kubectl.get("version", "--client").get("clientVersion"),
            "bundle": {
                "digest": str(bundle.digest),
                "signers": list(bundle.signers),
                "name": manifest.name,
                "channel": manifest.channel,
                "serial": manifest.serial,
                "created": manifest.created,
                "expires": manifest.expires,
                "platforms": list(manifest.platforms),
                "charts": {chart.name: chart.version for chart in manifest.charts},
                "images": {image.reference: image.digest for image in manifest.images},
                "tools": {f"{tool.name} {tool.platform}": tool.source for tool in manifest.tools},
                "databases": {one.kind: one.updated_at for one in manifest.databases},
                "members": len(manifest.members),
                "required": len(manifest.required),
            },
        }

    def _site(self, site_file: Path) -> str:
        # Read and written anew: what stands in comments nobody knows.
        return self._archive.shown(read_document(site_file, dict[str, Any]))

    def _journal(self) -> str:
        lines = msgspec.to_builtins(self._context.state.journal.lines())
        cleaned = self._archive.redaction.document(lines)
        return "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in cleaned)

    def _seed_log(self) -> str | None:
        log = self._context.state.path("seed/serve.log")
        if self._context.site.seed.serve is None:
            return None
        if log.is_file() or not systemd.is_there():
            return _tail(log)
        unit = systemd.unit_name(self._context.site.name)
        done = subprocess.run(
            [_JOURNALCTL, f"--unit={unit}", f"--lines={_TAILS[0]}", "--no-pager"],
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env=closed_environment(self._context.workspace),
            timeout=_TIMEOUT,
        )
        if done.returncode:
            raise DeploymentFailed(done.stderr.decode(errors="replace").strip()[-_WORDS:])
        return done.stdout.decode(errors="replace")

    # Of the releases

    def _values(self, release: Release) -> dict[str, Any]:
        kept = credentials.kept(self._context.state, release.key)
        return HelmRelease(self._context, self._info, release).values(kept)

    def _objects(self, release: Release) -> str:
        rendered = HelmRelease(self._context, self._info, release).rendered()
        # Before the first run they are rendered with secrets that nobody else knows.
        return redact(self._shown(rendered.objects), rendered.secrets)

    def _companion(self, release: Release) -> str | None:
        context, harbor = self._context, release.harbor
        if harbor is None:
            return None
        installed = HelmRelease(context, self._info, release)
        text = HarborParts(context, release, harbor, installed, self._info).rendered()
        return self._shown(text) if text else None

    def _shown(self, objects: str) -> str:
        return "".join(
            f"---\n# Source: {source}\n{self._archive.shown(document)}"
            for source, document in read_objects(objects)
        )

    # Of the cluster

    def _cluster(self) -> dict[str, Any]:
        version = self._kubectl.get("version", timeout=_TIMEOUT).get("serverVersion", {})
        api_versions = self._kubectl.run("api-versions", timeout=_TIMEOUT).split()
        self._info = ClusterInfo(version.get("gitVersion", _KUBE_VERSION), tuple(api_versions))
        return {"version": version, "apiVersions": api_versions}

    def _items(self, *arguments: str) -> list[dict[str, Any]]:
        items = self._kubectl.get("get", *arguments, timeout=_TIMEOUT).get("items")
        return items if isinstance(items, list) else []

    def _nodes(self) -> list[dict[str, Any]]:
        nodes = self._items("nodes")
        for node in nodes:
            node.get("status", {}).pop("images", None)
        return nodes

    def _volumes(self, namespaces: tuple[str, ...]) -> list[dict[str, Any]]:
        return [
            volume
            for volume in self._items("persistentvolumes")
            if (volume.get("spec", {}).get("claimRef") or {}).get("namespace") in namespaces
        ]

    def _namespace(self, namespace: str) -> None:
        folder, where = f"namespaces/{namespace}", f"--namespace={namespace}"
        run = partial(self._kubectl.run, "get", timeout=_TIMEOUT)
        self._archive.add(f"{folder}/pods.txt", partial(run, "pods", where, "--output=wide"))
        # In a table the API server itself leaves out what they hold.
        self._archive.add(f"{folder}/secrets.txt", partial(run, "secrets", where))
        for name, kinds in _KINDS.items():
            self._archive.add(f"{folder}/{name}.json", partial(self._items, kinds, where))
        try:
            pods = self._items("pods", where)
        except DeploymentFailed as error:
            self._archive.missing.append(f"{folder}/logs: {error.message}")
            return
        for pod in pods:
            for container, previous in _containers(pod):
                name = pod["metadata"]["name"]
                end = ".previous.log" if previous else ".log"
                self._archive.add(
                    f"{folder}/logs/{name}/{container}{end}",
                    partial(self._log, where, name, container, previous=previous),
                )

    def _log(self, where: str, pod: str, container: str, *, previous: bool) -> str:
        limit = min(self._room, _MAX_LOG)
        if limit <= 0 or time.monotonic() >= self._end:
            raise DeploymentFailed("left out: the other logs were long enough, or took too long")
        arguments = [pod, where, f"--container={container}", "--timestamps"]
        arguments += [f"--limit-bytes={limit}", f"--previous={str(previous).lower()}"]
        text = ""
        for tail in _TAILS:
            # Piece by piece, and not as text: logs hold whatever a program writes.
            pieces = self._kubectl.stream("logs", *arguments, f"--tail={tail}", timeout=_LOG_TIME)
            text = b"".join(pieces).decode(errors="replace")
            if len(text.encode()) < limit:
                break
        else:
            # Cut in the middle of a line, which may be the middle of a secret.
            text = text[: text.rfind("\n") + 1]
        self._room -= len(text.encode())
        return text


def _containers(pod: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """Names of the containers that have started, and again for the one before it ended."""
    status = pod.get("status", {})
    for kind in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"):
        for container in status.get(kind, ()):
            yield container["name"], False
            if container.get("restartCount"):
                yield container["name"], True


def _deployed(context: Context) -> Iterator[tuple[str, dict[str, Any]]]:
    for release in context.site.releases:
        with suppress(DeploymentFailed):  # it may not be there yet
            values = context.helm.get_values(release.release_name, release.release_namespace)
            yield release.key, values


def _tail(path: Path) -> str:
    """The last lines of a file; raises OSError."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _MAX_LOG))
        lines = file.read().decode(errors="replace").splitlines(keepends=True)
    return "".join(lines[1 if size > _MAX_LOG else 0 :][-_TAILS[0] :])
