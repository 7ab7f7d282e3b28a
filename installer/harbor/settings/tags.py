"""Tags of a project: which stay (retention), and which can't be changed (immutable)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from installer.harbor.api import segment
from installer.harbor.settings.change import NOTHING, Change, Line, Remark, lines, unmanaged
from installer.site.harbor_settings_check import cron_of
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from installer.harbor.settings.change import Apply
    from installer.harbor.settings.target import Target
    from installer.site.harbor_settings import Keep, Project, Retention, Rule

_TEMPLATES = {
    "latest_pushed": "latestPushedK",
    "latest_pulled": "latestPulledN",
    "pushed_within_days": "nDaysSinceLastPush",
    "pulled_within_days": "nDaysSinceLastPull",
}
_WORDS = {
    "latestPushedK": "latest {} pushed",
    "latestPulledN": "latest {} pulled",
    "nDaysSinceLastPush": "pushed within {} days",
    "nDaysSinceLastPull": "pulled within {} days",
    "always": "all",
}
_DECORATIONS = {"matches": "", "repoMatches": "", "excludes": "but ", "repoExcludes": "but "}


def _selectors(rule: Rule) -> tuple[dict[str, str], dict[str, str]]:
    """Harbor's selectors of tags and of repositories."""
    tags = {
        "kind": "doublestar",
        "decoration": "excludes" if rule.except_tags else "matches",
        "pattern": rule.except_tags or rule.tags or "**",
    }
    repositories = {
        "kind": "doublestar",
        "decoration": "repoExcludes" if rule.except_repositories else "repoMatches",
        "pattern": rule.except_repositories or rule.repositories or "**",
    }
    return tags, repositories


def retention_rule(keep: Keep) -> dict[str, Any]:
    """A rule of what stays, as Harbor has it."""
    template, params = "always", {}
    for name, of_harbor in _TEMPLATES.items():
        if number := getattr(keep, name):
            template, params = of_harbor, {of_harbor: number}
    tags, repositories = _selectors(keep)
    untagged = '{"untagged":true}' if keep.untagged else '{"untagged":false}'
    return {
        "disabled": False,
        "action": "retain",
        "template": template,
        "params": params,
        "tag_selectors": [tags | {"extras": untagged}],
        "scope_selectors": {"repository": [repositories]},
    }


def rule_words(rule: Mapping[str, Any]) -> str:
    """A rule of Harbor's in one line; two rules are the same when their lines are."""
    tags = ", ".join(_pattern(one) for one in rule.get("tag_selectors") or ())
    scope = (rule.get("scope_selectors") or {}).get("repository") or ()
    repositories = ", ".join(_pattern(one) for one in scope)
    text = f"tags {tags or '**'} of {repositories or '**'}"
    if (template := str(rule.get("template", ""))) in _WORDS:
        number = (rule.get("params") or {}).get(template, "")
        text = f"{_WORDS[template].format(number)}: {text}"
        if any(_takes_untagged(one) for one in rule.get("tag_selectors") or ()):
            text += ", and untagged"
    return f"{text} (disabled)" if rule.get("disabled") else text


def _pattern(selector: Mapping[str, Any]) -> str:
    # Harbor takes other words as well, and then does whatever.
    decoration = str(selector.get("decoration", ""))
    return f"{_DECORATIONS.get(decoration, f'{decoration} ')}{selector.get('pattern', '')}"


def _takes_untagged(selector: Mapping[str, Any]) -> bool:
    try:
        return bool(decode_json(selector.get("extras") or "{}", dict[str, Any]).get("untagged"))
    except ValueError:
        return False


def retention_lines(found: Mapping[str, Any] | None, wanted: Retention) -> tuple[Line, ...]:
    """What differs from a policy of Harbor's, None where the project has none."""
    trigger = ((found or {}).get("trigger") or {}).get("settings") or {}
    before = [rule_words(rule) for rule in (found or {}).get("rules") or ()]
    after = [rule_words(retention_rule(keep)) for keep in wanted.keep]
    pairs = [("retention.schedule", str(trigger.get("cron") or ""), cron_of(wanted.schedule))]
    told = lines(pairs)
    if sorted(before) != sorted(after):
        told += (Line("retention.keep", "; ".join(before) or NOTHING, "; ".join(after) or NOTHING),)
    return told


def retention(target: Target) -> Iterator[Change | Remark]:
    """Which tags of each project stay. Its policy's id is only in the project's metadata."""
    for project in target.settings.projects:
        had = target.projects().get(project.name) or {}
        id_ = str((had.get("metadata") or {}).get("retention_id") or "")
        found = target.client.get(f"/retentions/{id_}") if id_ else None
        wanted = project.retention
        if wanted is None:
            # Harbor gives each proxy cache one of its own.
            if found and found.get("rules") and not had.get("registry_id"):
                yield unmanaged(f"retention of project {project.name}")
        elif told := retention_lines(found, wanted):
            apply = _put_retention(target, project.name, wanted, id_)
            what = f"tag retention of project {project.name}"
            yield Change(what, told, apply, new=not id_)


def _put_retention(target: Target, project: str, wanted: Retention, id_: str) -> Apply:
    def apply() -> str:
        body: dict[str, Any] = {
            "algorithm": "or",
            "rules": [retention_rule(keep) for keep in wanted.keep],
            # Without a trigger Harbor answers 500.
            "trigger": {"kind": "Schedule", "settings": {"cron": cron_of(wanted.schedule)}},
            "scope": {"level": "project", "ref": target.project_id(project)},
        }
        if id_:
            target.client.put(f"/retentions/{id_}", body | {"id": int(id_)})
        else:
            target.client.post("/retentions", body)
        return ""

    return apply


def immutable_rule(rule: Rule) -> dict[str, Any]:
    """A rule of what can't be changed, as Harbor has it."""
    tags, repositories = _selectors(rule)
    return {
        "disabled": False,
        "action": "immutable",
        "template": "immutable_template",
        "tag_selectors": [tags | {"extras": '{"untagged":false}'}],
        "scope_selectors": {"repository": [repositories]},
    }


def immutable_tags(target: Target) -> Iterator[Change | Remark]:
    """Which tags of each project can't be changed. A rule is what it says: it has no name."""
    for project in target.settings.projects:
        path = f"/projects/{segment(project.name)}/immutabletagrules"
        there = project.name in target.projects()
        found = {
            rule_words({**one, "disabled": False}): one
            for one in (target.client.pages(path) if there else ())
        }
        wanted = {rule_words(rule): rule for rule in map(immutable_rule, project.immutable_tags)}
        yield from _immutable_changes(target, project, path, found, wanted)
        for name in sorted(found.keys() - wanted.keys()):
            yield unmanaged(f"immutable {name} of project {project.name}")


def _immutable_changes(
    target: Target,
    project: Project,
    path: str,
    found: Mapping[str, Mapping[str, Any]],
    wanted: Mapping[str, dict[str, Any]],
) -> Iterable[Change]:
    for name, rule in wanted.items():
        had = found.get(name)
        if had is None or had.get("disabled"):
            before = "disabled" if had else NOTHING
            yield Change(
                f"immutable tags of project {project.name}",
                (Line("immutableTags", before, name),),
                _put_rule(target, path, rule, (had or {}).get("id")),
                new=had is None,
            )


def _put_rule(target: Target, path: str, rule: dict[str, Any], id_: int | None) -> Apply:
    def apply() -> str:
        if id_ is None:
            target.client.post(path, rule)
        else:
            target.client.put(f"{path}/{id_}", rule | {"id": id_})
        return ""

    return apply
