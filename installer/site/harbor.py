"""The section of ``site.yaml`` that only Harbor has: where it is reached, what it stands on.

Each part names exactly one of several ways (``storage: {nfs: …}``). A part that is left out leaves
that to the chart's values: the internal database, no storage of its own, plain HTTP. What is
written here is translated into chart values in one place (``installer.harbor.values``), so that
nobody has to know which key today's chart reads and which one it ignores.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import msgspec

from installer.errors import InvalidInput
from installer.site import harbor_settings_check
from installer.site.harbor_settings import HarborSettings  # noqa: TC001 (msgspec reads the type)
from installer.site.section import PORTS, LocalFile, OnceFile, OutputFile, Strict, split_address

if TYPE_CHECKING:
    from collections.abc import Iterator

    Problem = tuple[tuple[str | int, ...], str, str]
    """Key path below ``harbor``, what is wrong there, and what to do."""


_IDENTIFIER = 63
"""Longest name in PostgreSQL, in bytes (NAMEDATALEN - 1); it would cut a longer one off."""
_HOURS = re.compile(r"([1-9]\d{0,5})h\Z")
_LIFETIME = re.compile(r"[1-9]\d{0,8}[smhd]?\Z")
_VAULT_PATH = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)*\Z", re.ASCII)
_OBJECT = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?\Z")
"""Name of a Kubernetes object (RFC 1123 subdomain)."""
_PROJECT = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*\Z")
_CERT_MANAGER = "cert-manager.io"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Expose(Strict, frozen=True):
    """How Harbor is reached in the cluster; ports are those of every node, for ``nodePort``.

    ``ingressClass`` is for ``ingress``, ``address`` the fixed IP of a ``loadBalancer``.
    """

    type: Literal["nodePort", "clusterIP", "loadBalancer", "ingress"] = "nodePort"
    http_port: int = 30002
    https_port: int = 30003
    ingress_class: str = ""
    address: str = ""


class SelfSigned(Strict, frozen=True):
    """A certificate authority made once for the site; ``names`` are further SANs."""

    names: tuple[str, ...] = ()


class Provided(Strict, frozen=True):
    """A certificate that somebody issued: the chain, leaf first, and its key, both PEM.

    ``ca`` is what clients check it with, if that is no authority that everybody knows.
    """

    certificate: LocalFile
    key: LocalFile
    ca: LocalFile = ""


class IssuerRef(Strict, frozen=True):
    """An issuer of cert-manager's that is there; an ``Issuer`` in Harbor's namespace."""

    name: str
    kind: str = "Issuer"
    group: str = _CERT_MANAGER


class SelfSignedIssuer(Strict, frozen=True):
    """An authority that cert-manager makes once and keeps; its certificate goes to clients."""


class CaIssuer(Strict, frozen=True):
    """An authority of the site's: its certificate, with those above it, and its key, both PEM.

    cert-manager signs with it, so that both lie in a Secret in Harbor's namespace.
    """

    certificate: LocalFile
    key: LocalFile


class VaultRole(Strict, frozen=True, kw_only=True):
    """A role of a PKI secrets engine in Vault; ``ca`` is what its HTTPS is checked with."""

    address: str
    role: str
    mount: str = "pki"
    ca: LocalFile = ""
    namespace: str = ""


class AppRole(Strict, frozen=True):
    """A login for machines; the secret id may be gone once the certificate is made."""

    role_id: str
    secret_id_file: OnceFile
    mount: str = "approle"


class KubernetesToken(Strict, frozen=True):
    """A login with the token of a service account, in a file."""

    role: str
    token_file: OnceFile
    mount: str = "kubernetes"


class Vault(VaultRole, frozen=True, kw_only=True):
    """Vault issues certificate and key to the installer, which keeps them and writes the Secret.

    ``ttl`` is the lifetime to ask for (``90d``, ``2160h``), if not the role's own. ``names`` are
    further SANs. Exactly one login.
    """

    ttl: str = ""
    names: tuple[str, ...] = ()
    app_role: AppRole | None = None
    kubernetes: KubernetesToken | None = None


class IssuerAppRole(Strict, frozen=True):
    """A login of cert-manager's: the secret id is read at each run and lies in a Secret."""

    role_id: str
    secret_id_file: LocalFile
    mount: str = "approle"


