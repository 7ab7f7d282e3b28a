"""Repositories, artifacts, their tags and what belongs to them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from tests.harbor_double.accounts import need_login, project_of
from tests.harbor_double.call import (
    Answer,
    Call,
    Document,
    Refused,
    bad_request,
    conflict,
    matching,
    not_found,
    operation,
    ordered,
    precondition,
)
from tests.harbor_double.projects import repositories, visible
from tests.harbor_double.retention import immutable
from tests.harbor_double.scanning import overview, sbom_overview
from tests.harbor_double.state import NEVER, Artifact, State, written
from tests.harbor_double.users import label_shown

if TYPE_CHECKING:
    from collections.abc import Iterable

IMAGE_CONFIGS = (
    "application/vnd.docker.container.image.v1+json",
    "application/vnd.oci.image.config.v1+json",
)
INDEXES = (
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.index.v1+json",
)
_KINDS = {
    "application/vnd.cncf.helm.config.v1+json": "CHART",
    "application/vnd.goharbor.harbor.sbom.v1": "SBOM",
    "application/vnd.wasm.config.v1+json": "WASM",
}
_OWN = re.compile(r"application/vnd\.[^.]*\.(.*)\.config\.[^.]*\+.*")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_ICONS = {
    "IMAGE": "sha256:0048162a053eef4d4ce3fe7518615bef084403614f8bca43b40ae2e762e11e06",
    "CHART": "sha256:61cf3a178ff0f75bf08a25d96b75cf7355dc197749a9f128ed3ef34b0df05518",
    "SBOM": "sha256:c19f80c357cd7e90d2a01b9ae3e2eb62ce447a2662bb590a19177d72d550bdae",
}
_OTHER_ICON = "sha256:da834479c923584f4cbcdecc0dac61f32bef1d51e8aae598cf16bd154efab49f"
ACCESSORY_ICONS = {
    "signature.cosign": "sha256:20401d5b3a0f6dbc607c8d732eb08471af4ae6b19811a4efce8c6a724aed2882",
    "sbom.harbor": _ICONS["SBOM"],
}


def media_type(artifact: Artifact) -> str:
    """Of the config, or of the index itself."""
    if "manifests" in artifact.document:
        return manifest_type(artifact)
    found: str = artifact.document.get("config", {}).get("mediaType", "")
    return found


def manifest_type(artifact: Artifact) -> str:
    """Of the manifest."""
    default = "application/vnd.oci.image.manifest.v1+json"
    found: str = artifact.document.get("mediaType", default)
    return found


def kind(artifact: Artifact) -> str:
    """IMAGE, CHART, SBOM, or what the config's media type says."""
    found = media_type(artifact)
    if found in IMAGE_CONFIGS or found in INDEXES:
        return "IMAGE"
    if found in _KINDS:
        return _KINDS[found]
    own = _OWN.fullmatch(found)
    return own[1].upper() if own else "UNKNOWN"


def parents(state: State, artifact: Artifact) -> list[Artifact]:
    """Indexes of the same repository that name it."""
    return [
        one
        for one in state.artifacts_of(artifact.name)
        if any(child["digest"] == artifact.digest for child in one.document.get("manifests", ()))
    ]


def listed(state: State, repository: str) -> list[Artifact]:
    """Those in a list: no accessory, and no untagged child of an index."""
    return [
        one
        for one in state.artifacts_of(repository)
        if not one.subject and (one.tags or not parents(state, one))
    ]


def remove(state: State, artifact: Artifact) -> None:
    """Take an artifact and its accessories away, and the blobs that nothing names any more."""
    for accessory in state.accessories_of(artifact):
        remove(state, accessory)
    state.artifacts.pop(artifact.id, None)
    project = artifact.project
    needed: set[str] = set()
    for one in state.artifacts.values():
        if one.project == project:
            needed |= {one.digest, *_blobs(one.document)}
    for digest in {artifact.digest, *_blobs(artifact.document)} - needed:
        state.blobs[project].pop(digest, None)


