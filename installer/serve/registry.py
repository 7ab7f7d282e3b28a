"""What to answer to a request, as the OCI distribution-spec 1.1 has it; knows no sockets.

The stored media type is served whatever Accept says: clients send lists that differ by version,
and a manifest can't be converted without changing its digest.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import parse_qs, quote, unquote, urlsplit

from installer.bundle.digest import Digest
from installer.errors import AirgapError, Corrupt, Interrupted, InvalidInput, NotFound
from installer.oci.graph import OCI_INDEX
from installer.oci.store import read_all

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from installer.bundle.archive import VerifiedBundle
    from installer.bundle.layout import Entry
    from installer.oci.bundle_store import BundleStore, Referrer
    from installer.serve.check import ContentCheck

JSON = "application/json"
MAX_TARGET = 8 * 1024
"""Bytes of path and query; the longest that a client needs is below 1 KiB."""

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*\Z")
_MAX_NAME = 255
_DIGEST = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+\Z")
_ROUTE = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs|referrers|tags)/(?P<item>[^/]+)\Z")
_RANGE = re.compile(r"bytes=(?P<first>\d{1,19})?-(?P<last>\d{1,19})?\Z", re.ASCII)
_YEAR = 365 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a member of a bundle: ``offset`` counts from the start of the file."""

    bundle: VerifiedBundle
    entry: Entry
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers, and a body in memory or in a bundle."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    span: Span | None = None

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return self.span.size if self.span else len(self.body)


class _Refused(Exception):
    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    headers: Mapping[str, str]
    query: dict[str, list[str]]

    def first(self, key: str) -> str | None:
        values = self.query.get(key)
        return values[0] if values else None


def error_answer(status: int, code: str, message: str, **headers: str) -> Answer:
    """An error as registries write it (distribution-spec, "Error Codes")."""
    document = {"errors": [{"code": code, "message": message}]}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, {"Content-Type": JSON, **named}, json.dumps(document).encode())


class ReadOnlyRegistry:
    """Answers requests for the content of a store; hashes blobs before they may go out."""

    def __init__(self, store: BundleStore, check: ContentCheck) -> None:
        self._store = store
        self._check = check

    def answer(self, method: str, target: str, headers: Mapping[str, str]) -> Answer:
        """Decide what goes back; ``target`` is path and query as they came.

        The names of ``headers`` are in lower case.

        Raises an AirgapError for what is not the client's fault: damaged content, a bad disk.
        """
        try:
            return self._route(method, target, headers)
        except _Refused as refused:
            return refused.answer

    def _route(self, method: str, target: str, headers: Mapping[str, str]) -> Answer:
        if method not in ("GET", "HEAD"):
            _refuse(405, "UNSUPPORTED", "this registry is read-only", Allow="GET, HEAD")
        if len(target) > MAX_TARGET:
            _refuse(414, "NAME_INVALID", "the request's path is too long")
        try:
            parts = urlsplit(target)
            path = unquote(parts.path, errors="strict")
            query = parse_qs(parts.query, keep_blank_values=True, max_num_fields=16)
        except ValueError:
            _refuse(400, "NAME_INVALID", "the request's path can't be read")
        request = _Request(method, headers, query)
        if path in ("/v2", "/v2/"):
            return _json({})
        if path == "/healthz":
            return self._health()
        if path == "/v2/_catalog":
            return _page(request, path, {}, "repositories", self._store.repositories)
        found = _ROUTE.match(path)
        if found is None or (found["kind"] == "tags" and found["item"] != "list"):
            _refuse(404, "NOT_FOUND", "there is nothing at this path")
        return self._content(request, found["name"], found["kind"], found["item"])

    def _content(self, request: _Request, name: str, kind: str, item: str) -> Answer:
        if len(name) > _MAX_NAME or not _NAME.match(name):
            _refuse(400, "NAME_INVALID", "not a valid repository name")
        # containerd says which registry a mirror stands for; two hosts may have the same path.
        host = request.first("ns")
        repository = self._store.of_host(name, host) if host else name
        if kind == "referrers":
            return self._referrers(request, item)
        try:
            tags = self._store.tags(repository)
        except NotFound:
            _refuse(404, "NAME_UNKNOWN", "no bundle has a repository of this name")
        if kind == "tags":
            return _page(request, f"/v2/{name}/tags/list", {"name": name}, "tags", tags)
        if kind == "manifests":
            return self._manifest(request, repository, item)
        return self._blob(request, item)

    def _manifest(self, request: _Request, repository: str, version: str) -> Answer:
        if ":" in version and _digest(version) is None:
            _refuse(404, "MANIFEST_UNKNOWN", "bundles have sha256 digests only")
        try:
            descriptor = self._store.resolve(repository, version)
        except NotFound:
            _refuse(404, "MANIFEST_UNKNOWN", "no bundle has this manifest")
        headers = _content_headers(descriptor.digest, descriptor.media_type)
        if _is_known(request, descriptor.digest):
            return Answer(304, headers)
        return Answer(200, headers, read_all(self._store, repository, descriptor))

    def _blob(self, request: _Request, item: str) -> Answer:
        digest = _digest(item)
        place = self._store.place(digest) if digest else None
        if digest is None or place is None:
            _refuse(404, "BLOB_UNKNOWN", "no bundle has this blob")
        headers = _content_headers(digest, "application/octet-stream")
        headers["Accept-Ranges"] = "bytes"
        headers["Cache-Control"] = f"max-age={_YEAR}, immutable"
        if _is_known(request, digest):
            return Answer(304, headers)
        bundle, entry = place
        status, start, size = 200, 0, entry.member.size
        wanted = _range(request, digest, size)
        if wanted is not None:
            start, size = wanted
            if size <= 0:
                total = f"bytes */{entry.member.size}"
                _refuse(416, "SIZE_INVALID", "the range is outside the blob", Content_Range=total)
            headers["Content-Range"] = f"bytes {start}-{start + size - 1}/{entry.member.size}"
            status = 206
        if request.method == "GET":
            self._check.ensure(bundle, entry)
        elif known := self._check.known_bad(bundle, entry):
            raise known
        return Answer(status, headers, span=Span(bundle, entry, entry.offset + start, size))

    def _referrers(self, request: _Request, item: str) -> Answer:
        """List what refers to a digest; an unknown one has no referrers, which is no error."""
        digest = _digest(item)
        wanted = request.first("artifactType")
        found = self._store.referrers(digest) if digest else ()
        listed = [_referrer(r) for r in found if wanted in (None, r.artifact_type)]
        headers = {"OCI-Filters-Applied": "artifactType"} if wanted is not None else {}
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}
        return Answer(200, {"Content-Type": OCI_INDEX, **headers}, json.dumps(index).encode())

    def _health(self) -> Answer:
        """Tell which bundles are served and how far their check is; 503 once something failed."""
        progress = self._check.progress
        document = {
            "status": "corrupt" if progress.failed else "ok",
            "bundles": [
                {
                    "name": bundle.manifest.name,
                    "channel": bundle.manifest.channel,
                    "serial": bundle.manifest.serial,
                    "digest": str(bundle.digest),
                }
                for bundle in self._store.bundles
            ],
            "missing": len(self._store.missing),
            "check": {
                "state": progress.state,
                "checkedBytes": progress.checked_bytes,
                "totalBytes": progress.total_bytes,
                "failed": list(progress.failed),
            },
        }
        return _json(document, status=503 if progress.failed else 200)


