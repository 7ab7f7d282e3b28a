"""A run backwards: what runs goes, what was stored stays, and what remains is listed.

Nothing of Harbor's data goes unless it is asked for, and then only what the cluster knows of it:
claims and volumes. Content of an export or a folder, the database and the site's secrets are never
touched; each is listed with what a person can do. So the next ``run`` with the same site.yaml finds
its data: claims and volumes keep Helm's marks, by which Helm 3 and 4 take them over again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from installer.deploy import daemon
from installer.deploy.certificates import registry_host
from installer.deploy.context import check_state_folder, looking, working
from installer.deploy.installed import applied_charts
from installer.deploy.local_removal import ForgetHost, RestoreHAProxy, StopSeed
from installer.deploy.plan import Report, execute, look
from installer.deploy.removal import (
    DeleteData,
    Remains,
    RemoveRelease,
    companions,
    helm_names,
    volume_content,
)
from installer.errors import DeploymentFailed, InvalidInput, PreflightFailed
from installer.site.section import check_paths

if TYPE_CHECKING:
    from collections.abc import Iterator

    from installer.bundle.archive import VerifiedBundle
    from installer.deploy.context import Context
    from installer.deploy.plan import Observer, Planned, Step
    from installer.site.harbor import Database, Harbor
    from installer.site.model import Release, Site
    from installer.site.state import State

_PATIENCE = 20
_SHOWN = 5
_GIVEN = ("configmap/kube-root-ca.crt",)
"""What Kubernetes puts into every namespace."""
_LISTED = "pods,deployments,statefulsets,daemonsets,jobs,services,ingresses,persistentvolumeclaims"
_LISTED += ",secrets,configmaps"


@dataclass(frozen=True)
class Request:
    """What is to be taken away; ``keys`` are releases of site.yaml, none means all of them.

    With ``delete_data`` claims and volumes go as well.
    """

    bundle: VerifiedBundle
    site: Site
    state: State
    keys: tuple[str, ...] = ()
    delete_data: bool = False

    def releases(self) -> list[Release]:
        """The chosen ones, the last of site.yaml first; raises InvalidInput for an unknown one."""
        known = [release.key for release in self.site.releases]
        for key in self.keys:
            if key not in known:
                raise InvalidInput(
                    f"--release {key}: site.yaml has no such release",
                    hint=f"it has {', '.join(known)}",
                )
        return [r for r in reversed(self.site.releases) if not self.keys or r.key in self.keys]


@dataclass(frozen=True)
class Outlook:
    """What would be done, which objects' data would go, and what would stay."""

    planned: list[Planned]
    deleted: list[str]
    remains: list[Remains]


@dataclass(frozen=True)
class Outcome:
    """What was done, and what stays."""

    report: Report
    remains: list[Remains]


def plan(request: Request) -> Outlook:
    """Say what would be done; changes nothing. Raises what ``uninstall`` would refuse."""
    _preflight(request)
    with looking(request.bundle, request.site, request.state) as context:
        _check_cluster(context)
        parts = _Parts(context, request)
        steps = parts.steps()
        deleted = [line for data in parts.deletions() for line in data.details()]
        return Outlook(look(steps), deleted, parts.remains(after=False))


def uninstall(request: Request, observer: Observer) -> Outcome:
    """Take it away; run again it goes on where it stopped. Raises an AirgapError.

    When it raises PreflightFailed or InvalidInput nothing was changed.
    """
    _preflight(request)
    with looking(request.bundle, request.site, request.state) as context:
        _check_cluster(context)
        _Parts(context, request).steps()
    state, digest = request.state, str(request.bundle.digest)
    with state.held():
        context = working(request.bundle, request.site, state)
        keys = ", ".join(release.key for release in request.releases())
        data = "; with the data" if request.delete_data else ""
        state.journal.append("uninstall", bundle=digest, text=f"{keys}{data}")
        report = execute([context.toolbox], state.journal, digest, observer)
        # A Helm whose installer was killed would go on installing meanwhile.
        daemon.end_programs(context.helm.binary, context.helm.home)
        parts = _Parts(context, request)
        execute(parts.steps(), state.journal, digest, observer, report)
        return Outcome(report, parts.remains(after=True))


