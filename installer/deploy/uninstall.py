"""A run backwards: what runs goes, what was stored stays, and what remains is listed.

Nothing of Harbor's data goes unless it is asked for, and then only what the cluster knows of it:
claims and volumes. Content of an export or a folder, the database and the site's secrets are never
touched; each is listed with what a person can do. So the next ``run`` with the same site.yaml finds
its data: claims and volumes keep Helm's marks, by which Helm 3 and 4 take them over again.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

# What is private there says how files are called: here they must be called the same.
from installer.deploy import daemon, systemd
from installer.deploy.certificates import registry_host
from installer.deploy.context import check_state_folder, looking, working
from installer.deploy.haproxy import _KEPT, InstallHAProxy, _Kept, _owner, _program, _run
from installer.deploy.installed import _FILE, InstalledRelease, _Applied
from installer.deploy.kept_secrets import secret_name
from installer.deploy.kubectl import has_ended
from installer.deploy.nodes import hosts_toml
from installer.deploy.plan import Report, execute, look
from installer.deploy.systemd import _UNITS
from installer.errors import DeploymentFailed, InvalidInput, PreflightFailed, TransferFailed
from installer.site.private import read_file, write_file
from installer.site.section import check_paths

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from installer.bundle.archive import VerifiedBundle
    from installer.deploy.context import Context
    from installer.deploy.plan import Observer, Planned, Step
    from installer.site.harbor import Database, Harbor
    from installer.site.model import Release, Site
    from installer.site.state import State

_PATIENCE = 20
_PAUSE = 1.0
_SHOWN = 5
_WORDS = 1000
_SECONDS = 300
"""In which claims and volumes go when nothing uses them any more."""
_INSTANCE = "app.kubernetes.io/instance"
_MADE_BY = "meta.helm.sh/release-name"
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


class Remains(msgspec.Struct, frozen=True):
    """Something that stays: what and where, and what a person can do with it."""

    what: str
    where: str
    note: str


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
                for name in (release.release_name, *_companions(release))
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
        state = self._context.state
        ever = (state.read(_FILE, _Applied) or _Applied()).charts
        here = [f"{r.release_namespace}/{n}" for r in self._site.releases for n in _names(r)]
        going = {f"{r.release_namespace}/{n}" for r in self._releases for n in _names(r)}
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
                note = f"content: {_content(volume)}; {then}"
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


def _companions(release: Release) -> list[str]:
    return [f"{release.release_name}-companion"] if release.harbor is not None else []


def _names(release: Release) -> list[str]:
    """Helm's names of a release and of what the installer put beside it."""
    return [release.release_name, *_companions(release)]


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


def _content(volume: dict[str, Any]) -> str:
    """Where a volume's bytes are, for a person."""
    spec = volume["spec"]
    if nfs := spec.get("nfs"):
        return f"{nfs['server']}:{nfs['path']}"
    if folder := spec.get("hostPath"):
        return f"{folder['path']} on the node"
    return f"of storage class {spec.get('storageClassName') or '(none)'}"


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


