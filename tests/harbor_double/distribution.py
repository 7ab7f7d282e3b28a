"""Harbor's registry API: what Harbor itself decides, before a real docker-registry stores it.

``/service/token`` and ``/v2/``. Tokens carry all that their account may do in the project, whatever
the scope asked for, as Harbor's do.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, parse_qsl, quote, urlencode, urlsplit

from tests.harbor_double import artifacts
from tests.harbor_double.accounts import Account, basic, log_in
from tests.harbor_double.call import Answer, Refused, bad_request, not_found, precondition
from tests.harbor_double.projects import exceeded
from tests.harbor_double.replication import pushed
from tests.harbor_double.retention import immutable
from tests.harbor_double.scanning import refusal, start
from tests.harbor_double.specification import go_syntax
from tests.harbor_double.system import READ_ONLY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.harbor_double.call import Document
    from tests.harbor_double.state import Artifact, State

VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}
_BASIC = {"WWW-Authenticate": 'Basic realm="harbor"'} | VERSION
_NAME = (
    r"(?P<name>[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*)"
)
_ROUTES = {
    "manifest": re.compile(rf"/v2/{_NAME}/manifests/(?P<reference>[^/]+)"),
    "tags": re.compile(rf"/v2/{_NAME}/tags/list"),
    "referrers": re.compile(rf"/v2/{_NAME}/referrers/(?P<digest>[^/]+)"),
    "upload": re.compile(rf"/v2/{_NAME}/blobs/uploads/(?P<upload>[^/]*)"),
    "blob": re.compile(rf"/v2/{_NAME}/blobs/(?P<digest>[^/]+)"),
}
_SIGNATURE_TAG = re.compile(r"(sha256)-([0-9a-f]{64})\.sig")
_SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
_ACCESSORIES = {
    "application/vnd.dev.cosign.artifact.sig.v1+json": "signature.cosign",
    "application/vnd.cncf.notary.signature": "signature.notation",
    "application/vnd.goharbor.harbor.sbom.v1": "sbom.harbor",
}
_MOST_MANIFEST = 4 << 20


@dataclass(frozen=True)
class Upstream:
    """What docker-registry answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Distribution:
    """``registry`` is ``HOST:PORT`` of a docker-registry without login, "" for none."""

    state: State
    registry: str = ""
    uploads: dict[str, int] = field(default_factory=dict)
    """Upload → bytes that came so far."""
    tokens: dict[str, dict[str, frozenset[str]]] = field(default_factory=dict)
    """Token → project → actions."""
    users: dict[str, str] = field(default_factory=dict)
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    # The token service

    def token(self, method: str, query: str, headers: Mapping[str, str]) -> Answer:
        """Answer of /service/token."""
        if method != "GET":
            return Answer(
                405, text="Method Not Allowed\n", content_type="text/plain; charset=utf-8"
            )
        asked = parse_qs(query)
        service = asked.get("service", [""])[0]
        if service != "harbor-registry":
            text = f"Unable to handle service: {service}"
            return Answer(400, text=text, content_type="text/plain; charset=utf-8")
        login = basic(headers.get("Authorization", ""))
        account = log_in(self.state, *login) if login else Account("nobody")
        access, granted = [], {}
        for scope in " ".join(asked.get("scope", [])).split():
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            allowed: Sequence[str] = ()
            if kind == "repository":
                project = name.partition("/")[0]
                allowed = self._actions(account, project)
                granted[project] = frozenset(allowed)
            elif kind == "registry" and account.kind == "admin":
                allowed = actions.split(",")
            access.append({"type": kind, "name": name, "actions": list(allowed)})
        now = self.state.now()
        claims: dict[str, Any] = {"iss": "harbor-token-issuer", "aud": "harbor-registry"}
        if account.known:
            claims["sub"] = account.name
        claims |= {
            "exp": int(now.timestamp()) + 1800, "nbf": int(now.timestamp()),
            "iat": int(now.timestamp()), "jti": secrets.token_urlsafe(12), "access": access,
        }  # fmt: skip
        word = self._sign(claims)
        self.tokens[word], self.users[word] = granted, account.name
        return Answer(
            200,
            {
                "token": word,
                "access_token": "",
                "expires_in": 1800,
                "issued_at": f"{now:%Y-%m-%dT%H:%M:%SZ}",
            },
            content_type="application/json; charset=utf-8",
        )

    def _sign(self, claims: Document) -> str:
        def coded(data: bytes) -> str:
            return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

        head = coded(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
        body = f"{head}.{coded(json.dumps(claims).encode())}"
        return f"{body}.{coded(hmac.digest(self.key, body.encode(), 'sha256'))}"

    def _actions(self, account: Account, project: str) -> tuple[str, ...]:
        found = self.state.project_named(project)
        if found is None:
            return ()
        return tuple(
            action
            for action, resource in (
                ("pull", "repository"), ("push", "repository"), ("delete", "artifact"),
            )
            if account.may(self.state, found, resource, action)
            or (action == "delete" and account.may(self.state, found, "repository", "delete"))
        )  # fmt: skip

    # The registry API

    def answer(
        self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes, base: str
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body; ``base`` is what clients call this server by."""
        try:
            done = self._route(method, path, query, headers, body, base)
        except Refused as refused:
            done = refused.answer
            more = {"Content-Type": "application/json; charset=utf-8"}
            return done.status, {**refused.headers, **more}, done.body
        if isinstance(done, Upstream):
            return done.status, done.headers, done.body
        kind = {"Content-Type": done.content_type} if done.content_type else {}
        if done.document is not None:
            kind = {"Content-Type": "application/json; charset=utf-8"} | kind
        return done.status, {**kind, **done.headers}, done.body

    def _route(  # noqa: PLR0911
        self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes, base: str
    ) -> Answer | Upstream:
        if path in ("/v2", "/v2/"):
            self._login(headers, base)
            return Answer(200, text="{}", headers=VERSION, content_type="application/json")
        if path == "/v2/_catalog":
            return self._catalog(query, headers)
        found = ((kind, route.fullmatch(path)) for kind, route in _ROUTES.items())
        kind, match = next(((kind, one) for kind, one in found if one), ("", None))
        if match is None:
            raise not_found(f"path {path} was not found")
        name = match["name"]
        if "/" not in name:
            raise bad_request(f"bad request: invalid repository name: {name}")
        action = {"GET": "pull", "HEAD": "pull", "DELETE": "delete"}.get(method, "push")
        who = self._allow(name, action, headers, base)
        if action != "pull" and self.state.setting("read_only"):
            raise Refused(403, "DENIED", READ_ONLY)
        project = self.state.project_named(name.partition("/")[0])
        assert project is not None
        if action == "push" and project.get("registry_id"):
            words = f"can not push artifact to a proxy project: {project['name']}"
            raise Refused(403, "DENIED", f"denied: {words}")
        match kind:
            case "manifest":
                return self._manifest(method, name, match["reference"], headers, body, base, who)
            case "tags":
                return self._tags(name, query)
            case "referrers":
                return self._referrers(name, match["digest"], query)
            case "upload":
                return self._upload(method, path, query, headers, body, base, name)
        return self._blob(method, name, match["digest"], headers)

    def _login(self, headers: Mapping[str, str], base: str) -> None:
        given = headers.get("Authorization", "")
        if login := basic(given):
            if not log_in(self.state, *login).known:
                raise Refused(401, "UNAUTHORIZED", "unauthorized: unauthorized", _BASIC)
            return
        if given.partition(" ")[2] not in self.tokens:
            raise Refused(401, "UNAUTHORIZED", "unauthorized: unauthorized", _challenge(base, ""))

    def _allow(self, name: str, action: str, headers: Mapping[str, str], base: str) -> str:
        """Name of who may do this; raises Refused."""
        given = headers.get("Authorization", "")
        project = name.partition("/")[0]
        if not given:
            actions = {"push": "pull,push", "delete": "delete"}.get(action, "pull")
            words = "authorize header needed to send HEAD to repository"
            scope = f"repository:{name}:{actions}"
            raise Refused(401, "UNAUTHORIZED", f"{words}: {words}", _challenge(base, scope))
        if self.state.project_named(project) is None:
            words = f"project {project} not found"
            headers = {"WWW-Authenticate": ""} | VERSION
            raise Refused(401, "UNAUTHORIZED", f"{words}: {words}", headers)
        if login := basic(given):
            account = log_in(self.state, *login)
            allowed: Sequence[str] | frozenset[str] = self._actions(account, project)
            who = account.name
        else:
            word = given.partition(" ")[2]
            allowed = self.tokens.get(word, {}).get(project, frozenset())
            who = self.users.get(word, "")
        if action not in allowed:
            words = f"unauthorized to access repository: {name}, action: {action}"
            raise Refused(401, "UNAUTHORIZED", f"{words}: {words}", _BASIC)
        return who

    def _catalog(self, query: str, headers: Mapping[str, str]) -> Answer:
        login = basic(headers.get("Authorization", ""))
        if not login or log_in(self.state, *login).kind != "admin":
            words = "unauthorized to list catalog"
            raise Refused(401, "UNAUTHORIZED", f"{words}: {words}", _BASIC)
        names = sorted(one["name"] for one in self.state.repositories.values())
        return _cut(names, query, "/v2/_catalog", "repositories", {})

    def _tags(self, name: str, query: str) -> Answer:
        if self.state.repository_named(name) is None:
            raise not_found(f"repository {name} not found")
        tags = sorted(tag for one in self.state.artifacts_of(name) for tag in one.tags)
        return _cut(tags, query, f"/v2/{name}/tags/list", "tags", {"name": name})

    def _referrers(self, name: str, digest: str, query: str) -> Answer:
        asked = dict(parse_qsl(query)).get("artifactType", "")
        rows = []
        for one in self.state.artifacts_of(name):
            if one.subject != digest:
                continue
            document = one.document
            row: Document = {
                "mediaType": artifacts.manifest_type(one), "digest": one.digest,
                "size": len(one.manifest),
            }  # fmt: skip
            if document.get("annotations"):
                row["annotations"] = document["annotations"]
            row["artifactType"] = document.get("artifactType") or artifacts.media_type(one)
            rows.append(row)
        headers = {"X-Total-Count": str(len(rows))}
        if asked:
            rows = [one for one in rows if one["artifactType"] == asked]
            headers["OCI-Filters-Applied"] = "artifactType"
        kind = "application/vnd.oci.image.index.v1+json"
        document = {"schemaVersion": 2, "mediaType": kind, "manifests": rows}
        return Answer(200, document, headers=headers, content_type=kind)

    def _manifest(
        self,
        method: str,
        name: str,
        reference: str,
        headers: Mapping[str, str],
        body: bytes,
        base: str,
        who: str,
    ) -> Answer | Upstream:
        if method == "PUT":
            return self._put(name, reference, headers, body, base, who)
        if method == "DELETE":
            return self._delete(name, reference, who)
        found = self.state.find_artifact(name, reference)
        if found is None:
            mark = "@" if reference.startswith("sha256:") else ":"
            raise not_found(f"artifact {name}{mark}{reference} not found")
        self._policies(found)
        answer = self.upstream(
            method, f"/v2/{name}/manifests/{found.digest}", {"Accept": _all_types(found)}
        )
        if method == "GET" and answer.status == 200:
            self._pulled(found, reference, who)
        return answer

    def _pulled(self, found: Artifact, reference: str, who: str) -> None:
        found.pulled = self.state.now()
        self.state.repositories[found.repository]["pull_count"] += 1
        mark = "@" if reference.startswith("sha256:") else ":"
        words = f"pull artifact: {found.name}@{found.digest}"
        resource = f"{found.name}{mark}{reference}"
        self.state.log(who, "pull", "artifact", resource, words, project=found.project)

    def _policies(self, found: Artifact) -> None:
        project = self.state.projects[found.project]
        if found.accessory.startswith("signature."):
            return
        if project["metadata"].get("enable_content_trust_cosign") == "true" and not any(
            one.accessory == "signature.cosign" for one in self.state.accessories_of(found)
        ):
            words = "The image is not signed by cosign."
            raise Refused(412, "PROJECTPOLICYVIOLATION", words)
        if why := refusal(self.state, found, project):
            raise Refused(412, "PROJECTPOLICYVIOLATION", why)

    def _put(
        self,
        name: str,
        reference: str,
        headers: Mapping[str, str],
        body: bytes,
        base: str,
        who: str,
    ) -> Answer | Upstream:
        state = self.state
        try:
            document = json.loads(body)
        except ValueError as error:
            words = f"unmarshal manifest failed: {go_syntax(error, body)}"
            raise Refused(400, "MANIFEST_INVALID", words) from None
        project = state.project_named(name.partition("/")[0])
        assert project is not None
        identity, short = project["project_id"], name.partition("/")[2]
        by_tag = not reference.startswith("sha256:")
        old = state.find_artifact(name, reference) if by_tag else None
        if old and immutable(state, identity, short, reference):
            words = (
                f"Failed to process request due to '{short}:{reference}' configured as immutable."
            )
            raise precondition(words)
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        self._room(identity, self._adds(identity, digest, body, document))
        kind = headers.get("Content-Type", document.get("mediaType", ""))
        answer = self.upstream(
            "PUT", f"/v2/{name}/manifests/{reference}", {"Content-Type": kind}, body
        )
        if answer.status != 201:
            return answer
        subject, accessory = _belongs(document, reference)
        config = self._config(name, document)
        for part in (*document.get("layers", ()), document.get("config", {})):
            if "digest" in part:
                state.blobs[identity].setdefault(part["digest"], part["size"])
        new = state.find_artifact(name, digest) is None
        found = artifacts.add(
            state, name, digest, body, reference if by_tag else "", config=config,
            subject=subject, accessory=accessory,
        )  # fmt: skip
        mark = ":" if by_tag else "@"
        words = f"push artifact: {name}@{digest}"
        state.log(who, "create", "artifact", f"{name}{mark}{reference}", words, project=identity)
        self._scan(project, found, new=new)
        pushed(state, name)
        out = dict(answer.headers)
        out["Location"] = f"{base}/v2/{name}/manifests/{digest}"
        if "subject" in document:
            out["OCI-Subject"] = document["subject"]["digest"]
        return Upstream(201, out, b"")

    def _adds(self, project: int, digest: str, body: bytes, document: Document) -> int:
        """Bytes that a manifest and what it names add to what a project holds."""
        known = self.state.blobs[project]
        parts = (document.get("config", {}), *document.get("layers", ()))
        more = {one["digest"]: one["size"] for one in parts if "digest" in one}
        sizes = {digest: len(body)} | more
        return sum(size for one, size in sizes.items() if one not in known)

    def _scan(self, project: Document, found: Artifact, *, new: bool) -> None:
        if found.subject or artifacts.kind(found) != "IMAGE" or not new:
            return
        if project["metadata"].get("auto_scan") == "true":
            start(self.state, found, "vulnerability")
        if project["metadata"].get("auto_sbom_generation") == "true":
            start(self.state, found, "sbom", delay=1.5 * self.state.pace)  # after the other

    def _config(self, name: str, document: Document) -> Document:
        digest = document.get("config", {}).get("digest")
        if not digest:
            return {}
        answer = self.upstream("GET", f"/v2/{name}/blobs/{digest}", {})
        try:
            config = json.loads(answer.body)
        except ValueError:
            return {}
        return config if isinstance(config, dict) else {}

    def _delete(self, name: str, reference: str, who: str) -> Answer:
        if not reference.startswith("sha256:"):
            words = f"unsupported digest {reference}: invalid checksum digest format"
            raise Refused(400, "UNSUPPORTED", words)
        found = self.state.find_artifact(name, reference)
        if found is None:
            raise not_found(f"artifact {name}@{reference} not found")
        artifacts.remove(self.state, found)
        words = f"delete artifact: {name}@{reference}"
        self.state.log(
            who, "delete", "artifact", f"{name}@{reference}", words, project=found.project
        )
        return Answer(202)

    def _room(self, project: int, adding: int) -> None:
        hard, used = self.state.hard(project), self.state.used(project)
        if hard != -1 and used + adding > hard:
            raise exceeded(adding, used, hard)

    def _upload(
        self,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        body: bytes,
        base: str,
        name: str,
    ) -> Upstream:
        project = self.state.project_named(name.partition("/")[0])
        assert project is not None
        identity = project["project_id"]
        upload = path.rpartition("/")[2]
        asked = dict(parse_qsl(query))
        size = self.uploads.get(upload, 0) + len(body)
        if method == "PUT":
            known = asked.get("digest", "") in self.state.blobs[identity]
            self._room(identity, 0 if known else size)
        elif method == "POST":
            self._room(identity, 0)
        sent = {key: headers[key] for key in ("Content-Type", "Content-Range") if key in headers}
        where = f"{path}?{query}" if query else path
        answer = self.upstream(method, where, sent, body)
        out = dict(answer.headers)
        if "Location" in out:
            there = urlsplit(out["Location"])
            out["Location"] = f"{base}{there.path}" + (f"?{there.query}" if there.query else "")
        if method == "PATCH" and answer.status == 202:
            self.uploads[upload] = size
        if answer.status == 201:
            self.uploads.pop(upload, None)
            digest = out["Docker-Content-Digest"]
            if "mount" in asked:
                size = max(blobs.get(digest, 0) for blobs in self.state.blobs.values())
            self.state.blobs[identity].setdefault(digest, size)
        return Upstream(answer.status, out, answer.body)

    def _blob(self, method: str, name: str, digest: str, headers: Mapping[str, str]) -> Upstream:
        if method not in ("GET", "HEAD"):
            raise Refused(405, "UNSUPPORTED", "The operation is unsupported.")
        sent = {"Range": headers["Range"]} if "Range" in headers else {}
        return self.upstream(method, f"/v2/{name}/blobs/{digest}", sent)

    def upstream(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
    ) -> Upstream:
        """Ask docker-registry."""
        if not self.registry:
            raise Refused(502, "UNKNOWN", "this double has no docker-registry behind it")
        connection = HTTPConnection(self.registry, timeout=30)
        try:
            sent = dict(headers)
            if method in ("PUT", "POST", "PATCH"):
                sent["Content-Length"] = str(len(body))
            connection.request(method, path, body or None, sent)
            answer = connection.getresponse()
            hop = (
                "connection",
                "transfer-encoding",
                "date",
                "x-content-type-options",
                "keep-alive",
            )
            kept = {k: v for k, v in answer.getheaders() if k.lower() not in hop}
            return Upstream(answer.status, kept, answer.read())
        finally:
            connection.close()


def _challenge(base: str, scope: str) -> dict[str, str]:
    words = f'Bearer realm="{base}/service/token",service="harbor-registry"'
    if scope:
        words += f',scope="{scope}"'
    return {"WWW-Authenticate": words} | VERSION


def _cut(names: list[str], query: str, path: str, key: str, more: Document) -> Answer:
    asked = dict(parse_qsl(query))
    after, most = asked.get("last", ""), int(asked.get("n", 0))
    rest = [one for one in names if one > after]
    shown = rest[:most] if most else rest
    headers = {}
    if len(shown) < len(rest):
        words = urlencode({"last": shown[-1], "n": most}, quote_via=quote, safe="")
        headers["Link"] = f'<{path}?{words}>; rel="next"'
    return Answer(200, more | {key: shown}, headers=headers)


def _all_types(found: Artifact) -> str:
    return ", ".join(dict.fromkeys((artifacts.manifest_type(found), *artifacts.INDEXES)))


def _belongs(document: Document, reference: str) -> tuple[str, str]:
    """Digest of what a manifest belongs to, and how, as Harbor sees it."""
    if "subject" in document:
        kind = document.get("config", {}).get("mediaType", "")
        if document.get("artifactType") in _ACCESSORIES:
            kind = document["artifactType"]
        return document["subject"]["digest"], _ACCESSORIES.get(kind, "subject.accessory")
    signs = any(part.get("mediaType") == _SIMPLE_SIGNING for part in document.get("layers", ()))
    if (match := _SIGNATURE_TAG.fullmatch(reference)) and signs:
        # Harbor does not verify it: what is there counts.
        return f"{match[1]}:{match[2]}", "signature.cosign"
    return "", ""
