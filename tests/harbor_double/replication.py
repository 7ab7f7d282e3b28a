"""Endpoints, replication rules and their runs; copying itself is not done here."""

from __future__ import annotations

from tests.harbor_double.accounts import need_system
from tests.harbor_double.call import (
    Answer,
    Call,
    Document,
    bad_request,
    broken,
    conflict,
    matching,
    not_found,
    operation,
    ordered,
    precondition,
)
from tests.harbor_double.recordings import recorded
from tests.harbor_double.state import NEVER, State, written

_TYPES = {
    "harbor", "docker-hub", "docker-registry", "aws-ecr", "azure-acr", "ali-acr", "google-gcr",
    "huawei-SWR", "jfrog-artifactory", "github-ghcr", "tencent-tcr", "volcengine-cr", "quay",
    "gitlab",
}  # fmt: skip
_FILTERS = ("name", "tag", "label", "resource")


def _healthy(state: State, registry: Document) -> None:
    if registry["type"] not in _TYPES:
        raise broken()
    if not state.reachable(registry):
        raise bad_request("the registry is unhealthy")


def _shown(registry: Document) -> Document:
    keys = (
        "creation_time", "description", "id", "insecure", "name", "type", "update_time", "url",
    )  # fmt: skip
    document = {key: registry[key] for key in keys if registry[key] not in ("", None)}
    credential = registry["credential"]
    shown = {}
    if credential.get("access_key"):
        shown = {
            "access_key": credential["access_key"], "access_secret": "*****",
            "type": credential.get("type", "basic"),
        }  # fmt: skip
    return document | {"credential": shown, "status": "healthy"}


_LOCAL: Document = {
    "creation_time": NEVER,
    "credential": {"access_secret": "*****", "type": "secret"},
    "id": 0,
    "insecure": True,
    "name": "Local",
    "status": "healthy",
    "type": "harbor",
    "update_time": NEVER,
    "url": "http://harbor-core:80",
}


@operation("listRegistryProviderTypes")
def adapters(call: Call) -> Answer:
    need_system(call, "replication-adapter", "list")
    return Answer(200, sorted(_TYPES - {"quay", "gitlab"}))


@operation("listRegistryProviderInfos")
def adapter_infos(call: Call) -> Answer:
    need_system(call, "replication-adapter", "list")
    return Answer(200, recorded("replication", "adapter infos"))


def _url(url: str) -> str:
    return url if "://" in url else f"http://{url}"


@operation("pingRegistry")
def ping(call: Call) -> Answer:
    need_system(call, "registry", "read")
    body, state = call.body, call.state
    if body.get("id") is not None:
        registry = state.registries.get(body["id"])
        if registry is None:
            raise not_found(f"registry {body['id']} not found")
    else:
        registry = {
            "type": body.get("type", ""),
            "url": _url(body.get("url", "")),
            "credential": {},
        }
    _healthy(state, registry)
    return Answer()


@operation("createRegistry")
def create_registry(call: Call) -> Answer:
    need_system(call, "registry", "create")
    state, body, stamp = call.state, call.body, call.state.stamp()
    registry = {
        "name": body.get("name", ""), "type": body.get("type", ""),
        "url": _url(body.get("url", "")), "insecure": body.get("insecure", False),
        "description": body.get("description", ""), "credential": body.get("credential") or {},
        "creation_time": stamp, "update_time": stamp,
    }  # fmt: skip
    if any(one["name"] == registry["name"] for one in state.registries.values()):
        state.next("registry")
        raise conflict(f"registry {registry['name']} already exists")
    _healthy(state, registry)
    number = state.next("registry")
    state.registries[number] = registry | {"id": number}
    return call.created(number)


@operation("listRegistries")
def list_registries(call: Call) -> Answer:
    need_system(call, "registry", "list")
    rows = [_shown(one) for one in call.state.registries.values()]
    rows = matching(rows, call.query.get("q", ""), {"name": "name", "type": "type"})
    if name := call.query.get("name"):
        rows = [one for one in rows if name in one["name"]]
    return call.page(ordered(rows, call.query.get("sort", ""), "id", ("name",)))


def _registry(call: Call, action: str) -> Document:
    need_system(call, "registry", action)
    number = call.number("id")
    found = call.state.registries.get(number)
    if found is None:
        raise not_found(f"registry {number} not found")
    return found


@operation("getRegistry")
def get_registry(call: Call) -> Answer:
    return Answer(200, _shown(_registry(call, "read")))


@operation("getRegistryInfo")
def registry_info(call: Call) -> Answer:
    own = call.number("id") == 0
    kind = "harbor" if own else _registry(call, "read")["type"]
    if own:
        return Answer(200, recorded("replication", "info: id 0 = this Harbor"))
    if kind == "harbor":
        return Answer(200, recorded("replication", "info: harbor"))
    return Answer(200, recorded("replication", "info: docker-registry") | {"type": kind})


