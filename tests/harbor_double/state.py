"""All that the double keeps, in memory, and the few rules that every room of it needs."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from tests.harbor_double.call import Answer
from tests.harbor_double.recordings import recorded

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harbor_double.call import Document

NEVER = "0001-01-01T00:00:00.000Z"
ADMIN = 1


def written(moment: datetime) -> str:
    """A time as Harbor writes it in most places."""
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


@dataclass
class Artifact:
    """One manifest in one repository."""

    id: int
    project: int
    repository: int
    name: str
    """Repository with its project."""
    digest: str
    manifest: bytes
    document: Document
    size: int
    pushed: datetime
    config: Document = field(default_factory=dict)
    pulled: datetime | None = None
    tags: dict[str, Document] = field(default_factory=dict)
    labels: set[int] = field(default_factory=set)
    subject: str = ""
    """Digest of what it belongs to, if it is an accessory."""
    accessory: str = ""
    """Type as an accessory, "" for an artifact of its own."""
    accessory_id: int = 0
    scans: dict[str, Scan] = field(default_factory=dict)


@dataclass
class Scan:
    """One run of the scanner: what it will say, and when it says so."""

    report: str
    begun: datetime
    started: float
    """On the state's own clock."""
    result: str
    findings: list[Document]
    ended: datetime | None = None
    stopped: bool = False
    sbom_digest: str = ""


