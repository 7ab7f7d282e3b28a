"""How a site is: one line for each thing that people ask about, with what to do where it is bad.

Nothing is changed, and nothing raises for what is found: what can't be asked is a failed line. The
parts are asked side by side with one deadline for all of them, so that a cluster that swallows
packets costs half a minute and not an hour. No line has a value of the site in it: of values that
differ only the keys are named.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import msgspec

from installer.bundle.manifest import parse_time
from installer.deploy.charts import find_chart
from installer.deploy.cluster import ClusterInfo
from installer.deploy.database import PrepareDatabase
from installer.deploy.harbor import HarborParts
from installer.deploy.harbor_access import access_to
from installer.deploy.images import accepted_ids
from installer.deploy.installed import InstalledRelease
from installer.deploy.kubectl import has_ended, troubles
from installer.deploy.postgresql import Refusal, session, where_is
from installer.deploy.push import PushBundle
from installer.deploy.release import HelmRelease
from installer.deploy.scanner import has_trivy
from installer.deploy.seed import DATABASES, ServedBundle
from installer.deploy.settings import ApplySettings
from installer.deploy.shown import distrust, shown_leaf
from installer.errors import AirgapError, DeploymentFailed
from installer.harbor.health import ask
from installer.harbor.vulnerability_data import scanner_data
from installer.site import credentials
from installer.site.http import NotAnswering, request
from installer.site.section import split_address
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from installer.deploy.certificates import HarborCertificate
    from installer.deploy.context import Context
    from installer.deploy.internal_tls import InternalCertificates
    from installer.harbor.vulnerability_data import ScannerData
    from installer.site.harbor import Harbor, VulnerabilityData
    from installer.site.model import Push, Release, Serve

DEADLINE = 45.0
"""Seconds for everything; with start and end of the program it stays below a minute."""
_PATIENCE = 10
_SOON = timedelta(days=30)
"""What ends within this time is a warning."""
_RECENT = timedelta(days=1)
_SHOWN = 3
_WORDS = 300
_HTTPS = 443
_SHORT = len("sha256:") + 12
_RUN = "run `installer run` with this bundle and site.yaml"
_EXTERNAL = "database:external"
"""Harbor calls its own connection to it a component with the name database."""
_AWAY = "check cluster.kubeconfig and cluster.context in site.yaml, and whether its API answers"

State = Literal["ok", "warning", "failed"]


class Line(msgspec.Struct, frozen=True):
    """What is known of one thing; ``group`` and ``name`` together tell it from all others.

    ``text`` is one sentence for people, ``hint`` what to do, empty where nothing is to be done.
    """

    group: str
    name: str
    state: State
    text: str
    hint: str = ""


@dataclass(frozen=True)
class Status:
    """All lines in the order in which people read them."""

    lines: tuple[Line, ...]

    @property
    def reachable(self) -> bool:
        """Whether the cluster could be asked."""
        return all(line.state == "ok" for line in self.lines if _is_api(line))

    @property
    def failed(self) -> tuple[Line, ...]:
        """The lines that say that something does not work."""
        return tuple(line for line in self.lines if line.state == "failed")


@dataclass(frozen=True)
class Part:
    """Some lines that are found together; ``group`` and ``name`` say what could not be asked."""

    group: str
    name: str
    ask: Callable[[], Iterable[Line]]


def look(context: Context, now: datetime, *, deadline: float = DEADLINE) -> Status:
    """Ask everything once, for at most ``deadline`` seconds."""
    site = context.site
    parts = [
        Part("bundle", "content", partial(_bundle, context, now)),
        Part("seed registry", "answer", partial(_seed, context, now)),
        Part("cluster", "api", partial(_cluster, context, now)),
    ]
    for release in site.releases:
        harbor, group = release.harbor, f"harbor {release.key}"
        if harbor is None:
            continue
        where = _parts(context, release, harbor, ClusterInfo("", ()), now).certificate
        parts.append(Part(group, "health", partial(_health, group, harbor, where)))
        if harbor.external_url.startswith("https:"):
            ask = partial(_certificate, group, harbor, where, now)
            parts.append(Part(group, "certificate", ask))
        if harbor.settings is not None:
            step = ApplySettings(site, release, harbor, context.state)
            parts.append(Part(group, "settings", partial(_settings, group, step)))
        if harbor.database is not None:
            parts.append(Part(group, _EXTERNAL, partial(_database, group, context, release)))
    parts += [
        Part("trivy", "database", partial(_trivy, context, now)),
        Part("journal", "last run", partial(_journal, context)),
    ]
    return Status(tuple(ask_all(parts, deadline)))


def _parts(
    context: Context, release: Release, harbor: Harbor, cluster: ClusterInfo, now: datetime
) -> HarborParts:
    installed = HelmRelease(context, cluster, release)
    return HarborParts(context, release, harbor, installed, cluster, lambda: now)


def ask_all(parts: Iterable[Part], seconds: float) -> Iterator[Line]:
    """Ask all parts at once; one that raises an AirgapError, or is too slow, is a failed line."""
    end = time.monotonic() + seconds
    asked = [(part, _Answer(part)) for part in parts]
    for _, answer in asked:
        answer.start()
    for part, answer in asked:
        answer.join(max(0.0, end - time.monotonic()))
        if answer.is_alive():
            yield Line(part.group, part.name, "failed", f"no answer within {seconds:.0f} s")
        elif answer.error is not None:
            raise answer.error
        else:
            yield from answer.lines


class _Answer(threading.Thread):
    """Asks one part; a daemon, so that one that hangs does not keep the program from ending."""

    def __init__(self, part: Part) -> None:
        super().__init__(daemon=True)
        self._part = part
        self.lines: list[Line] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        part = self._part
        try:
            # What was found before something failed is told as well.
            self.lines.extend(part.ask())
        except (AirgapError, OSError) as error:
            self.lines.append(_refused(part.group, part.name, error))
        except BaseException as error:  # noqa: BLE001 - the thread that waits raises it
            self.error = error


def _refused(group: str, name: str, error: AirgapError | OSError) -> Line:
    if isinstance(error, AirgapError):
        return Line(group, name, "failed", " ".join(error.message.split()), error.hint)
    return Line(group, name, "failed", str(error))


def _is_api(line: Line) -> bool:
    return (line.group, line.name) == ("cluster", "api")


# The bundle and what this site has seen


def _bundle(context: Context, now: datetime) -> Iterator[Line]:
    manifest, state = context.bundle.manifest, context.state
    what = f"{manifest.name} serial {manifest.serial} of channel {manifest.channel}"
    yield Line("bundle", "content", "ok", f"{what}, created {manifest.created}")
    if manifest.expires:
        left = parse_time(manifest.expires) - now
        hint = "get a newer bundle before that: an expired one is refused" if left < _SOON else ""
        text = f"can be used for {_days(left)}, until {manifest.expires}"
        yield Line("bundle", "expiry", "warning" if hint else "ok", text, hint)
    seen, highest = state.serials, state.serials.highest.get(manifest.channel)
    follows = context.site.channel or seen.channel
    if follows and follows != manifest.channel:
        text, hint = f"this site follows channel {follows}", "is it a bundle for another site?"
        yield Line("bundle", "channel", "failed", text, hint)
    if highest is None:
        yield Line("bundle", "serial", "ok", "this site has seen no bundle of this channel yet")
    elif manifest.serial < highest:
        hint = "use the newest bundle that was brought here"
        yield Line("bundle", "serial", "warning", f"this site has seen serial {highest}", hint)
    else:
        yield Line("bundle", "serial", "ok", f"the highest that this site has seen is {highest}")
    installed = _last_bundle(context)
    if installed == str(context.bundle.digest):
        yield Line("bundle", "installed", "ok", "it is the one that was used last")
    elif installed:
        text = f"another one was used last: {installed[:_SHORT]}"
        yield Line("bundle", "installed", "warning", text, _RUN)
    else:
        text = f"{context.state.folder} knows of no run"
        hint = "nothing was installed from here, or --state names another folder"
        yield Line("bundle", "installed", "warning", text, hint)


def _last_bundle(context: Context) -> str:
    runs = [line.bundle for line in context.state.journal.lines() if line.event == "run"]
    return runs[-1] if runs else ""


def _trivy(context: Context, now: datetime) -> Iterator[Line]:
    scanning = [
        (release, release.harbor)
        for release in context.site.releases
        if release.harbor is not None and has_trivy(context, release)
    ]
    if scanning and not context.bundle.manifest.databases:
        hint = "Harbor can't scan without one: add it to `databases` of the bundle's spec"
        yield Line("trivy", "trivy-db", "warning", "the bundle has no vulnerability database", hint)
    for release, harbor in scanning:
        try:
            with access_to(context.site, context.state, release.key).client(pauses=()) as client:
                data = scanner_data(client)
        except AirgapError as error:
            text = f"the scanner can't be asked: {_first_line(error.message)}"
            yield Line("trivy", release.key, "warning", text, error.hint)
        else:
            yield database_age(release.key, data, harbor.vulnerability_data, now)


def _settings(group: str, step: ApplySettings) -> Iterator[Line]:
    """Whether what is set inside of Harbor is what site.yaml says."""
    try:
        changes = step.compare().changes
    except AirgapError as error:
        text = f"they can't be compared: {_first_line(error.message)}"
        yield Line(group, "settings", "warning", text, error.hint)
        return
    if changes:
        text = f"they differ from site.yaml: {_few([change.what for change in changes])}"
        yield Line(group, "settings", "warning", text, "`installer harbor diff` shows what differs")
    else:
        yield Line(group, "settings", "ok", "they are what site.yaml says")


def database_age(key: str, data: ScannerData, limits: VulnerabilityData, now: datetime) -> Line:
    """How old the database is that the scanner of release ``key`` works with."""
    if data.updated_at is None:
        text = f"{data.scanner} says of no vulnerability database: every scan fails"
        return Line("trivy", key, "failed", text, "`installer run` with a bundle that has one")
    age = now - data.updated_at
    text = f"{data.scanner}'s database is {_days(age)} old, of {data.updated_at:%Y-%m-%d}"
    if age <= timedelta(days=limits.warn_days):
        return Line("trivy", key, "ok", text)
    state: State = "warning" if age <= timedelta(days=limits.fail_days) else "failed"
    hint = "newer vulnerabilities are not found: run a newer bundle of trivy-databases.yaml"
    return Line("trivy", key, state, text, hint)


def _journal(context: Context) -> Iterator[Line]:
    lines = context.state.journal.lines()
    runs = [line for line in lines if line.event == "run"]
    unfinished = context.state.journal.unfinished()
    if not runs:
        yield Line("journal", "last run", "warning", "there was none with this state folder")
        return
    text = f"{runs[-1].time}: {runs[-1].text}"
    if unfinished is None:
        yield Line("journal", "last run", "ok", text)
    else:
        text += f"; {unfinished.event} {unfinished.time} in step {unfinished.step}"
        hint = "if it is not at it right now, run it again: it goes on where it stopped"
        yield Line("journal", "last run", "warning", text, hint)
    failures = [line for line in lines if line.event in ("failed", "interrupted")]
    if failures:
        last = failures[-1]
        text = f"{last.time}: {last.event} in step {last.step} {_first_line(last.text)}".rstrip()
        yield Line("journal", "last failure", "ok", text)
    else:
        yield Line("journal", "last failure", "ok", "there was none")


# The seed registry


class _Check(msgspec.Struct, frozen=True):
    failed: tuple[str, ...] = ()


class _Bundle(msgspec.Struct, frozen=True):
    digest: str
    name: str = ""
    serial: int = 0


class _Health(msgspec.Struct, frozen=True):
    """As much of the registry's ``/healthz`` as is shown."""

    bundles: tuple[_Bundle, ...]
    check: _Check = _Check()


