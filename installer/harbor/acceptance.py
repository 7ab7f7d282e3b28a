"""The proof that Harbor can be used: everything that people will do with it, done once.

All of it happens in a project of its own. What can't be checked here is never called good: it is
``not checked``, with the reason. Nothing is asked twice where Harbor's first answer counts, and
what a policy has to refuse must be refused with the policy's own code (recorded of Harbor 2.14).
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, Self

import msgspec

from installer.errors import AirgapError, WrongSignature
from installer.harbor.api import HarborRefused, segment
from installer.harbor.planted import CVE, planted_image
from installer.harbor.scan import artifact_path, wait_for_report
from installer.harbor.temporary_project import TemporaryProject
from installer.harbor.vulnerability_data import database_date, default_scanner
from installer.keys import generate
from installer.oci import artefact, signatures
from installer.oci.cosign import SigningIdentity
from installer.oci.graph import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from installer.site.http import Connection
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from installer.deploy.harbor_access import HarborAccess
    from installer.harbor.api import HarborClient
    from installer.oci.artefact import Artefact
    from installer.oci.registry import RegistryStore
    from installer.site.http import Answer

_REPOSITORY = "planted"
_TAG = "1"
_ROOM = 4096
"""Bytes that the quota leaves for a push which needs more."""
_OVERSIZED = 64 * 1024
_PAUSE = 0.5
_DAY = 1
_AUDIT_SECONDS = 15.0
"""Harbor writes the entries a moment after the answer."""
_WORDS = 200

State = Literal["passed", "failed", "not checked"]


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one thing is: ``text`` is the evidence or the reason, ``seconds`` how long it took."""

    name: str
    title: str
    state: State
    text: str
    hint: str = ""
    seconds: float = 0.0


class NotChecked(Exception):
    """Here this can't be checked; the message is the reason."""


