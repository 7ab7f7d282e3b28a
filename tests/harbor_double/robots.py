"""Robot accounts."""

from __future__ import annotations

import re
import secrets
import string
from functools import cache
from typing import TYPE_CHECKING, Any

from tests.harbor_double.accounts import need_login, refuse, robot_name, user_of
from tests.harbor_double.call import (
    Answer,
    Call,
    Document,
    bad_request,
    conflict,
    not_found,
    operation,
    ordered,
)
from tests.harbor_double.recordings import recorded

if TYPE_CHECKING:
    from tests.harbor_double.state import State

_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_DAY = 86400


def strong(secret: str) -> bool:
    """Whether Harbor takes this as a secret or a password."""
    kinds = (string.ascii_uppercase, string.ascii_lowercase, string.digits)
    return 8 <= len(secret) <= 128 and all(set(kind) & set(secret) for kind in kinds)


def made_secret() -> str:
    """As Harbor makes one."""
    letters = string.ascii_letters + string.digits
    while not strong(made := "".join(secrets.choice(letters) for _ in range(32))):
        pass
    return made


@cache
def _catalogue() -> frozenset[tuple[str, str, str]]:
    known = recorded(
        "systeminfo", "permissions catalogue (all resource/action pairs a robot may get)"
    )
    return frozenset(
        (kind, one["resource"], one["action"]) for kind, pairs in known.items() for one in pairs
    )


@operation("getPermissions")
def permissions(call: Call) -> Answer:
    need_login(call)
    title = "permissions catalogue (all resource/action pairs a robot may get)"
    return Answer(200, recorded("systeminfo", title))


def _shown(state: State, robot: Document) -> Document:
    keys = (
        "creation_time", "creator_ref", "creator_type", "description", "disable", "duration",
        "expires_at", "id", "level", "update_time",
    )  # fmt: skip
    document = {key: robot[key] for key in keys if robot[key] != ""}
    return document | {
        "editable": True,
        "name": robot_name(state, robot),
        "permissions": robot["permissions"],
    }


def _check(call: Call, body: Document) -> Document | None:
    """Its project, None for a robot of the system's; raises Refused."""
    state = call.state
    level, grants = body.get("level", ""), body.get("permissions") or []
    if level not in ("system", "project"):
        raise bad_request(f"bad request error level input: {level}")
    duration = body.get("duration", 0)
    if duration == 0 or duration < -1:
        raise bad_request(
            f"bad request error duration input: {duration}, "
            "duration must be either -1(Never) or a positive integer"
        )
    if not grants:
        raise bad_request("bad request empty permission")
    project = None
    if level == "project":
        if len(grants) > 1:
            raise bad_request("bad request permission")
        name = grants[0]["namespace"]
        project = state.project_named(name)
        if project is None:
            raise not_found(f"project {name} not found")
    for grant in grants:
        for access in grant["access"]:
            pair = (access["resource"], access["action"])
            if (grant["kind"], *pair) not in _catalogue():
                raise bad_request(f"bad request permission: {':'.join(pair)}")
    return project


def _need(call: Call, action: str, project: Document | None) -> None:
    who = call.account
    need_login(call)
    if project is not None and who.may(call.state, project, "robot", action):
        return
    if not who.may_system("robot", action):
        raise refuse(who, who.name if who.kind == "user" else "forbidden")


def _expires(state: State, duration: int) -> int:
    return -1 if duration == -1 else int(state.now().timestamp()) + duration * _DAY