def _seed(context: Context, now: datetime) -> Iterator[Line]:
    seed = context.site.seed
    if seed.serve is not None:
        yield from _serve(context, seed.serve, now)
    elif seed.push is not None:
        yield from _push(context, seed.push, now)


def _serve(context: Context, serve: Serve, now: datetime) -> Iterator[Line]:
    ca = context.state.path("seed/ca.crt")
    url = f"{'https' if serve.tls else 'http'}://{serve.address}"
    try:
        health = decode_json(request(f"{url}/healthz", str(ca)).body, _Health)
    except NotAnswering as error:
        hint = f"nodes can't pull a pod's image again without it: {_RUN}"
        yield Line("seed registry", "answer", "failed", error.message, hint)
        return
    except (msgspec.DecodeError, UnicodeDecodeError):
        hint = "does another program listen at this address?"
        yield Line("seed registry", "answer", "failed", f"{url}: not our registry", hint)
        return
    served = ", ".join(f"{b.name} serial {b.serial} ({b.digest[:_SHORT]})" for b in health.bundles)
    beside = context.state.read(f"seed/{DATABASES}.json", ServedBundle)
    digests = {bundle.digest for bundle in health.bundles} - {beside.digest if beside else ""}
    bundles = (context.bundle, *context.bundle.bases)
    mine = digests == {str(bundle.digest) for bundle in bundles}
    text = f"{url} serves {served or 'nothing'}" + ("" if mine else ", not this bundle")
    yield Line("seed registry", "answer", "ok" if mine else "warning", text, "" if mine else _RUN)
    if bad := health.check.failed:
        hint = "the medium or the file is damaged: copy the bundle again"
        text = f"{len(bad)} members are damaged: {bad[0][:_WORDS]}"
        yield Line("seed registry", "content", "failed", text, hint)
    if serve.tls:
        host, port = split_address(serve.address)
        yield _served("seed registry", host, port, str(ca), now, renewed=True)


