"""A registry in memory: pulls, pushes, deletes and referrers of OCI's distribution-spec 1.1.

It is strict where real ones are: the Accept header counts, a manifest needs its children, a blob is
seen only in repositories that have it, an upload's Location has a query of its own, and a token
opens only what it was asked for. The OCI conformance suite runs against it in tests/integration.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from tests.upstream.images import OCI_INDEX, Content, Image
from tests.upstream.server import Answer, LoopbackServer, Request

if TYPE_CHECKING:
    import ssl

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = rf"(?P<name>{_COMPONENT}(?:/{_COMPONENT})*)"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_ROUTES = [
    (kind, re.compile(rf"/v2/{_NAME}/{rest}"))
    for kind, rest in (
        ("upload", r"blobs/uploads/(?P<item>[^/]*)"),
        ("blob", r"blobs/(?P<item>[^/]+)"),
        ("manifest", r"manifests/(?P<item>[^/]+)"),
        ("tags", r"tags/(?P<item>list)"),
        ("referrers", r"referrers/(?P<item>[^/]+)"),
    )
]


@dataclass
class Repository:
    """What one repository has: digests of blobs, manifests by digest, tags."""

    blobs: set[str] = field(default_factory=set)
    manifests: dict[str, Content] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Login:
    """Who may enter: ``bearer`` as docker.io and ghcr.io do it, else HTTP Basic.

    With ``anonymous_pull`` a bearer token for pulling is given to anyone. Tokens live for
    ``lifetime`` seconds and open only the repositories and actions of their scopes.
    """

    user: str = "robot"
    password: str = "let-me-in"
    bearer: bool = True
    anonymous_pull: bool = False
    lifetime: float = 300
    identity_token: str = ""
    """Refresh token of OAuth 2.0 that opens as much as user and password do."""


class _Refused(Exception):
    def __init__(self, status: int, code: str, **headers: str) -> None:
        super().__init__(code)
        self.answer = Answer(
            status,
            {"Content-Type": "application/json"}
            | {name.replace("_", "-"): value for name, value in headers.items()},
            json.dumps({"errors": [{"code": code, "message": code.lower()}]}).encode(),
        )


class Registry(LoopbackServer):
    """Serve and take OCI content; ``put`` fills it without a request."""

    def __init__(
        self, *, login: Login | None = None, tls: ssl.SSLContext | None = None, prefix: str = ""
    ) -> None:
        super().__init__(tls=tls, prefix=prefix)
        self.login = login
        self.blobs: dict[str, bytes] = {}
        self.repositories: dict[str, Repository] = {}
        self._uploads: dict[str, tuple[str, bytearray]] = {}
        self._tokens: dict[str, tuple[float, set[tuple[str, str]]]] = {}

    def put(self, name: str, tag: str | None, image: Image) -> str:
        """Store an image under a tag (None: only by digest) and give its digest."""
        with self.lock:
            repository = self.repositories.setdefault(name, Repository())
            for blob in image.blobs:
                self.blobs[blob.digest] = blob.data
                repository.blobs.add(blob.digest)
            for manifest in (*image.manifests, image.top):
                repository.manifests[manifest.digest] = manifest
            if tag:
                repository.tags[tag] = image.digest
        return image.digest

    def answer(self, request: Request) -> Answer:
        if self.login and request.path == "/token":
            return self._token(request, self.login)
        try:
            return self._route(request)
        except _Refused as refused:
            return refused.answer

    def _route(self, request: Request) -> Answer:
        if request.path in ("/v2", "/v2/"):
            self._allow(request, [])
            version = {"Docker-Distribution-API-Version": "registry/2.0"}
            return Answer(200, version | {"Content-Type": "application/json"}, b"{}")
        for kind, pattern in _ROUTES:
            if found := pattern.fullmatch(request.path):
                self._admit(request, found["name"], kind)
                with self.lock:
                    handle = getattr(self, f"_{kind}_{request.method.lower()}", None)
                    if handle is None:
                        raise _Refused(405, "UNSUPPORTED")
                    answer: Answer = handle(request, found["name"], found["item"])
                    return answer
        raise _Refused(404, "NAME_INVALID")

    # Who may do what

    def _admit(self, request: Request, name: str, kind: str) -> None:
        reading = request.method in ("GET", "HEAD") and kind != "upload"
        action = "pull" if reading else "delete" if request.method == "DELETE" else "push"
        needed = [(name, action)]
        if (source := request.first("from")) and request.first("mount"):
            needed.insert(0, (source, "pull"))
        self._allow(request, needed)

    def _allow(self, request: Request, needed: list[tuple[str, str]]) -> None:
        if self.login is None:
            return
        given = request.headers.get("Authorization", "")
        if not self.login.bearer:
            if given != _basic(self.login):
                raise _Refused(401, "UNAUTHORIZED", WWW_Authenticate='Basic realm="registry"')
            return
        expires, granted = self._tokens.get(given.removeprefix("Bearer "), (0.0, set()))
        if time.monotonic() < expires and granted.issuperset(needed):
            return
        wanted = {"pull": "pull", "push": "pull,push", "delete": "delete"}
        scopes = " ".join(f"repository:{name}:{wanted[action]}" for name, action in needed)
        challenge = f'Bearer realm="{self.url}/token",service="{self.host}"'
        challenge += f',scope="{scopes}"' if scopes else ""
        raise _Refused(401, "UNAUTHORIZED", WWW_Authenticate=challenge)

    def _token(self, request: Request, login: Login) -> Answer:
        given = request.headers.get("Authorization")
        known = given == _basic(login)
        scopes = request.query.get("scope", [])
        if request.method == "POST":
            form = parse_qs(request.body.decode())
            known = bool(login.identity_token) and form == {
                "grant_type": ["refresh_token"],
                "service": [self.host],
                "client_id": form.get("client_id", []),
                "scope": form.get("scope", []),
                "refresh_token": [login.identity_token],
            }
            scopes = form.get("scope", [])
        oauth = request.method == "POST"
        if not known and (given or oauth or not login.anonymous_pull):
            return Answer(401, {"Content-Type": "application/json"}, b"{}")
        granted = set()
        for scope in " ".join(scopes).split():
            _, name, actions = scope.split(":")
            granted |= {
                (name, action) for action in actions.split(",") if known or action == "pull"
            }
        token = secrets.token_urlsafe(24)
        with self.lock:
            self._tokens[token] = (time.monotonic() + login.lifetime, granted)
        name = "access_token" if oauth else "token"
        body = json.dumps({name: token, "expires_in": int(login.lifetime)}).encode()
        return Answer(200, {"Content-Type": "application/json"}, body)

    # Reading

    def _known(self, name: str) -> Repository:
        if name not in self.repositories:
            raise _Refused(404, "NAME_UNKNOWN")
        return self.repositories[name]

    def _manifest_get(self, request: Request, name: str, item: str) -> Answer:
        repository = self._known(name)
        found = repository.manifests.get(repository.tags.get(item, item))
        accepted = ",".join(request.headers.get_all("Accept") or ["*/*"])
        if found is None or ("*/*" not in accepted and found.media_type not in accepted):
            raise _Refused(404, "MANIFEST_UNKNOWN")
        digest = item if _DIGEST.fullmatch(item) else found.digest
        headers = {"Content-Type": found.media_type, "Docker-Content-Digest": digest}
        return Answer(200, headers, found.data)

    def _blob_get(self, request: Request, name: str, item: str) -> Answer:
        del request
        if item not in self._known(name).blobs:
            raise _Refused(404, "BLOB_UNKNOWN")
        headers = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": item}
        return Answer(200, headers, self.blobs[item], ranged=True)

    def _tags_get(self, request: Request, name: str, item: str) -> Answer:
        del item
        last, limit = request.first("last") or "", request.first("n")
        tags = [tag for tag in sorted(self._known(name).tags) if tag > last]
        headers = {"Content-Type": "application/json"}
        if limit is not None and int(limit) < len(tags):
            tags = tags[: int(limit)]
            if tags:
                following = f"{self.prefix}/v2/{name}/tags/list?n={limit}&last={tags[-1]}"
                headers["Link"] = f'<{following}>; rel="next"'
        return Answer(200, headers, json.dumps({"name": name, "tags": tags}).encode())

    def _referrers_get(self, request: Request, name: str, item: str) -> Answer:
        if not _DIGEST.fullmatch(item):
            raise _Refused(400, "DIGEST_INVALID")
        wanted, found = request.first("artifactType"), []
        repository = self.repositories.get(name, Repository())
        for digest, content in repository.manifests.items():
            document = json.loads(content.data)
            if document.get("subject", {}).get("digest") != item:
                continue
            kind = document.get("artifactType") or document.get("config", {}).get("mediaType")
            if wanted in (None, kind):
                extra = {"artifactType": kind, "annotations": document.get("annotations")}
                described = content.descriptor() | {"digest": digest}
                found.append(described | {k: v for k, v in extra.items() if v})
        headers = {"Content-Type": OCI_INDEX}
        headers |= {"OCI-Filters-Applied": "artifactType"} if wanted else {}
        listing = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found}
        return Answer(200, headers, json.dumps(listing).encode())

    _manifest_head, _blob_head = _manifest_get, _blob_get

    # Writing

    def _manifest_put(self, request: Request, name: str, item: str) -> Answer:
        content = Content(request.headers.get("Content-Type", ""), request.body)
        by_digest = bool(_DIGEST.fullmatch(item))
        digest = item if by_digest else content.digest
        if not by_digest and not _TAG.fullmatch(item):
            raise _Refused(400, "TAG_INVALID")
        if by_digest and not _matches(content.data, digest):
            raise _Refused(400, "DIGEST_INVALID")
        repository = self.repositories.setdefault(name, Repository())
        subject = self._check_manifest(content, repository)
        repository.manifests[digest] = content
        if not by_digest:
            repository.tags[item] = digest
        location = f"{self.prefix}/v2/{name}/manifests/{digest}"
        headers = {"Location": location, "Docker-Content-Digest": digest}
        return Answer(201, headers | ({"OCI-Subject": subject} if subject else {}))

    @staticmethod
    def _check_manifest(content: Content, repository: Repository) -> str | None:
        try:
            document: dict[str, Any] = json.loads(content.data)
            fits = document.get("mediaType") in (None, content.media_type)
            config = [document["config"]] if "config" in document else []
            below = config + [
                part for part in document.get("layers") or [] if "nondist" not in part["mediaType"]
            ]
            missing = {part["digest"] for part in below} - repository.blobs
            missing |= {part["digest"] for part in document.get("manifests") or []} - set(
                repository.manifests
            )
            subject: str | None = (document.get("subject") or {}).get("digest")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _Refused(400, "MANIFEST_INVALID") from None
        if not fits:
            raise _Refused(400, "MANIFEST_INVALID")
        if missing:
            raise _Refused(400, "MANIFEST_BLOB_UNKNOWN")
        return subject

    def _upload_post(self, request: Request, name: str, item: str) -> Answer:
        if item:
            raise _Refused(404, "BLOB_UPLOAD_UNKNOWN")
        repository = self.repositories.setdefault(name, Repository())
        mount, source = request.first("mount"), request.first("from")
        if mount and source and mount in self.repositories.get(source, Repository()).blobs:
            repository.blobs.add(mount)
            return self._created(name, mount)
        if digest := request.first("digest"):
            return self._store(name, digest, request.body)
        session = secrets.token_hex(8)
        self._uploads[session] = (name, bytearray())
        return self._progress(name, session, 202)

    def _upload_patch(self, request: Request, name: str, item: str) -> Answer:
        received = self._session(name, item)
        start = request.headers.get("Content-Range", f"{len(received)}-").partition("-")[0]
        if start.removeprefix("bytes ") != str(len(received)):
            raise _Refused(416, "BLOB_UPLOAD_INVALID", Range=f"0-{max(0, len(received) - 1)}")
        received += request.body
        return self._progress(name, item, 202)

    def _upload_put(self, request: Request, name: str, item: str) -> Answer:
        digest = request.first("digest") or ""
        self._upload_patch(request, name, item)
        return self._store(name, digest, bytes(self._uploads.pop(item)[1]))

    def _upload_get(self, request: Request, name: str, item: str) -> Answer:
        del request
        self._session(name, item)
        return self._progress(name, item, 204)

    def _upload_delete(self, request: Request, name: str, item: str) -> Answer:
        del request
        self._session(name, item)
        del self._uploads[item]
        return Answer(204)

    def _session(self, name: str, item: str) -> bytearray:
        owner, received = self._uploads.get(item, ("", bytearray()))
        if owner != name:
            raise _Refused(404, "BLOB_UPLOAD_UNKNOWN")
        return received

    def _progress(self, name: str, session: str, status: int) -> Answer:
        last = max(0, len(self._uploads[session][1]) - 1)
        location = f"{self.prefix}/v2/{name}/blobs/uploads/{session}?_state={session}"
        return Answer(status, {"Location": location, "Range": f"0-{last}"})

    def _store(self, name: str, digest: str, data: bytes) -> Answer:
        if not _matches(data, digest):
            raise _Refused(400, "DIGEST_INVALID")
        self.blobs[digest] = data
        self.repositories.setdefault(name, Repository()).blobs.add(digest)
        return self._created(name, digest)

    def _created(self, name: str, digest: str) -> Answer:
        location = f"{self.prefix}/v2/{name}/blobs/{digest}"
        return Answer(201, {"Location": location, "Docker-Content-Digest": digest})

    # Deleting

    def _manifest_delete(self, request: Request, name: str, item: str) -> Answer:
        del request
        repository = self._known(name)
        if repository.tags.pop(item, None) is None:
            if repository.manifests.pop(item, None) is None:
                raise _Refused(404, "MANIFEST_UNKNOWN")
            repository.tags = {tag: to for tag, to in repository.tags.items() if to != item}
        return Answer(202)

    def _blob_delete(self, request: Request, name: str, item: str) -> Answer:
        del request
        repository = self._known(name)
        if item not in repository.blobs:
            raise _Refused(404, "BLOB_UNKNOWN")
        repository.blobs.discard(item)
        return Answer(202)


def _matches(data: bytes, digest: str) -> bool:
    algorithm, _, value = digest.partition(":")
    return bool(_DIGEST.fullmatch(digest)) and hashlib.new(algorithm, data).hexdigest() == value


def _basic(login: Login) -> str:
    return "Basic " + base64.b64encode(f"{login.user}:{login.password}".encode()).decode()
