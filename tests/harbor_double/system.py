"""What belongs to the whole Harbor: health, configuration, the system's allowlist, audit logs."""

from __future__ import annotations

from tests.harbor_double.accounts import need_login, need_system, project_of
from tests.harbor_double.call import (
    Answer,
    Call,
    Document,
    Refused,
    bad_request,
    broken,
    matching,
    not_found,
    operation,
    ordered,
    unauthorized,
)
from tests.harbor_double.recordings import recorded
from tests.harbor_double.state import NEVER

COMPONENTS = (
    "core", "database", "jobservice", "portal", "redis", "registry", "registryctl", "trivy",
)  # fmt: skip
READ_ONLY = "The system is in read only mode. Any modification is prohibited."


@operation("getHealth")
def health(call: Call) -> Answer:
    """Always 200: the body tells."""
    parts: list[Document] = []
    for name in COMPONENTS:
        if name in call.state.down:
            why = f'failed to check health: Get "http://harbor-{name}/": connection refused'
            parts.append({"error": why, "name": name, "status": "unhealthy"})
        else:
            parts.append({"name": name, "status": "healthy"})
    status = "unhealthy" if call.state.down & set(COMPONENTS) else "healthy"
    return Answer(200, {"components": parts, "status": status})


@operation("getPing")
def ping(_call: Call) -> Answer:
    return Answer(200, text="Pong", content_type="text/plain")


@operation("getSystemInfo")
def system_info(call: Call) -> Answer:
    state = call.state
    short = {
        "auth_mode": state.setting("auth_mode"),
        "banner_message": state.setting("banner_message"),
        "oidc_provider_name": state.setting("oidc_name"),
        "primary_auth_mode": state.setting("primary_auth_mode"),
        "self_registration": state.setting("self_registration"),
    }
    if not call.account.known:
        return Answer(200, short)
    more = {
        "current_time": state.stamp(),
        "external_url": state.external_url,
        "harbor_version": state.version,
        "has_ca_root": False,
        "notification_enable": state.setting("notification_enable"),
        "project_creation_restriction": state.setting("project_creation_restriction"),
        "read_only": state.setting("read_only"),
        "registry_storage_provider_name": "filesystem",
        "registry_url": state.external_url.partition("://")[2],
    }
    return Answer(200, short | more)


@operation("getVolumes")
def volumes(call: Call) -> Answer:
    need_system(call, "system-volumes", "read")
    return Answer(200, {"storage": [{}]})


@operation("getCert")
def certificate(_call: Call) -> Answer:
    raise not_found("resource not found: cert not found in path: /etc/core/ca/ca.crt")


@operation("getWorkerPools")
def pools(call: Call) -> Answer:
    need_system(call, "jobservice-monitor", "list")
    return Answer(200, recorded("systeminfo", "jobservice pools"))


@operation("listJobQueues")
def queues(call: Call) -> Answer:
    need_system(call, "jobservice-monitor", "list")
    return Answer(200, recorded("systeminfo", "jobservice queues"))


@operation("getInternalconfig")
def internal(_call: Call) -> Answer:
    raise Refused(401, "UNAUTHORIZED", "unauthorized")


@operation("getConfigurations")
def configurations(call: Call) -> Answer:
    need_system(call, "configuration", "read")
    return Answer(200, call.state.configurations)


@operation("updateConfigurations")
def update_configurations(call: Call) -> Answer:
    need_system(call, "configuration", "update")
    state = call.state
    known = state.configurations
    body = {
        key: value
        for key, value in call.body.items()
        if key in known and "value" in known[key] and value is not None
    }
    for key in ("robot_token_duration", "token_expiration"):
        if key in body and body[key] <= 0:
            raise bad_request(f"the {key} value must be positive")
    if body.get("project_creation_restriction", "everyone") not in ("everyone", "adminonly"):
        raise bad_request(
            "bad request: item name project_creation_restriction: invalid "
            "project_creation_restriction, should be adminonly or everyone"
        )
    limit = body.get("storage_per_project", -1)
    if limit == 0 or limit < -1:
        raise bad_request(f"bad request: invalid non-positive value for quota limit, value={limit}")
    endpoint = body.get("audit_log_forward_endpoint", state.setting("audit_log_forward_endpoint"))
    skip = body.get("skip_audit_log_database", state.setting("skip_audit_log_database"))
    if skip and not endpoint:
        raise bad_request(
            "bad request: audit log forward endpoint should be configured before enable skip "
            "audit log in database"
        )
    for key, value in body.items():
        known[key]["value"] = value
    if body.get("audit_log_forward_endpoint") and not state.listening(endpoint):
        # Stored all the same.
        raise bad_request(f"bad request: could not connect to the audit endpoint: {endpoint}")
    name = call.account.name
    state.log(name, "update", "configuration", "configuration", "update configuration")
    return Answer()


def allowlist(call: Call) -> Document:
    """The system's list as it is shown."""
    kept = call.state.allowlist
    times = {"creation_time": kept.get("time", NEVER), "update_time": kept.get("time", NEVER)}
    shown: Document = {"items": kept.get("items", [])} | times
    if kept.get("id"):
        shown["id"] = kept["id"]
    return shown | ({"expires_at": kept["expires_at"]} if kept.get("expires_at") else {})


@operation("getSystemCVEAllowlist")
def get_allowlist(call: Call) -> Answer:
    need_login(call)
    return Answer(200, allowlist(call))


@operation("putSystemCVEAllowlist")
def put_allowlist(call: Call) -> Answer:
    need_system(call, "system-cve-allowlist", "update")
    kept, items = call.state.allowlist, call.body.get("items") or []
    if len({item.get("cve_id") for item in items}) < len(items):
        raise broken()
    kept.setdefault("id", call.state.next("allowlist"))
    kept.update(items=items, expires_at=call.body.get("expires_at"), time=call.state.stamp())
    return Answer()


@operation("listAuditLogs", "getLogs")
def old_audit_logs(call: Call) -> Answer:
    """Empty since 2.13: the entries are in auditlog-exts."""
    need_login(call)
    return call.page([])


_FIELDS = {key: key for key in ("operation", "resource", "resource_type", "username")}


@operation("listAuditLogExts")
def audit_logs(call: Call) -> Answer:
    if not call.account.known:
        raise unauthorized("")
    need_system(call, "audit-log", "list")
    return _audit_page(call, call.state.audit)


@operation("getLogExts")
def project_audit_logs(call: Call) -> Answer:
    number = project_of(call, "log", "list")["project_id"]
    return _audit_page(call, [one for one in call.state.audit if one["project"] == number])


def _audit_page(call: Call, entries: list[Document]) -> Answer:
    rows = [{k: v for k, v in one.items() if k != "project"} for one in entries]
    found = matching(rows, call.query.get("q", ""), _FIELDS)
    # By id: several entries of one moment keep their order.
    sort = call.query.get("sort", "").replace("op_time", "id")
    return call.page(ordered(found, sort, "-id", ("id",)))


@operation("listAuditLogEventTypes")
def audit_events(call: Call) -> Answer:
    need_login(call)
    return Answer(200, recorded("audit-logs", "auditlog-exts events"))


@operation("ListProviders")
def preheat_providers(call: Call) -> Answer:
    need_login(call)
    return Answer(200, recorded("gc", "preheat providers"))


@operation("ListInstances")
def preheat_instances(call: Call) -> Answer:
    need_system(call, "preheat-instance", "list")
    return call.page([])


@operation("ListPolicies")
def preheat_policies(call: Call) -> Answer:
    project_of(call, "preheat-policy", "list")
    return call.page([])