def _preflight(request: Request) -> None:
    request.releases()
    check_paths(request.site.cluster, "cluster")
    folder = request.state.folder
    if not folder.is_dir():
        raise PreflightFailed(
            f"{folder}: there is no such folder: {request.site.name} was not installed from here",
            hint="name the site's state folder with --state; if it is lost, make an empty one "
            "there (mkdir)",
        )
    check_state_folder(request.state)
    # An older bundle may do it: nothing of it is installed.
    request.state.check_history(
        request.bundle.manifest, channel=request.site.channel, allow_downgrade=True
    )


def _check_cluster(context: Context) -> None:
    try:
        context.kubectl.get("version", timeout=_PATIENCE)["serverVersion"]
    except (DeploymentFailed, KeyError) as error:
        words = error.message if isinstance(error, DeploymentFailed) else f"it lacks {error}"
        raise PreflightFailed(
            f"the cluster can't be reached: {words}",
            hint="check cluster.kubeconfig and cluster.context in site.yaml; nothing was changed",
        ) from error


class _Parts:
    """The steps of an uninstallation, and the list of what it leaves."""

    def __init__(self, context: Context, request: Request) -> None:
        self._context = context
        self._site = context.site
        self._delete_data = request.delete_data
        self._releases = request.releases()
        self._left = self._others()

    def steps(self) -> list[Step]:
        """Each part of each release, the last one first; the seed when nothing else needs it.

        Raises PreflightFailed for what can't be done from here.
        """
        steps: list[Step] = []
        for release in self._releases:
            harbor = release.harbor
            if harbor is not None and harbor.load_balancer is not None:
                balancer = RestoreHAProxy(harbor, release.key)
                balancer.preflight()
                steps.append(balancer)
            steps += [
                RemoveRelease(self._context, release, name)
                for name in (release.release_name, *companions(release))
            ]
            if self._delete_data:
                steps.append(DeleteData(self._context, release))
            if harbor is not None and self._host(harbor) != self._seed_host:
                steps.append(self._forget(self._host(harbor)))
        if not self._left:
            seed = StopSeed(self._site, self._context.state)
            seed.preflight()
            steps += [self._forget(self._seed_host), *([seed] if seed.was_ours() else ())]
        return steps

    def deletions(self) -> list[DeleteData]:
        """The data that would go."""
        if not self._delete_data:
            return []
        return [DeleteData(self._context, release) for release in self._releases]

    def remains(self, *, after: bool) -> list[Remains]:
        """What stays; ``after``: as it is now, else as it will be when all steps are done."""
        rows: list[Remains] = []
        for release in self._releases:
            rows += self._data(release, after=after)
            if release.harbor is not None:
                rows += self._around(release, release.harbor)
        for namespace in dict.fromkeys(r.release_namespace for r in self._releases):
            rows.append(self._namespace(namespace, after=after))
        return rows + list(self._at_home())

    def _others(self) -> list[str]:
        """Releases of the site that are there and stay, also those that left site.yaml."""
        ever = applied_charts(self._context.state)
        here = [f"{r.release_namespace}/{n}" for r in self._site.releases for n in helm_names(r)]
        going = {f"{r.release_namespace}/{n}" for r in self._releases for n in helm_names(r)}
        keys = dict.fromkeys(key for key in (*here, *ever) if key not in going)
        found = {
            f"{namespace}/{entry.get('name')}"
            for namespace in {key.partition("/")[0] for key in keys}
            for entry in self._context.helm.releases(namespace)
        }
        return [key for key in keys if key in found]

    @property
    def _seed_host(self) -> str:
        return self._site.image_prefix.partition("/")[0]

    @staticmethod
    def _host(harbor: Harbor) -> str:
        return registry_host(harbor.external_url)

    def _forget(self, host: str) -> ForgetHost:
        certs = self._site.nodes.containerd_certs_dir
        folder = Path(certs) if certs else self._context.state.path("nodes")
        return ForgetHost(folder, host, here=bool(certs))

    def _data(self, release: Release, *, after: bool) -> Iterator[Remains]:
        data = DeleteData(self._context, release)
        if after or not self._delete_data:
            for claim in data.claims():
                where = f"{release.release_namespace}/{claim['metadata']['name']}"
                yield Remains("claim", where, "the next run takes it over")
            for volume in data.volumes():
                then = _released(volume) or "the next run takes it over"
                note = f"content: {volume_content(volume)}; {then}"
                yield Remains("volume", volume["metadata"]["name"], note)
            for secret in data.secrets():
                where = f"Secret {release.release_namespace}/{secret['metadata']['name']}"
                note = "the next run takes them back from it if the state folder is lost"
                yield Remains("secrets", where, note)
        storage = release.harbor.storage if release.harbor else None
        if storage is None:
            return
        note = "not touched; delete it there when nobody needs it"
        if storage.nfs:
            yield Remains("stored data", f"{storage.nfs.server}:{storage.nfs.path}", note)
        if storage.host_path:
            yield Remains("stored data", f"{storage.host_path.path} on the node", note)
        if storage.claim:
            where = f"claim {release.release_namespace}/{storage.claim}"
            yield Remains("stored data", where, "it was there before the installer: not touched")

    def _around(self, release: Release, harbor: Harbor) -> Iterator[Remains]:
        if harbor.database is not None:
            yield _database(harbor.database)
        if harbor.redis is not None:
            where = ", ".join(harbor.redis.addresses)
            yield Remains("Redis", where, "not touched: Harbor's keys stay in it")
        if harbor.load_balancer is not None:
            yield from RestoreHAProxy(harbor, release.key).remains()
        certificate = harbor.certificate
        if certificate is not None and certificate.self_signed is not None:
            ca = self._context.state.path(f"tls/{release.key}/ca.crt")
            note = f"what was told to trust {ca} still does: take it out of their trust stores"
            yield Remains("authority", f"clients of {self._host(harbor)}", note)

    def _namespace(self, namespace: str, *, after: bool) -> Remains:
        note = "a claim goes with its namespace, and its volume is not bound again then"
        if self._delete_data and not after:
            note = "not deleted"
        if after:
            found = self._context.kubectl.run(
                "get", _LISTED, f"--namespace={namespace}", "--output=name", timeout=_PATIENCE
            ).split()
            names = [name for name in found if name not in _GIVEN]
            shown = ", ".join(names[:_SHOWN])
            nothing = "without workloads, claims, Secrets and ConfigMaps: may be deleted"
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            note = f"in it: {shown}{more}; {note}" if names else nothing
        return Remains("namespace", namespace, note)

    def _at_home(self) -> Iterator[Remains]:
        site, state = self._site, self._context.state
        if self._left:
            note = f"stays: {', '.join(self._left)} pull from it"
            yield Remains("seed registry", self._seed_host, note)
        elif site.seed.push is not None:
            yield Remains("images", site.image_prefix, "what was pushed there is not touched")
        if not site.nodes.containerd_certs_dir:
            hosts = [self._host(r.harbor) for r in self._releases if r.harbor is not None]
            hosts += [] if self._left else [self._seed_host]
            note = f"delete what was copied there: {', '.join(dict.fromkeys(hosts))}"
            yield Remains("nodes", "/etc/containerd/certs.d", note)
        yield Remains(
            "state",
            str(state.folder),
            "the secrets are in it: without them Harbor can't read its data again",
        )


def _database(database: Database) -> Remains:
    name, role = _identifier(database.name), _identifier(database.username)
    return Remains(
        "database",
        f"{database.name} at {database.host}:{database.port}",
        f"not touched; as its administrator: DROP DATABASE {name}; DROP ROLE {role};",
    )


def _identifier(name: str) -> str:
    """A name as SQL has it, whatever is in it."""
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def _released(volume: dict[str, Any]) -> str:
    """What to do with a volume whose claim was deleted; nothing for one that has its claim."""
    if volume.get("status", {}).get("phase") != "Released":
        return ""
    # It remembers the claim's uid, and no later claim of that name has it (PersistentVolumeSpec).
    patch = '[{"op":"remove","path":"/spec/claimRef/uid"}]'
    return (
        "its claim was deleted, so that no other is bound to it until `kubectl patch pv "
        f"{volume['metadata']['name']} --type=json --patch='{patch}'`"
    )
