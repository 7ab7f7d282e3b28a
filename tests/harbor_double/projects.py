"""Projects, their metadata and their members."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.harbor_double.accounts import need_login, project_of, user_of
from tests.harbor_double.call import (
    Answer,
    Call,
    Document,
    Refused,
    bad_request,
    broken,
    conflict,
    forbidden,
    matching,
    not_found,
    operation,
    ordered,
    precondition,
)
from tests.harbor_double.state import NEVER, State

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_MOST = 255
_SEVERITIES = ("none", "unknown", "negligible", "low", "medium", "high", "critical")
_METADATA = (
    "public", "enable_content_trust", "enable_content_trust_cosign", "prevent_vul", "severity",
    "auto_scan", "auto_sbom_generation", "reuse_sys_cve_allowlist", "retention_id",
    "proxy_speed_kb", "max_upstream_conn",
)  # fmt: skip
_METADATA_2_15 = (*_METADATA, "proxy_cache_local_on_not_found")
ROLES = {1: "projectAdmin", 2: "developer", 3: "guest", 4: "maintainer", 5: "limitedGuest"}


def _known(call: Call) -> tuple[str, ...]:
    """What a project's metadata may have; all else is ignored."""
    return _METADATA_2_15 if call.state.version.startswith("v2.15") else _METADATA


def allowlist_of(project: Document) -> Document:
    """The project's CVE allowlist, as the project shows it."""
    kept = project["allowlist"]
    times = {"creation_time": NEVER, "update_time": NEVER}
    shown = {"id": kept["id"], "items": kept["items"], "project_id": project["project_id"]} | times
    return shown | ({"expires_at": kept["expires_at"]} if kept.get("expires_at") else {})


def shown(call: Call, project: Document) -> Document:
    """A project as the API shows it to who asks."""
    state = call.state
    metadata = dict(project["metadata"])
    metadata.pop("projectScanner", None)
    if "severity" in metadata:
        severity = metadata["severity"].lower()
        metadata["severity"] = severity if severity in _SEVERITIES else "unknown"
    roles = [
        member["role_id"]
        for member in state.members.values()
        if call.account.user
        and (member["project_id"], member["entity_id"])
        == (project["project_id"], call.account.user)
    ]
    if call.account.kind == "admin" and not roles:
        roles = [1]
    document = {
        key: project[key]
        for key in ("creation_time", "name", "owner_id", "project_id", "update_time")
    }
    document |= {
        "current_user_role_ids": roles or None,
        "cve_allowlist": allowlist_of(project),
        "metadata": metadata,
        "owner_name": state.users[project["owner_id"]]["username"],
        "repo_count": len(repositories(state, project)),
    }
    if roles:
        document["current_user_role_id"] = roles[0]
    if project.get("registry_id"):
        document["registry_id"] = project["registry_id"]
    return document


def repositories(state: State, project: Document) -> list[Document]:
    """Repositories of a project."""
    identity = project["project_id"]
    return [one for one in state.repositories.values() if one["project_id"] == identity]


def visible(call: Call) -> list[Document]:
    """Projects that who asks may see."""
    state, who = call.state, call.account
    if who.kind == "admin" or who.may_system("project", "list"):
        return list(state.projects.values())
    return [one for one in state.projects.values() if who.may(state, one, "project", "read")]


@operation("listProjects")
def list_projects(call: Call) -> Answer:
    found = [shown(call, one) for one in visible(call)]
    if name := call.query.get("name"):
        found = [one for one in found if name in one["name"]]
    if "public" in call.query:
        wanted = "true" if call.query["public"] else "false"
        found = [one for one in found if one["metadata"].get("public") == wanted]
    found = matching(found, call.query.get("q", ""), {"name": "name"})
    keys = ("name", "creation_time", "project_id")
    return call.page(ordered(found, call.query.get("sort", ""), "name", keys))


@operation("headProject")
def head_project(call: Call) -> Answer:
    need_login(call)
    name = call.query["project_name"]
    if call.state.project_named(name) is None:
        raise not_found(f"project {name} not found")
    return Answer()


