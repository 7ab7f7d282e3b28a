"""Robot accounts of the system and of projects, and their secrets, which Harbor says only once.

A secret goes into a file (0600) in the moment when Harbor makes it. A robot that somebody made by
hand keeps its secret: what it may do is compared, no more.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from installer.errors import DeploymentFailed, PreflightFailed
from installer.harbor.settings.change import (
    NOTHING,
    Change,
    Line,
    Remark,
    day_words,
    lines,
    unmanaged,
)
from installer.site.private import read_file, write_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from installer.harbor.settings.change import Apply
    from installer.harbor.settings.target import Target
    from installer.site.harbor_settings import Access, ProjectRobot, RobotAccount, SystemRobot

_FOR_EVER = -1


def permissions(robot: SystemRobot | ProjectRobot, project: str = "") -> list[dict[str, Any]]:
    """What it may do, as Harbor has it: by project, or for the system."""
    if project:
        return [_permission("project", project, getattr(robot, "actions", ()))]
    access: Iterable[Access] = getattr(robot, "access", ())
    return [
        _permission("project" if one.projects else "system", name, one.actions)
        for one in access
        for name in (one.projects or ("/",))
    ]


def _permission(kind: str, namespace: str, actions: Iterable[str]) -> dict[str, Any]:
    pairs = [action.partition(":") for action in actions]
    access = [{"resource": resource, "action": action} for resource, _, action in pairs]
    return {"kind": kind, "namespace": namespace, "access": access}


def permission_words(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """Each thing that it may do in one line, sorted: Harbor keeps no order."""
    return sorted(
        {
            f"{one['resource']}:{one['action']} in "
            + ("the system" if of["kind"] == "system" else str(of["namespace"]))
            for of in found
            for one in of.get("access") or ()
        }
    )


def robot_lines(
    found: Mapping[str, Any] | None, robot: SystemRobot | ProjectRobot, project: str = ""
) -> tuple[Line, ...]:
    """What differs from a robot of Harbor's, None where there is none."""
    had = found or {}
    before = permission_words(had.get("permissions") or ())
    after = permission_words(permissions(robot, project))
    days = had.get("duration", 0)
    return lines(
        [
            ("description", had.get("description", ""), robot.description),
            ("days", _days(days) if found else "", _days(robot.days or _FOR_EVER)),
            ("enabled", not had["disable"] if "disable" in had else None, robot.enabled),
            ("may no longer", sorted(set(before) - set(after)), []),
            ("may", [], sorted(set(after) - set(before))),
        ]
    )


def _days(duration: int) -> str:
    return "for ever" if duration < 0 else f"{duration}"


def system_robots(target: Target) -> Iterator[Change | Remark]:
    """Those for several projects, or for Harbor itself."""
    found = {one["name"]: one for one in target.client.pages("/robots")}
    yield from _robots(target, target.settings.robots, found, "")


def project_robots(target: Target) -> Iterator[Change | Remark]:
    """Those of each project."""
    for project in target.settings.projects:
        found: dict[str, Any] = {}
        if project.name in target.projects():
            query = {"q": f"Level=project,ProjectID={target.project_id(project.name)}"}
            found = {one["name"]: one for one in target.client.pages("/robots", query)}
        yield from _robots(target, project.robots, found, project.name)


def _robots(
    target: Target,
    wanted: Iterable[SystemRobot | ProjectRobot],
    found: Mapping[str, Mapping[str, Any]],
    project: str,
) -> Iterator[Change | Remark]:
    prefix = str(target.value("robot_name_prefix") or "")
    names = set()
    for robot in wanted:
        full = prefix + _stored(robot, project)
        names.add(full)
        yield from _robot(target, robot, project, full, found.get(full))
    for name in sorted(found.keys() - names):
        yield unmanaged(f"robot {name}")


def _stored(robot: RobotAccount, project: str) -> str:
    """Its name without the prefix, which is changed for all robots at once."""
    return f"{project}+{robot.name}" if project else robot.name