@dataclass
class State:
    """One Harbor; every access holds ``lock``."""

    clock: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    pace: float = 0.05
    """Seconds that a job waits, and again that it runs."""
    external_url: str = "http://harbor.site.test:30002"
    version: str = "v2.14.4-79a297f7"
    admin_password: str = "Harbor12345"
    database_updated: str = ""
    """When the scanner's vulnerability database was made; "" without one."""
    reachable: Callable[[Document], bool] = lambda _registry: True
    """Whether the endpoint of a replication answers."""
    listening: Callable[[str], bool] = lambda _endpoint: False
    """Whether an endpoint for audit logs takes connections."""

    scanner_answers: Callable[[str], bool] = lambda url: "harbor-trivy" in url
    """Whether an adapter for scanners answers at a URL."""
    scanner: Callable[[Artifact], list[Document]] = lambda _artifact: []
    """What the scanner finds in an image; ValueError for one that it can't read."""
    sbom: Callable[[Artifact], str] = lambda _artifact: ""
    """Makes the SBOM of an image as its accessory, and gives its digest."""
    addition: Callable[[Artifact, str], Answer] = lambda _artifact, _name: Answer(200, {})
    """What an artifact carries inside: a chart's values, an SBOM."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    down: set[str] = field(default_factory=set)
    """Components that are not there, for /health."""
    sequences: dict[str, itertools.count[int]] = field(default_factory=dict)
    projects: dict[int, Document] = field(default_factory=dict)
    quotas: dict[int, Document] = field(default_factory=dict)
    members: dict[int, Document] = field(default_factory=dict)
    users: dict[int, Document] = field(default_factory=dict)
    robots: dict[int, Document] = field(default_factory=dict)
    labels: dict[int, Document] = field(default_factory=dict)
    retentions: dict[int, Document] = field(default_factory=dict)
    immutable: dict[int, Document] = field(default_factory=dict)
    webhooks: dict[int, Document] = field(default_factory=dict)
    registries: dict[int, Document] = field(default_factory=dict)
    replications: dict[int, Document] = field(default_factory=dict)
    schedules: dict[int, Document] = field(default_factory=dict)
    executions: dict[int, Document] = field(default_factory=dict)
    scanners: dict[str, Document] = field(default_factory=dict)
    repositories: dict[int, Document] = field(default_factory=dict)
    artifacts: dict[int, Artifact] = field(default_factory=dict)
    blobs: dict[int, dict[str, int]] = field(default_factory=dict)
    """Project → digest → bytes of what it holds."""
    audit: list[Document] = field(default_factory=list)
    allowlist: Document = field(default_factory=dict)
    configurations: Document = field(default_factory=dict)
    sessions: dict[str, int] = field(default_factory=dict)
    """sid → user."""

    def __post_init__(self) -> None:
        self.configurations = recorded("configurations", "get")
        admin = recorded("auth", "current user")
        # user 2 is Harbor's own anonymous one, so that the first made is 3
        self.users[ADMIN] = admin | {"password": self.admin_password}
        self.next("user"), self.next("user")
        scanner = recorded("scanners", "get")
        self.scanners[scanner["uuid"]] = scanner | {"built_in": True}
        for kind, vendor in (("SYSTEM_ARTIFACT_CLEANUP", None), ("EXECUTION_SWEEP", -1)):
            self.add_schedule(kind, "0 0 0 * * *", vendor)
        self.add_project("library", {"public": "true"}, ADMIN, -1, told=False)

    def next(self, kind: str) -> int:
        """The next id; taken even by what is refused afterwards, as a database's sequence is."""
        return next(self.sequences.setdefault(kind, itertools.count(1)))

    def start_at(self, kind: str, number: int) -> None:
        """Let the next id of a kind be this one."""
        self.sequences[kind] = itertools.count(number)

    def stamp(self) -> str:
        """Now, as Harbor writes it."""
        return written(self.now())

    def setting(self, name: str) -> Any:
        """Value of a configuration."""
        return self.configurations[name]["value"]

    def log(
        self, who: str, operation: str, kind: str, resource: str, words: str, **more: Any
    ) -> None:
        """Write an entry of the audit log."""
        if f"{operation}_{kind}" in self.setting("disabled_audit_log_event_types").split(","):
            return
        if self.setting("skip_audit_log_database"):
            return
        self.audit.append(
            {
                "id": self.next("audit"),
                "op_time": self.stamp(),
                "operation": operation,
                "operation_description": words,
                "operation_result": more.get("result", True),
                "resource": resource,
                "resource_type": kind,
                "username": who,
                "project": more.get("project", 0),
            }
        )

    def add_project(
        self,
        name: str,
        metadata: Document,
        owner: int,
        limit: int,
        *,
        told: bool = True,
        number: int = 0,
    ) -> Document:
        """A new project with its quota, its allowlist and its first member."""
        stamp = self.stamp()
        project: Document = {
            "project_id": number or self.next("project"),
            "name": name,
            "owner_id": owner,
            "metadata": metadata,
            "creation_time": stamp,
            "update_time": stamp,
            "allowlist": {"id": self.next("allowlist"), "items": []},
        }
        identity = int(project["project_id"])
        self.projects[identity] = project
        self.blobs[identity] = {}
        quota = self.next("quota")
        self.quotas[quota] = {
            "id": quota,
            "project": identity,
            "hard": limit or -1,
            "creation_time": stamp,
            "update_time": stamp,
        }
        member = self.next("member")
        self.members[member] = {
            "id": member, "project_id": identity, "entity_id": owner, "role_id": 1,
        }  # fmt: skip
        if told:
            user = self.users[owner]["username"]
            self.log(user, "create", "project", name, f"create project: {name}", project=identity)
        return project

    def add_schedule(self, kind: str, cron: str, vendor: int | None, **more: Any) -> Document:
        """A job that runs by the clock."""
        number = self.next("schedule")
        self.schedules[number] = {
            "id": number, "vendor_type": kind, "cron": cron, "vendor_id": vendor,
            "update_time": self.stamp(), **more,
        }  # fmt: skip
        return self.schedules[number]

    def schedule_of(self, kind: str, vendor: int | None = -1) -> Document | None:
        """The schedule of this kind of job."""
        for one in self.schedules.values():
            if one["vendor_type"] == kind and one["vendor_id"] == vendor:
                return one
        return None

    def project_named(self, name: str) -> Document | None:
        """The project with this name."""
        return next((one for one in self.projects.values() if one["name"] == name), None)

    def repository_named(self, name: str) -> Document | None:
        """The repository with this name, its project's in front."""
        return next((one for one in self.repositories.values() if one["name"] == name), None)

    def artifacts_of(self, repository: str) -> list[Artifact]:
        """All manifests of a repository, accessories with them."""
        return [one for one in self.artifacts.values() if one.name == repository]

    def find_artifact(self, repository: str, reference: str) -> Artifact | None:
        """By tag or digest."""
        for one in self.artifacts_of(repository):
            if reference == one.digest or reference in one.tags:
                return one
        return None

    def accessories_of(self, artifact: Artifact) -> list[Artifact]:
        """What belongs to an artifact: signatures, SBOMs and other referrers."""
        return [one for one in self.artifacts_of(artifact.name) if one.subject == artifact.digest]

    def used(self, project: int) -> int:
        """Bytes that a project's blobs and manifests take."""
        return sum(self.blobs[project].values())

    def hard(self, project: int) -> int:
        """Its quota in bytes, -1 without a limit."""
        limit: int = next(one["hard"] for one in self.quotas.values() if one["project"] == project)
        return limit

    def execution(self, kind: str, **more: Any) -> Document:
        """A job that was started now; ``phase`` tells how far it is."""
        number = self.next("execution")
        task = self.next("task")
        self.executions[number] = {
            "id": number, "kind": kind, "task": task, "started": self.clock(),
            "begun": self.now(), "job_id": uuid.uuid4().hex[:24], **more,
        }  # fmt: skip
        return self.executions[number]

    def phase(self, started: float) -> str:
        """Pending, Running or Success by the state's clock."""
        passed = self.clock() - started
        if passed < self.pace:
            return "Pending"
        return "Running" if passed < 2 * self.pace else "Success"

    def ended(self, execution: Document) -> datetime:
        """When a job was over."""
        begun: datetime = execution["begun"]
        return begun + timedelta(seconds=2 * self.pace)
