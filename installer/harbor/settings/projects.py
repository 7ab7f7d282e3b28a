"""Projects: themselves with quota and metadata, and what belongs to each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from installer.errors import PreflightFailed
from installer.harbor.api import Version, segment
from installer.harbor.settings.change import (
    NOTHING,
    Change,
    Line,
    Remark,
    lines,
    size_words,
    unmanaged,
)
from installer.harbor.settings.labels import label_changes
from installer.harbor.settings.vulnerabilities import allowlist_body, allowlist_lines
from installer.site.harbor_settings_check import quota_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from installer.harbor.settings.change import Apply
    from installer.harbor.settings.target import Target
    from installer.site.harbor_settings import Member, Project, Webhook

_ROLES = {"projectAdmin": 1, "developer": 2, "guest": 3, "maintainer": 4, "limitedGuest": 5}
_LDAP, _HTTP, _OIDC = 1, 2, 3
_GROUPS = {"ldap_auth": _LDAP, "http_auth": _HTTP, "oidc_auth": _OIDC}
_DEFAULTS = {
    "public": "false",
    "auto_scan": "false",
    "auto_sbom_generation": "false",
    "prevent_vul": "false",
    "enable_content_trust": "false",
    "enable_content_trust_cosign": "false",
    "reuse_sys_cve_allowlist": "true",
    "proxy_speed_kb": "-1",
    "proxy_cache_local_on_not_found": "false",
}
"""What a project does whose metadata don't say."""
_LABELS = {
    "public": "public",
    "auto_scan": "scanOnPush",
    "auto_sbom_generation": "sbomOnPush",
    "prevent_vul": "preventVulnerable",
    "severity": "preventVulnerable.severity",
    "enable_content_trust": "contentTrust.notation",
    "enable_content_trust_cosign": "contentTrust.cosign",
    "reuse_sys_cve_allowlist": "systemCveAllowlist",
    "proxy_speed_kb": "proxyCache.kilobytesPerSecond",
    "proxy_cache_local_on_not_found": "proxyCache.serveDeleted",
}


def metadata(project: Project) -> dict[str, str]:
    """Harbor's metadata of what the file says, all of them texts; what it leaves out isn't there.

    Harbor stores any text without a word, also one that then means nothing.
    """
    wanted: dict[str, Any] = {
        "public": project.public,
        "auto_scan": project.scan_on_push,
        "auto_sbom_generation": project.sbom_on_push,
        "reuse_sys_cve_allowlist": project.system_cve_allowlist,
    }
    if project.prevent_vulnerable:
        wanted["prevent_vul"] = project.prevent_vulnerable != "none"
        if project.prevent_vulnerable != "none":
            wanted["severity"] = project.prevent_vulnerable
    if project.content_trust:
        wanted["enable_content_trust"] = project.content_trust == "notation"
        wanted["enable_content_trust_cosign"] = project.content_trust == "cosign"
    if project.cve_allowlist is not None:
        wanted["reuse_sys_cve_allowlist"] = False
    if project.proxy_cache is not None:
        wanted["proxy_cache_local_on_not_found"] = project.proxy_cache.serve_deleted
        if project.proxy_cache.kilobytes_per_second is not None:
            wanted["proxy_speed_kb"] = str(project.proxy_cache.kilobytes_per_second or -1)
    return {
        key: str(value).lower() if isinstance(value, bool) else value
        for key, value in wanted.items()
        if value is not None
    }


def project_lines(
    found: Mapping[str, Any] | None, quota: int | None, project: Project
) -> tuple[tuple[Line, ...], dict[str, str]]:
    """Lines, and the metadata to set; ``found`` is Harbor's project and ``quota`` its bytes."""
    had = (found or {}).get("metadata") or {}
    told: list[Line] = []
    changed: dict[str, str] = {}
    for key, value in metadata(project).items():
        before = str(had.get(key) or _DEFAULTS.get(key, "")).lower()
        if before != value:
            turned = {"true": "yes", "false": "no"}
            told.append(
                Line(_LABELS[key], turned.get(before, before) or NOTHING, turned.get(value, value))
            )
            changed[key] = value
    if project.quota and quota != (size := quota_bytes(project.quota)):
        told.append(Line("quota", size_words(quota), size_words(size)))
    told += allowlist_lines((found or {}).get("cve_allowlist"), project.cve_allowlist)
    return tuple(told), changed


