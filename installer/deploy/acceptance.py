"""The acceptance check of a whole site: every Harbor of it, and the cluster that they run on.

Harbor's part is ``installer.harbor.acceptance``. The cluster's is that every container runs an
image of the bundle, and that nobody in it asked for a name outside: both are told by the cluster
itself, and where it doesn't tell, the report says so.
"""

from __future__ import annotations

import importlib.metadata
import re
import socket
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from installer.bundle.digest import Digest
from installer.deploy.check import RunningImages
from installer.deploy.harbor_access import access_to
from installer.errors import AcceptanceFailed, AirgapError
from installer.harbor.acceptance import Finding, Subject, check
from installer.harbor.report import (
    SCHEMA,
    AcceptanceReport,
    BundleIdentity,
    Carried,
    Installed,
    Section,
    as_html,
    as_json,
)
from installer.site.authority import utc_now
from installer.site.private import write_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from installer.bundle.archive import VerifiedBundle
    from installer.deploy.context import Context
    from installer.deploy.kubectl import Kubectl
    from installer.site.model import Site
    from installer.site.state import State

KEPT = "acceptance.json"
PRINTED = "acceptance.html"
STEP = "acceptance"
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_DNS = ("--namespace=kube-system", "--selector=k8s-app=kube-dns")
_LOG_LINES = 100_000
_QUERY = re.compile(
    r'\[INFO\] \[?(?P<from>[0-9A-Fa-f.:]+?)\]?:\d+ - \d+ "(?:\S+) IN (?P<name>\S+) (?:udp|tcp) '
)
"""A line of CoreDNS's plugin ``log`` in its usual format."""
_METRICS_PORT = 9153
_FORWARDED = re.compile(
    r"^coredns_(?:forward_requests_total|proxy_request_duration_seconds_count)"
    r"(?:\{[^}]*\})? (\S+)$",
    re.MULTILINE,
)
"""Questions that CoreDNS sent to servers outside: the name until 1.11, and since."""
_INSIDE = (".cluster.local", ".in-addr.arpa", ".ip6.arpa")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z][A-Za-z0-9-]*")
_SHOWN = 5


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True)
class Checked:
    """What to check: ``context`` is None where no bundle is at hand, and then no cluster is asked.

    ``watch`` is told what is being checked, ``found`` each finding as it comes.
    """

    site: Site
    state: State
    context: Context | None = None
    key_file: str = ""
    watch: Callable[[str], None] = _silent
    found: Callable[[Finding], None] = lambda _: None
    clock: Callable[[], datetime] = field(default=utc_now)


def accept(request: Checked) -> AcceptanceReport:
    """Check all of it; what fails is in the report, and an interruption leaves nothing behind."""
    began = request.clock()
    sections = [*_harbors(request)]
    if request.context is not None:
        sections.append(Section("Cluster", tuple(_told(request, _cluster(request.context)))))
    findings = [one for section in sections for one in section.findings]
    bundle = request.context.bundle if request.context else None
    return AcceptanceReport(
        schema=SCHEMA,
        site=request.site.name,
        started=began.strftime(_TIME),
        finished=request.clock().strftime(_TIME),
        machine=socket.gethostname(),
        installer=_installer(),
        bundle=_identity(bundle, request.key_file) if bundle else None,
        installed=tuple(_installed(request.site, bundle)),
        carried=tuple(_carried(bundle)) if bundle else (),
        sections=tuple(sections),
        failed=sum(one.state == "failed" for one in findings),
        site_digest=_site_digest(request.site),
    )


def _harbors(request: Checked) -> Iterator[Section]:
    for release in request.site.releases:
        if release.harbor is None:
            continue
        title = f"Harbor {release.key} at {release.harbor.external_url}"
        if not release.harbor.acceptance:
            why = "switched off in site.yaml: harbor.acceptance is false"
            off = Finding("harbor", "Harbor is used once", "not checked", why)
            yield Section(title, tuple(_told(request, [off])))
            continue
        try:
            access = access_to(request.site, request.state, release.key)
        except AirgapError as error:
            wrong = Finding("login", "admin logs in", "failed", error.message, error.hint)
            yield Section(title, tuple(_told(request, [wrong])))
            continue
        subject = Subject(access, _has_database(request), watch=request.watch)
        yield Section(title, tuple(_told(request, check(subject))))