class Failed(Exception):
    """It is not as it has to be; the message is what was seen."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Subject:
    """The Harbor to check.

    ``databases`` says whether the bundle has a vulnerability database: without one a scanner that
    has none is not called broken. ``patience`` is how long to wait for a scan, in seconds: before
    the first one the scanner fetches its database.
    """

    access: HarborAccess
    databases: bool
    patience: float = 900.0
    watch: Callable[[str], None] = field(default=lambda _: None)
    """Is told the title of what is being checked."""


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct):
    errors: list[_Error] = []


class _Component(msgspec.Struct):
    name: str
    status: str
    error: str = ""


class _Health(msgspec.Struct):
    status: str
    components: list[_Component] = []


class _Quota(msgspec.Struct):
    id: int
    used: dict[str, int] = {}


class _Robot(msgspec.Struct):
    id: int
    name: str
    secret: str


class _Execution(msgspec.Struct):
    id: int
    status: str


class _Task(msgspec.Struct):
    repository: str
    total: int = 0
    retained: int = 0


class _AuditEntry(msgspec.Struct):
    operation: str = ""
    resource_type: str = ""
    operation_description: str = ""


def check(subject: Subject) -> Generator[Finding]:
    """Check one thing after the other and tell each at once.

    The project goes away when the caller stops listening as well, also by an exception or Ctrl-C.
    What Harbor refuses becomes a finding; only what is no AirgapError is raised.
    """
    with (
        subject.access.client() as client,
        TemporaryProject(client) as project,
        _Check(subject, client, project) as run,
    ):
        for name, title, action in run.parts():
            subject.watch(title)
            yield _find(name, title, action)
            if name in ("health", "login", "project") and run.stopped:
                break
        subject.watch("the temporary project is removed")
        yield _find("clean-up", "the temporary project is removed", run.clean_up)


def failed(findings: list[Finding]) -> list[Finding]:
    """Those that are not as they have to be."""
    return [one for one in findings if one.state == "failed"]


def _find(name: str, title: str, action: Callable[[], str]) -> Finding:
    begin = time.monotonic()
    state: State = "failed"
    hint = ""
    try:
        text = action()
        state = "passed"
    except NotChecked as reason:
        text, state = str(reason), "not checked"
    except Failed as wrong:
        text, hint = str(wrong), wrong.hint
    except AirgapError as error:
        text, hint = error.message, error.hint
    return Finding(name, title, state, text, hint, round(time.monotonic() - begin, 1))


class _Check:
    """One run over one Harbor, with its project and what it put there."""

    def __init__(self, subject: Subject, client: HarborClient, project: TemporaryProject) -> None:
        self._subject = subject
        self._access = subject.access
        self._client = client
        self._temporary = project
        self._project = project.name
        self._repository = f"{self._project}/{_REPOSITORY}"
        self._image: Artefact = planted_image(self._project)
        self._registry: RegistryStore | None = None
        self._pushed = False
        self.stopped = False
        """Whether what follows would only fail for the same reason."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._registry is not None:
            self._registry.close()

    def parts(self) -> list[tuple[str, str, Callable[[], str]]]:
        """Name, sentence and check, in order."""
        return [
            ("health", "Harbor calls all its components healthy", self._health),
            ("login", "admin logs in, and a wrong password does not", self._login),
            ("project", "a project can be made", self._make_project),
            ("push-pull", "an image is pushed, and pulled back the same", self._push_and_pull),
            ("scan", "scan on push finds the planted vulnerability", self._scan),
            (
                "content-trust",
                "an unsigned image is refused, a signed one not",
                self._content_trust,
            ),
            ("quota", "the quota refuses a push that is too large", self._quota),
            ("robot", "a robot may pull, and nothing else", self._robot),
            ("retention", "tag retention says what it would keep", self._retention),
            ("audit-log", "the audit log has what was done here", self._audit_log),
        ]

    # The parts

    def _health(self) -> str:
        health = self._client.get("/health", type=_Health)
        ill = [one for one in health.components if one.status != "healthy"]
        if ill or health.status != "healthy":
            raise Failed(
                "; ".join(f"{c.name}: {c.error or c.status}" for c in ill) or health.status
            )
        return ", ".join(one.name for one in health.components)

    def _login(self) -> str:
        self.stopped = True
        self._client.login()
        version = self._client.version()
        answer = self._raw("GET", "/api/v2.0/users/current", ("admin", secrets.token_hex(8)))
        if answer.status != HTTPStatus.UNAUTHORIZED:
            raise Failed(f"a made-up password gets HTTP {answer.status}")
        self.stopped = False
        url = self._access.url
        if not url.startswith("https://"):
            return f"Harbor {version} at {url}, without TLS"
        trusted = self._access.ca or "the authorities of this machine's system"
        return f"Harbor {version} at {url}, its certificate checked with {trusted}"

    def _make_project(self) -> str:
        self.stopped = True
        left = self._temporary.make(auto_scan="true")
        self.stopped = False
        gone = f"; removed what a check before has left: {', '.join(left)}" if left else ""
        return self._project + gone

    def _push_and_pull(self) -> str:
        registry = self._store()
        artefact.push(registry, self._repository, self._image, _TAG)
        self._pushed = True
        root = registry.resolve(self._repository, _TAG)
        if root.digest != self._image.root.digest:
            raise Failed(f"pushed was {self._image.root.digest}, the tag is {root.digest}")
        size = 0
        for blob in self._image.blobs:
            pulled = b"".join(registry.fetch(self._repository, blob.descriptor))
            if pulled != blob.data:
                raise Failed(f"blob {blob.descriptor.digest} comes back changed")
            size += len(pulled)
        return f"{root.digest}, {size} bytes of content compared"

    def _scan(self) -> str:
        self._need_image()
        scanner = default_scanner(self._client)
        if scanner is None:
            raise NotChecked("this Harbor has no scanner")
        if not self._subject.databases and not database_date(self._client, scanner):
            raise NotChecked(
                "the scanner has no vulnerability database, and the bundle brought none"
            )
        begin = time.monotonic()
        digest = str(self._image.root.digest)
        report = wait_for_report(
            self._client, self._repository, digest, patience=self._subject.patience
        )
        found = {one.id for one in report.vulnerabilities or ()}
        if CVE not in found:
            raise Failed(
                f"{scanner.name} found {len(found)} vulnerabilities, and not {CVE}, which is there",
                "is the vulnerability database empty, or of another kind? `installer status` tells",
            )
        seconds = time.monotonic() - begin
        date = database_date(self._client, scanner)  # now: it may have come for this scan
        when = f", database of {date}" if date else ""
        return f"{scanner.name} found {CVE} after {seconds:.0f} s{when}"

    def _content_trust(self) -> str:
        self._need_image()
        self._set(enable_content_trust_cosign="true")
        try:
            self._refused("unsigned", self._pull(), HTTPStatus.PRECONDITION_FAILED)
            key, _ = generate(secrets.token_bytes(16))
            signatures.sign(self._store(), self._repository, self._image.root.digest, key)
            answer = self._pull()
            if not answer.good:
                raise Failed(f"signed, and still refused: HTTP {answer.status} {_words(answer)}")
            self._verified(key.public_pem())
        finally:
            self._set(enable_content_trust_cosign="false")
        return "refused before it was signed, pulled after; the signature was verified here as well"

    def _verified(self, pem: bytes) -> None:
        digest = self._image.root.digest
        identity = SigningIdentity.parse(pem, "the key of this check")
        signatures.verify(self._store(), self._repository, digest, identity)
        other, _ = generate(secrets.token_bytes(16))
        stranger = SigningIdentity.parse(other.public_pem(), "another key")
        try:
            signatures.verify(self._store(), self._repository, digest, stranger)
        except WrongSignature:
            return
        raise Failed("the signature holds for another key as well")

    def _quota(self) -> str:
        self._need_image()
        query: dict[str, str | int | bool] = {
            "reference": "project",
            "reference_id": self._project_id(),
        }
        quota = next(iter(self._client.pages("/quotas", query, type=_Quota)), None)
        if quota is None:
            raise NotChecked("quotas are switched off in this Harbor")
        used = quota.used.get("storage", 0)
        self._client.put(f"/quotas/{quota.id}", {"hard": {"storage": used + _ROOM}})
        try:
            words = self._push_too_much()
        finally:
            self._client.put(f"/quotas/{quota.id}", {"hard": {"storage": -1}})
        return f"{_OVERSIZED} bytes into {_ROOM}: {words}"

    def _push_too_much(self) -> str:
        layer = artefact.Blob.of(OCI_LAYER, secrets.token_bytes(_OVERSIZED))
        config = artefact.Blob.of(OCI_CONFIG, b'{"architecture":"amd64","os":"linux"}')
        large = artefact.author(config, [layer.descriptor], [layer])
        try:
            artefact.push(self._store(), f"{self._project}/large", large, _TAG)
        except AirgapError as error:
            if "DENIED" not in error.message:
                raise
            return error.message.partition("HTTP ")[2][:_WORDS]
        raise Failed("a push beyond the quota was taken")

    def _robot(self) -> str:
        self._need_image()
        grant = {
            "kind": "project",
            "namespace": self._project,
            "access": [{"resource": "repository", "action": "pull"}],
        }
        created = self._client.post(
            "/robots",
            {
                "name": "acceptance", "level": "project", "duration": _DAY, "disable": False,
                "description": "of installer check", "permissions": [grant],
            },
        )  # fmt: skip
        robot = msgspec.convert(created.document, _Robot)
        self._client.hide(robot.secret)
        login = (robot.name, robot.secret)
        try:
            pulled = self._pull(login)
            if not pulled.good:
                raise Failed(f"it can't pull: HTTP {pulled.status} {_words(pulled)}")
            forbidden = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
            upload = f"/v2/{self._repository}/blobs/uploads/"
            self._refused("it pushes", self._raw("POST", upload, login), *forbidden)
            artifact = f"/api/v2.0{artifact_path(self._repository, _TAG)}"
            self._refused("it deletes", self._raw("DELETE", artifact, login), *forbidden)
            self._refused("it reads users", self._raw("GET", "/api/v2.0/users", login), *forbidden)
        finally:
            self._client.delete(f"/robots/{robot.id}", missing_ok=True)
        self._refused("it is deleted, and pulls", self._pull(login), *forbidden)
        return f"{robot.name} pulled; push, delete and users were refused; deleted, it gets nothing"

    def _retention(self) -> str:
        self._need_image()
        second = planted_image(f"{self._project} 2")
        artefact.push(self._store(), self._repository, second, "2")
        match = {"kind": "doublestar", "pattern": "**"}
        rule = {
            "disabled": False,
            "action": "retain",
            "template": "latestPushedK",
            "params": {"latestPushedK": 1},
            "tag_selectors": [match | {"decoration": "matches", "extras": '{"untagged":true}'}],
            "scope_selectors": {
                "repository": [
                    {"kind": "doublestar", "decoration": "repoMatches", "pattern": _REPOSITORY}
                ]
            },
        }
        created = self._client.post(
            "/retentions",
            {
                "algorithm": "or", "rules": [rule],
                "trigger": {"kind": "Schedule", "settings": {"cron": ""}},
                "scope": {"level": "project", "ref": self._project_id()},
            },
        )  # fmt: skip
        policy = f"/retentions/{created.id}"
        run = self._client.post(f"{policy}/executions", {"dry_run": True})
        self._await_execution(policy, run.id)
        tasks = list(self._client.pages(f"{policy}/executions/{run.id}/tasks", type=_Task))
        task = next((one for one in tasks if one.repository == _REPOSITORY), None)
        if task is None or task.retained != 1 or task.total < 2:  # noqa: PLR2004 (images pushed)
            raise Failed(f"it says {_said(task)}, and 1 of 2 images would be kept")
        for tag in ("1", "2"):
            self._client.get(artifact_path(self._repository, tag))
        self._client.delete(policy)
        return "it would keep 1 of 2 images, and took none away"

    def _await_execution(self, policy: str, wanted: str) -> None:
        end = time.monotonic() + self._subject.patience
        while True:
            runs = self._client.pages(f"{policy}/executions", type=_Execution)
            run = next((one for one in runs if str(one.id) == wanted), None)
            if run is not None and run.status == "Success":
                return
            if run is not None and run.status in ("Error", "Stopped"):
                raise Failed(
                    f"the dry run ended: {run.status}", "see the logs of harbor-jobservice"
                )
            if time.monotonic() >= end:
                raise Failed(
                    f"the dry run is not over after {self._subject.patience:.0f} s",
                    "does harbor-jobservice run? see its logs",
                )
            time.sleep(_PAUSE)

    def _audit_log(self) -> str:
        self._need_image()
        settings = self._client.get("/configurations", type=dict[str, Any])
        if _setting(settings, "skip_audit_log_database"):
            endpoint = _setting(settings, "audit_log_forward_endpoint")
            raise NotChecked(f"it is not kept in Harbor's database, but sent to {endpoint}")
        silent = str(_setting(settings, "disabled_audit_log_event_types") or "").split(",")
        if "create_artifact" in silent:
            raise NotChecked("the event create_artifact is switched off in the configuration")
        path = f"/projects/{segment(self._project)}/auditlog-exts"
        end = time.monotonic() + _AUDIT_SECONDS
        while True:
            try:
                entries = list(self._client.pages(path, type=_AuditEntry))
            except HarborRefused as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
                raise NotChecked(
                    "this Harbor has no /auditlog-exts, which came with 2.13"
                ) from None
            pushed = [
                one
                for one in entries
                if (one.operation, one.resource_type) == ("create", "artifact")
                and str(self._image.root.digest) in one.operation_description
            ]
            if pushed:
                return f"{len(entries)} entries of this project, the push among them"
            if time.monotonic() >= end:
                raise Failed(f"{len(entries)} entries of this project, and none of the push")
            time.sleep(_PAUSE)

    def clean_up(self) -> str:
        """Take the project away with all that is in it; raises what the client does."""
        return self._project if self._temporary.remove() else "none was made"

    # Help

    def _project_id(self) -> int:
        number: int = self._client.get(f"/projects/{self._project}")["project_id"]
        return number

    def _set(self, **metadata: str) -> None:
        """Set the project's metadata and read it back: Harbor answers 200 to what it ignores."""
        path = f"/projects/{self._project}"
        self._client.put(path, {"metadata": metadata})
        kept = self._client.get(path)["metadata"]
        for key, value in metadata.items():
            if kept.get(key) != value:
                raise Failed(f"{key} was set to {value}, and is {kept.get(key)}")

    def _store(self) -> RegistryStore:
        if self._registry is None:
            self._registry = self._access.registry()
        return self._registry

    def _need_image(self) -> None:
        if not self._pushed:
            raise NotChecked("no image could be pushed")

    def _raw(self, method: str, path: str, login: tuple[str, str]) -> Answer:
        connection = Connection(self._access.ca, login)
        try:
            accept = {"Accept": OCI_MANIFEST} if path.startswith("/v2/") else {}
            return connection.request(method, self._access.url + path, headers=accept)
        finally:
            connection.close()

    def _pull(self, login: tuple[str, str] | None = None) -> Answer:
        """Ask for the manifest; as who checks, unless another login is given."""
        path = f"/v2/{self._repository}/manifests/{self._image.root.digest}"
        if login is not None:
            return self._raw("GET", path, login)
        answers = [
            self._raw("GET", path, (self._access.username, word)) for word in self._access.passwords
        ]
        refused = HTTPStatus.UNAUTHORIZED
        return next((one for one in answers if one.status != refused), answers[-1])

    def _refused(self, who: str, answer: Answer, *wanted: HTTPStatus) -> None:
        """Raise Failed unless it was refused with one of these, by a policy where that is one."""
        words = _words(answer)
        good = answer.status in wanted
        if HTTPStatus.PRECONDITION_FAILED in wanted:
            good = good and "PROJECTPOLICYVIOLATION" in words
        if not good:
            raise Failed(f"{who}: HTTP {answer.status} {words}".rstrip())


def _said(task: _Task | None) -> str:
    return f"{task.retained} of {task.total}" if task else "nothing of the repository"


def _setting(settings: dict[str, Any], name: str) -> Any:
    """Value of a configuration: Harbor gives each as ``{editable, value}``."""
    entry = settings.get(name)
    return entry.get("value") if isinstance(entry, dict) else None


def _words(answer: Answer) -> str:
    try:
        errors = decode_json(answer.body, _Errors).errors
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    return "; ".join(f"{one.code} {one.message}" for one in errors)[:_WORDS]