def _push(context: Context, push: Push, now: datetime) -> Iterator[Line]:
    host = push.registry.partition("/")[0]
    url = f"{'http' if push.plain_http else 'https'}://{host}/v2/"
    try:
        answer = request(url, push.ca, timeout=_PATIENCE)
    except NotAnswering as error:
        hint = "nodes can't pull a pod's image again without it"
        yield Line("seed registry", "answer", "failed", error.message, hint)
        return
    if answer.status not in (HTTPStatus.OK, HTTPStatus.UNAUTHORIZED):
        text = f"{url}: HTTP {answer.status}"
        yield Line("seed registry", "answer", "failed", text, "is it one?")
        return
    yield Line("seed registry", "answer", "ok", f"{push.registry} answers")
    if not push.plain_http:
        name, port = split_address(host if host.rpartition(":")[2].isdigit() else f"{host}:443")
        yield _served("seed registry", name, port, push.ca, now)
    if PushBundle(push, context.bundle).check():
        yield Line("seed registry", "content", "ok", "it has all of this bundle")
    else:
        text = "it lacks something of this bundle, or does not show it"
        yield Line("seed registry", "content", "warning", text, _RUN)


# The cluster: nodes, releases, pods


def _cluster(context: Context, now: datetime) -> Iterator[Line]:
    kubectl, releases = context.kubectl, context.site.releases
    try:
        said = kubectl.get("version", timeout=_PATIENCE).get("serverVersion", {})
        # The version is answered without etcd, nodes are not.
        nodes = kubectl.get("get", "nodes", timeout=_PATIENCE).get("items", [])
        api_versions = kubectl.run("api-versions", timeout=_PATIENCE).split()
    except DeploymentFailed as error:
        yield Line("cluster", "api", "failed", f"it can't be reached: {error.message}", _AWAY)
        for release in releases:
            text = "it can't be asked: the cluster can't be reached"
            yield Line(f"release {release.key}", "helm", "failed", text)
        return
    version = str(said.get("gitVersion", ""))
    yield Line("cluster", "api", "ok", f"Kubernetes {version} answers")
    yield _nodes(nodes)
    asker = _Releases(context, ClusterInfo(version, tuple(api_versions)), now)
    parts = [
        Part(f"release {release.key}", "helm", partial(asker.release, release))
        for release in releases
    ]
    for namespace in dict.fromkeys(release.release_namespace for release in releases):
        group = f"namespace {namespace}"
        parts.append(Part(group, "pods", partial(asker.namespace, group, namespace)))
    for part in parts:
        try:
            yield from part.ask()
        except (AirgapError, OSError) as error:
            yield _refused(part.group, part.name, error)