def _robot(
    target: Target,
    robot: SystemRobot | ProjectRobot,
    project: str,
    full: str,
    had: Mapping[str, Any] | None,
) -> Iterator[Change | Remark]:
    name = _stored(robot, project)
    path = _secret_file(target, robot, name)
    known = target.memory.robot(name)
    told = robot_lines(had, robot, project)
    if had is None:
        if not known and read_file(path) is not None:
            raise PreflightFailed(
                f"robot {name}: {path} is there already, and the secret of a new robot goes there",
                hint="take the file away, or name another secretFile",
            )
        secret = (Line("secret", NOTHING, f"into {path}"),)
        yield Change(f"robot {full}", told + secret, _make(target, robot, project, path), new=True)
        return
    if known == "begun":
        lost = (Line("secret", "lost: a run was stopped before it was written", f"into {path}"),)
        yield Change(f"robot {full}", told + lost, _change(target, robot, project, had, path))
        return
    if told:
        yield Change(f"robot {full}", told, _change(target, robot, project, had, None))
    if not known:
        yield Remark(f"robot {full}: made elsewhere, its secret is not known here")
    ends = had.get("expires_at") or _FOR_EVER
    if 0 < ends < time.time():
        yield Remark(f"robot {full}: expired at {day_words(ends)}; more days let it live again")


def _secret_file(target: Target, robot: RobotAccount, name: str) -> Path:
    return Path(robot.secret_file) if robot.secret_file else target.memory.secret_file(name)


def _make(target: Target, robot: SystemRobot | ProjectRobot, project: str, path: Path) -> Apply:
    def apply() -> str:
        name = _stored(robot, project)
        target.memory.note_robot(name, "begun")
        made = target.client.post(
            "/robots",
            {
                "name": robot.name,
                "description": robot.description,
                "level": "project" if project else "system",
                "duration": robot.days or _FOR_EVER,
                "disable": not robot.enabled,
                "permissions": permissions(robot, project),
            },
        ).document
        full = (made or {}).get("name", name)
        _keep(target, name, path, made)
        return f"robot {full}: its secret is in {path}"

    return apply


def _keep(target: Target, name: str, path: Path, answer: Any) -> None:
    secret = (answer or {}).get("secret")
    if not isinstance(secret, str) or not secret:
        raise DeploymentFailed(f"robot {name}: Harbor's answer has no secret")
    target.client.hide(secret)
    write_file(path, secret.encode() + b"\n")
    target.memory.note_robot(name, "written")


def _change(
    target: Target,
    robot: SystemRobot | ProjectRobot,
    project: str,
    had: Mapping[str, Any],
    path: Path | None,
) -> Apply:
    def apply() -> str:
        # Harbor wants the whole object back, with the full name.
        body = dict(had) | {
            "description": robot.description,
            "duration": robot.days or _FOR_EVER,
            "disable": not robot.enabled,
            "permissions": permissions(robot, project),
        }
        target.client.put(f"/robots/{had['id']}", body)
        if path is None:
            return ""
        answer = target.client.patch(f"/robots/{had['id']}", {"secret": ""})
        _keep(target, _stored(robot, project), path, answer)
        return f"robot {had['name']}: its new secret is in {path}"

    return apply


def renew_secret(target: Target, name: str) -> str:
    """Let Harbor make another secret for a robot of the file (``PROJECT+NAME`` or ``NAME``).

    Gives the note with its place; raises PreflightFailed for a robot that is not there. Whoever
    uses the old secret is locked out.
    """
    wanted: dict[str, tuple[RobotAccount, str]] = {r.name: (r, "") for r in target.settings.robots}
    for project in target.settings.projects:
        wanted |= {_stored(r, project.name): (r, project.name) for r in project.robots}
    if name not in wanted:
        raise PreflightFailed(
            f"site.yaml has no robot {name}", hint=f"it has {', '.join(wanted) or 'none'}"
        )
    robot, project_name = wanted[name]
    query: dict[str, str | int] = {}
    if project_name:
        query = {"q": f"Level=project,ProjectID={target.project_id(project_name)}"}
    full = str(target.value("robot_name_prefix") or "") + name
    for one in target.client.pages("/robots", query):
        if one["name"] == full:
            path = _secret_file(target, robot, name)
            target.memory.note_robot(name, "begun")
            _keep(target, name, path, target.client.patch(f"/robots/{one['id']}", {"secret": ""}))
            return f"robot {full}: its new secret is in {path}"
    raise PreflightFailed(f"Harbor has no robot {full}", hint="`installer harbor apply` makes it")
