"""What the sections of ``site.yaml`` are in the values of Harbor's chart; pure.

The chart ignores a key that it doesn't know, in silence, and several that people know are gone
(``jobservice.existingClaim``, ``expose.tls.secretName``). So each meaning has one place here that
knows today's key, for charts 1.18 (Harbor 2.14) and 1.19 (2.15), and a key that the installer fills
is refused in the values that a person writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from installer.helm.values import merge
from installer.site.harbor import Expose

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from installer.site.harbor import Certificate, Database, Harbor, Redis, Storage

COMPONENTS = {
    "registry": ("registry",),
    "jobservice": ("jobservice", "jobLog"),
    "database": ("database",),
    "redis": ("redis",),
    "trivy": ("trivy",),
}
"""Components that keep data, and where ``persistence.persistentVolumeClaim`` has them.

The old key ``jobservice.existingClaim`` is ignored since chart 1.10.
"""
OWNERS = {
    "registry": 10000,
    "jobservice": 10000,
    "database": 999,
    "redis": 999,
    "trivy": 10000,
}
"""User id that each component's data belongs to: what its container runs as (``fsGroup``)."""
_REPLICATED = ("registry", "jobservice")
"""Components whose pods share one claim; the others are StatefulSets with a claim for each pod."""

INTERNAL = ("core", "jobservice", "registry", "portal", "trivy")
"""Components that have a certificate for TLS between them, and a Service with their name."""
_MOUNTED = {**{component: component for component in INTERNAL}, "exporter": "core"}
"""Whose certificate the pods of each component have."""
_MARK = "checksum/internal-tls"


def volume_name(release: str) -> str:
    """Name of the claim that the components of a release share."""
    return f"{release}-data"


def tls_name(release: str) -> str:
    """Name of the Secret with the certificate of ``externalURL``."""
    return f"{release}-external-tls"


def issued_name(release: str) -> str:
    """Name of the Certificate of cert-manager's, and of the Secret that it writes.

    Another one than ours: Helm would refuse to take a Secret over, or delete it.
    """
    return f"{release}-issued-tls"


def ca_name(release: str) -> str:
    """Name of the Secret with the authorities that Harbor trusts besides the system's."""
    return f"{release}-ca-bundle"


def internal_name(release: str, component: str) -> str:
    """Name of the Secret with a component's certificate for TLS between the components."""
    return f"{release}-internal-{component}-tls"


def internal_hosts(release: str) -> dict[str, tuple[str, ...]]:
    """Names that each component's certificate is for, as the chart's own would be.

    Core asks itself as well, by the loopback.
    """
    # Overrides of this name are no values of the chart's, and so refused.
    full = release if "harbor" in release else f"{release}-harbor"
    more = {"core": ("localhost", "127.0.0.1")}
    return {one: (f"{full}-{one}", *more.get(one, ())) for one in INTERNAL}


def harbor_values(
    harbor: Harbor,
    release: str,
    *,
    database_password: str = "",
    redis_password: str = "",
    internal_marks: Mapping[str, str] | None = None,
    seed_ca: str = "",
) -> dict[str, Any]:
    """Chart values for the sections that are there; what is left out is left to the chart.

    ``internal_marks`` tell one certificate of a component from the next, once they are made.
    ``seed_ca`` is the path of what the seed registry is checked with, if Harbor asks it.
    """
    parts: list[dict[str, Any]] = [{"externalURL": harbor.external_url.rstrip("/")}]
    if harbor.expose or harbor.certificate or harbor.load_balancer:
        parts.append({"expose": _expose(harbor, release)})
    if harbor.storage:
        parts.append(_storage(harbor.storage, release))
    if harbor.database:
        parts.append({"database": _database(harbor.database, database_password)})
    if harbor.redis:
        parts.append({"redis": _redis(harbor.redis, redis_password)})
    if harbor.internal_tls is not None:
        parts.append(_internal_tls(release, internal_marks or {}))
    if trusted_files(harbor, seed_ca):
        parts.append({"caBundleSecretName": ca_name(release)})
    return merge(*parts)


def trusted_files(harbor: Harbor, seed_ca: str = "") -> tuple[str, ...]:
    """Paths of the authorities that Harbor itself has to trust.

    Its database's, its Redis's, and that of the seed registry with the vulnerability databases.
    """
    database, redis = harbor.database, harbor.redis
    given = (database.ca if database else "", redis.ca if redis else "", seed_ca)
    return tuple(dict.fromkeys(path for path in given if path))