def projects(target: Target) -> Iterator[Change | Remark]:
    """The projects themselves."""
    found = target.projects()
    for project in target.settings.projects:
        had = found.get(project.name)
        if project.proxy_cache and project.proxy_cache.serve_deleted is not None:
            target.require(Version(2, 15), f"project {project.name}: proxyCache.serveDeleted")
        quota = None
        if had is not None:
            _check_proxy(target, project, had)
            hard = target.quotas().get(had["project_id"], {}).get("hard", {})
            quota = hard.get("storage")
        told, changed = project_lines(had, quota, project)
        scanner = _scanner_line(target, project, there=had is not None)
        if had is None:
            first = (Line("project", NOTHING, project.name),)
            apply = _make(target, project, changed)
            yield Change(f"project {project.name}", first + told + scanner, apply, new=True)
        elif told or scanner:
            yield Change(
                f"project {project.name}",
                told + scanner,
                _change(target, project, changed, {line.key for line in told + scanner}),
            )
    known = {project.name for project in target.settings.projects}
    for name in sorted(found.keys() - known - {"library", *target.own_projects}):
        yield unmanaged(f"project {name}")


def _check_proxy(target: Target, project: Project, had: Mapping[str, Any]) -> None:
    wanted = project.proxy_cache.registry if project.proxy_cache else ""
    names = {one["id"]: name for name, one in target.registries().items()}
    now = names.get(had.get("registry_id"), "")
    if wanted != now and (wanted or had.get("registry_id")):
        raise PreflightFailed(
            f"project {project.name}: its proxy cache is of {now or 'no endpoint'}, not of "
            f"{wanted or 'none'}, and Harbor can't change that",
            hint="write it so, take another name, or delete the project in Harbor",
        )


def _scanner_line(target: Target, project: Project, *, there: bool) -> tuple[Line, ...]:
    if not project.scanner:
        return ()
    path = f"/projects/{segment(project.name)}/scanner"
    now = ((target.client.get(path) if there else None) or {}).get("name", "")
    return lines([("scanner", now, project.scanner)])


def _set_scanner(target: Target, project: Project) -> None:
    found = {one["name"]: one["uuid"] for one in target.client.pages("/scanners")}
    if project.scanner not in found:
        raise PreflightFailed(
            f"project {project.name}: there is no scanner {project.scanner!r}",
            hint=f"Harbor has {', '.join(found) or 'none'}",
        )
    path = f"/projects/{segment(project.name)}/scanner"
    target.client.put(path, {"uuid": found[project.scanner]})


def _make(target: Target, project: Project, changed: dict[str, str]) -> Apply:
    def apply() -> str:
        others = {key: value for key, value in changed.items() if key != "public"}
        body: dict[str, Any] = {
            "project_name": project.name,
            "metadata": {"public": changed.get("public", "false")},
            "storage_limit": quota_bytes(project.quota or "unlimited"),
        }
        if project.quota == "":
            del body["storage_limit"]  # the default of the system
        if project.proxy_cache is not None:
            body["registry_id"] = target.registries()[project.proxy_cache.registry]["id"]
        target.client.post("/projects", body)
        rest: dict[str, Any] = {"metadata": others} if others else {}
        if project.cve_allowlist is not None:
            rest["cve_allowlist"] = allowlist_body(project.cve_allowlist)
        if rest:
            target.client.put(f"/projects/{segment(project.name)}", rest)
        if project.scanner:
            _set_scanner(target, project)
        return ""

    return apply


def _change(target: Target, project: Project, changed: dict[str, str], keys: set[str]) -> Apply:
    def apply() -> str:
        body: dict[str, Any] = {"metadata": changed} if changed else {}
        if project.cve_allowlist is not None and any(k.startswith("cveAllow") for k in keys):
            body["cve_allowlist"] = {"expires_at": None} | allowlist_body(project.cve_allowlist)
        if body:
            target.client.put(f"/projects/{segment(project.name)}", body)
        if "quota" in keys:
            quota = target.quotas()[target.project_id(project.name)]
            size = quota_bytes(project.quota)
            target.client.put(f"/quotas/{quota['id']}", {"hard": {"storage": size}})
        if "scanner" in keys:
            _set_scanner(target, project)
        return ""

    return apply