class IssuerServiceAccount(Strict, frozen=True):
    """A login of cert-manager's with passing tokens of a service account made for it.

    ``controller`` is NAMESPACE/NAME of cert-manager's own service account, which may then make
    such tokens.
    """

    role: str
    mount: str = "kubernetes"
    controller: str = "cert-manager/cert-manager"


class VaultIssuer(VaultRole, frozen=True, kw_only=True):
    """cert-manager asks Vault to sign; the key never leaves the cluster. Exactly one login."""

    app_role: IssuerAppRole | None = None
    kubernetes: IssuerServiceAccount | None = None


class CertManager(Strict, frozen=True):
    """cert-manager issues and renews, by exactly one of the four issuers.

    ``names`` are further SANs, ``duration`` and ``renewBefore`` hours (``8760h``): what is asked
    for, the issuer may give less.
    """

    issuer: IssuerRef | None = None
    self_signed: SelfSignedIssuer | None = None
    ca: CaIssuer | None = None
    vault: VaultIssuer | None = None
    names: tuple[str, ...] = ()
    duration: str = "8760h"
    renew_before: str = "2920h"


class Certificate(Strict, frozen=True):
    """Who vouches for ``externalURL``: exactly one of these.

    ``secret`` names a Secret of type kubernetes.io/tls that is in Harbor's namespace already.
    """

    self_signed: SelfSigned | None = None
    provided: Provided | None = None
    secret: str = ""
    cert_manager: CertManager | None = None
    vault: Vault | None = None


class Nfs(Strict, frozen=True):
    """An export that all components share, each in a folder of its own.

    ``size`` is a Kubernetes quantity: what the volume is declared with, NFS enforces nothing.
    """

    server: str
    path: str
    size: str = "200Gi"
    mount_options: tuple[str, ...] = ("hard", "nfsvers=4.1")


class HostPath(Strict, frozen=True):
    """A folder on the only node; ``size`` is what the volume is declared with."""

    path: str
    size: str = "200Gi"


class Ephemeral(Strict, frozen=True):
    """Data lives as long as its pods do: for trials."""


class Sizes(Strict, frozen=True):
    """What each component's volume holds, as a Kubernetes quantity; empty: the chart's default."""

    registry: str = ""
    jobservice: str = ""
    database: str = ""
    redis: str = ""
    trivy: str = ""


class Storage(Strict, frozen=True):
    """Where Harbor keeps its data: exactly one of these.

    ``hostPath`` is a folder of the node, for a cluster of one; ``claim`` a PersistentVolumeClaim
    (ReadWriteMany) that is in Harbor's namespace already; ``storageClass`` makes one volume for
    each component, of ``sizes`` by component. Its ``accessMode`` is for the volumes of registry and
    jobservice, of which several pods may run: with ReadWriteMany on several nodes.
    """

    nfs: Nfs | None = None
    host_path: HostPath | None = None
    claim: str = ""
    storage_class: str = ""
    ephemeral: Ephemeral | None = None
    sizes: Sizes | None = None
    access_mode: Literal["", "ReadWriteOnce", "ReadWriteMany"] = ""


class Admin(Strict, frozen=True):
    """A PostgreSQL account that may make roles and databases; used only for that."""

    username: str
    password_file: OnceFile
    database: str = "postgres"


class Database(Strict, frozen=True):
    """An external PostgreSQL; ``ca`` is for ``verify-ca`` and ``verify-full``.

    Without ``passwordFile`` the password is generated and kept, which takes an ``admin`` who makes
    the role.
    """

    host: str
    port: int = 5432
    name: str = "registry"
    username: str = "harbor"
    password_file: LocalFile = ""
    ssl_mode: Literal["disable", "require", "verify-ca", "verify-full"] = "verify-full"
    ca: LocalFile = ""
    admin: Admin | None = None