def _blobs(document: Document) -> Iterable[str]:
    parts = [*document.get("layers", ()), document.get("config", {})]
    return [part["digest"] for part in parts if "digest" in part]


def _tag_shown(call: Call, artifact: Artifact, tag: str) -> Document:
    state = call.state
    short = artifact.name.partition("/")[2]
    fixed = call.query.get("with_immutable_status", False)
    return {
        "artifact_id": artifact.id,
        "id": artifact.tags[tag]["id"],
        "immutable": bool(fixed and immutable(state, artifact.project, short, tag)),
        "name": tag,
        "pull_time": written(artifact.pulled) if artifact.pulled else NEVER,
        "push_time": artifact.tags[tag]["push_time"],
        "repository_id": artifact.repository,
    }


def _newest_first(artifact: Artifact) -> list[str]:
    return sorted(artifact.tags, key=lambda tag: -artifact.tags[tag]["id"])


def accessory_shown(state: State, accessory: Artifact) -> Document:
    """An accessory as the API shows it."""
    owner = state.find_artifact(accessory.name, accessory.subject)
    return {
        "artifact_id": accessory.id,
        "creation_time": written(accessory.pushed),
        "digest": accessory.digest,
        "icon": ACCESSORY_ICONS.get(accessory.accessory, ""),
        "id": accessory.accessory_id,
        "size": accessory.size,
        "subject_artifact_digest": accessory.subject,
        "subject_artifact_id": owner.id if owner else 0,
        "subject_artifact_repo": accessory.name,
        "type": accessory.accessory,
    }


def _links(artifact: Artifact) -> Document:
    project, _, short = artifact.name.partition("/")
    encoded = short.replace("/", "%252F")
    base = f"/api/v2.0/projects/{project}/repositories/{encoded}/artifacts"
    here = f"{base}/{artifact.digest}/additions"
    names: dict[str, str] = {}
    sort = kind(artifact)
    if sort == "IMAGE":
        if "manifests" not in artifact.document:
            names["build_history"] = f"{here}/build_history"
        names["sboms"] = f"{base}//additions/sbom"  # Harbor's own slip
        names["vulnerabilities"] = f"{here}/vulnerabilities"
    elif sort == "CHART":
        for name in ("dependencies", "readme.md", "values.yaml"):
            names[name] = f"{here}/{name}"
    elif sort == "SBOM":
        names["sbom"] = f"{here}/sbom"
    return {name: {"absolute": False, "href": href} for name, href in names.items()}


def _extra(artifact: Artifact) -> Document:
    config = artifact.config
    if kind(artifact) == "IMAGE" and "manifests" not in artifact.document:
        return {
            "architecture": config.get("architecture", ""),
            "author": config.get("author", ""),
            "config": config.get("config", {}),
            "created": config.get("created"),
            "os": config.get("os", ""),
        }
    return dict(config)


def shown(call: Call, artifact: Artifact) -> Document:
    """An artifact as the API shows it, with what the query asks for."""
    state, wants = call.state, call.query
    document: Document = {
        "accessories": None,
        "digest": artifact.digest,
        "icon": _ICONS.get(kind(artifact), _OTHER_ICON),
        "id": artifact.id,
        "labels": None,
        "manifest_media_type": manifest_type(artifact),
        "media_type": media_type(artifact),
        "project_id": artifact.project,
        "pull_time": written(artifact.pulled) if artifact.pulled else NEVER,
        "push_time": written(artifact.pushed),
        "references": _references(state, artifact),
        "repository_id": artifact.repository,
        "repository_name": artifact.name,
        "size": artifact.size,
        "tags": None,
        "type": kind(artifact),
    }
    # First: it makes the accessory when it is due.
    if wants.get("with_sbom_overview") and (said := sbom_overview(state, artifact)):
        document["sbom_overview"] = said
    if "manifests" not in artifact.document:
        document["artifact_type"] = artifact.document.get("artifactType") or media_type(artifact)
    if extra := _extra(artifact):
        document["extra_attrs"] = extra
    if annotations := artifact.document.get("annotations"):
        document["annotations"] = annotations
    if links := _links(artifact):
        document["addition_links"] = links
    if wants.get("with_tag", True):
        document["tags"] = [
            _tag_shown(call, artifact, tag) for tag in _newest_first(artifact)
        ] or None
    if wants.get("with_label"):
        labels = [label_shown(state.labels[one]) for one in sorted(artifact.labels)]
        document["labels"] = labels or None
    if wants.get("with_accessory"):
        found = state.accessories_of(artifact)
        document["accessories"] = [accessory_shown(state, one) for one in found] or None
    if wants.get("with_scan_overview") and (said := overview(state, artifact, _accepted(call))):
        document["scan_overview"] = said
    return document