@operation("createProject")
def create_project(call: Call) -> Answer:
    state, body = call.state, call.body
    need_login(call)
    if call.account.kind == "user" and state.setting("project_creation_restriction") != "everyone":
        raise forbidden("Only system admin can create project")
    if call.account.kind == "robot" and not call.account.may_system("project", "create"):
        raise forbidden()
    name = body.get("project_name") or ""
    _check_name(name)
    metadata = {
        key: value for key, value in (body.get("metadata") or {}).items() if key in _known(call)
    }
    if metadata.setdefault("public", "true" if body.get("public") else "false") not in (
        "true",
        "false",
    ):
        raise bad_request(
            f"metadata.public should only be 'true' or 'false', but got: '{metadata['public']}'"
        )
    limit = body.get("storage_limit")
    check_limit(-1 if limit in (None, 0) else limit, prefix="bad request: ")
    if limit is None:
        limit = state.setting("storage_per_project")
    registry = body.get("registry_id")
    if registry and registry not in state.registries:
        raise not_found(f"registry {registry} not found")
    number = state.next("project")
    if state.project_named(name):
        state.next("allowlist")
        raise conflict(f"The project named {name} already exists")
    project = state.add_project(name, metadata, user_of(call), limit, number=number)
    if registry:
        project["registry_id"] = registry
        from tests.harbor_double.retention import add_proxy_policy  # noqa: PLC0415  a circle

        add_proxy_policy(state, project)
    wanted = call.headers.get("X-Resource-Name-In-Location") == "true"
    return call.created(name if wanted else project["project_id"])


def _check_name(name: str) -> None:
    if not name or len(name) > _MOST:
        raise bad_request(
            f"Project name {name} is illegal in length. (greater than {_MOST} or less than 1)"
        )
    if not _NAME.fullmatch(name):
        raise bad_request("project name is not in lower case or contains illegal characters")


def check_limit(limit: int, *, prefix: str = "") -> None:
    """Raise Refused for a quota that can't be."""
    if limit == 0 or limit < -1:
        raise bad_request(f"{prefix}invalid non-positive value for quota limit, value={limit}")


@operation("getProject")
def get_project(call: Call) -> Answer:
    return Answer(200, shown(call, project_of(call, "project", "read")))


@operation("updateProject")
def update_project(call: Call) -> Answer:
    state, body = call.state, call.body
    project = project_of(call, "project", "update")
    if allowlist := body.get("cve_allowlist"):
        items = allowlist.get("items") or []
        if len({item.get("cve_id") for item in items}) < len(items):
            raise broken()
        kept = project["allowlist"]
        kept["items"], kept["expires_at"] = items, allowlist.get("expires_at")
    for key, value in (body.get("metadata") or {}).items():
        if key in _known(call) and value is not None:
            project["metadata"][key] = value
    project["update_time"] = state.stamp()
    _told(call, project, "update")
    return Answer()


@operation("deleteProject")
def delete_project(call: Call) -> Answer:
    state = call.state
    project = project_of(call, "project", "delete")
    if why := _undeletable(state, project):
        raise precondition(f"precondition failed: {why}")
    identity = project["project_id"]
    del state.projects[identity], state.blobs[identity]
    for things in (state.members, state.labels, state.immutable, state.webhooks):
        for number in [k for k, one in things.items() if one.get("project_id") == identity]:
            del things[number]
    for robot in [k for k, one in state.robots.items() if one["project"] == identity]:
        del state.robots[robot]
    for quota in [k for k, one in state.quotas.items() if one["project"] == identity]:
        del state.quotas[quota]
    for policy in [k for k, one in state.retentions.items() if one["scope"]["ref"] == identity]:
        del state.retentions[policy]
    _told(call, project, "delete")
    return Answer()


def _undeletable(state: State, project: Document) -> str:
    if repositories(state, project):
        return "the project contains repositories, can not be deleted"
    return ""


def _told(call: Call, project: Document, what: str) -> None:
    words = f"{what} project: {project['name']}"
    call.state.log(
        call.account.name, what, "project", project["name"], words, project=project["project_id"]
    )


@operation("getProjectDeletable")
def deletable(call: Call) -> Answer:
    project = project_of(call, "project", "delete")
    why = _undeletable(call.state, project)
    return Answer(200, {"message": why} if why else {"deletable": True})