@operation("CreateRobot")
def create_robot(call: Call) -> Answer:
    state, body = call.state, call.body
    need_login(call)
    if call.account.kind == "user" and body.get("level") == "system":
        _need(call, "create", None)
    name = body.get("name", "")
    if not _NAME.fullmatch(name):
        raise bad_request("robot name is not in lower case or contains illegal characters")
    project = _check(call, body)
    _need(call, "create", project)
    stored = f"{project['name']}+{name}" if project else name
    identity = project["project_id"] if project else 0
    number = state.next("robot")
    if any(one["stored"] == stored for one in state.robots.values()):
        raise conflict(f"robot account {identity}:{stored} already exists")
    stamp, duration = state.stamp(), body["duration"]
    robot = {
        "id": number,
        "stored": stored,
        "project": identity,
        "secret": made_secret(),  # one that was sent is ignored
        "level": body["level"],
        "description": body.get("description", ""),
        "disable": body.get("disable", False),
        "duration": duration,
        "expires_at": _expires(state, duration),
        "permissions": body["permissions"],
        "creator_ref": user_of(call),
        "creator_type": "local",
        "creation_time": stamp,
        "update_time": stamp,
    }
    state.robots[number] = robot
    full = robot_name(state, robot)
    _told(call, robot, "create")
    return call.created(
        number,
        {
            "creation_time": stamp, "expires_at": robot["expires_at"], "id": number,
            "name": full, "secret": robot["secret"],
        },
    )  # fmt: skip


def _told(call: Call, robot: Document, what: str) -> None:
    full = robot_name(call.state, robot)
    call.state.log(
        call.account.name, what, "robot", full, f"{what} robot: {full}", project=robot["project"]
    )


@operation("ListRobot")
def list_robots(call: Call) -> Answer:
    from urllib.parse import unquote_plus  # noqa: PLC0415

    state = call.state
    asked: dict[str, Any] = {}
    for part in filter(None, call.query.get("q", "").split(",")):
        key, _, value = part.partition("=")
        asked[key.lower()] = unquote_plus(value)
    level = asked.get("level", "system")
    identity = 0
    if level == "project":
        if "projectid" not in asked:
            raise bad_request("must with project ID when to query project robots")
        identity = int(asked["projectid"])
    _need(call, "list", state.projects.get(identity))
    found = [one for one in state.robots.values() if one["project"] == identity]
    if name := asked.get("name"):
        if name.startswith("~"):
            found = [one for one in found if name[1:] in one["stored"]]
        else:
            found = [one for one in found if one["stored"] == name]
    rows = [_shown(state, one) for one in found]
    return call.page(ordered(rows, call.query.get("sort", ""), "name", ("name", "creation_time")))


def _robot(call: Call, action: str) -> Document:
    robot = call.state.robots.get(call.number("robot_id"))
    project = call.state.projects.get(robot["project"]) if robot else None
    _need(call, action, project)
    if robot is None:
        raise not_found(f"robot {call.path['robot_id']} not found")
    return robot


@operation("GetRobotByID")
def get_robot(call: Call) -> Answer:
    return Answer(200, _shown(call.state, _robot(call, "read")))


@operation("UpdateRobot")
def update_robot(call: Call) -> Answer:
    state, body = call.state, call.body
    robot = _robot(call, "update")
    project = _check(call, body)
    if body["level"] != robot["level"] or body.get("name") != robot_name(state, robot):
        raise bad_request("cannot update the level or name of robot")
    if project and project["project_id"] != robot["project"]:
        raise bad_request("cannot update the project id of robot")
    if body["duration"] != robot["duration"]:
        begun = robot["creation_time"]
        from datetime import datetime  # noqa: PLC0415

        made = int(datetime.fromisoformat(begun).timestamp())
        days = body["duration"]
        robot["expires_at"] = -1 if days == -1 else made + days * _DAY
    for key in ("description", "disable", "duration", "permissions"):
        robot[key] = body.get(key, robot[key])
    robot["update_time"] = state.stamp()
    _told(call, robot, "update")
    return Answer()


@operation("RefreshSec")
def refresh_secret(call: Call) -> Answer:
    robot = _robot(call, "update")
    secret = call.body.get("secret") or ""
    if not secret:
        robot["secret"] = made_secret()
        return Answer(200, {"secret": robot["secret"]})
    if not strong(secret):
        raise bad_request(
            "the secret must be 8-128, inclusively, characters long with at least 1 uppercase "
            "letter, 1 lowercase letter and 1 number"
        )
    robot["secret"] = secret
    return Answer(200, {})


@operation("DeleteRobot")
def delete_robot(call: Call) -> Answer:
    robot = _robot(call, "delete")
    del call.state.robots[robot["id"]]
    _told(call, robot, "delete")
    return Answer()