def _has_database(request: Checked) -> bool:
    bundle = request.context.bundle if request.context else None
    return bundle is not None and any(one.kind == "trivy-db" for one in bundle.manifest.databases)


def _told(request: Checked, findings: Iterator[Finding] | Sequence[Finding]) -> Iterator[Finding]:
    for one in findings:
        request.found(one)
        yield one


def _cluster(context: Context) -> Iterator[Finding]:
    namespaces = dict.fromkeys(one.release_namespace for one in context.site.releases)
    for namespace in namespaces:
        title = f"all containers in {namespace} run images of the bundle"
        try:
            problems = RunningImages(namespace, context.bundle, context.kubectl, ()).problems()
            count = len(context.kubectl.pods(namespace))
        except AirgapError as error:
            yield Finding(f"images:{namespace}", title, "failed", error.message, error.hint)
            continue
        if problems:
            text = "; ".join(problems[:_SHOWN])
            yield Finding(f"images:{namespace}", title, "failed", text)
        else:
            yield Finding(f"images:{namespace}", title, "passed", f"{count} pods, by digest")
    yield outside_names(context.kubectl, tuple(namespaces), hosts_named_in(context.site))


def hosts_named_in(site: Site) -> frozenset[str]:
    """Hosts that site.yaml names anywhere: a database, Redis, LDAP, another Harbor, its own URL."""
    texts, waiting = [], [msgspec.to_builtins(site)]
    while waiting:
        match waiting.pop():
            case str() as text:
                texts.append(text)
            case dict() as fields:
                waiting += fields.values()
            case list() | tuple() as items:
                waiting += items
    return frozenset(host.lower() for text in texts for host in _HOST.findall(text))


def outside_names(
    kubectl: Kubectl, namespaces: Sequence[str], known: frozenset[str] = frozenset()
) -> Finding:
    """Whether a pod of these namespaces asked the cluster's DNS for a name that is not inside.

    ``known`` are names of the site that pods have to ask for, also with a search list's suffix.
    Told by CoreDNS's log, if its plugin ``log`` is on, else by its counters, which know only that
    nobody at all asked.
    """
    name, title = "outside-names", "no pod asked for a name outside the cluster"
    try:
        text = kubectl.run("logs", *_DNS, f"--tail={_LOG_LINES}", "--prefix=false")
        pods = {
            ip["ip"]: f"{namespace}/{pod['metadata']['name']}"
            for namespace in namespaces
            for pod in kubectl.pods(namespace)
            if not pod["spec"].get("hostNetwork")
            for ip in pod.get("status", {}).get("podIPs", ())
        }
    except AirgapError as error:
        return Finding(name, title, "not checked", f"not available: {error.message}")
    lines, asked = 0, Counter[tuple[str, str]]()
    for match in _QUERY.finditer(text):
        lines += 1
        wanted = match["name"].rstrip(".").lower()
        # A name without a dot is tried with the search list's suffixes first.
        if match["from"] not in pods or "." not in wanted or wanted.endswith(_INSIDE):
            continue
        if not any(wanted == host or wanted.startswith(f"{host}.") for host in known):
            asked[pods[match["from"]], wanted] += 1
    if not lines:
        return _by_counters(kubectl, name, title)
    if asked:
        words = (f"{pod} asked for {what}, {n} times" for (pod, what), n in asked.most_common(5))
        return Finding(name, title, "failed", "; ".join(words))
    return Finding(name, title, "passed", f"{lines} questions in the log of the cluster's DNS")


def _by_counters(kubectl: Kubectl, name: str, title: str) -> Finding:
    """What CoreDNS's counters tell: none was forwarded, or they don't say whose it was."""
    forwarded, servers = 0.0, 0
    try:
        for pod in kubectl.get("get", "pods", *_DNS).get("items", []):
            where = f"/api/v1/namespaces/kube-system/pods/{pod['metadata']['name']}"
            text = kubectl.run("get", "--raw", f"{where}:{_METRICS_PORT}/proxy/metrics")
            servers += "coredns_build_info" in text
            forwarded += sum(float(count) for count in _FORWARDED.findall(text))
    except AirgapError as error:
        why = f"not available: the DNS keeps no log, and its counters: {error.message}"
        return Finding(name, title, "not checked", why)
    if not servers:
        why = "not available: the cluster's DNS keeps no log of questions (CoreDNS: plugin log)"
        return Finding(name, title, "not checked", why)
    if forwarded:
        why = (
            f"not available: the cluster's DNS sent {forwarded:.0f} questions on since it started, "
            "and says not whose (CoreDNS: plugin log)"
        )
        return Finding(name, title, "not checked", why)
    return Finding(name, title, "passed", "the cluster's DNS sent no question on since it started")