class Redis(Strict, frozen=True):
    """An external Redis: host:port, or several of Sentinel's together with ``sentinelMaster``."""

    addresses: tuple[str, ...]
    sentinel_master: str = ""
    username: str = ""
    password_file: LocalFile = ""
    tls: bool = False
    ca: LocalFile = ""


class InternalTls(Strict, frozen=True):
    """TLS between Harbor's own pods, with an authority that the installer makes and keeps.

    There is nothing to choose: each component gets a certificate for its Service's name.
    """


class HAProxy(Strict, frozen=True):
    """HAProxy in front of the node ports.

    ``nodes`` are the hosts behind it, ``listen`` and ``redirect`` host:port on the machine that it
    runs on (``redirect`` empty: none). ``terminate`` speaks TLS itself with Harbor's certificate
    and plain HTTP to the nodes; ``passthrough`` leaves TLS to Harbor. ``file`` is where the
    configuration goes; with ``service`` it is this machine's HAProxy, which is reloaded.
    """

    nodes: tuple[str, ...]
    mode: Literal["terminate", "passthrough"] = "terminate"
    listen: str = "0.0.0.0:443"
    redirect: str = "0.0.0.0:80"
    stats: str = "127.0.0.1:8404"
    file: OutputFile = "/etc/haproxy/haproxy.cfg"
    service: bool = True


class LoadBalancer(Strict, frozen=True):
    """What stands before the cluster; today that is HAProxy or nothing of ours."""

    haproxy: HAProxy


class VulnerabilityData(Strict, frozen=True):
    """How many days old the scanner's database may be: then it is a warning, then a failure."""

    warn_days: int = 14
    fail_days: int = 60


class HostBundle(Strict, frozen=True):
    """A project of this Harbor that gets all images, charts and databases of the bundle.

    Everybody may read a ``public`` one. Harbor's own nodes go on pulling from the seed registry.
    """

    project: str
    public: bool = True


class Harbor(Strict, frozen=True):
    """What only Harbor has.

    ``externalURL`` is how people reach it, ``ca`` the certificate authority to check that URL
    with, ``adminPasswordFile`` the first admin password if it shall not be a generated one.
    ``settings`` is what is set inside of it, when it runs.
    ``acceptance`` says whether a run ends with using it once (``installer check`` as well).
    """

    external_url: str = msgspec.field(name="externalURL")
    ca: LocalFile = ""
    admin_password_file: OnceFile = ""
    expose: Expose | None = None
    certificate: Certificate | None = None
    storage: Storage | None = None
    database: Database | None = None
    redis: Redis | None = None
    internal_tls: InternalTls | None = msgspec.field(name="internalTLS", default=None)
    load_balancer: LoadBalancer | None = None
    vulnerability_data: VulnerabilityData = VulnerabilityData()
    host_bundle: HostBundle | None = None
    settings: HarborSettings | None = None
    acceptance: bool = True


def problems(harbor: Harbor) -> Iterator[Problem]:
    """What the types can't say: which parts exclude or need each other."""
    yield from _deployment_problems(harbor)
    if harbor.settings is not None:
        for path, message, hint in harbor_settings_check.problems(harbor.settings):
            yield ("settings", *path), message, hint


def _deployment_problems(harbor: Harbor) -> Iterator[Problem]:
    certificate, storage, balancer = harbor.certificate, harbor.storage, harbor.load_balancer
    expose = harbor.expose or Expose()
    if certificate is not None:
        yield from _certificate_problems(harbor, certificate)
    if storage is not None:
        yield from _exactly_one(("storage",), storage, others=("sizes", "access_mode"))
        if storage.access_mode and not storage.storage_class:
            yield ("storage", "accessMode"), "only a storageClass makes volumes to access", ""
    if expose.type == "ingress" and _is_address(urlsplit(harbor.external_url).hostname):
        hint = "the API server refuses it: write a name, or choose another expose.type"
        yield ("externalURL",), "an Ingress is for a name, not for an address", hint
    for name, port in (("httpPort", expose.http_port), ("httpsPort", expose.https_port)):
        if port not in PORTS:
            yield ("expose", name), "not a port", ""
    if harbor.database is not None:
        yield from _database_problems(harbor.database)
    if harbor.redis is not None:
        yield from _redis_problems(harbor.redis)
    if balancer is not None:
        yield from _haproxy_problems(harbor, balancer.haproxy)
    yield from _content_problems(harbor.vulnerability_data, harbor.host_bundle)