def _accepted(call: Call) -> str:
    return call.headers.get("X-Accept-Vulnerabilities", "")


def _references(state: State, artifact: Artifact) -> list[Document] | None:
    rows = []
    for child in artifact.document.get("manifests", ()):
        found = state.find_artifact(artifact.name, child["digest"])
        rows.append(
            {
                "child_digest": child["digest"],
                "child_id": found.id if found else 0,
                "parent_id": artifact.id,
                "platform": {"OsFeatures": None} | child.get("platform", {}),
                "urls": None,
            }
        )
    return rows or None


def _repository_shown(state: State, repository: Document) -> Document:
    found = listed(state, repository["name"])
    shown_keys = ("creation_time", "id", "name", "project_id", "pull_count", "update_time")
    document = {key: repository[key] for key in shown_keys}
    if found:
        document["artifact_count"] = len(found)
    return document | (
        {"description": repository["description"]} if repository.get("description") else {}
    )


@operation("listRepositories")
def list_repositories(call: Call) -> Answer:
    project = project_of(call, "repository", "list")
    rows = [_repository_shown(call.state, one) for one in repositories(call.state, project)]
    rows = matching(rows, call.query.get("q", ""), {"name": "name"})
    return call.page(ordered(rows, call.query.get("sort", ""), "-creation_time", ("name",)))


@operation("listAllRepositories")
def all_repositories(call: Call) -> Answer:
    state = call.state
    rows = [
        _repository_shown(state, one)
        for project in visible(call)
        for one in repositories(state, project)
    ]
    rows = matching(rows, call.query.get("q", ""), {"name": "name"})
    return call.page(ordered(rows, call.query.get("sort", ""), "-creation_time", ("name",)))


def _repository(call: Call, project: Document) -> Document:
    name = f"{project['name']}/{call.path['repository_name']}"
    found = call.state.repository_named(name)
    if found is None:
        raise not_found(f"repository {name} not found")
    return found


@operation("getRepository")
def get_repository(call: Call) -> Answer:
    repository = _repository(call, project_of(call, "repository", "read"))
    return Answer(200, _repository_shown(call.state, repository))


@operation("updateRepository")
def update_repository(call: Call) -> Answer:
    repository = _repository(call, project_of(call, "repository", "update"))
    repository["description"] = call.body.get("description", "")
    return Answer()


def _keep_immutable(state: State, artifact: Artifact, only: str = "") -> None:
    short = artifact.name.partition("/")[2]
    for tag in [only] if only else list(artifact.tags):
        if immutable(state, artifact.project, short, tag):
            raise precondition(f"the tag {tag} configured as immutable, cannot be deleted")


def _told(call: Call, artifact: Artifact, what: str, words: str) -> None:
    name = f"{artifact.name}@{artifact.digest}"
    who = call.account.name
    call.state.log(who, what, "artifact", name, f"{words}: {name}", project=artifact.project)


@operation("deleteRepository")
def delete_repository(call: Call) -> Answer:
    state = call.state
    repository = _repository(call, project_of(call, "repository", "delete"))
    found = state.artifacts_of(repository["name"])
    for artifact in found:
        _keep_immutable(state, artifact)
    for artifact in found:
        remove(state, artifact)
        _told(call, artifact, "delete", "delete artifact")
    del state.repositories[repository["id"]]
    name = repository["name"]
    who, project = call.account.name, repository["project_id"]
    state.log(who, "delete", "repository", name, f"delete repository: {name}", project=project)
    return Answer()