@operation("updateRegistry")
def update_registry(call: Call) -> Answer:
    """A merge: what is left out stays; a masked secret is taken as the new one."""
    registry, body = _registry(call, "update"), call.body
    changed = registry | {
        key: body[key]
        for key in ("name", "description", "url", "insecure")
        if body.get(key) is not None
    }
    credential = dict(registry["credential"])
    for key, own in (
        ("credential_type", "type"),
        ("access_key", "access_key"),
        ("access_secret", "access_secret"),
    ):
        if body.get(key) is not None:
            credential[own] = body[key]
    changed["credential"] = credential
    _healthy(call.state, changed)
    registry.update(changed, update_time=call.state.stamp())
    return Answer()


@operation("deleteRegistry")
def delete_registry(call: Call) -> Answer:
    registry, state = _registry(call, "delete"), call.state
    number = registry["id"]
    if any(number in (one["source"], one["target"]) for one in state.replications.values()):
        raise precondition(
            f"the registry {number} is referenced by replication policies, cannot delete it"
        )
    if any(one.get("registry_id") == number for one in state.projects.values()):
        raise precondition(
            f"the registry {number} is referenced by proxy cache project, cannot delete it"
        )
    del state.registries[number]
    return Answer()


def _policy_shown(state: State, policy: Document) -> Document:
    def side(number: int) -> Document:
        return _shown(state.registries[number]) if number else _LOCAL

    keys = (
        "copy_by_chunk", "creation_time", "description", "dest_namespace",
        "dest_namespace_replace_count", "enabled", "filters", "id", "name", "override",
        "replicate_deletion", "single_active_replication", "speed", "trigger", "update_time",
    )  # fmt: skip
    document = {key: policy[key] for key in keys if policy[key] not in ("", None)}
    if not policy["replicate_deletion"]:
        del document["replicate_deletion"]
    return document | {
        "dest_registry": side(policy["target"]),
        "src_registry": side(policy["source"]),
    }


def _checked(call: Call) -> Document:
    state, body = call.state, call.body
    source = (body.get("src_registry") or {}).get("id") or 0
    target = (body.get("dest_registry") or {}).get("id") or 0
    if not body.get("name"):
        raise bad_request("empty name")
    if bool(source) == bool(target):
        raise bad_request(
            "either src_registry or dest_registry should be empty and the other one shouldn't be "
            "empty"
        )
    for one in body.get("filters") or ():
        if one.get("type") not in _FILTERS:
            raise bad_request("invalid filter type")
    trigger = body.get("trigger") or {"type": "manual"}
    cron = (trigger.get("trigger_settings") or {}).get("cron", "")
    if trigger.get("type") not in ("manual", "scheduled", "event_based"):
        raise bad_request("invalid trigger type")
    if trigger["type"] == "scheduled" and len(cron.split()) != 6:
        raise bad_request(f"invalid cron string for scheduled trigger: {cron}")
    for number in (source, target):
        if number and number not in state.registries:
            raise not_found(f"registry {number} not found")
    count = body.get("dest_namespace_replace_count")
    return {
        "name": body["name"], "description": body.get("description", ""), "source": source,
        "target": target, "dest_namespace": body.get("dest_namespace", ""),
        "dest_namespace_replace_count": -1 if count is None else count,
        "trigger": _trigger(trigger),
        "filters": body.get("filters") or [], "enabled": body.get("enabled", False),
        "override": body.get("override", False),
        "replicate_deletion": body.get("replicate_deletion", False),
        "speed": max(body.get("speed") or 0, 0),
        "copy_by_chunk": body.get("copy_by_chunk") or False,
        "single_active_replication": body.get("single_active_replication") or False,
    }  # fmt: skip


def _trigger(given: Document) -> Document:
    """As it is kept: settings only where they were sent, and no empty text in them."""
    kept = {"type": given["type"]}
    if "trigger_settings" in given:
        settings = given["trigger_settings"] or {}
        kept["trigger_settings"] = {key: text for key, text in settings.items() if text}
    return kept


def _schedule(state: State, policy: Document) -> None:
    if old := state.schedule_of("REPLICATION", policy["id"]):
        del state.schedules[old["id"]]
    if cron := policy["trigger"].get("trigger_settings", {}).get("cron"):
        state.add_schedule("REPLICATION", cron, policy["id"])


@operation("createReplicationPolicy")
def create_policy(call: Call) -> Answer:
    need_system(call, "replication-policy", "create")
    state, stamp = call.state, call.state.stamp()
    policy = _checked(call)
    number = state.next("replication")
    if any(one["name"] == policy["name"] for one in state.replications.values()):
        raise conflict(f"replication policy {policy['name']} already exists")
    state.replications[number] = policy | {
        "id": number, "creation_time": stamp, "update_time": stamp,
    }  # fmt: skip
    _schedule(state, state.replications[number])
    return call.created(number)