@operation("getProjectSummary")
def summary(call: Call) -> Answer:
    state = call.state
    project = project_of(call, "project", "read")
    identity = project["project_id"]
    roles = [one["role_id"] for one in state.members.values() if one["project_id"] == identity]
    return Answer(
        200,
        {
            "project_admin_count": roles.count(1),
            "quota": {
                "hard": {"storage": state.hard(identity)},
                "used": {"storage": state.used(identity)},
            },
            "repo_count": len(repositories(state, project)),
        },
    )


@operation("listProjectMetadatas")
def list_metadata(call: Call) -> Answer:
    return Answer(200, dict(project_of(call, "metadata", "list")["metadata"]))


@operation("getProjectMetadata")
def get_metadata(call: Call) -> Answer:
    project, name = project_of(call, "metadata", "read"), call.path["meta_name"]
    metadata = project["metadata"]
    return Answer(200, {name: metadata[name]} if name in metadata else {})


def _checked(metadata: Document) -> Document:
    for key, value in metadata.items():
        if key == "severity":
            known = value.lower() in _SEVERITIES
        else:
            known = value in ("true", "false") or key in ("retention_id", "proxy_speed_kb")
        if not known:
            raise bad_request(f"invalid value: {value}")
    return metadata


@operation("addProjectMetadatas")
def add_metadata(call: Call) -> Answer:
    project = project_of(call, "metadata", "create")
    for key, value in _checked(call.body).items():
        if key in project["metadata"]:
            number = project["project_id"]
            raise conflict(f"metadata {key} already exists for project {number}")
        project["metadata"][key] = value
    return Answer(200)


@operation("updateProjectMetadata")
def update_metadata(call: Call) -> Answer:
    project, name = project_of(call, "metadata", "update"), call.path["meta_name"]
    value = call.body.get(name, "")
    _checked({name: value})
    project["metadata"][name] = value
    return Answer()


@operation("deleteProjectMetadata")
def delete_metadata(call: Call) -> Answer:
    project_of(call, "metadata", "delete")["metadata"].pop(call.path["meta_name"], None)
    return Answer()


@operation("search")
def search(call: Call) -> Answer:
    state, wanted = call.state, call.query["q"]
    seen = visible(call)
    projects = [shown(call, one) for one in seen if wanted in one["name"]]
    for one in projects:
        del one["owner_name"]
        one["cve_allowlist"] = {"creation_time": NEVER, "items": None, "update_time": NEVER}
    found: list[Document] = []
    for project in seen:
        found += [
            {
                "artifact_count": len(
                    [one for one in state.artifacts_of(repository["name"]) if not one.subject]
                ),
                "project_id": project["project_id"],
                "project_name": project["name"],
                "project_public": project["metadata"].get("public") == "true",
                "pull_count": repository["pull_count"],
                "repository_name": repository["name"],
            }
            for repository in repositories(state, project)
            if wanted in repository["name"]
        ]
    found = [{key: one[key] for key in one if one[key] not in (0, False)} for one in found]
    return Answer(200, {"project": projects, "repository": found})


@operation("getStatistic")
def statistics(call: Call) -> Answer:
    need_login(call)
    state = call.state
    kinds: dict[bool, tuple[int, int]] = {True: (0, 0), False: (0, 0)}
    for project in state.projects.values():
        public = project["metadata"].get("public") == "true"
        count, repos = kinds[public]
        kinds[public] = (count + 1, repos + len(repositories(state, project)))
    counts = {
        f"{word}_{kind}_count": kinds[public][place]
        for public, word in ((True, "public"), (False, "private"))
        for place, kind in ((0, "project"), (1, "repo"))
    }
    counts["total_project_count"] = kinds[True][0] + kinds[False][0]
    counts["total_repo_count"] = kinds[True][1] + kinds[False][1]
    total = sum(state.used(identity) for identity in state.projects)
    return Answer(200, counts | {"total_storage_consumption": total})


def _member(call: Call, project: Document) -> Document:
    member = call.state.members.get(call.number("mid"))
    if member is None or member["project_id"] != project["project_id"]:
        raise not_found(f"project member {call.path['mid']} not found")
    return member


def _member_shown(state: State, member: Document) -> Document:
    return {
        **member,
        "entity_name": state.users[member["entity_id"]]["username"],
        "entity_type": "u",
        "role_name": ROLES.get(member["role_id"], ""),
    }


