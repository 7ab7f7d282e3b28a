"""Users, and the labels that people stick on artifacts."""

from __future__ import annotations

from tests.harbor_double.accounts import need_login, need_system, project_of
from tests.harbor_double.call import (
    Answer,
    Call,
    Document,
    bad_request,
    conflict,
    forbidden,
    matching,
    not_found,
    operation,
    ordered,
    precondition,
)
from tests.harbor_double.recordings import recorded
from tests.harbor_double.robots import strong
from tests.harbor_double.state import ADMIN


def _shown(user: Document) -> Document:
    keys = (
        "admin_role_in_auth", "comment", "creation_time", "email", "realname", "sysadmin_flag",
        "update_time", "user_id", "username",
    )  # fmt: skip
    return {key: user[key] for key in keys if user.get(key, "") != ""}


@operation("getCurrentUserInfo")
def current(call: Call) -> Answer:
    need_login(call)
    if call.account.kind == "robot":
        raise precondition("get current user not available for security context: robot")
    return Answer(200, _shown(call.state.users[call.account.user]))


@operation("getCurrentUserPermissions")
def current_permissions(call: Call) -> Answer:
    need_login(call)
    return Answer(200, recorded("auth", "current user permissions in project scope"))


def _people(call: Call) -> list[Document]:
    return [_shown(one) for one in call.state.users.values() if one["user_id"] != ADMIN]


@operation("listUsers")
def list_users(call: Call) -> Answer:
    need_system(call, "user", "list")
    found = matching(_people(call), call.query.get("q", ""), {"username": "username"})
    return call.page(ordered(found, call.query.get("sort", ""), "username", ("username",)))


@operation("searchUsers")
def search_users(call: Call) -> Answer:
    need_login(call)
    name = call.query["username"]
    found = [
        {"user_id": one["user_id"], "username": one["username"]}
        for one in _people(call)
        if name in one["username"]
    ]
    return call.page(found)


_WEAK = (
    "the password or secret must be 8-128, inclusively, characters long with at least 1 uppercase "
    "letter, 1 lowercase letter and 1 number"
)


@operation("createUser")
def create_user(call: Call) -> Answer:
    state, body = call.state, call.body
    if not state.setting("self_registration"):
        need_system(call, "user", "create")
    if not strong(body.get("password", "")):
        raise bad_request(_WEAK)
    name, email = body.get("username", ""), body.get("email", "")
    if not email:
        raise bad_request("email can't be empty")
    number = state.next("user")
    if any(name == one["username"] or email == one.get("email") for one in state.users.values()):
        raise conflict(f"user {name} or email {email} already exists")
    stamp = state.stamp()
    state.users[number] = {
        "user_id": number, "username": name, "email": email, "realname": body.get("realname", ""),
        "comment": body.get("comment", ""), "password": body["password"], "sysadmin_flag": False,
        "admin_role_in_auth": False, "creation_time": stamp, "update_time": stamp,
    }  # fmt: skip
    state.log(call.account.name, "create", "user", name, f"create user: {name}")
    return call.created(number)


def _user(call: Call, action: str) -> Document:
    number = call.number("user_id")
    if call.account.user != number:
        need_system(call, "user", action)
    user = call.state.users.get(number)
    if user is None:
        raise not_found(f"user {number} not found")
    return user


@operation("getUser")
def get_user(call: Call) -> Answer:
    return Answer(200, _shown(_user(call, "read")))


@operation("updateUserProfile")
def update_profile(call: Call) -> Answer:
    user = _user(call, "update")
    user.update(
        {key: call.body[key] for key in ("email", "realname", "comment") if key in call.body}
    )
    return Answer()


@operation("deleteUser")
def delete_user(call: Call) -> Answer:
    need_system(call, "user", "delete")
    user = _user(call, "delete")
    if user["user_id"] == ADMIN:
        raise forbidden("The admin user can't be deleted")
    del call.state.users[user["user_id"]]
    for number in [k for k, v in call.state.members.items() if v["entity_id"] == user["user_id"]]:
        del call.state.members[number]
    name = user["username"]
    call.state.log(call.account.name, "delete", "user", name, f"delete user: {name}")
    return Answer()


@operation("setUserSysAdmin")
def set_sysadmin(call: Call) -> Answer:
    need_system(call, "user", "update")
    _user(call, "update")["sysadmin_flag"] = call.body.get("sysadmin_flag", False)
    return Answer()


@operation("updateUserPassword")
def update_password(call: Call) -> Answer:
    user = _user(call, "update")
    own = call.account.user == user["user_id"]
    if own and call.body.get("old_password") != user["password"]:
        raise forbidden("Current password is incorrect")
    new = call.body.get("new_password", "")
    if not strong(new):
        raise bad_request(_WEAK)
    if new == user["password"]:
        raise bad_request("New password is identical to old password")
    user["password"] = new
    return Answer()


@operation("listUserGroups")
def list_groups(call: Call) -> Answer:
    need_login(call)
    return call.page([])


def _label(call: Call) -> Document:
    label = call.state.labels.get(call.number("label_id"))
    if label is None:
        raise not_found(f"label {call.path['label_id']} not found")
    return label


def label_shown(label: Document) -> Document:
    """A label as the API shows it."""
    return {key: value for key, value in label.items() if value not in ("", 0)}