def _content_problems(data: VulnerabilityData, hosted: HostBundle | None) -> Iterator[Problem]:
    if not 0 < data.warn_days <= data.fail_days:
        yield ("vulnerabilityData",), "not 0 < warnDays <= failDays", ""
    if hosted is not None and not _PROJECT.match(hosted.project):
        hint = "as Harbor takes it: lower-case letters and digits, with . _ - between them"
        yield ("hostBundle", "project"), f"not a project: {hosted.project[:60]!r}", hint


def _is_address(host: str | None) -> bool:
    try:
        ipaddress.ip_address(host or "")
    except ValueError:
        return False
    return True


def _exactly_one(
    path: tuple[str, ...], section: msgspec.Struct, others: tuple[str, ...] = ()
) -> Iterator[Problem]:
    ways: dict[str, Any] = {
        field.encode_name: getattr(section, field.name)
        for field in msgspec.structs.fields(section)
        if field.name not in others
    }
    if len([way for way in ways.values() if way not in (None, "")]) != 1:
        yield path, f"give exactly one of {', '.join(ways)}", ""


def _certificate_problems(harbor: Harbor, certificate: Certificate) -> Iterator[Problem]:
    path = ("certificate",)
    yield from _exactly_one(path, certificate)
    if harbor.external_url.startswith("http:"):
        yield path, "externalURL is http", "write https:// there, or leave this out"
    if certificate.cert_manager is not None:
        yield from _cert_manager_problems(certificate.cert_manager)
    if certificate.vault is not None:
        yield from _vault_problems((*path, "vault"), certificate.vault)


def _cert_manager_problems(section: CertManager) -> Iterator[Problem]:
    path = ("certificate", "certManager")
    yield from _exactly_one(path, section, others=("names", "duration", "renew_before"))
    hours = []
    for key, text in (("duration", section.duration), ("renewBefore", section.renew_before)):
        if match := _HOURS.match(text):
            hours.append(int(match[1]))
        else:
            yield (*path, key), f"not a number of hours: {text[:40]!r}", "for example 8760h"
    if len(hours) > 1 and hours[1] >= hours[0]:
        yield (*path, "renewBefore"), "not shorter than duration", "a third of it is a good choice"
    if section.issuer is not None:
        if not _OBJECT.match(section.issuer.name):
            yield (*path, "issuer", "name"), "not the name of an object", ""
        known = ("Issuer", "ClusterIssuer")
        if section.issuer.group == _CERT_MANAGER and section.issuer.kind not in known:
            yield (*path, "issuer", "kind"), f"one of {' and '.join(known)}", ""
    if section.vault is not None:
        yield from _vault_problems((*path, "vault"), section.vault)
        account = section.vault.kubernetes
        if account is not None:
            namespace, slash, name = account.controller.partition("/")
            if not slash or not all(map(_OBJECT.match, (namespace, name))):
                hint = "for example cert-manager/cert-manager"
                yield (*path, "vault", "kubernetes", "controller"), "not NAMESPACE/NAME", hint


