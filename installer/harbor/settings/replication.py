"""Registry endpoints, and the rules by which images are copied to them and from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from installer.errors import InvalidInput, PreflightFailed
from installer.harbor.api import HarborRefused, Version
from installer.harbor.settings.change import Change, Line, Remark, lines, unmanaged
from installer.site.harbor_settings_check import cron_of
from installer.site.private import read_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from installer.harbor.settings.change import Apply
    from installer.harbor.settings.target import Target
    from installer.site.harbor_settings import Filters, RegistryEndpoint, Replication

_CA_SINCE = Version(2, 15)
_SINGLE_SINCE = Version(2, 14)


def endpoint_lines(found: Mapping[str, Any] | None, wanted: RegistryEndpoint) -> tuple[Line, ...]:
    """What differs from an endpoint of Harbor's, None where there is none.

    Not its password, which Harbor shows to nobody, nor its authority.
    """
    had = found or {}
    credential = had.get("credential") or {}
    return lines(
        [
            ("url", had.get("url", "").rstrip("/"), wanted.url.rstrip("/")),
            ("type", had.get("type", ""), wanted.type),
            ("description", had.get("description", ""), wanted.description),
            ("username", credential.get("access_key", ""), wanted.username),
            ("verifyCertificate", not had.get("insecure", False), wanted.verify_certificate),
        ]
    )


def registries(target: Target) -> Iterator[Change | Remark]:
    """Endpoints; Harbor asks each of them when it is made or changed."""
    found = target.registries()
    for endpoint in target.settings.registries:
        had = found.get(endpoint.name)
        ca = ""
        if endpoint.ca:
            target.require(_CA_SINCE, f"registry {endpoint.name}: ca")
            ca = (read_file(Path(endpoint.ca)) or b"").decode("ascii", errors="replace")
        if had is not None and had.get("type") != endpoint.type:
            raise PreflightFailed(
                f"registry {endpoint.name}: its type is {had.get('type')}, not {endpoint.type}, "
                "and Harbor can't change that",
                hint="write it so, take another name, or delete the endpoint in Harbor",
            )
        secret, more = target.secret(
            f"registry/{endpoint.name}", endpoint.password_file, "password"
        )
        if had is None and endpoint.password_file and not secret:
            raise InvalidInput(
                f"registry {endpoint.name}: {endpoint.password_file}: there is no such file",
                hint="its password has to be sent to Harbor once; then the file may be gone",
            )
        if ca and _other_ca(target, endpoint, had, ca):
            more += (Line("ca", "another one, or unknown", f"that of {endpoint.ca}"),)
        if told := endpoint_lines(had, endpoint) + more:
            apply = _put_endpoint(target, endpoint, had, secret, ca)
            yield Change(f"registry {endpoint.name}", told, apply, new=had is None)
    known = {endpoint.name for endpoint in target.settings.registries}
    for name in sorted(found.keys() - known):
        yield unmanaged(f"registry {name} at {found[name].get('url')}")


def _other_ca(
    target: Target, endpoint: RegistryEndpoint, had: Mapping[str, Any] | None, ca: str
) -> bool:
    """Whether Harbor may have another authority for an endpoint; it may say nothing of it."""
    shown = ((had or {}).get("ca_certificate") or "").strip()
    if shown:
        return bool(shown != ca.strip())
    return had is None or not target.memory.knows(_ca_name(endpoint), ca)


def _ca_name(endpoint: RegistryEndpoint) -> str:
    return f"registry/{endpoint.name}/ca"


def _put_endpoint(
    target: Target,
    endpoint: RegistryEndpoint,
    had: Mapping[str, Any] | None,
    secret: str,
    ca: str,
) -> Apply:
    def apply() -> str:
        body: dict[str, Any] = {
            "url": endpoint.url,
            "description": endpoint.description,
            "insecure": not endpoint.verify_certificate,
        }
        if ca:
            body["ca_certificate"] = ca
        try:
            if had is None:
                body |= {"name": endpoint.name, "type": endpoint.type}
                if endpoint.username:
                    body["credential"] = {
                        "type": "basic", "access_key": endpoint.username, "access_secret": secret,
                    }  # fmt: skip
                target.client.post("/registries", body)
            else:
                if endpoint.username:
                    body |= {"credential_type": "basic", "access_key": endpoint.username}
                if secret:  # left out it stays; the mask that Harbor shows would become the secret
                    body["access_secret"] = secret
                target.client.put(f"/registries/{had['id']}", body)
        except HarborRefused as error:
            raise error.with_hint(
                f"Harbor's core pods have to reach {endpoint.url}, trust its certificate and be "
                "let in; nothing of this endpoint was changed"
            ) from error
        if secret:
            target.memory.remember(f"registry/{endpoint.name}", secret)
        if ca:
            target.memory.remember(_ca_name(endpoint), ca)
        return ""

    return apply


def filter_list(filters: Filters) -> list[dict[str, Any]]:
    """The filters of a rule as Harbor has them."""
    found: list[dict[str, Any]] = []
    if filters.name:
        found.append({"type": "name", "value": filters.name})
    if filters.tags:
        found.append({"type": "tag", "value": filters.tags})
    if filters.except_tags:
        found.append({"type": "tag", "value": filters.except_tags, "decoration": "excludes"})
    if filters.labels:
        decoration = {"decoration": "matches"}
        found.append({"type": "label", "value": list(filters.labels), **decoration})
    if filters.resource:
        found.append({"type": "resource", "value": filters.resource})
    return found


def _filter_words(found: Any) -> list[str]:
    def one(entry: Mapping[str, Any]) -> str:
        value = entry.get("value")
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        no = "but " if entry.get("decoration") == "excludes" else ""
        return f"{entry.get('type')} {no}{text}"

    return sorted(map(one, found or ()))


def trigger_of(trigger: str) -> dict[str, Any]:
    """The trigger of a rule as Harbor has it."""
    kind = {"manual": "manual", "event": "event_based"}.get(trigger, "scheduled")
    cron = cron_of(trigger) if kind == "scheduled" else ""
    return {"type": kind, "trigger_settings": {"cron": cron}}


def _trigger_words(trigger: Mapping[str, Any]) -> str:
    cron = (trigger.get("trigger_settings") or {}).get("cron")
    return str(cron) if trigger.get("type") == "scheduled" else str(trigger.get("type") or "")


def replication_lines(found: Mapping[str, Any] | None, wanted: Replication) -> tuple[Line, ...]:
    """What differs from a rule of Harbor's, None where there is none.

    Harbor calls itself the registry with id 0, and answers no limit as 0 or -1.
    """
    had = found or {}
    source, aim = had.get("src_registry") or {}, had.get("dest_registry") or {}
    pairs = [
        ("to", aim.get("name", "") if aim.get("id") else "", wanted.to),
        ("from", source.get("name", "") if source.get("id") else "", wanted.from_),
        ("description", had.get("description", ""), wanted.description),
        ("namespace", had.get("dest_namespace", ""), wanted.namespace),
        ("flatten", had.get("dest_namespace_replace_count", 0 if found else None), wanted.flatten),
        ("trigger", _trigger_words(had.get("trigger") or {}),
         _trigger_words(trigger_of(wanted.trigger))),
        ("filters", _filter_words(had.get("filters")), _filter_words(filter_list(wanted.filters))),
        ("override", had.get("override", False), wanted.override),
        ("replicateDeletion",
         bool(had.get("replicate_deletion") or had.get("deletion")), wanted.replicate_deletion),
        ("kilobytesPerSecond", max(had.get("speed", 0), 0), wanted.kilobytes_per_second),
        ("copyByChunk", had.get("copy_by_chunk", False), wanted.copy_by_chunk),
        ("enabled", had.get("enabled", False), wanted.enabled),
    ]  # fmt: skip
    if wanted.single_active is not None:
        single = had.get("single_active_replication", False)
        pairs.append(("singleActive", single, wanted.single_active))
    return lines(pairs)


def replications(target: Target) -> Iterator[Change | Remark]:
    """Rules of replication."""
    found = {one["name"]: one for one in target.client.pages("/replication/policies")}
    for wanted in target.settings.replications:
        had = found.get(wanted.name)
        if wanted.single_active is not None:
            target.require(_SINGLE_SINCE, f"replication {wanted.name}: singleActive")
        if told := replication_lines(had, wanted):
            what = f"replication {wanted.name}"
            yield Change(what, told, _put_replication(target, wanted, had), new=had is None)
    known = {wanted.name for wanted in target.settings.replications}
    for name in sorted(found.keys() - known):
        yield unmanaged(f"replication {name}")


def replication_body(wanted: Replication, endpoint: int) -> dict[str, Any]:
    """A rule as Harbor has it, without the side that Harbor itself is; ``endpoint`` is an id."""
    body: dict[str, Any] = {
        "name": wanted.name,
        "description": wanted.description,
        "dest_registry" if wanted.to else "src_registry": {"id": endpoint},
        "dest_namespace": wanted.namespace,
        "dest_namespace_replace_count": wanted.flatten,
        "trigger": trigger_of(wanted.trigger),
        "filters": filter_list(wanted.filters),
        "enabled": wanted.enabled,
        "override": wanted.override,
        "replicate_deletion": wanted.replicate_deletion,
        "speed": wanted.kilobytes_per_second or -1,
        "copy_by_chunk": wanted.copy_by_chunk,
    }
    if wanted.single_active is not None:
        body["single_active_replication"] = wanted.single_active
    return body


def _put_replication(target: Target, wanted: Replication, had: Mapping[str, Any] | None) -> Apply:
    def apply() -> str:
        endpoint = target.registries()[wanted.to or wanted.from_]
        body = replication_body(wanted, endpoint["id"])
        if had is None:
            target.client.post("/replication/policies", body)
            return ""
        # Harbor wants the whole object back; the other side is itself.
        whole = {key: value for key, value in had.items() if not key.endswith("_registry")}
        other = "src_registry" if wanted.to else "dest_registry"
        body = whole | body | {other: {"id": 0}}
        target.client.put(f"/replication/policies/{had['id']}", body)
        return ""

    return apply