@operation("listReplicationPolicies")
def list_policies(call: Call) -> Answer:
    need_system(call, "replication-policy", "list")
    rows = [_policy_shown(call.state, one) for one in call.state.replications.values()]
    rows = matching(rows, call.query.get("q", ""), {"name": "name"})
    if name := call.query.get("name"):
        rows = [one for one in rows if name in one["name"]]
    return call.page(ordered(rows, call.query.get("sort", ""), "-creation_time", ("name",)))


def _policy(call: Call, action: str, number: int) -> Document:
    need_system(call, "replication-policy", action)
    found = call.state.replications.get(number)
    if found is None:
        raise not_found(f"replication policy {number} not found")
    return found


@operation("getReplicationPolicy")
def get_policy(call: Call) -> Answer:
    return Answer(200, _policy_shown(call.state, _policy(call, "read", call.number("id"))))


@operation("updateReplicationPolicy")
def update_policy(call: Call) -> Answer:
    policy = _policy(call, "update", call.number("id"))
    policy.update(_checked(call), update_time=call.state.stamp())
    _schedule(call.state, policy)
    return Answer()


@operation("deleteReplicationPolicy")
def delete_policy(call: Call) -> Answer:
    policy = _policy(call, "delete", call.number("id"))
    del call.state.replications[policy["id"]]
    if old := call.state.schedule_of("REPLICATION", policy["id"]):
        del call.state.schedules[old["id"]]
    return Answer()


@operation("startReplication")
def start(call: Call) -> Answer:
    need_system(call, "replication", "create")
    policy = _policy(call, "read", call.body.get("policy_id", 0))
    if not policy["enabled"]:
        raise precondition(f"the policy {policy['id']} is disabled")
    execution = call.state.execution("REPLICATION", policy=policy["id"], trigger="manual")
    return call.created(execution["id"])


def pushed(state: State, name: str) -> None:
    """Start what is to be copied as soon as it is pushed."""
    for policy in state.replications.values():
        names = [one["value"] for one in policy["filters"] if one["type"] == "name"]
        if policy["trigger"]["type"] == "event_based" and policy["enabled"] and name in names:
            state.execution("REPLICATION", policy=policy["id"], trigger="event_based")


def _execution_shown(state: State, execution: Document) -> Document:
    done = state.phase(execution["started"]) == "Success"
    return {
        "end_time": written(state.ended(execution)) if done else NEVER,
        "failed": 0,
        "id": execution["id"],
        "in_progress": 0,
        "policy_id": execution["policy"],
        "start_time": written(execution["begun"]),
        "status": "Succeed" if done else "InProgress",
        "status_text": "",
        "stopped": 0,
        "succeed": 1 if done else 0,
        "total": 1 if done else 0,
        "trigger": execution["trigger"],
    }


@operation("listReplicationExecutions")
def executions(call: Call) -> Answer:
    need_system(call, "replication", "list")
    state = call.state
    jobs = [one for one in state.executions.values() if one["kind"] == "REPLICATION"]
    if policy := call.query.get("policy_id"):
        jobs = [one for one in jobs if one["policy"] == policy]
    return call.page([_execution_shown(state, one) for one in reversed(jobs)])


def _execution(call: Call, action: str) -> Document:
    need_system(call, "replication", action)
    number = call.number("id")
    found = call.state.executions.get(number)
    if found is None or found["kind"] != "REPLICATION":
        raise not_found(f"replication execution {number} not found")
    return found


@operation("getReplicationExecution")
def get_execution(call: Call) -> Answer:
    return Answer(200, _execution_shown(call.state, _execution(call, "read")))


@operation("stopReplication")
def stop(call: Call) -> Answer:
    _execution(call, "create")
    return Answer(200, text="null\n", content_type="application/json")


@operation("listReplicationTasks")
def tasks(call: Call) -> Answer:
    execution = _execution(call, "list")
    state = call.state
    policy = state.replications.get(execution["policy"])
    done = state.phase(execution["started"]) == "Success"
    name = (
        next((one["value"] for one in policy["filters"] if one["type"] == "name"), "")
        if policy
        else ""
    )
    target = f"{policy['dest_namespace']}/{name.rpartition('/')[2]}" if policy else ""
    seconds = execution["begun"].replace(microsecond=0)
    row = {
        "dst_resource": f"{target} [1 item(s) in total]",
        "end_time": written(state.ended(execution).replace(microsecond=0)) if done else NEVER,
        "execution_id": execution["id"],
        "id": execution["task"],
        "job_id": execution["job_id"],
        "operation": "copy",
        "resource_type": "image" if policy and policy["source"] else "artifact",
        "src_resource": f"{name} [1 item(s) in total]",
        "start_time": written(seconds),
        "status": "Succeed" if done else "InProgress",
    }
    return call.page([row])


@operation("getReplicationLog")
def log(call: Call) -> Answer:
    execution = _execution(call, "read")
    text = f"{written(execution['begun'])} [INFO] client for source registry created\n"
    return Answer(200, text=text, content_type="text/plain")