class RemoveRelease:
    """Let Helm uninstall one release, and wait until nothing of it runs."""

    def __init__(self, context: Context, release: Release, name: str) -> None:
        """``name`` is Helm's, of ``release`` or of its companion."""
        self._context = context
        self._timeout = release.timeout
        self._is_harbor = release.harbor is not None and name == release.release_name
        self._installed = InstalledRelease(context, release.release_namespace, name)
        self._namespace = f"--namespace={release.release_namespace}"
        self.name = f"uninstall:{self._installed.key}"
        self.sentence = f"Uninstall the release {self._installed.key}"

    def check(self) -> bool:
        """Whether it is gone, with its jobs and pods."""
        return self._installed.found() is None and not self._jobs() and not self._running()

    def apply(self) -> str:
        """Uninstall it; raises DeploymentFailed, also for pods that do not end."""
        installed = self._installed
        if installed.found() is not None:
            self._forget()
            # Helm deletes Services before what needs them: pods would ask the site's DNS for names
            # that only the cluster knew, and could not tell each other that they end.
            if self._is_harbor and (workloads := [*self._workloads(), *self._jobs()]):
                self._delete(*workloads)
                self._wait()
            self._context.helm.uninstall(installed.name, installed.namespace, timeout=self._timeout)
        # Helm leaves the jobs of hooks; one that failed would try again for ever.
        if jobs := self._jobs():
            self._delete(*jobs)
        self._wait()
        return ""

    def _forget(self) -> None:
        """Let the next run see that the release isn't as it was made, whatever Helm says."""
        state = self._context.state
        applied = state.read(_FILE, _Applied) or _Applied()
        charts = {key: of for key, of in applied.charts.items() if key != self._installed.key}
        state.write(_FILE, msgspec.structs.replace(applied, charts=charts))

    def _wait(self) -> None:
        end = time.monotonic() + self._timeout
        while running := self._running():
            if time.monotonic() >= end:
                raise DeploymentFailed(
                    f"pods of {self._installed.key} do not end: {', '.join(running[:_SHOWN])}",
                    hint="is their node away? `kubectl describe pod` says what they wait for",
                )
            time.sleep(_PAUSE)

    def _delete(self, *objects: str) -> None:
        self._context.kubectl.run(
            "delete", *objects, self._namespace, "--ignore-not-found", "--wait=false"
        )

    def _workloads(self) -> list[str]:
        """What makes its pods, by the marks that Helm gives to all that it makes."""
        found = self._context.kubectl.get(
            "get", "deployments,statefulsets,daemonsets", self._namespace
        ).get("items", [])
        return [
            f"{one['kind'].lower()}/{one['metadata']['name']}"
            for one in found
            if (one["metadata"].get("annotations") or {}).get(_MADE_BY) == self._installed.name
        ]

    def _jobs(self) -> list[str]:
        found = self._context.kubectl.get("get", "jobs", self._namespace).get("items", [])
        return [f"job/{job['metadata']['name']}" for job in found if self._is_ours(job)]

    def _running(self) -> list[str]:
        """Pods that have not ended, or have but are still there to be deleted."""
        found = self._context.kubectl.get("get", "pods", self._namespace).get("items", [])
        return [
            pod["metadata"]["name"]
            for pod in found
            if self._is_ours(pod) and ("deletionTimestamp" in pod["metadata"] or not has_ended(pod))
        ]

    def _is_ours(self, found: dict[str, Any]) -> bool:
        return _belongs(found, (self._installed.name,))


def _belongs(found: dict[str, Any], names: Collection[str]) -> bool:
    """Whether an object of the namespace is one of the releases' by its labels."""
    labels = found["metadata"].get("labels") or {}
    # Charts say it in one of these two ways; the claims of Harbor's StatefulSets in the old one.
    older = labels.get("release") if labels.get("heritage") == "Helm" else None
    return labels.get(_INSTANCE) in names or older in names


