"""Each claim gets a volume, and each pod its claim."""

from __future__ import annotations

from typing import TYPE_CHECKING

from installer.deploy.preflight.objects import Rendered, list_at, name_of, namespace_of, value_at
from installer.deploy.preflight.verdict import Check, few

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from installer.deploy.preflight.objects import Object

_DEFAULT_CLASS = "is-default-class"


def check_storage(
    classes: Iterable[Object],
    existing: Iterable[Object],
    rendered: Sequence[Rendered],
    *,
    nodes: int = 1,
) -> Check:
    """Claims name a StorageClass that is there, and pods only claims that are or will be there.

    Both may come with a release, for itself and for those after it. ``nodes`` is how many take
    pods: a folder of a node is there for its pods only.
    """
    known = {name_of(one): one for one in classes}
    there = {(namespace_of(claim), name_of(claim)): claim for claim in existing}
    made = {(of.namespace, name): claim for of in rendered for name, claim in of.claims()}
    if lacking := dict.fromkeys(_lacking(known, there, rendered)):
        has = f"there is: {', '.join(sorted(known))}" if known else "the cluster has no class"
        hint = f"{has}; harbor.storage in site.yaml is where you choose"
        return Check("storage", "failed", few(list(lacking), "; "), hint)
    if fixed := list(_unchangeable(there, made)):
        hint = "Kubernetes changes neither in a claim that is there: leave site.yaml as it was"
        return Check("storage", "failed", few(fixed, "; "), hint)
    if apart := list(_apart(made | there, rendered) if nodes > 1 else ()):
        hint = "they may be put on different nodes: set accessMode: ReadWriteMany for a storage "
        hint += "class that can do it, or replicas: 1"
        return Check("storage", "warning", few(apart, "; "), hint)
    if nodes > 1 and (folders := list(_folders(rendered))):
        text = f"volume {few(folders)} is a folder of the node, and {nodes} nodes take pods"
        hint = "each node has another folder, unless all mount the same there: use nfs or claim"
        return Check("storage", "warning", text, hint)
    if not made and not there:
        return Check("storage", "ok", "no volume is asked for: data lives as long as its pods")
    old = len(made.keys() & there.keys())
    return Check("storage", "ok", f"{len(made)} claims, {old} of them are there")


def _folders(rendered: Iterable[Rendered]) -> Iterator[str]:
    """Volumes that are a folder of a node."""
    for release in rendered:
        for volume in release.of_kind("PersistentVolume"):
            if value_at(volume, "spec", "hostPath"):
                yield name_of(volume)


def _lacking(
    classes: Mapping[str, Object],
    existing: Collection[tuple[str, str]],
    rendered: Sequence[Rendered],
) -> Iterator[str]:
    """What keeps a new claim from getting a volume, and a pod from getting a claim."""
    known, there = dict(classes), set(existing)
    later = {name_of(one): of.key for of in rendered for one in of.of_kind("StorageClass")}
    for release in rendered:
        known |= {name_of(one): one for one in release.of_kind("StorageClass")}
        for name, claim in release.claims():
            if (release.namespace, name) not in there:
                yield from _unbound(name, claim, known, later)
        there |= {(release.namespace, name) for name, _ in release.claims()}
        for of, name in release.mounted():
            if (release.namespace, name) not in there:
                yield f"there is no claim {name}, which {of} mounts"


def _unbound(
    name: str, claim: Object, classes: Mapping[str, Object], later: Mapping[str, str]
) -> Iterator[str]:
    wanted = value_at(claim, "spec", "storageClassName")
    if wanted and wanted not in classes:
        text = f"there is no StorageClass {wanted!r}, which claim {name} names"
        yield text + (f", before release {later[wanted]} brings it" if wanted in later else "")
    if (
        wanted is None
        and not value_at(claim, "spec", "volumeName")
        and not has_default(classes.values())
    ):
        yield f"claim {name} names no StorageClass, and none is the default"


def has_default(classes: Iterable[Object]) -> bool:
    """Whether one of them is taken for claims that name none."""
    return any(
        key.endswith(_DEFAULT_CLASS) and text == "true"
        for one in classes
        for key, text in (value_at(one, "metadata", "annotations") or {}).items()
    )


def _unchangeable(
    there: Mapping[tuple[str, str], Object], made: Mapping[tuple[str, str], Object]
) -> Iterator[str]:
    """What claims that are there have otherwise, and what can't be changed in them."""
    for key, wanted in made.items():
        # Claims of a StatefulSet are taken as they are.
        if key not in there or wanted.get("kind") != "PersistentVolumeClaim":
            continue
        for name in ("accessModes", "storageClassName"):
            has, asked = value_at(there[key], "spec", name), value_at(wanted, "spec", name)
            if has is not None and asked is not None and has != asked:
                yield f"claim {'/'.join(key)} is there with {name} {has}, and {asked} is asked for"


def _apart(claims: Mapping[tuple[str, str], Object], rendered: Iterable[Rendered]) -> Iterator[str]:
    """Claims for the pods of one node that several pods mount."""
    for release in rendered:
        users = [name for _, name in release.mounted()]
        for name in dict.fromkeys(users):
            modes = list_at(claims.get((release.namespace, name)), "spec", "accessModes")
            if users.count(name) > 1 and modes == ["ReadWriteOnce"]:
                yield f"{users.count(name)} pods mount claim {name}, which is ReadWriteOnce"


def maker_of_secret(rendered: Iterable[Rendered], namespace: str, name: str) -> str:
    """Which release makes a Secret, empty for none of these."""
    for release in rendered:
        for document in release.of_kind("Secret"):
            place = namespace_of(document) or release.namespace
            if (place, name_of(document)) == (namespace, name):
                return release.key
    return ""


def check_leftovers(existing: Iterable[Object], rendered: Sequence[Rendered]) -> Check:
    """No claim with the data of a former release waits for a new one that can't read it."""
    there = {(namespace_of(claim), name_of(claim)): claim for claim in existing}
    unread: list[str] = []
    used: list[str] = []
    for release in rendered:
        if release.found is not None:
            continue
        for name, _ in release.claims():
            if (release.namespace, name) in there:
                (used if release.keys_kept else unread).append(f"{release.namespace}/{name}")
    if unread:
        hint = "name the state folder of that release with --state, or delete the claims to begin "
        hint += "anew: what is in them is lost then"
        text = f"claims of a former release, whose secrets are not here: {few(unread)}"
        return Check("leftovers", "failed", text, hint)
    if used:
        return Check("leftovers", "ok", f"data of a former release goes on: {few(used)}")
    return Check("leftovers", "ok", "none")