def _filtered(call: Call, found: list[Artifact]) -> list[Document]:
    rows = [shown(call, one) for one in found]
    for part in filter(None, call.query.get("q", "").split(",")):
        name, _, value = part.partition("=")
        if name == "tags":
            if value in ("nil", "*"):
                rows = [one for one in rows if bool(one["tags"]) == (value == "*")]
            else:
                exact = value.lstrip("~")
                rows = [
                    one
                    for one in rows
                    if any(
                        (exact in tag["name"]) if value[0] == "~" else tag["name"] == exact
                        for tag in one["tags"] or ()
                    )
                ]
        elif name == "labels":
            wanted = {int(number) for number in re.findall(r"\d+", value)}
            keep = {one.digest for one in found if wanted <= one.labels}
            rows = [one for one in rows if one["digest"] in keep]
    fields = {"type": "type", "digest": "digest", "media_type": "media_type"}
    rows = matching(rows, call.query.get("q", ""), fields)
    return ordered(rows, call.query.get("sort", ""), "-push_time", ("push_time", "id"))


@operation("listArtifacts")
def list_artifacts(call: Call) -> Answer:
    project = project_of(call, "artifact", "list")
    name = f"{project['name']}/{call.path['repository_name']}"
    return call.page(_filtered(call, listed(call.state, name)))


@operation("listArtifactsOfProject")
def list_project_artifacts(call: Call) -> Answer:
    state = call.state
    project = project_of(call, "artifact", "list")
    found = [
        one
        for repository in repositories(state, project)
        for one in listed(state, repository["name"])
    ]
    return call.page(_filtered(call, found))


def find(call: Call, action: str = "read", resource: str = "artifact") -> Artifact:
    """The artifact of the call's path; raises Refused."""
    project = project_of(call, resource, action)
    name = f"{project['name']}/{call.path['repository_name']}"
    reference = call.path["reference"]
    found = call.state.find_artifact(name, reference)
    if found is None:
        mark = "@" if reference.startswith("sha256:") else ":"
        raise not_found(f"artifact {name}{mark}{reference} not found")
    return found


@operation("getArtifact")
def get_artifact(call: Call) -> Answer:
    return Answer(200, shown(call, find(call)))


@operation("deleteArtifact")
def delete_artifact(call: Call) -> Answer:
    artifact = find(call, "delete")
    _keep_immutable(call.state, artifact)
    if parents(call.state, artifact):
        raise Refused(
            412,
            "VIOLATE_FOREIGN_KEY_CONSTRAINT",
            "the deleting artifact is referenced by others",
        )
    remove(call.state, artifact)
    _told(call, artifact, "delete", "delete artifact")
    return Answer()


@operation("CopyArtifact")
def copy(call: Call) -> Answer:
    state = call.state
    project = project_of(call, "artifact", "create")
    source = call.query["from"]
    name, mark, reference = re.fullmatch(r"([^@:]+)([@:])(.+)", source).groups()  # type: ignore[union-attr]
    found = state.find_artifact(name, reference)
    if found is None:
        raise bad_request(f"artifact {source} not found")
    target = f"{project['name']}/{call.path['repository_name']}"
    tag = reference if mark == ":" else ""
    state.blobs[project["project_id"]].update(
        (digest, state.blobs[found.project].get(digest, 0))
        for digest in (*_blobs(found.document), found.digest)
    )
    add(state, target, found.digest, found.manifest, tag, config=found.config)
    return call.created(reference)


