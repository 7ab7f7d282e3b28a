"""What is set inside of Harbor: projects, robots, schedules, logins; asked of its API.

One section, ``harbor.settings``. What is written is made so; what is left out is left as it is,
also a single key. Secrets never stand here: they are read from files (or ``env:NAME``), and what
Harbor makes is written into a file once. Names are those of Harbor's own pages rather than of its
API, which calls things by their table (``prevent_vul``), says yes in words ("true"), and takes
what it doesn't know in silence: so everything that can be known is checked here.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from installer.site.section import LocalFile, OnceFile, OutputFile, Strict


class CveAllowlist(Strict, frozen=True):
    """Vulnerabilities that stop nobody: their ids, until the day ``expires`` (``2027-12-31``)."""

    ids: tuple[str, ...]
    expires: str = ""


class Rule(Strict, frozen=True):
    """Which tags of which repositories: patterns with ``*``, ``**`` and ``{a,b}``.

    ``repositories`` are named without their project. With ``exceptRepositories`` or ``exceptTags``
    it is all but these.
    """

    repositories: str = ""
    except_repositories: str = ""
    tags: str = ""
    except_tags: str = ""


class Keep(Rule, frozen=True, kw_only=True):
    """Tags that stay: the ``latestPushed`` or ``latestPulled`` of each repository, or by days.

    Exactly one of the four numbers, or ``always``. ``untagged`` are taken for tags as well.
    """

    latest_pushed: int = 0
    latest_pulled: int = 0
    pushed_within_days: int = 0
    pulled_within_days: int = 0
    always: bool = False
    untagged: bool = True


class Retention(Strict, frozen=True):
    """When tags are deleted that no rule keeps; ``none`` only when somebody starts it."""

    keep: tuple[Keep, ...]
    schedule: str = "none"


class Access(Strict, frozen=True):
    """What a system robot may do in ``projects`` (``*`` for all), or in Harbor itself.

    ``actions`` are written ``resource:action`` (``repository:pull``), as ``GET /permissions`` lists
    them; without ``projects`` they are those of the whole system.
    """

    actions: tuple[str, ...]
    projects: tuple[str, ...] = ()


class RobotAccount(Strict, frozen=True, kw_only=True):
    """An account for programs; its secret is written into ``secretFile`` when it is made.

    ``name`` has no prefix. ``days`` is how long it lives, 0 for ever. Without ``secretFile`` the
    secret is kept in the state folder, below ``robots``.
    """

    name: str
    description: str = ""
    days: int = 0
    enabled: bool = True
    secret_file: OutputFile = ""


class SystemRobot(RobotAccount, frozen=True, kw_only=True):
    """A robot for several projects, or for Harbor itself."""

    access: tuple[Access, ...]


class ProjectRobot(RobotAccount, frozen=True, kw_only=True):
    """A robot of one project; ``actions`` as ``repository:pull``."""

    actions: tuple[str, ...]


class Member(Strict, frozen=True):
    """Somebody of a project: a ``user`` or a ``group`` (``groupDN`` for one of LDAP's)."""

    role: Literal["projectAdmin", "maintainer", "developer", "guest", "limitedGuest"]
    user: str = ""
    group: str = ""
    group_dn: str = msgspec.field(default="", name="groupDN")


class Label(Strict, frozen=True):
    """A label for artifacts; ``color`` as ``#00ab9a``."""

    name: str
    description: str = ""
    color: str = "#FFFFFF"


class Webhook(Strict, frozen=True, kw_only=True):
    """Who is told of ``events`` (``PUSH_ARTIFACT``); ``authHeaderFile`` has a whole header."""

    name: str
    events: tuple[str, ...]
    address: str
    type: Literal["http", "slack"] = "http"
    format: Literal["Default", "CloudEvents"] = "Default"
    description: str = ""
    auth_header_file: LocalFile = ""
    verify_certificate: bool = True
    enabled: bool = True


class ProxyCache(Strict, frozen=True):
    """The registry endpoint whose images a project fetches when they are asked for.

    It can't be changed once the project is there. ``kilobytesPerSecond`` 0 is no limit;
    ``serveDeleted`` also what the endpoint has no more (Harbor 2.15).
    """

    registry: str
    kilobytes_per_second: int | None = None
    serve_deleted: bool | None = None


class Project(Strict, frozen=True, kw_only=True):
    """A project. ``quota`` is bytes as ``50Gi``, or ``unlimited``.

    ``preventVulnerable`` refuses pulls of images with a vulnerability of that severity or a worse
    one; ``contentTrust`` those of unsigned ones. ``cveAllowlist`` is the project's own, or with
    ``systemCveAllowlist`` the system's counts. ``scanner`` is another than the default.
    """

    name: str
    public: bool | None = None
    quota: str = ""
    scan_on_push: bool | None = None
    sbom_on_push: bool | None = None
    prevent_vulnerable: Literal["", "none", "low", "medium", "high", "critical"] = ""
    content_trust: Literal["", "none", "cosign", "notation"] = ""
    cve_allowlist: CveAllowlist | None = None
    system_cve_allowlist: bool | None = None
    proxy_cache: ProxyCache | None = None
    scanner: str = ""
    retention: Retention | None = None
    immutable_tags: tuple[Rule, ...] = ()
    robots: tuple[ProjectRobot, ...] = ()
    members: tuple[Member, ...] = ()
    labels: tuple[Label, ...] = ()
    webhooks: tuple[Webhook, ...] = ()


class RegistryEndpoint(Strict, frozen=True, kw_only=True):
    """Another registry, for replication and proxy caches; it has to answer when it is made.

    ``type`` is an adapter of Harbor's (``harbor``, ``docker-registry``, ``docker-hub`` …). ``ca``
    is what its certificate is checked with (Harbor 2.15; before, Harbor trusts what its own
    ``caBundleSecretName`` has).
    """

    name: str
    url: str
    type: str = "harbor"
    description: str = ""
    username: str = ""
    password_file: OnceFile = ""
    verify_certificate: bool = True
    ca: LocalFile = ""


class Filters(Strict, frozen=True):
    """What is replicated: patterns of names and tags, ``labels`` that it must have."""

    name: str = ""
    tags: str = ""
    except_tags: str = ""
    labels: tuple[str, ...] = ()
    resource: Literal["", "image", "artifact"] = ""


class Replication(Strict, frozen=True, kw_only=True):
    """Copy ``to`` a registry endpoint, or ``from`` one.

    ``trigger`` is manual, event, or a schedule. ``namespace`` is where to; ``flatten`` is how many
    parts of the name it stands for, from the left, 0 for none and -1 for all.
    ``kilobytesPerSecond`` 0 is no limit. ``singleActive`` lets a run wait for the one before
    (Harbor 2.14).
    """

    name: str
    to: str = ""
    from_: str = msgspec.field(default="", name="from")
    description: str = ""
    filters: Filters = Filters()
    namespace: str = ""
    flatten: int = 1
    trigger: str = "manual"
    override: bool = True
    replicate_deletion: bool = False
    kilobytes_per_second: int = 0
    copy_by_chunk: bool = False
    single_active: bool | None = None
    enabled: bool = True


class GarbageCollection(Strict, frozen=True):
    """When bytes that nothing needs are deleted; ``workers`` do it at once."""

    schedule: str
    delete_untagged: bool = False
    workers: int = 1


class ScanAll(Strict, frozen=True):
    """When all that is there is scanned again."""

    schedule: str


class Purge(Strict, frozen=True):
    """When old entries of the audit log are deleted: ``keepHours`` and which ``events``.

    Events are those of ``GET /auditlog-exts/events`` (``create_artifact``); Harbor 2.12 knows only
    ``create``, ``delete`` and ``pull``.
    """

    schedule: str
    keep_hours: int
    events: tuple[str, ...]


class AuditLog(Strict, frozen=True):
    """``forwardTo`` is the host:port of a syslog server (TCP), which has to answer; "" stops it.

    Without ``keepInDatabase`` entries are only forwarded. ``disabledEvents`` are not logged.
    """

    forward_to: str | None = None
    keep_in_database: bool | None = None
    disabled_events: tuple[str, ...] | None = None
    purge: Purge | None = None


class Banner(Strict, frozen=True):
    """Words at the top of Harbor's pages; an empty ``message`` takes them away."""

    message: str
    type: Literal["info", "success", "warning", "danger"] = "info"
    closable: bool = True


class System(Strict, frozen=True):
    """What holds for all of Harbor. ``projectQuota`` is that of new projects, as ``50Gi``.

    ``robotPrefix`` stands before the names of robots, also of those that are there; ``robotDays``
    is how long they live when their page does not say. ``tokenMinutes`` is the life of a login to
    the registry, ``sessionMinutes`` that of one in a browser. ``scannerKeepsPullTime``: a scan is
    no pull.
    """

    project_creation: Literal["", "everyone", "adminonly"] = ""
    project_quota: str = ""
    self_registration: bool | None = None
    robot_prefix: str = ""
    robot_days: int | None = None
    token_minutes: int | None = None
    session_minutes: int | None = None
    webhooks_enabled: bool | None = None
    scanner_keeps_pull_time: bool | None = None
    banner: Banner | None = None


class Oidc(Strict, frozen=True, kw_only=True):
    """Who logs in by OpenID Connect. ``name`` is what the button says.

    ``adminGroup`` makes admins of its members, ``groupFilter`` is a regular expression of the
    groups that are taken over. ``userClaim`` is the name, with ``autoOnboard`` without asking.
    """

    name: str
    endpoint: str
    client_id: str
    client_secret_file: OnceFile
    scope: str = "openid,profile,email"
    groups_claim: str = ""
    admin_group: str = ""
    group_filter: str = ""
    user_claim: str = ""
    auto_onboard: bool = False
    verify_certificate: bool = True
    logout: bool | None = None


class LdapGroups(Strict, frozen=True, kw_only=True):
    """Groups of the directory; members of ``adminDN`` are admins."""

    base_dn: str = msgspec.field(name="baseDN")
    filter: str = ""
    name_attribute: str = "cn"
    admin_dn: str = msgspec.field(default="", name="adminDN")
    membership_attribute: str = "memberof"
    scope: Literal["base", "oneLevel", "subtree"] = "subtree"


class Ldap(Strict, frozen=True, kw_only=True):
    """Who logs in by a directory; ``uid`` is the attribute with the name."""

    url: str
    base_dn: str = msgspec.field(name="baseDN")
    search_dn: str = msgspec.field(default="", name="searchDN")
    search_password_file: OnceFile = ""
    filter: str = ""
    uid: str = "cn"
    scope: Literal["base", "oneLevel", "subtree"] = "subtree"
    verify_certificate: bool = True
    timeout: int = 5
    groups: LdapGroups | None = None


class OwnUsers(Strict, frozen=True):
    """Users are Harbor's own, made on its pages."""


class Login(Strict, frozen=True):
    """Where users come from: exactly one; it can't be changed once there are users.

    ``primary`` takes people there at once, without Harbor's own form.
    """

    oidc: Oidc | None = None
    ldap: Ldap | None = None
    database: OwnUsers | None = None
    primary: bool | None = None


class Scanner(Strict, frozen=True, kw_only=True):
    """A scanner plug-in besides Trivy; it has to answer when it is made.

    ``credentialFile`` has what ``authorization`` asks for (user:password for Basic).
    ``internalAddress`` lets it fetch from Harbor's Service in the cluster.
    """

    name: str
    url: str
    description: str = ""
    authorization: Literal["", "Basic", "Bearer", "APIKey"] = ""
    credential_file: LocalFile = ""
    verify_certificate: bool = True
    internal_address: bool = False
    enabled: bool = True


class HarborSettings(Strict, frozen=True):
    """What is set inside of Harbor. What is left out is left as it is."""

    system: System | None = None
    audit_log: AuditLog | None = None
    login: Login | None = None
    scanners: tuple[Scanner, ...] = ()
    default_scanner: str = ""
    cve_allowlist: CveAllowlist | None = None
    garbage_collection: GarbageCollection | None = None
    scan_all: ScanAll | None = None
    labels: tuple[Label, ...] = ()
    registries: tuple[RegistryEndpoint, ...] = ()
    projects: tuple[Project, ...] = ()
    robots: tuple[SystemRobot, ...] = ()
    replications: tuple[Replication, ...] = ()