def members(target: Target) -> Iterator[Change | Remark]:
    """Who may do what in a project; the admin who made it is always one of them."""
    for project in target.settings.projects:
        path = f"/projects/{segment(project.name)}/members"
        there = project.name in target.projects()
        found = {
            (one["entity_type"], one["entity_name"]): one
            for one in (target.client.pages(path) if there else ())
        }
        wanted = {_entity(member): member for member in project.members}
        for entity, member in wanted.items():
            had = found.get(entity)
            role = _ROLES[member.role]
            if had is not None and had["role_id"] == role:
                continue
            now = {number: name for name, number in _ROLES.items()}
            before = now.get(had["role_id"], str(had["role_id"])) if had else NOTHING
            yield Change(
                f"member {entity[1]} of project {project.name}",
                (Line("role", before, member.role),),
                _put_member(target, path, member, had),
                new=had is None,
            )
        for kind, name in found.keys() - wanted.keys() - {("u", "admin")}:
            what = "member" if kind == "u" else "group"
            yield unmanaged(f"{what} {name} of project {project.name}")


def _entity(member: Member) -> tuple[str, str]:
    if member.user:
        return "u", member.user
    return "g", member.group or member.group_dn.split(",")[0].partition("=")[2]


def _put_member(target: Target, path: str, member: Member, had: Mapping[str, Any] | None) -> Apply:
    def apply() -> str:
        role = {"role_id": _ROLES[member.role]}
        if had is not None:
            target.client.put(f"{path}/{had['id']}", role)
            return ""
        if member.user:
            who: dict[str, Any] = {"member_user": {"username": member.user}}
        else:
            kind = _GROUPS.get(str(target.value("auth_mode")), _OIDC)
            group: dict[str, Any] = {"group_name": _entity(member)[1], "group_type": kind}
            if member.group_dn:
                group["ldap_group_dn"] = member.group_dn
            who = {"member_group": group}
        target.client.post(path, role | who)
        return ""

    return apply


def webhook_body(hook: Webhook, header: str) -> dict[str, Any]:
    """A webhook as Harbor has it; ``header`` is its whole Authorization header."""
    aim: dict[str, Any] = {
        "type": hook.type,
        "address": hook.address,
        "skip_cert_verify": not hook.verify_certificate,
    }
    if header:
        aim["auth_header"] = header
    if hook.type == "http":
        aim["payload_format"] = hook.format
    return {
        "name": hook.name,
        "description": hook.description,
        "enabled": hook.enabled,
        "event_types": list(hook.events),
        "targets": [aim],
    }


def webhook_lines(found: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> tuple[Line, ...]:
    """What differs between two of them; of the header only that it does."""
    had = found or {}
    was = (had.get("targets") or [{}])[0]
    will = wanted["targets"][0]
    verified = not was.get("skip_cert_verify", False)
    written = was.get("payload_format") or "Default"
    told = lines(
        [
            ("address", was.get("address", ""), will["address"]),
            ("type", was.get("type", ""), will["type"]),
            ("format", written, will.get("payload_format", "Default")),
            ("verifyCertificate", verified, not will["skip_cert_verify"]),
            ("events", sorted(had.get("event_types") or ()), sorted(wanted["event_types"])),
            ("description", had.get("description", ""), wanted["description"]),
            ("enabled", had.get("enabled", False), wanted["enabled"]),
        ]
    )
    if "auth_header" in will and was.get("auth_header", "") != will["auth_header"]:
        told += (Line("authHeaderFile", "another one", "that of the file"),)
    return told


def webhooks(target: Target) -> Iterator[Change | Remark]:
    """Who is told of what happens in a project."""
    for project in target.settings.projects:
        path = f"/projects/{segment(project.name)}/webhook/policies"
        there = project.name in target.projects()
        found = {one["name"]: one for one in (target.client.pages(path) if there else ())}
        for hook in project.webhooks:
            header, _ = target.secret("", hook.auth_header_file, "")
            body, had = webhook_body(hook, header), found.get(hook.name)
            if told := webhook_lines(had, body):
                yield Change(
                    f"webhook {hook.name} of project {project.name}",
                    told,
                    _put(target, path, body, (had or {}).get("id")),
                    new=had is None,
                )
        for name in sorted(found.keys() - {hook.name for hook in project.webhooks}):
            yield unmanaged(f"webhook {name} of project {project.name}")


def _put(target: Target, path: str, body: dict[str, Any], id_: int | None) -> Apply:
    def apply() -> str:
        if id_ is None:
            target.client.post(path, body)
        else:
            target.client.put(f"{path}/{id_}", body | {"id": id_})
        return ""

    return apply


def labels(target: Target) -> Iterator[Change | Remark]:
    """Labels of each project."""
    for project in target.settings.projects:
        yield from label_changes(target, project.labels, project.name)