def _identity(bundle: VerifiedBundle, key_file: str) -> BundleIdentity:
    manifest = bundle.manifest
    return BundleIdentity(
        manifest.name, manifest.channel, manifest.serial, manifest.created, str(bundle.digest),
        bundle.signers, key_file, manifest.expires,
    )  # fmt: skip


def _installed(site: Site, bundle: VerifiedBundle | None) -> Iterator[Installed]:
    charts = bundle.manifest.charts if bundle else ()
    for release in site.releases:
        fitting = [
            one
            for one in charts
            if one.name == release.chart and release.version in ("", one.version)
        ]
        chart = fitting[0] if len(fitting) == 1 else None
        yield Installed(
            release.key,
            release.chart,
            chart.version if chart else release.version,
            chart.app_version if chart else "",
            chart.digest if chart else "",
            release.harbor.external_url if release.harbor else "",
        )


def _carried(bundle: VerifiedBundle) -> Iterator[Carried]:
    manifest = bundle.manifest
    for chart in manifest.charts:
        yield Carried("chart", f"{chart.name} {chart.version}", chart.digest)
    for image in manifest.images:
        yield Carried("image", image.reference, image.digest)
    for one in manifest.databases:
        made = f"made {one.updated_at}" if one.updated_at else ""
        yield Carried("database", f"{one.kind} {one.reference}", one.digest, made)
    for tool in manifest.tools:
        yield Carried("tool", f"{tool.name} {tool.platform}", tool.digest)
    for file in manifest.files:
        yield Carried("file", file.name, file.digest)


def _installer() -> str:
    try:
        return f"harbor-airgap {importlib.metadata.version('harbor-airgap')}"
    except importlib.metadata.PackageNotFoundError:  # run from a folder
        return "harbor-airgap"


def _site_digest(site: Site) -> str:
    return str(Digest.of(msgspec.json.encode(site)))


def keep(state: State, report: AcceptanceReport) -> None:
    """Keep it in the state folder, in both forms; only while the state is held."""
    write_file(state.path(PRINTED), as_html(report))
    write_file(state.path(KEPT), as_json(report))


class Acceptance:
    """The last step of a run: use every Harbor once, and keep the report."""

    name = STEP
    sentence = "Use Harbor once as people will, and keep the report"

    def __init__(self, context: Context) -> None:
        self._context = context

    @property
    def site_digest(self) -> str:
        """What tells this site.yaml from another."""
        return _site_digest(self._context.site)

    def check(self) -> bool:
        """Whether that was done with this bundle and site.yaml, and nothing was changed since."""
        state, bundle = self._context.state, self._context.bundle
        kept = state.read(KEPT, AcceptanceReport)
        if kept is None or kept.failed or kept.bundle is None:
            return False
        if (kept.bundle.digest, kept.site_digest) != (
            str(bundle.digest),
            self.site_digest,
        ):
            return False
        done = [one for one in state.journal.lines() if one.event == "done" and one.step != STEP]
        return not done or done[-1].time <= kept.started

    def apply(self) -> str:
        """Do it; raises AcceptanceFailed that names what is wrong, after the report is kept."""
        context = self._context
        report = accept(Checked(context.site, context.state, context))
        keep(context.state, report)
        place = context.state.path(PRINTED)
        wrong = [one for one in report.findings if one.state == "failed"]
        if wrong:
            listed = "\n  ".join(f"{one.title}: {one.text}" for one in wrong)
            raise AcceptanceFailed(
                f"it is installed, and does not work as it should:\n  {listed}",
                hint=next((one.hint for one in wrong if one.hint), f"the report is {place}"),
            )
        return f"{report.verdict} Report: {place}"
