"""Labels for artifacts, for all projects or of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from installer.harbor.settings.change import Change, Remark, lines, unmanaged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from installer.harbor.settings.change import Apply
    from installer.harbor.settings.target import Target
    from installer.site.harbor_settings import Label


def label_changes(
    target: Target, wanted: tuple[Label, ...], project: str = ""
) -> Iterator[Change | Remark]:
    """Labels of a project, or those for all of them."""
    of = f" of project {project}" if project else ""
    scope: dict[str, Any] = {"scope": "p" if project else "g"}
    there = not project or project in target.projects()
    if project and there:
        scope["project_id"] = target.project_id(project)
    found = {one["name"]: one for one in target.client.pages("/labels", scope)} if there else {}
    for label in wanted:
        had = found.get(label.name)
        told = lines(
            [
                ("description", (had or {}).get("description", ""), label.description),
                ("color", (had or {}).get("color", ""), label.color),
            ]
        )
        if told:
            apply = _put_label(target, label, (had or {}).get("id"), project)
            yield Change(f"label {label.name}{of}", told, apply, new=had is None)
    for name in found.keys() - {label.name for label in wanted}:
        yield unmanaged(f"label {name}{of}")


def _put_label(target: Target, label: Label, id_: int | None, project: str) -> Apply:
    def apply() -> str:
        body: dict[str, Any] = {
            "name": label.name,
            "description": label.description,
            "color": label.color,
            "scope": "p" if project else "g",
        }
        if project:
            body["project_id"] = target.project_id(project)
        if id_ is None:
            target.client.post("/labels", body)
        else:
            target.client.put(f"/labels/{id_}", body)
        return ""

    return apply


def labels(target: Target) -> Iterator[Change | Remark]:
    """Labels for all projects."""
    yield from label_changes(target, target.settings.labels)
