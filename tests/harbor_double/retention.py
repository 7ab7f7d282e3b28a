"""Rules about tags: which are kept, and which never change."""

from __future__ import annotations

import fnmatch
from datetime import UTC, datetime

from tests.harbor_double.accounts import need_login, project_of, refuse
from tests.harbor_double.call import (
    Answer,
    Call,
    Document,
    Refused,
    bad_request,
    broken,
    conflict,
    not_found,
    operation,
)
from tests.harbor_double.jobs import check_cron, next_time
from tests.harbor_double.recordings import recorded
from tests.harbor_double.state import Artifact, State, written

_NEVER = "0001-01-01T00:00:00Z"


@operation("getRentenitionMetadata")
def metadata(call: Call) -> Answer:
    need_login(call)
    return Answer(200, recorded("tag-retention", "metadata"))


def _rule(rule: Document) -> Document:
    """As it is kept: what is empty or false is left out."""
    return {key: value for key, value in rule.items() if value not in (False, 0, {}, None, "")}


def _policy(state: State, number: int) -> Document:
    policy = state.retentions.get(number)
    if policy is None:
        raise broken()  # 500, not 404
    return policy


def _need(call: Call, policy: Document, action: str) -> None:
    project = call.state.projects[policy["scope"]["ref"]]
    if not call.account.may(call.state, project, "tag-retention", action):
        raise refuse(call.account)


def _check(state: State, policy: Document) -> None:
    if policy["scope"]["ref"] not in state.projects:
        raise bad_request(f"bad request: invalid Project id {policy['scope']['ref']}")
    trigger = policy.get("trigger")
    if not trigger:
        raise _Nothing
    cron = (trigger.get("settings") or {}).get("cron", "")
    if cron:
        check_cron(cron, "tag retention")
    rules = policy.get("rules") or []
    for later, rule in enumerate(rules):
        for earlier in range(later):
            if _rule(rule) == _rule(rules[earlier]):
                raise conflict(f"resource conflict: rule {later} is conflict with rule {earlier}")


class _Nothing(Refused):
    """500 without a body: Harbor's handler fell over."""

    def __init__(self) -> None:
        super().__init__(500, "", "")

    @property
    def answer(self) -> Answer:
        return Answer(500)


@operation("createRetention")
def create(call: Call) -> Answer:
    state, body = call.state, call.body
    need_login(call)
    try:
        _check(state, body)
    except _Nothing:
        raise _Nothing from None
    _need(call, body, "create")
    project = state.projects[body["scope"]["ref"]]
    if kept := project["metadata"].get("retention_id"):
        number = project["project_id"]
        raise bad_request(f"bad request: project {number} already has retention policy {kept}")
    return call.created(_add(state, project, body))


def _add(state: State, project: Document, body: Document) -> int:
    number = state.next("retention")
    state.retentions[number] = body | {"id": number}
    project["metadata"]["retention_id"] = str(number)
    return number


def add_proxy_policy(state: State, project: Document) -> None:
    """A proxy-cache project comes with a policy: what nobody pulled for a week goes."""
    rule = {
        "action": "retain", "template": "nDaysSinceLastPull",
        "params": {"nDaysSinceLastPull": 7},
        "tag_selectors": [{"kind": "doublestar", "decoration": "matches", "pattern": "**"}],
        "scope_selectors": {
            "repository": [{"kind": "doublestar", "decoration": "repoMatches", "pattern": "**"}]
        },
    }  # fmt: skip
    trigger = {"kind": "Schedule", "settings": {"cron": "0 0 0 * * *"}}
    scope = {"level": "project", "ref": project["project_id"]}
    _add(state, project, {"algorithm": "or", "rules": [rule], "trigger": trigger, "scope": scope})


@operation("getRetention")
def get(call: Call) -> Answer:
    need_login(call)
    policy = _policy(call.state, call.number("id"))
    _need(call, policy, "read")
    cron = (policy["trigger"].get("settings") or {}).get("cron", "")
    settings: Document = {"cron": cron}
    if cron:
        settings["next_scheduled_time"] = next_time(cron, call.state.now())
    shown = {key: policy[key] for key in ("algorithm", "id", "scope")}
    shown["rules"] = [_rule(one) for one in policy["rules"]]
    shown["trigger"] = {"kind": policy["trigger"].get("kind", ""), "settings": settings}
    return Answer(200, shown)