def _nodes(nodes: list[dict[str, Any]]) -> Line:
    away = [node["metadata"]["name"] for node in nodes if not _is_ready(node)]
    text = f"{len(nodes) - len(away)} of {len(nodes)} ready"
    if not away and nodes:
        return Line("cluster", "nodes", "ok", text)
    hint = "`kubectl describe node` says why"
    return Line("cluster", "nodes", "failed", f"{text}; not ready: {_few(away)}", hint)


class _Releases:
    """The releases of the site and their pods, on a cluster that answers."""

    def __init__(self, context: Context, cluster: ClusterInfo, now: datetime) -> None:
        self._context = context
        self._cluster = cluster
        self._now = now

    @cached_property
    def _accepted(self) -> frozenset[str]:
        return accepted_ids(self._context.bundle)

    def release(self, release: Release) -> Iterator[Line]:
        """Helm's word on it, and whether a run would change it."""
        group = f"release {release.key}"
        helm = InstalledRelease(self._context, release.release_namespace, release.release_name)
        found = helm.found()
        if found is None:
            yield Line(group, "helm", "failed", "it is not installed", _RUN)
            return
        status = str(found.get("status", ""))
        good, pending = status == "deployed", status.startswith("pending")
        text = f"{status}, revision {found.get('revision')}, {str(found.get('updated'))[:19]} UTC"
        hint = _RUN if pending else f"`helm history {release.release_name}` says why; {_RUN}"
        yield Line(group, "helm", "ok" if good else "failed", text, "" if good else hint)
        chart = find_chart(self._context.bundle.manifest, release)
        there, wanted = found.get("chart"), f"{chart.name}-{chart.version}"
        same = there == wanted
        text = f"{there}, as in the bundle" if same else f"{there}; the bundle has {wanted}"
        yield Line(group, "chart", "ok" if same else "warning", text, "" if same else _RUN)
        yield self._drift(group, release, same_chart=same)
        if release.harbor is not None:
            yield from self._companion(group, release, release.harbor)

    def _drift(self, group: str, release: Release, *, same_chart: bool) -> Line:
        context = self._context
        kept = credentials.kept(context.state, release.key)
        if release.harbor is not None and kept is None:
            text = f"{context.state.folder} does not have the secrets of this release"
            hint = "name the right folder with --state; a run takes them back from the cluster"
            return Line(group, "values", "failed", text, hint)
        planned = HelmRelease(context, self._cluster, release)
        deployed = context.helm.get_values(release.release_name, release.release_namespace)
        if keys := differing(planned.values(kept), deployed):
            text = f"they differ from what would be installed: {', '.join(keys)}"
            return Line(group, "values", "warning", text, _RUN)
        if same_chart and not planned.check():
            text = "they are the same, but the chart has the same version and another content"
            return Line(group, "values", "warning", text, _RUN)
        return Line(group, "values", "ok", "they are what would be installed")

    def _companion(self, group: str, release: Release, harbor: Harbor) -> Iterator[Line]:
        context = self._context
        parts = _parts(context, release, harbor, self._cluster, self._now)
        internal, companion = parts.internal, parts.companion
        if internal.is_needed():
            yield self._internal(group, internal)
        if companion.is_needed():
            good = companion.check()
            text = "volume, certificates and authorities are" + ("" if good else " not")
            state: State = "ok" if good else "warning"
            hint = "" if good else _RUN
            yield Line(group, "companion", state, f"{text} as they would be installed", hint)

    def _internal(self, group: str, internal: InternalCertificates) -> Line:
        """What is kept here; whether the cluster has it is the companion's line."""
        end = internal.ends()
        if end is None:
            text = "a certificate between the components is missing here"
            return Line(group, "internal TLS", "warning", text, _RUN)
        left = end - self._now
        if left < timedelta():
            text = f"a certificate between the components ended on {end:%Y-%m-%d}"
            return Line(group, "internal TLS", "failed", text, _RUN)
        text = f"{_days(left)} left, until {end:%Y-%m-%d}"
        if internal.check():
            return Line(group, "internal TLS", "ok", text)
        return Line(group, "internal TLS", "warning", f"{text}; to be made anew", _RUN)

    def namespace(self, group: str, namespace: str) -> Iterator[Line]:
        """The pods: do they run, did they end and start again, do they run the bundle's images."""
        context = self._context
        answer = context.kubectl.get("get", "pods", f"--namespace={namespace}", timeout=_PATIENCE)
        pods = [
            pod
            for pod in answer.get("items", [])
            if not pod["metadata"].get("deletionTimestamp") and not has_ended(pod)
        ]
        yield self._pods(group, namespace, pods)
        if pods:
            yield self._restarts(group, pods)
            yield self._images(group, pods)

    def _pods(self, group: str, namespace: str, pods: list[dict[str, Any]]) -> Line:
        away = [pod["metadata"]["name"] for pod in pods if not _is_ready(pod)]
        text = f"{len(pods) - len(away)} of {len(pods)} ready"
        if away:
            hint = "; ".join(troubles(self._context.kubectl, namespace)[:_SHOWN])
            return Line(group, "pods", "failed", f"{text}; not ready: {_few(away)}", hint)
        there = [r for r in self._context.site.releases if r.release_namespace == namespace]
        expected = not pods and any(
            HelmRelease(self._context, self._cluster, release).has_workloads() for release in there
        )
        return Line(group, "pods", "failed" if expected else "ok", text, _RUN if expected else "")

    def _restarts(self, group: str, pods: list[dict[str, Any]]) -> Line:
        total, recent = 0, []
        for pod in pods:
            for container in _containers(pod):
                total += container.get("restartCount", 0)
                last = container.get("lastState", {}).get("terminated") or {}
                ended = _time(last.get("finishedAt", ""))
                if ended is not None and self._now - ended < _RECENT:
                    name = f"{pod['metadata']['name']} ({last.get('reason', 'unknown')})"
                    recent.append(name)
        if not recent:
            return Line(group, "restarts", "ok", f"{total} since the pods were made, none today")
        hint = "`kubectl logs --previous` says why, and so does `installer support-bundle`"
        text = f"{total} since the pods were made; within a day: {_few(recent)}"
        return Line(group, "restarts", "warning", text, hint)

    def _images(self, group: str, pods: list[dict[str, Any]]) -> Line:
        found = {
            image
            for pod in pods
            for container in _containers(pod)
            if (image := container.get("imageID", ""))
        }
        other = sorted(i for i in found if i.rpartition("sha256:")[2] not in self._accepted)
        if not other:
            return Line(group, "images", "ok", f"all {len(found)} are of the bundle")
        text = f"{len(other)} of {len(found)} are not of this bundle: {_few(other)}"
        if _last_bundle(self._context) != str(self._context.bundle.digest):
            return Line(group, "images", "warning", text, _RUN)
        hint = "who put them there? `kubectl get pods --output=yaml` says whose they are"
        return Line(group, "images", "failed", text, hint)