@operation("CreateLabel")
def create_label(call: Call) -> Answer:
    state, body = call.state, call.body
    need_login(call)
    scope = body.get("scope", "")
    if scope not in ("g", "p"):
        raise bad_request("unsupported label scope")
    number, stamp = state.next("label"), state.stamp()
    label = {
        "id": number, "name": body.get("name", ""), "description": body.get("description", ""),
        "color": body.get("color", ""), "scope": scope, "project_id": body.get("project_id", 0),
        "creation_time": stamp, "update_time": stamp,
    }  # fmt: skip
    same = ("name", "scope", "project_id")
    if any(all(one[key] == label[key] for key in same) for one in state.labels.values()):
        raise conflict(f"label {label['name']} already exists")
    state.labels[number] = label
    return call.created(number)


@operation("ListLabels")
def list_labels(call: Call) -> Answer:
    need_login(call)
    scope = call.query.get("scope", "")
    if scope not in ("g", "p"):
        raise bad_request(f"invalid scope: {scope}")
    found = [label_shown(one) for one in call.state.labels.values() if one["scope"] == scope]
    if scope == "p":
        found = [one for one in found if one.get("project_id") == call.query.get("project_id")]
    if name := call.query.get("name"):
        found = [one for one in found if name in one["name"]]
    return call.page(ordered(found, call.query.get("sort", ""), "-creation_time", ("name",)))


@operation("GetLabelByID")
def get_label(call: Call) -> Answer:
    need_login(call)
    return Answer(200, label_shown(_label(call)))


@operation("UpdateLabel")
def update_label(call: Call) -> Answer:
    need_login(call)
    label = _label(call)
    label.update({k: call.body[k] for k in ("name", "description", "color") if k in call.body})
    label["update_time"] = call.state.stamp()
    return Answer()


@operation("DeleteLabel")
def delete_label(call: Call) -> Answer:
    need_login(call)
    label = _label(call)
    del call.state.labels[label["id"]]
    for artifact in call.state.artifacts.values():
        artifact.labels.discard(label["id"])
    return Answer()


EVENTS = (
    "PUSH_ARTIFACT", "PULL_ARTIFACT", "DELETE_ARTIFACT", "QUOTA_EXCEED", "QUOTA_WARNING",
    "SCANNING_FAILED", "SCANNING_STOPPED", "SCANNING_COMPLETED", "REPLICATION", "TAG_RETENTION",
)  # fmt: skip


@operation("GetSupportedEventTypes")
def event_types(call: Call) -> Answer:
    project_of(call, "notification-policy", "read")
    return Answer(200, recorded("webhooks", "supported events"))


def _hook(call: Call, action: str) -> Document:
    project = project_of(call, "notification-policy", action)
    number = call.number("webhook_policy_id")
    hook = call.state.webhooks.get(number)
    if hook is None or hook["project_id"] != project["project_id"]:
        raise not_found(f"notification policy {number} not found")
    return hook


def _check_hook(body: Document) -> None:
    name = body.get("name", "")
    if not body.get("targets"):
        raise bad_request(f"empty notification target with policy {name}")
    for target in body["targets"]:
        if target.get("type") not in ("http", "slack"):
            raise bad_request(f"unsupported target type {target.get('type')} with policy {name}")
        scheme, _, rest = target.get("address", "").partition("://")
        if rest and scheme not in ("http", "https"):
            raise bad_request(f"invalid scheme: {scheme}")
    for event in body.get("event_types") or ():
        if event not in EVENTS:
            raise bad_request(f"unsupported event type {event}")


@operation("ListWebhookPoliciesOfProject")
def list_hooks(call: Call) -> Answer:
    project = project_of(call, "notification-policy", "list")
    hooks = call.state.webhooks.values()
    return call.page([one for one in hooks if one["project_id"] == project["project_id"]])


@operation("CreateWebhookPolicyOfProject")
def create_hook(call: Call) -> Answer:
    state, body = call.state, call.body
    project = project_of(call, "notification-policy", "create")
    _check_hook(body)
    number, stamp = state.next("webhook"), state.stamp()
    pair = (project["project_id"], body["name"])
    if any((one["project_id"], one["name"]) == pair for one in state.webhooks.values()):
        raise conflict(f"notification policy named {body['name']} already exists")
    keys = ("name", "description", "enabled", "event_types", "targets")
    state.webhooks[number] = {
        "id": number, "project_id": pair[0], "creation_time": stamp, "update_time": stamp,
        **{key: body[key] for key in keys if key in body},
    }  # fmt: skip
    return call.created(number)


@operation("GetWebhookPolicyOfProject")
def get_hook(call: Call) -> Answer:
    return Answer(200, _hook(call, "read"))


@operation("UpdateWebhookPolicyOfProject")
def update_hook(call: Call) -> Answer:
    hook = _hook(call, "update")
    _check_hook(call.body)
    keys = ("name", "description", "enabled", "event_types", "targets")
    hook.update({key: call.body[key] for key in keys if key in call.body})
    from tests.harbor_double.state import NEVER  # noqa: PLC0415

    hook.update(creation_time=NEVER, update_time=call.state.stamp())
    return Answer()


@operation("DeleteWebhookPolicyOfProject")
def delete_hook(call: Call) -> Answer:
    del call.state.webhooks[_hook(call, "delete")["id"]]
    return Answer()