def _vault_problems(path: tuple[str, ...], section: Vault | VaultIssuer) -> Iterator[Problem]:
    logins = {"appRole": section.app_role, "kubernetes": section.kubernetes}
    if len([login for login in logins.values() if login is not None]) != 1:
        yield path, f"give exactly one of {', '.join(logins)}", ""
    try:
        parts = urlsplit(section.address)
        good = bool(parts.hostname) and (parts.port is None or parts.port in PORTS)
        good = good and parts.path in ("", "/") and not (parts.query or parts.fragment)
        secure = parts.scheme == "https"
        # What runs beside us, such as Vault's own agent, nobody else hears.
        secure = secure or (
            isinstance(section, Vault) and parts.scheme == "http" and parts.hostname in _LOOPBACK
        )
    except ValueError:
        good = secure = False
    if not good or not secure or "@" in section.address:
        hint = "for example https://vault.plant.example:8200"
        yield (*path, "address"), "not the https URL of a Vault", hint
    named: list[tuple[tuple[str, ...], str]] = [
        (("mount",), section.mount),
        (("role",), section.role),
    ]
    named += [((key, "mount"), login.mount) for key, login in logins.items() if login is not None]
    for keys, text in named:
        if not _VAULT_PATH.match(text):
            hint = "as Vault lists it, without slashes at its ends"
            yield (*path, *keys), f"not a path in Vault: {text[:60]!r}", hint
    if isinstance(section, Vault) and section.ttl and not _LIFETIME.match(section.ttl):
        yield (*path, "ttl"), f"not a duration of Vault's: {section.ttl[:40]!r}", "such as 2160h"


def _database_problems(database: Database) -> Iterator[Problem]:
    path = ("database",)
    for key, name in (("name", database.name), ("username", database.username)):
        if not 0 < len(name.encode()) <= _IDENTIFIER:
            yield (*path, key), f"PostgreSQL takes 1 to {_IDENTIFIER} bytes", ""
    if not database.host:
        yield (*path, "host"), "it is empty", ""
    if database.host in ("localhost", "127.0.0.1", "::1"):
        yield (*path, "host"), "pods would look for it in themselves", "write its address or name"
    if database.admin is not None and database.admin.username == database.username:
        yield (*path, "username"), "it is the admin's", "Harbor gets a role of its own"
    if database.port not in PORTS:
        yield (*path, "port"), "not a port", ""
    if not database.password_file and database.admin is None:
        yield (
            path,
            "neither passwordFile nor admin",
            f"name a file with the password of {database.username}, or an admin who makes the role",
        )
    if database.ca and not database.ssl_mode.startswith("verify-"):
        hint = "write sslMode: verify-full, or leave ca out"
        yield (*path, "ca"), f"nothing is verified with sslMode {database.ssl_mode}", hint


def _redis_problems(redis: Redis) -> Iterator[Problem]:
    if not redis.addresses:
        yield ("redis", "addresses"), "none is given", "for example [10.0.0.7:6379]"
    if len(redis.addresses) > 1 and not redis.sentinel_master:
        hint = "with Sentinel write sentinelMaster, without it only one address"
        yield ("redis", "addresses"), "there are several", hint
    for address in redis.addresses:
        yield from _address_problems(("redis", "addresses"), address)
    if redis.sentinel_master and redis.tls:
        # Both together lose the master's name in the registry's configuration (charts 1.18, 1.19).
        hint = "take one address with tls, or Sentinel without"
        yield ("redis", "sentinelMaster"), "Harbor's chart can't do Sentinel with tls", hint
    if redis.ca and not redis.tls:
        yield ("redis", "ca"), "nothing is verified without tls", "write tls: true"


def _haproxy_problems(harbor: Harbor, haproxy: HAProxy) -> Iterator[Problem]:
    path = ("loadBalancer", "haproxy")
    expose = harbor.expose or Expose()
    if expose.type != "nodePort":
        yield path, f"expose.type is {expose.type}", "HAProxy stands before node ports"
    if not haproxy.nodes:
        yield (*path, "nodes"), "none is given", "the addresses of the cluster's nodes"
    if harbor.certificate is None:
        yield path, "harbor.certificate is missing", "HAProxy or Harbor behind it speaks TLS"
    elif haproxy.mode == "terminate" and harbor.certificate.secret:
        hint = "use mode: passthrough, or certificate: {provided: …}"
        yield path, "HAProxy can't read the certificate out of a Secret", hint
    yield from _address_problems((*path, "listen"), haproxy.listen)
    for name in ("redirect", "stats"):
        if text := getattr(haproxy, name):
            yield from _address_problems((*path, name), text)


def _address_problems(path: tuple[str, ...], text: str) -> Iterator[Problem]:
    try:
        split_address(text)
    except InvalidInput as error:
        yield path, error.message, error.hint