@operation("listProjectMembers")
def list_members(call: Call) -> Answer:
    state = call.state
    identity = project_of(call, "member", "list")["project_id"]
    members = [one for one in state.members.values() if one["project_id"] == identity]
    found: Sequence[Document] = [_member_shown(state, one) for one in members]
    answer = call.page(found)
    if name := call.query.get("entityname"):
        # The count is of all members, and the name has to be the whole one.
        only = [one for one in found if one["entity_name"] == name]
        return Answer(200, only, headers=answer.headers)
    return answer


@operation("createProjectMember")
def create_member(call: Call) -> Answer:
    state = call.state
    project = project_of(call, "member", "create")
    given = call.body.get("member_user") or {}
    name = given.get("username", "")
    user = next((one for one in state.users.values() if one["username"] == name), None)
    if user is None:
        raise not_found(f"user {name} is not found")
    number = state.next("member")
    pair = (project["project_id"], user["user_id"])
    if any((one["project_id"], one["entity_id"]) == pair for one in state.members.values()):
        raise conflict("The project member specified already exist")
    state.members[number] = {
        "id": number, "project_id": pair[0], "entity_id": pair[1],
        "role_id": call.body.get("role_id", 0),
    }  # fmt: skip
    return call.created(number)


@operation("getProjectMember")
def get_member(call: Call) -> Answer:
    member = _member(call, project_of(call, "member", "read"))
    return Answer(200, _member_shown(call.state, member))


@operation("updateProjectMember")
def update_member(call: Call) -> Answer:
    _member(call, project_of(call, "member", "update"))["role_id"] = call.body["role_id"]
    return Answer()


@operation("deleteProjectMember")
def delete_member(call: Call) -> Answer:
    del call.state.members[_member(call, project_of(call, "member", "delete"))["id"]]
    return Answer()


def _quota(state: State, quota: Document, *, single: bool) -> Document:
    project = state.projects[quota["project"]]
    return {
        "creation_time": quota["creation_time"],
        "hard": {"storage": quota["hard"]},
        "id": quota["id"],
        "ref": {"id": project["project_id"], "name": project["name"], "owner_name": ""},
        # Harbor 2.14 leaves it out where it gives one.
        "update_time": NEVER if single else quota["update_time"],
        "used": {"storage": state.used(quota["project"])},
    }


@operation("listQuotas")
def list_quotas(call: Call) -> Answer:
    from tests.harbor_double.accounts import need_system  # noqa: PLC0415

    need_system(call, "quota", "list")
    found = [_quota(call.state, one, single=False) for one in call.state.quotas.values()]
    if reference := call.query.get("reference_id"):
        found = [one for one in found if str(one["ref"]["id"]) == reference]
    keys = ("used.storage", "hard.storage", "creation_time")
    return call.page(ordered(found, call.query.get("sort", ""), "-creation_time", keys))


def _one_quota(call: Call, action: str) -> Document:
    from tests.harbor_double.accounts import need_system  # noqa: PLC0415

    need_system(call, "quota", action)
    quota = call.state.quotas.get(call.number("id"))
    if quota is None:
        raise not_found(f"quota {call.path['id']} not found")
    return quota


@operation("getQuota")
def get_quota(call: Call) -> Answer:
    return Answer(200, _quota(call.state, _one_quota(call, "read"), single=True))


@operation("updateQuota")
def update_quota(call: Call) -> Answer:
    quota = _one_quota(call, "update")
    hard = call.body.get("hard")
    if not hard:
        raise bad_request("hard required in body")
    for name in hard:
        if name != "storage":
            raise bad_request(f"resource {name} not support")
    check_limit(hard["storage"])
    quota["hard"] = hard["storage"]
    quota["update_time"] = call.state.stamp()
    return Answer()


def exceeded(adding: int, used: int, hard: int) -> Refused:
    """Harbor's refusal of what would not fit into the quota."""
    verb = f"adding {_size(adding)}" if adding else "subtracting 0 B"
    return Refused(
        403,
        "DENIED",
        f"{verb} of storage resource, which when updated to current usage of {_size(used)} "
        f"will exceed the configured upper limit of {_size(hard)}.",
    )


def _size(number: int) -> str:
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{number} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError
