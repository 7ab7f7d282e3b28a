"""The account may do what Helm does with what was rendered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from installer.deploy.preflight.objects import Rendered, list_at, namespace_of, value_at
from installer.deploy.preflight.verdict import Check, few

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from installer.deploy.preflight.objects import Object

_VERBS = ("get", "create", "patch", "delete")
"""What Helm does with each object in the life of a release."""


@dataclass(frozen=True)
class Resource:
    """What the API calls the objects of a kind."""

    group: str
    name: str
    namespaced: bool

    def __str__(self) -> str:
        return f"{self.name}.{self.group}".rstrip(".")


def read_resources(lists: Iterable[Object]) -> dict[tuple[str, str], Resource]:
    """Resources by apiVersion and kind, out of answers to ``GET /apis/GROUP/VERSION``."""
    found = {}
    for one in lists:
        version = str(one.get("groupVersion"))
        group = version.rpartition("/")[0]
        for entry in list_at(one, "resources"):
            if "/" not in entry["name"]:
                resource = Resource(group, entry["name"], bool(entry.get("namespaced")))
                found[version, entry["kind"]] = resource
    return found


def wanted_rights(
    resources: Mapping[tuple[str, str], Resource], rendered: Sequence[Rendered]
) -> tuple[dict[str, set[Resource]], set[Resource]]:
    """Resources that are made, by namespace, and those of the whole cluster."""
    inside: dict[str, set[Resource]] = {}
    outside = set()
    for release in rendered:
        own = inside.setdefault(release.namespace, {Resource("", "secrets", namespaced=True)})
        if release.found is None:
            outside.add(Resource("", "namespaces", namespaced=False))
        for document in release.objects:
            kind = (str(document.get("apiVersion")), str(document.get("kind")))
            resource = resources.get(kind)
            if resource and not resource.namespaced:
                outside.add(resource)
            elif resource:
                place = namespace_of(document)
                (inside.setdefault(place, set()) if place else own).add(resource)
    return inside, outside


def check_rights(
    reviews: Mapping[str, Object],
    wanted: Mapping[str, Iterable[Resource]],
    allowed: Mapping[Resource, bool],
    *,
    who: str = "",
) -> Check:
    """The account may do what Helm does; ``reviews`` are SelfSubjectRulesReviews by namespace.

    ``allowed`` says of resources of the whole cluster whether they may be created.
    """
    missing = [f"create {resource}" for resource, may in allowed.items() if not may]
    incomplete = False
    for namespace, resources in wanted.items():
        status = value_at(reviews.get(namespace) or {}, "status") or {}
        rules = list_at(status, "resourceRules")
        lacking = sorted(
            f"{verb} {resource} in {namespace}"
            for resource in resources
            for verb in _VERBS
            if not any(_permits(rule, verb, resource) for rule in rules)
        )
        incomplete = incomplete or bool(lacking and status.get("incomplete"))
        missing += lacking
    account = who or "the account"
    if not missing:
        return Check("rights", "ok", f"{account} may make all that is rendered")
    text = f"{account} may not {few(missing)}"
    hint = "`kubectl auth can-i --list` shows what it may; use an account with these rights"
    if incomplete and all(allowed.values()):
        # A webhook or the like decides here, and does not list what it allows.
        return Check("rights", "warning", f"{text}, as far as the cluster lists it", hint)
    return Check("rights", "failed", text, hint)


def _permits(rule: Object, verb: str, resource: Resource) -> bool:
    return not rule.get("resourceNames") and all(
        wanted in rule.get(key, ()) or "*" in rule.get(key, ())
        for key, wanted in (
            ("verbs", verb),
            ("apiGroups", resource.group),
            ("resources", resource.name),
        )
    )