class DeleteData:
    """Delete the claims and volumes of a release; content that is no provisioner's stays."""

    def __init__(self, context: Context, release: Release) -> None:
        self._kubectl = context.kubectl
        self._namespace = release.release_namespace
        self._names = _names(release)
        storage = release.harbor.storage if release.harbor else None
        self._brought = storage.claim if storage else ""
        self.name = f"uninstall:data:{release.key}"
        self.sentence = f"Delete the claims, volumes and kept secrets of {release.key}"

    def claims(self) -> list[dict[str, Any]]:
        """Its PersistentVolumeClaims, but for one that site.yaml found there."""
        found = self._kubectl.get(
            "get", "persistentvolumeclaims", f"--namespace={self._namespace}"
        ).get("items", [])
        return [
            claim
            for claim in found
            if _belongs(claim, self._names) and claim["metadata"]["name"] != self._brought
        ]

    def volumes(self) -> list[dict[str, Any]]:
        """Its PersistentVolumes; those of a provisioner are the provisioner's."""
        found = self._kubectl.get("get", "persistentvolumes").get("items", [])
        return [
            volume
            for volume in found
            # Volumes have no namespace: a release of the same name may be in another one.
            if _belongs(volume, self._names)
            and (volume["spec"].get("claimRef") or {}).get("namespace") == self._namespace
        ]

    def secrets(self) -> list[dict[str, Any]]:
        """The Secret with a copy of what the state folder keeps."""
        found = self._kubectl.get("get", "secrets", f"--namespace={self._namespace}")
        name = secret_name(self._names[0])
        return [one for one in found.get("items", []) if one["metadata"]["name"] == name]

    def details(self) -> list[str]:
        """What would go, a line each."""
        lines = [
            f"Secret {self._namespace}/{one['metadata']['name']}; the state folder keeps the same"
            for one in self.secrets()
        ]
        for claim in self.claims():
            of = claim["spec"].get("storageClassName")
            content = f"; its content too, if storage class {of} deletes it" if of else ""
            lines.append(f"claim {self._namespace}/{claim['metadata']['name']}{content}")
        return lines + [
            f"volume {volume['metadata']['name']}; its content, {_content(volume)}, is not touched"
            for volume in self.volumes()
        ]

    def check(self) -> bool:
        """Whether there are none."""
        return not self.claims() and not self.volumes() and not self.secrets()

    def apply(self) -> str:
        """Delete the claims, then the volumes; raises DeploymentFailed when one doesn't go."""
        claims = self.claims()
        theirs = self._provisioned(claims)
        # The other way round a volume would wait for its claim.
        self._delete("persistentvolumeclaims", claims, f"--namespace={self._namespace}")
        self._wait(theirs)
        volumes = self.volumes()
        self._delete("persistentvolumes", volumes)
        self._delete("secrets", self.secrets(), f"--namespace={self._namespace}")
        return "; ".join(f"the content of {_content(v)} is not touched" for v in volumes)

    def _provisioned(self, claims: Sequence[dict[str, Any]]) -> set[str]:
        """Volumes of the claims that a provisioner deletes after them."""
        names = {claim["metadata"]["name"] for claim in claims}
        found = self._kubectl.get("get", "persistentvolumes").get("items", []) if names else []
        return {
            volume["metadata"]["name"]
            for volume in found
            if volume["spec"].get("persistentVolumeReclaimPolicy") == "Delete"
            and (of := volume["spec"].get("claimRef") or {}).get("namespace") == self._namespace
            and of.get("name") in names
        }

    def _wait(self, names: set[str]) -> None:
        """Let provisioners do it: theirs may be the next release to go."""
        end = time.monotonic() + _SECONDS
        while names:
            found = self._kubectl.get("get", "persistentvolumes").get("items", [])
            names &= {volume["metadata"]["name"] for volume in found}
            if names and time.monotonic() >= end:
                raise DeploymentFailed(
                    f"their storage class does not delete volumes {', '.join(sorted(names))}",
                    hint="is its provisioner well? `kubectl describe pv` says more; run the same "
                    "command again to go on without it",
                )
            time.sleep(_PAUSE if names else 0)

    def _delete(self, kind: str, found: Sequence[dict[str, Any]], *where: str) -> None:
        if not found:
            return
        names = [one["metadata"]["name"] for one in found]
        try:
            self._kubectl.run(
                "delete", kind, *names, *where, "--ignore-not-found", f"--timeout={_SECONDS}s",
                timeout=_SECONDS,
            )  # fmt: skip
        except DeploymentFailed as error:
            error.hint = error.hint or "does a pod still use it? `kubectl describe` says which"
            raise


class ForgetHost:
    """Take containerd's folder of a registry host away, if the installer wrote it."""

    def __init__(self, folder: Path, host: str, *, here: bool) -> None:
        """``folder`` is that of all hosts; ``here`` says that a containerd reads it."""
        self._folder = folder / host
        self._host = host
        self._here = here
        self.name = f"uninstall:nodes:{host}"
        self.sentence = f"Remove {self._folder}"

    def check(self) -> bool:
        """Whether nothing of ours is there."""
        return not self._folder.is_dir() or not (self._is_ours() or self._is_empty())

    def apply(self) -> str:
        """Remove it; what else lies in the folder stays. Raises TransferFailed."""
        try:
            # hosts.toml last: by it the rest is known as ours when this is interrupted.
            for name in ("ca.crt", "hosts.toml"):
                (self._folder / name).unlink(missing_ok=True)
            with suppress(OSError):  # something else lies in it
                self._folder.rmdir()
        except OSError as error:
            raise TransferFailed(f"{self._folder}: {error.strerror}") from error
        if self._here:
            return ""
        return f"delete /etc/containerd/certs.d/{self._host} on each node, where it was copied to"

    def _is_ours(self) -> bool:
        written = read_file(self._folder / "hosts.toml")
        ways = ((tls, ca) for tls in (True, False) for ca in (True, False))
        return written in [hosts_toml(self._host, tls=tls, ca=ca).encode() for tls, ca in ways]

    def _is_empty(self) -> bool:
        return not any(self._folder.iterdir())


class StopSeed:
    """Stop the seed registry of the site and remove its systemd unit."""

    name = "uninstall:seed"
    sentence = "Stop the seed registry: nothing of the site pulls from it any more"

    def __init__(self, site: Site, state: State) -> None:
        self._serves = site.seed.serve is not None
        self._pid_file = state.path("seed") / "serve.pid"
        self._unit = systemd.unit_name(site.name)
        self._file = _UNITS / self._unit

    def was_ours(self) -> bool:
        """Whether the installer serves the site's images, by site.yaml or in fact."""
        return self._serves or not self.check()

    def preflight(self) -> None:
        """Raises PreflightFailed for a unit that this user can't stop."""
        if self._file.exists() and not systemd.is_there():
            raise PreflightFailed(
                f"{self._file}: systemd does not run this machine, or we are not root",
                hint="run it as root",
            )

    def check(self) -> bool:
        """Whether neither a process of ours nor a unit is there."""
        return daemon.running(self._pid_file) is None and not self._file.exists()

    def apply(self) -> str:
        """Stop it; raises DeploymentFailed."""
        daemon.stop(self._pid_file)
        self._pid_file.unlink(missing_ok=True)
        if self._file.exists():
            self._control("disable", "--now", self._unit)
            self._file.unlink(missing_ok=True)
            self._control("daemon-reload")
        return "the bundle's file is no longer read: it may be put away"

    @staticmethod
    def _control(*arguments: str) -> None:
        if complaint := systemd.control(*arguments):
            raise DeploymentFailed(f"systemctl {' '.join(arguments)}: {complaint}")


class RestoreHAProxy(InstallHAProxy):
    """Give this machine's HAProxy the configuration back that it had before ours."""

    def __init__(self, harbor: Harbor, key: str) -> None:
        super().__init__(harbor, key, lambda: None)
        self.name = f"uninstall:loadbalancer:{key}"

    @property
    def sentence(self) -> str:
        """What applying it does."""
        return f"Give HAProxy its configuration of before back, {self._file}"

    def preflight(self) -> None:
        """Raises PreflightFailed if it should be done, but this machine's systemd isn't ours."""
        if not self.check() and not systemd.is_there():
            raise PreflightFailed(
                "loadBalancer.haproxy: systemd does not run this machine, or we are not root",
                hint="run it as root where HAProxy runs, or write service: false: it is left as "
                "it is then",
            )

    def check(self) -> bool:
        """Whether there is nothing to give back, or nothing that may be touched."""
        if not self._haproxy.service:
            return True
        if self._is_in_place():
            return self._before() is None
        return not self._pending.exists()

    def apply(self) -> str:
        """Put the file back and reload; ours is there again when HAProxy refuses that.

        Raises DeploymentFailed with HAProxy's words.
        """
        ours, before = _Kept(self._file), self._before()
        if self._is_in_place() and before is not None:
            _check_configuration(before)
            write_file(self._pending, b"")
            kept = _Kept(before)
            write_file(self._file, kept.data or b"", mode=kept.mode)
        if complaint := systemd.control("reload-or-restart", "haproxy"):
            ours.restore()
            systemd.control("reload-or-restart", "haproxy")
            self._pending.unlink(missing_ok=True)
            raise DeploymentFailed(
                f"HAProxy does not start with its configuration of before: {complaint}",
                hint="ours is in place again; write service: false to leave it",
            )
        self._pem.unlink(missing_ok=True)
        if before is not None and read_file(before) == read_file(self._file):
            before.unlink()
        self._pending.unlink(missing_ok=True)
        return ""

    def remains(self) -> Iterator[Remains]:
        """Files that stay, unless ``apply`` removes them."""
        if self._haproxy.service and not self.check():
            return
        if self._is_in_place():
            note = "HAProxy goes on with it: give it another one"
            if not self._haproxy.service:
                note = "and where it was copied to: stop HAProxy there, or give it another one"
            yield Remains("HAProxy", str(self._file), note)
        if self._pem.exists():
            yield Remains("HAProxy", str(self._pem), "holds the private key: delete it")
        for path in self._all_before():
            yield Remains("HAProxy", str(path), "the configuration of before")

    def _is_in_place(self) -> bool:
        return _owner(read_file(self._file)) == self._key

    def _all_before(self) -> list[Path]:
        """What was kept, as InstallHAProxy names it, the latest last."""
        found: list[Path] = []
        while True:
            number = f"-{len(found) + 1}" if found else ""
            path = self._file.with_name(f"{self._file.name}{_KEPT}{number}")
            if not path.exists():
                return found
            found.append(path)

    def _before(self) -> Path | None:
        found = self._all_before()
        return found[-1] if found else None


def _check_configuration(path: Path) -> None:
    """Let HAProxy read it where it lies: files that it names may be gone."""
    binary = _program()
    if binary is None:
        return
    result = _run(binary, path.parent, "-c", "-f", str(path))
    if result.returncode:
        raise DeploymentFailed(
            f"HAProxy refuses its configuration of before, {path}:\n"
            f"  {result.stderr.strip()[:_WORDS]}",
            hint="put it right, or write service: false in site.yaml to leave ours in place",
        )