def add(
    state: State,
    name: str,
    digest: str,
    manifest: bytes,
    tag: str,
    *,
    config: Document | None = None,
    subject: str = "",
    accessory: str = "",
) -> Artifact:
    """What was pushed to ``name`` (with its project), as an artifact; again only moves its tag."""
    project = state.project_named(name.partition("/")[0])
    assert project is not None
    identity = project["project_id"]
    now = state.now()
    repository = state.repository_named(name)
    if repository is None:
        number = state.next("repository")
        repository = state.repositories[number] = {
            "id": number, "name": name, "project_id": identity, "pull_count": 0,
            "creation_time": written(now), "update_time": written(now),
        }  # fmt: skip
    found = state.find_artifact(name, digest)
    if found is None:
        document = json.loads(manifest)
        known = state.blobs[identity]
        known[digest] = len(manifest)
        size = len(manifest) + sum(known.get(part, 0) for part in dict.fromkeys(_blobs(document)))
        for child in document.get("manifests", ()):
            inner = state.find_artifact(name, child["digest"])
            size += inner.size if inner else 0
        found = Artifact(
            state.next("artifact"), identity, repository["id"], name, digest, manifest,
            document, size, now, config or {},
        )  # fmt: skip
        state.artifacts[found.id] = found
        if subject:
            found.subject, found.accessory = subject, accessory
            found.accessory_id = state.next("accessory")
    if tag and tag not in found.tags:
        for other in state.artifacts_of(name):
            other.tags.pop(tag, None)
        found.tags[tag] = {"id": state.next("tag"), "push_time": written(now)}
    return found


@operation("listTags")
def list_tags(call: Call) -> Answer:
    artifact = find(call, "list", "tag")
    return call.page([_tag_shown(call, artifact, tag) for tag in sorted(artifact.tags)])


@operation("createTag")
def create_tag(call: Call) -> Answer:
    state, artifact = call.state, find(call, "create", "tag")
    tag = call.body.get("name", "")
    if not _TAG.fullmatch(tag):
        raise bad_request(f"bad request: invalid tag name: {tag}")
    if state.find_artifact(artifact.name, tag):
        raise conflict(f"tag {tag} already exists under the repository {artifact.repository}")
    artifact.tags[tag] = {"id": state.next("tag"), "push_time": state.stamp()}
    return Answer(201)


@operation("deleteTag")
def delete_tag(call: Call) -> Answer:
    artifact, tag = find(call, "delete", "tag"), call.path["tag_name"]
    if tag not in artifact.tags:
        raise not_found(f"tag {tag} attached to artifact {artifact.id} not found")
    _keep_immutable(call.state, artifact, tag)
    del artifact.tags[tag]
    return Answer()


@operation("listAccessories")
def list_accessories(call: Call) -> Answer:
    state, artifact = call.state, find(call, "list", "accessory")
    return call.page([accessory_shown(state, one) for one in state.accessories_of(artifact)])


@operation("addLabel")
def add_label(call: Call) -> Answer:
    artifact, number = find(call, "create", "artifact-label"), call.body.get("id")
    if number not in call.state.labels:
        raise not_found(f"label {number} not found")
    if number in artifact.labels:
        raise conflict(f"label {number} is already added to the artifact {artifact.id}")
    artifact.labels.add(number)
    return Answer()


@operation("removeLabel")
def remove_label(call: Call) -> Answer:
    artifact, number = find(call, "delete", "artifact-label"), call.number("label_id")
    if number not in artifact.labels:
        raise not_found(f"reference with label {number} and artifact {artifact.id} not found")
    artifact.labels.discard(number)
    return Answer()


@operation("getAddition")
def addition(call: Call) -> Answer:
    artifact, name = find(call, "read", "artifact-addition"), call.path["addition"]
    if name not in _links(artifact):
        version = 2
        raise bad_request(
            f"addition {name.upper()} isn't supported for {kind(artifact)}"
            f"(manifest version {version})"
        )
    if name == "build_history":
        history: list[Any] = artifact.config.get("history", [])
        return Answer(200, history)
    return call.state.addition(artifact, name)


@operation("getIcon")
def icon(call: Call) -> Answer:
    need_login(call)
    return Answer(200, {"content": "", "content-type": "image/png"})