def differing(wanted: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """Top-level keys whose values are not the same; a null is the same as nothing, as for Helm."""
    first, second = _pruned(wanted), _pruned(there)
    return sorted(
        key
        for key in first.keys() | second.keys()
        if (key in first) != (key in second) or first[key] != second[key]
    )


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _pruned(child) for key, child in value.items() if child is not None}
    return value


def _containers(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for kind in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"):
        yield from pod.get("status", {}).get(kind, ())


def _is_ready(thing: dict[str, Any]) -> bool:
    conditions = thing.get("status", {}).get("conditions", ())
    return {c["type"]: c["status"] for c in conditions}.get("Ready") == "True"


# Harbor as people reach it


def _health(group: str, harbor: Harbor, where: HarborCertificate) -> Iterator[Line]:
    url = harbor.external_url.rstrip("/")
    health = ask(url, harbor.ca or where.ca_file())
    if health.healthy:
        yield Line(group, "health", "ok", f"{url} says healthy")
    else:
        hint = "" if health.components else "is it reachable from this machine, and trusted?"
        yield Line(group, "health", "failed", health.problem, hint)
    for part in health.components:
        if part.healthy:
            yield Line(group, part.name, "ok", part.status)
        else:
            text = f"{part.status} {part.error}".strip()
            yield Line(group, part.name, "failed", text[:_WORDS], "`kubectl logs` of it says more")


def _certificate(
    group: str, harbor: Harbor, where: HarborCertificate, now: datetime
) -> Iterator[Line]:
    parts, given = urlsplit(harbor.external_url), harbor.certificate
    ca = harbor.ca or where.ca_file()
    own = given is not None and given.provided is None and not given.secret
    yield _served(group, parts.hostname or "", parts.port or _HTTPS, ca, now, renewed=own)


def _database(group: str, context: Context, release: Release) -> Iterator[Line]:
    database = release.harbor.database if release.harbor else None
    if database is None:
        return
    planned = HelmRelease(context, ClusterInfo("", ()), release)
    step = PrepareDatabase(
        database, release.key, planned.database_password, planned.make_database_password
    )
    where = where_is(database)
    if not step.check():
        step.preflight()  # says why
        text = f"{where}: role {database.username} can't work in {database.name} yet"
        yield Line(group, _EXTERNAL, "failed", text, _RUN)
        return
    password = planned.database_password() or ""
    try:
        with session(database, database.username, password, database.name) as connection:
            ((version,),) = connection.run("SHOW server_version")
    except Refusal as refusal:
        yield Line(group, _EXTERNAL, "failed", refusal.message, refusal.hint)
        return
    text = f"{where}: role {database.username} can work in {database.name}, version {version}"
    yield Line(group, _EXTERNAL, "ok", text)


# What a server really shows


def _served(
    group: str, host: str, port: int, ca_file: str, now: datetime, *, renewed: bool = False
) -> Line:
    """Judge the certificate at an address; ``renewed``: a run makes a new one before it ends."""
    try:
        leaf = shown_leaf(host, port)
        distrusted = distrust(host, port, ca_file)
    except (OSError, ValueError) as error:
        hint = "does it speak TLS at this port?"
        return Line(group, "certificate", "failed", f"{host}:{port}: {error}", hint)
    end = leaf.not_valid_after_utc
    left = end - now
    issuer = leaf.issuer.rfc4514_string() or "nobody"
    text = f"{_days(left)} left, until {end:%Y-%m-%d}, issued by {issuer[:_WORDS]}"
    renew = _RUN if renewed else "bring a new one"
    if left < timedelta():
        text = f"it ended {_days(-left)} ago, on {end:%Y-%m-%d}, issued by {issuer[:_WORDS]}"
        return Line(group, "certificate", "failed", text, renew)
    if distrusted:
        text = f"{text}; not trusted: {distrusted}"
        hint = f"checked with {Path(ca_file).name if ca_file else 'the authorities known here'}"
        hint += ": is it the right authority, and the right server?"
        return Line(group, "certificate", "failed", text, hint)
    text += ", trusted"
    if left < _SOON:
        return Line(group, "certificate", "warning", text, renew)
    return Line(group, "certificate", "ok", text)


# Words


def _days(span: timedelta) -> str:
    return "1 day" if span.days == 1 else f"{span.days} days"


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0][:_WORDS]


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
