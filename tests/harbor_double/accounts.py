"""Who calls, and what Harbor lets them do.

A wrong password is no error by itself: such a call is made by nobody, and only what needs a login
refuses it.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.harbor_double.call import Call, Document, Refused, forbidden, not_found, unauthorized
from tests.harbor_double.state import ADMIN, State

if TYPE_CHECKING:
    from collections.abc import Mapping

# What a role may do in a project beyond reading; Harbor's table is longer, this is what is asked.
_ROLES: dict[int, frozenset[str]] = {
    1: frozenset({"*"}),
    4: frozenset({"push", "pull", "delete", "read", "list", "create", "update", "operate", "scan"}),
    2: frozenset({"push", "pull", "read", "list"}),
    3: frozenset({"pull", "read", "list"}),
    5: frozenset({"pull", "read", "list"}),
}
_PUBLIC = {
    ("project", "read"),
    ("repository", "list"), ("repository", "read"), ("repository", "pull"),
    ("artifact", "list"), ("artifact", "read"), ("artifact-addition", "read"),
    ("tag", "list"), ("accessory", "list"), ("metadata", "list"), ("metadata", "read"),
}  # fmt: skip


@dataclass(frozen=True)
class Account:
    """``kind`` is ``admin``, ``user``, ``robot`` or ``nobody``."""

    kind: str
    name: str = ""
    user: int = 0
    robot: Document = field(default_factory=dict)
    secret_login: bool = False
    """Whether a name and a password were sent at all."""

    @property
    def known(self) -> bool:
        """Whether somebody is logged in."""
        return self.kind != "nobody"

    def may(self, state: State, project: Document, resource: str, action: str) -> bool:
        """Whether this is allowed inside a project."""
        if self.kind == "admin":
            return True
        if project["metadata"].get("public") == "true" and (resource, action) in _PUBLIC:
            return True
        if self.kind == "robot":
            return any(
                _covers(grant, state, project) and _has(grant, resource, action)
                for grant in self.robot["permissions"]
            )
        if self.kind == "user":
            return any(
                {"*", action} & _ROLES.get(member["role_id"], frozenset())
                for member in state.members.values()
                if (member["project_id"], member["entity_id"]) == (project["project_id"], self.user)
            )
        return False

    def may_system(self, resource: str, action: str) -> bool:
        """Whether this is allowed to the whole Harbor."""
        if self.kind == "admin":
            return True
        return self.kind == "robot" and any(
            grant["kind"] == "system" and _has(grant, resource, action)
            for grant in self.robot["permissions"]
        )


NOBODY = Account("nobody")


def _covers(grant: Document, _state: State, project: Document) -> bool:
    return grant["kind"] == "project" and grant["namespace"] in ("*", project["name"])


def _has(grant: Document, resource: str, action: str) -> bool:
    return any(
        (access.get("resource"), access.get("action")) == (resource, action)
        for access in grant["access"]
    )


def basic(header: str) -> tuple[str, str] | None:
    """Name and password of HTTP Basic."""
    kind, _, word = header.partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        name, _, password = base64.b64decode(word).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return name, password


def robot_name(state: State, robot: Document) -> str:
    """With the prefix of today's configuration."""
    return f"{state.setting('robot_name_prefix')}{robot['stored']}"


def log_in(state: State, name: str, password: str) -> Account:
    """Who has this name and password, or nobody."""
    wrong = Account("nobody", secret_login=True)
    for robot in state.robots.values():
        if name != robot_name(state, robot):
            continue
        over = 0 < robot["expires_at"] < state.now().timestamp()
        if robot["secret"] != password or robot["disable"] or over:
            return wrong
        return Account("robot", name, robot=robot, secret_login=True)
    for user in state.users.values():
        if (user["username"], user["password"]) == (name, password):
            return account_of(user)
    return wrong


def account_of(user: Document) -> Account:
    """As this user."""
    kind = "admin" if user["sysadmin_flag"] else "user"
    return Account(kind, user["username"], user["user_id"], secret_login=True)


def account(state: State, headers: Mapping[str, str], session: str) -> Account:
    """Who sends these headers: HTTP Basic, else the session of the cookie."""
    if login := basic(headers.get("Authorization", "")):
        return log_in(state, *login)
    if (user := state.sessions.get(session)) and user in state.users:
        return account_of(state.users[user])
    return NOBODY


def refuse(account: Account, words: str = "forbidden") -> Refused:
    """401 for who is not logged in, 403 for who is."""
    return forbidden(words) if account.known else unauthorized()


def need_login(call: Call) -> None:
    """Raise Refused for nobody."""
    if not call.account.known:
        raise unauthorized()


def need_system(call: Call, resource: str, action: str) -> None:
    """Raise Refused for who may not do this to the whole Harbor."""
    if not call.account.may_system(resource, action):
        who = call.account
        raise refuse(who, who.name if who.kind == "user" else "forbidden")


def project_of(call: Call, resource: str, action: str, *, missing: bool = True) -> Document:
    """The project of the call's path; raises Refused for who may not do this in it.

    That a project is absent is told to administrators only.
    """
    state = call.state
    name = call.path.get("project_name_or_id") or call.path["project_name"]
    project: Document | None
    by_name = "project_name" in call.path or call.headers.get("X-Is-Resource-Name") == "true"
    if not by_name and name.isdigit():
        project = state.projects.get(int(name))
    else:
        project = state.project_named(name)
    if project is None:
        if call.account.kind == "admin" and missing:
            raise not_found(f"project {name} not found")
        raise refuse(call.account)
    if not call.account.may(state, project, resource, action):
        raise refuse(call.account)
    return project


def user_of(call: Call) -> Any:
    """Id of the user in whose name something is made; a robot makes it for admin."""
    return call.account.user or ADMIN