def failure(error: AirgapError) -> Answer:
    """What a client is told when the fault is on this side: never content, never a path."""
    if isinstance(error, Corrupt):
        return error_answer(500, "BLOB_CORRUPT", "the content differs from what was signed")
    if isinstance(error, Interrupted):
        return error_answer(503, "UNAVAILABLE", "the registry is stopping", Retry_After="5")
    return error_answer(500, "UNKNOWN", "the content can't be read")


def _refuse(status: int, code: str, message: str, **headers: str) -> NoReturn:
    raise _Refused(error_answer(status, code, message, **headers))


def _digest(text: str) -> Digest | None:
    """Parse a digest; None for another algorithm, 400 for what is no digest at all."""
    try:
        return Digest.parse(text)
    except InvalidInput:
        if _DIGEST.match(text) and not text.startswith("sha256:"):
            return None
    _refuse(400, "DIGEST_INVALID", "not a valid digest")


def _content_headers(digest: Digest, media_type: str) -> dict[str, str]:
    return {
        "Content-Type": media_type,
        "Docker-Content-Digest": str(digest),
        "ETag": f'"{digest}"',
    }


def _is_known(request: _Request, digest: Digest) -> bool:
    return f'"{digest}"' in request.headers.get("if-none-match", "")


def _range(request: _Request, digest: Digest, size: int) -> tuple[int, int] | None:
    """Start and length that are asked for; None is all of it, a length of 0 can't be satisfied.

    Several ranges, and forms that are no byte range, are ignored as RFC 9110 14.2 allows.
    """
    found = _RANGE.match(request.headers.get("range", "").strip())
    condition = request.headers.get("if-range")
    if found is None or request.method != "GET" or (condition and condition != f'"{digest}"'):
        return None
    first, last = found["first"], found["last"]
    if first is None:
        if last is None:
            return None
        length = min(int(last), size)
        return size - length, length
    start = int(first)
    end = min(int(last) if last else size - 1, size - 1)
    if last and int(last) < start:
        return None
    return start, max(0, end + 1 - start)


def _referrer(referrer: Referrer) -> dict[str, Any]:
    descriptor = referrer.descriptor
    entry: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if referrer.artifact_type:
        entry["artifactType"] = referrer.artifact_type
    if descriptor.annotations:
        entry["annotations"] = descriptor.annotations
    return entry


def _json(document: dict[str, Any], *, status: int = 200) -> Answer:
    return Answer(status, {"Content-Type": JSON}, json.dumps(document).encode())


def _page(
    request: _Request, path: str, head: dict[str, Any], key: str, names: Sequence[str]
) -> Answer:
    """One page of a sorted list: ``n`` entries behind ``last``, and a Link to the next."""
    last, limit = request.first("last"), request.first("n")
    if last:
        names = [name for name in names if _order(name) > _order(last)]
    headers = {"Content-Type": JSON}
    if limit is not None:
        if not limit.isascii() or not limit.isdigit() or len(limit) > len("1000000000"):
            _refuse(400, "PAGINATION_NUMBER_INVALID", "n is not a number")
        page = names[: int(limit)]
        if page and len(page) < len(names):
            following = f"{path}?n={int(limit)}&last={quote(page[-1], safe='')}"
            if host := request.first("ns"):
                following += f"&ns={quote(host, safe='')}"
            headers["Link"] = f'<{following}>; rel="next"'
        names = page
    return Answer(200, headers, json.dumps({**head, key: list(names)}).encode())


def _order(name: str) -> tuple[str, str]:
    return name.lower(), name