def host_of(external_url: str) -> str:
    """Host of the URL, without port and without an IPv6 address's brackets."""
    return urlsplit(external_url).hostname or ""


def speaks_tls(harbor: Harbor) -> bool:
    """Whether Harbor needs the certificate itself: not if HAProxy ends TLS before it."""
    balancer = harbor.load_balancer
    return harbor.certificate is not None and (
        balancer is None or balancer.haproxy.mode == "passthrough"
    )


def overlapping(filled: Mapping[str, Any], written: Mapping[str, Any]) -> Iterator[str]:
    """Keys that a person wrote and the installer fills, as dotted paths."""
    for key, value in written.items():
        if key not in filled:
            continue
        inner = filled[key]
        if isinstance(value, dict) and isinstance(inner, dict):
            yield from (f"{key}.{path}" for path in overlapping(inner, value))
        elif value != {} or not isinstance(inner, dict):
            yield key


def _expose(harbor: Harbor, release: str) -> dict[str, Any]:
    expose = harbor.expose or Expose()
    values: dict[str, Any] = {
        "type": expose.type,
        "tls": _tls(harbor.certificate, release) if speaks_tls(harbor) else {"enabled": False},
    }
    if expose.type == "nodePort":
        ports = {"http": expose.http_port, "https": expose.https_port}
        values["nodePort"] = {"ports": {name: {"nodePort": port} for name, port in ports.items()}}
    elif expose.type == "ingress":
        values["ingress"] = {"hosts": {"core": host_of(harbor.external_url)}}
        if expose.ingress_class:
            values["ingress"]["className"] = expose.ingress_class
    elif expose.type == "loadBalancer" and expose.address:
        values["loadBalancer"] = {"IP": expose.address}
    return values


def _tls(certificate: Certificate | None, release: str) -> dict[str, Any]:
    name = tls_name(release)
    if certificate and certificate.secret:
        name = certificate.secret
    elif certificate and certificate.cert_manager:
        name = issued_name(release)
    return {"enabled": True, "certSource": "secret", "secret": {"secretName": name}}


def _internal_tls(release: str, marks: Mapping[str, str]) -> dict[str, Any]:
    secrets = {one: {"secretName": internal_name(release, one)} for one in INTERNAL}
    # They read it when they start, and from a Secret the chart does not see that it changed.
    pods = {
        one: {"podAnnotations": {_MARK: marks[of]}} for one, of in _MOUNTED.items() if of in marks
    }
    return {"internalTLS": {"enabled": True, "certSource": "secret", **secrets}, **pods}


def _storage(storage: Storage, release: str) -> dict[str, Any]:
    if storage.ephemeral is not None:
        return {"persistence": {"enabled": False}}
    shared = storage.claim or (volume_name(release) if storage.nfs or storage.host_path else "")
    claims: dict[str, Any] = {}
    for component, path in COMPONENTS.items():
        claim: dict[str, Any]
        if shared:
            # The same for all would let them write over each other's files.
            claim = {"existingClaim": shared, "subPath": component, "accessMode": "ReadWriteMany"}
        else:
            claim = {"storageClass": storage.storage_class}
            if storage.access_mode and component in _REPLICATED:
                claim["accessMode"] = storage.access_mode
        if size := getattr(storage.sizes, component, ""):
            claim["size"] = size
        for key in reversed(path):
            claim = {key: claim}
        claims = merge(claims, claim)
    values: dict[str, Any] = {"persistence": {"enabled": True, "persistentVolumeClaim": claims}}
    if storage.storage_class and storage.access_mode != "ReadWriteMany":
        # A volume of one node can't be mounted by the new pod while the old one has it.
        values["updateStrategy"] = {"type": "Recreate"}
    return values


def _database(database: Database, password: str) -> dict[str, Any]:
    return {
        "type": "external",
        "external": {
            "host": database.host,
            "port": str(database.port),
            "username": database.username,
            "password": password,
            "coreDatabase": database.name,
            "sslmode": database.ssl_mode,
        },
    }


def _redis(redis: Redis, password: str) -> dict[str, Any]:
    external: dict[str, Any] = {
        "addr": ",".join(redis.addresses),
        "sentinelMasterSet": redis.sentinel_master,
        "username": redis.username,
        "password": password,
        "tlsOptions": {"enable": redis.tls},
    }
    return {"type": "external", "external": external}