@operation("updateRetention")
def update(call: Call) -> Answer:
    need_login(call)
    state, number = call.state, call.number("id")
    policy = _policy(state, number)
    _need(call, policy, "update")
    _check(state, call.body)
    state.retentions[number] = call.body | {"id": number}
    return Answer()


@operation("deleteRetention")
def delete(call: Call) -> Answer:
    need_login(call)
    policy = _policy(call.state, call.number("id"))
    _need(call, policy, "delete")
    del call.state.retentions[policy["id"]]
    call.state.projects[policy["scope"]["ref"]]["metadata"].pop("retention_id", None)
    return Answer()


def _matches(selector: Document, name: str) -> bool:
    pattern = selector["pattern"]
    found = pattern == "**" or fnmatch.fnmatchcase(name, pattern)
    kind = selector["decoration"]
    if kind in ("excludes", "repoExcludes"):
        return not found
    return found and kind in ("matches", "repoMatches")  # Harbor takes any other word, too


def _retained(rules: list[Document], repository: str, found: list[Artifact]) -> set[int]:
    kept: set[int] = set()
    for rule in rules:
        scopes = rule.get("scope_selectors", {}).get("repository", ())
        if not all(_matches(one, repository) for one in scopes):
            continue
        chosen = [
            one
            for one in found
            if any(
                all(_matches(selector, tag) for selector in rule.get("tag_selectors", ()))
                for tag in one.tags or ("",)
            )
        ]
        newest = sorted(chosen, key=lambda one: one.pushed, reverse=True)
        count = (rule.get("params") or {}).get(rule["template"])
        if rule["template"] == "latestPushedK":
            newest = newest[: int(count or 0)]
        elif rule["template"] == "latestPulledN":
            past = datetime.min.replace(tzinfo=UTC)
            newest.sort(key=lambda one: one.pulled or past, reverse=True)
            newest = newest[: int(count or 0)]
        kept |= {one.id for one in newest}
    return kept


@operation("triggerRetentionExecution")
def execute(call: Call) -> Answer:
    from tests.harbor_double.artifacts import remove  # noqa: PLC0415  a circle

    need_login(call)
    state = call.state
    policy = _policy(state, call.number("id"))
    _need(call, policy, "operate")
    dry = (call.body or {}).get("dry_run", False)
    project = state.projects[policy["scope"]["ref"]]
    tasks = []
    for repository in state.repositories.values():
        if repository["project_id"] != project["project_id"]:
            continue
        short = repository["name"].partition("/")[2]
        scopes = [
            one
            for rule in policy["rules"]
            for one in rule.get("scope_selectors", {}).get("repository", ())
        ]
        if not any(_matches(one, short) for one in scopes):
            continue
        found = [one for one in state.artifacts_of(repository["name"]) if not one.subject]
        kept = _retained(policy["rules"], short, found)
        tasks.append(
            {
                "repository": short,
                "total": len(found),
                "retained": len(kept),
                "id": state.next("task"),
            }
        )
        if not dry:
            for one in found:
                if one.id not in kept:
                    remove(state, one)
    execution = state.execution("RETENTION", policy=policy["id"], dry=dry, tasks=tasks)
    return call.created(execution["id"])


def _executions(call: Call) -> list[Document]:
    policy = _policy(call.state, call.number("id"))
    _need(call, policy, "list")
    number = policy["id"]
    return [
        one
        for one in call.state.executions.values()
        if one["kind"] == "RETENTION" and one["policy"] == number
    ]


@operation("listRetentionExecutions")
def executions(call: Call) -> Answer:
    need_login(call)
    state = call.state
    rows = []
    for one in reversed(_executions(call)):
        done = state.phase(one["started"]) == "Success"
        rows.append(
            {
                "dry_run": one["dry"],
                "end_time": f"{state.ended(one):%Y-%m-%dT%H:%M:%SZ}" if done else _NEVER,
                "id": one["id"],
                "policy_id": one["policy"],
                "start_time": f"{one['begun']:%Y-%m-%dT%H:%M:%S.%f}Z",
                "status": "Success" if done else "Running",
                "trigger": "MANUAL",
            }
        )
    return call.page(rows)


def _execution(call: Call) -> Document:
    number = call.number("eid")
    for one in _executions(call):
        if one["id"] == number:
            return one
    raise not_found(f"execution {number} not found")


@operation("operateRetentionExecution")
def operate(call: Call) -> Answer:
    need_login(call)
    _execution(call)
    return Answer()


@operation("listRetentionTasks")
def tasks(call: Call) -> Answer:
    need_login(call)
    state, execution = call.state, _execution(call)
    done = state.phase(execution["started"]) == "Success"
    rows = [
        {
            "end_time": f"{state.ended(execution):%Y-%m-%dT%H:%M:%SZ}" if done else _NEVER,
            "execution_id": execution["id"],
            "id": one["id"],
            "job_id": execution["job_id"],
            "repository": one["repository"],
            "retained": one["retained"] if done else 0,
            "start_time": f"{execution['begun']:%Y-%m-%dT%H:%M:%SZ}",
            "status": "Success" if done else "Running",
            "status_code": 3 if done else 2,
            "total": one["total"] if done else 0,
        }
        for one in execution["tasks"]
    ]
    return call.page(rows)


@operation("getRetentionTaskLog")
def task_log(call: Call) -> Answer:
    need_login(call)
    execution = _execution(call)
    for one in execution["tasks"]:
        if one["id"] == call.number("tid"):
            dry = str(execution["dry"]).lower()
            text = (
                f"{written(execution['begun'])} [INFO] Run retention process.\n Repository: "
                f"{one['repository']} \n Rule Algorithm: or \n Dry Run: {dry}\n"
            )
            return Answer(200, text=text, content_type="text/plain")
    raise not_found(f"task {call.path['tid']} not found")


def _immutable(call: Call, action: str) -> Document:
    project = project_of(call, "immutable-tag", action)
    number = call.number("immutable_rule_id")
    rule = call.state.immutable.get(number)
    if rule is None or rule["project_id"] != project["project_id"]:
        raise not_found(f"immutable rule {number} not found")
    return rule


def _kept(body: Document) -> Document:
    keys = ("action", "disabled", "scope_selectors", "tag_selectors", "template")
    kept = {key: body[key] for key in keys if body.get(key)}
    kept["tag_selectors"] = [
        {key: value for key, value in one.items() if key != "extras"}
        for one in body.get("tag_selectors", ())
    ]
    return kept


@operation("ListImmuRules")
def list_immutable(call: Call) -> Answer:
    number = project_of(call, "immutable-tag", "list")["project_id"]
    return call.page(
        [
            {key: value for key, value in one.items() if key != "project_id"}
            for one in call.state.immutable.values()
            if one["project_id"] == number
        ]
    )


@operation("CreateImmuRule")
def create_immutable(call: Call) -> Answer:
    state = call.state
    project = project_of(call, "immutable-tag", "create")["project_id"]
    kept, number = _kept(call.body), state.next("immutable")
    for one in state.immutable.values():
        same = {key: value for key, value in one.items() if key not in ("id", "project_id")}
        if one["project_id"] == project and same == kept:
            raise conflict("immutable rule already exists")
    state.immutable[number] = {"id": number, "project_id": project, **kept}
    return call.created(number)


@operation("UpdateImmuRule")
def update_immutable(call: Call) -> Answer:
    rule = _immutable(call, "update")
    if call.body.get("disabled", False) != rule.get("disabled", False):
        # A call that switches a rule on or off changes nothing else of it.
        rule.pop("disabled", None)
        if call.body.get("disabled"):
            rule["disabled"] = True
        return Answer()
    rule.update(_kept(call.body))
    return Answer()


@operation("DeleteImmuRule")
def delete_immutable(call: Call) -> Answer:
    del call.state.immutable[_immutable(call, "delete")["id"]]
    return Answer()


def immutable(state: State, project: int, repository: str, tag: str) -> bool:
    """Whether a rule keeps this tag of ``repository`` (without its project) as it is."""
    for rule in state.immutable.values():
        if rule["project_id"] != project or rule.get("disabled"):
            continue
        scopes = rule.get("scope_selectors", {}).get("repository", ())
        if all(_matches(one, repository) for one in scopes) and all(
            _matches(one, tag) for one in rule["tag_selectors"]
        ):
            return True
    return False
