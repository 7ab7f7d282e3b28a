"""A registry as a store: what the OCI distribution-spec 1.1 says, over one client per endpoint.

A registry is never believed about a digest: it is computed from the bytes that came. Reading goes
through the endpoints in order, and on to the next when one can't be reached or does not have it; a
blob that breaks off goes on with Range where it stopped. Writing goes to the first endpoint only.
"""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from installer.bundle.digest import Digest, verified
from installer.errors import AirgapError, Corrupt, InvalidInput, NotFound, TransferFailed
from installer.oci.auth import Credentials
from installer.oci.graph import (
    ACCEPTED_TYPES,
    MAX_MANIFEST_BYTES,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    ImageIndex,
    ImageManifest,
    read_manifest,
)
from installer.oci.hosts import RegistryHosts
from installer.oci.http import BrokenOff, Client, Patience, Retry, Unavailable, Upload
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, Self

    from installer.oci.http import Answer, Notice

T = TypeVar("T")

_ACCEPT = {"Accept": ", ".join(ACCEPTED_TYPES)}
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:[./]|__?|-+)[a-z0-9]+)*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)\Z")
_NEXT = re.compile(r"<([^>]*)>\s*;[^,]*\brel=\"?next\"?")
_MAX_PAGE = 16 * 1024 * 1024
_MAX_PAGES = 10_000
_REMEMBERED = 4 * 1024 * 1024
_DOWN_FOR = 30.0


class RegistryStore:
    """The registry ``host`` as a WritableStore; threads may share it, ``close`` ends it.

    ``hosts`` says where the host is reached. ``credentials`` is one login for its first endpoint,
    or a function that finds the login for the host that an endpoint names. ``environment`` says
    whether proxies and CA certificates that it names are used. ``notice`` is told of failures that
    are followed by another attempt.
    """

    def __init__(
        self,
        host: str,
        hosts: RegistryHosts | None = None,
        credentials: Credentials | Callable[[str], Credentials | None] | None = None,
        *,
        patience: Patience | None = None,
        environment: bool = True,
        notice: Notice | None = None,
    ) -> None:
        self.host = host
        # Known by the name that images have, whichever mirror it was.
        self._notice: Notice | None = notice and (lambda r: notice(replace(r, host=host)))
        endpoints = (hosts or RegistryHosts()).endpoints(host)
        first = endpoints[0].host

        def login(at: str) -> Credentials | None:
            if isinstance(credentials, Credentials):
                return credentials if at == first else None
            return credentials(at) if credentials else None

        self._patience = patience or Patience()
        self._clients = [
            Client(host, e, login(e.host), self._patience, environment=environment)
            for e in endpoints
        ]
        self._down: dict[Client, float] = {}
        self._manifests: dict[tuple[str, Digest], bytes] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        for client in self._clients:
            client.close()

    # Reading

    def resolve(self, repository: str, version: str) -> Descriptor:
        """Find the descriptor behind a tag or a digest: the manifest is fetched and hashed.

        Raises NotFound, TransferFailed, Corrupt when the bytes differ from what was asked for.
        """
        what = self._what(repository, version)
        data, headers = self._manifest(repository, version, what)
        digest = Digest.of(data)
        claimed = version if ":" in version else headers.get("Docker-Content-Digest", "")
        if claimed.startswith("sha256:") and claimed != str(digest):
            raise Corrupt(
                f"{what}: digest is {digest}, expected {claimed}",
                hint="something between here and the registry changes what passes through",
            )
        self._remember(repository, digest, data)
        media_type = _media_type(headers.get("Content-Type", ""), data, what)
        return Descriptor(media_type, digest, len(data))

    def exists(self, repository: str, descriptor: Descriptor) -> bool:
        """Whether the registry has it, in the right size (a HEAD request)."""
        what = self._what(repository, str(descriptor.digest))

        def ask(client: Client) -> bool:
            if self._held(client, repository, descriptor, what, "pull") != descriptor.size:
                raise NotFound(f"{what}: not there")
            return True

        try:
            return self._first(ask)
        except NotFound:
            return False

    def fetch(self, repository: str, descriptor: Descriptor) -> Iterator[bytes]:
        """Stream the content in chunks of at most CHUNK bytes; see ReadableStore.

        A connection that breaks off is taken up again where it stopped. Raises NotFound,
        TransferFailed, Corrupt.
        """
        chunks = self.stream(repository, descriptor)
        what = self._what(repository, str(descriptor.digest))
        return verified(chunks, descriptor.digest, descriptor.size, what)

    def stream(self, repository: str, descriptor: Descriptor, start: int = 0) -> Iterator[bytes]:
        """As ``fetch``, but from byte ``start`` on and unchecked; see ReadableStore."""
        what = self._what(repository, str(descriptor.digest))
        if not 0 <= start <= descriptor.size:
            raise Corrupt(f"{what}: asked from byte {start}, but it has {descriptor.size} bytes")
        if start and start == descriptor.size:
            return iter(())  # a Range behind the end is answered with 416
        with self._lock:
            known = self._manifests.get((repository, descriptor.digest))
        if known is not None:
            return iter([known[start:]])
        return self._chunks(repository, descriptor, start, what)

    def tags(self, repository: str) -> tuple[str, ...]:
        """All tags of a repository; raises NotFound."""
        what = self._what(repository, "tags")

        def ask(client: Client) -> tuple[str, ...]:
            name = client.endpoint.prefix + repository
            scopes = _scopes(client, repository, "pull")
            pages = _pages(client, f"/{name}/tags/list?n=1000", scopes, what)
            return tuple(tag for _, data in pages for tag in _listing(data, what).tags or ())

        return self._first(ask)

    def has_tag(self, repository: str, tag: str) -> bool:
        """Whether there is such a tag (a HEAD request, which no registry counts as a pull)."""
        what = self._what(repository, tag)

        def ask(client: Client) -> bool:
            path = f"/{client.endpoint.prefix}{repository}/manifests/{tag}"
            scopes = _scopes(client, repository, "pull")
            client.request("HEAD", path, what=what, scopes=scopes, headers=_ACCEPT).close()
            return True

        try:
            return self._first(ask)
        except NotFound:
            return False

    def catalog(self) -> tuple[str, ...]:
        """All repositories that the registry is willing to name."""
        what = "catalog"

        def ask(client: Client) -> tuple[str, ...]:
            prefix = client.endpoint.prefix
            pages = _pages(client, "/_catalog?n=1000", ("registry:catalog:*",), what)
            names = (name for _, data in pages for name in _listing(data, what).repositories or ())
            return tuple(name.removeprefix(prefix) for name in names if name.startswith(prefix))

        return self._first(ask)

    def referrers(self, repository: str, digest: Digest) -> tuple[Descriptor, ...]:
        """What refers to a manifest (signatures, SBOMs): from the API, else from the tag scheme."""
        what = f"{self._what(repository, str(digest))}: referrers"

        def ask(client: Client) -> list[bytes]:
            path = f"/{client.endpoint.prefix}{repository}/referrers/{digest}"
            found = _pages(client, path, _scopes(client, repository, "pull"), what)
            # A web page with status 200 is not an answer to this question.
            return [data for kind, data in found if kind.startswith(OCI_INDEX)]

        pages: list[bytes] = []
        try:
            pages = self._first(ask)
        except Unavailable:
            raise
        except TransferFailed:
            pass  # registries without this API refuse the question in ways of their own
        if not pages:
            tag = _referrers_tag(digest)
            if not self.has_tag(repository, tag):
                return ()
            pages = [self._manifest(repository, tag, what)[0]]
        indexes = (read_manifest(data, OCI_INDEX, what) for data in pages)
        return tuple(d for i in indexes if isinstance(i, ImageIndex) for d in i.manifests)

    # Writing

    def push(
        self,
        repository: str,
        descriptor: Descriptor,
        content: Callable[[], Iterable[bytes]],
        *,
        mount_from: str | None = None,
    ) -> None:
        """Store content under its digest; see WritableStore.

        Blobs are streamed, and their last chunk is sent only after the digest held. With
        ``mount_from`` the registry is asked to mount first, which also finds what is there.
        """
        what = self._what(repository, str(descriptor.digest))
        if descriptor.is_manifest:
            data = b"".join(verified(content(), descriptor.digest, descriptor.size, what))
            self._put_manifest(repository, str(descriptor.digest), descriptor.media_type, data)
            return
        upload = Upload(
            lambda: _held_back(verified(content(), descriptor.digest, descriptor.size, what)),
            descriptor.size,
        )
        self._patience.persist(
            lambda: self._push_blob(repository, descriptor, upload, mount_from, what), self._notice
        )

    def tag(self, repository: str, descriptor: Descriptor, manifest: bytes, tag: str) -> None:
        """Point the tag at a manifest, which is sent with it; raises Corrupt for other bytes."""
        if Digest.of(manifest) != descriptor.digest:
            raise Corrupt(f"{self._what(repository, tag)}: not the bytes of {descriptor.digest}")
        self._put_manifest(repository, tag, descriptor.media_type, manifest)

    def _push_blob(
        self,
        repository: str,
        descriptor: Descriptor,
        upload: Upload,
        mount_from: str | None,
        what: str,
    ) -> None:
        client = self._clients[0]
        digest = str(descriptor.digest)
        scopes = _scopes(client, repository, "pull,push")
        query, held = "", None
        if mount_from and mount_from != repository:
            self._what(mount_from, digest)
            source = client.endpoint.prefix + mount_from
            query = "?" + urlencode({"mount": digest, "from": source})
            scopes += _scopes(client, mount_from, "pull")
        else:
            held = self._held(client, repository, descriptor, what, "pull,push")
            if held == descriptor.size:
                return
        begin = f"/{client.endpoint.prefix}{repository}/blobs/uploads/{query}"
        with client.request(
            "POST", begin, what=what, accepted=(201, 202), scopes=scopes, body=b""
        ) as answer:
            if answer.status == HTTPStatus.CREATED and query:
                return  # mounted
            location = client.location(answer, what)
        separator = "&" if urlsplit(location).query else "?"
        try:
            with client.request(
                "PUT",
                f"{location}{separator}{urlencode({'digest': digest})}",
                what=what,
                accepted=(201,),
                scopes=_scopes(client, repository, "pull,push"),
                headers={"Content-Type": "application/octet-stream"},
                body=upload if len(upload) else b"".join(upload),
            ) as answer:
                _agree(answer, digest, what)
            if held is not None:
                self._check_mended(client, repository, descriptor, what)
        except AirgapError as error:
            if not isinstance(error, Unavailable):  # else it would not hear this either
                gone = (204, 404)
                with suppress(AirgapError):
                    client.request(
                        "DELETE", location, what=what, accepted=gone, scopes=scopes
                    ).close()
            raise

    def _check_mended(
        self, client: Client, repository: str, descriptor: Descriptor, what: str
    ) -> None:
        """Look again after a blob of another size was there: distribution keeps the old file."""
        held = self._held(client, repository, descriptor, what, "pull,push")
        if held != descriptor.size:
            raise Corrupt(
                f"{what}: the registry keeps {held} bytes instead of {descriptor.size}",
                hint="its storage is damaged: delete this blob's folder there, then run it again",
            )

    def _put_manifest(self, repository: str, version: str, media_type: str, data: bytes) -> None:
        what = self._what(repository, version)
        client = self._clients[0]

        def put() -> str:
            with client.request(
                "PUT",
                f"/{client.endpoint.prefix}{repository}/manifests/{version}",
                what=what,
                accepted=(201,),
                scopes=_scopes(client, repository, "pull,push"),
                headers={"Content-Type": media_type},
                body=data,
            ) as answer:
                _agree(answer, str(Digest.of(data)), what)
                return answer.headers.get("OCI-Subject", "")

        if len(data) > MAX_MANIFEST_BYTES:
            raise Corrupt(f"{what}: manifest of {len(data)} bytes is over {MAX_MANIFEST_BYTES}")
        if not self._patience.persist(put, self._notice) and b'"subject"' in data:
            self._list_referrer(repository, media_type, data, what)

    def _list_referrer(self, repository: str, media_type: str, data: bytes, what: str) -> None:
        """Keep the referrers tag of a registry without the API (distribution-spec, "Pushing")."""
        manifest = read_manifest(data, media_type, what)
        if manifest.subject is None:
            return
        entry: dict[str, Any] = {
            "mediaType": media_type,
            "digest": str(Digest.of(data)),
            "size": len(data),
        }
        if isinstance(manifest, ImageManifest):
            entry["artifactType"] = manifest.artifact_type
        if manifest.annotations:
            entry["annotations"] = manifest.annotations
        tag = _referrers_tag(manifest.subject.digest)
        with self._lock:
            index: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
            with suppress(NotFound):
                known, _ = self._manifest(repository, tag, what)
                read_manifest(known, OCI_INDEX, what)
                index = msgspec.json.decode(known)
            if all(other.get("digest") != entry["digest"] for other in index["manifests"]):
                index["manifests"].append(entry)
                self._put_manifest(repository, tag, OCI_INDEX, msgspec.json.encode(index))

    # Parts of both

    def _chunks(
        self, repository: str, descriptor: Descriptor, start: int, what: str
    ) -> Iterator[bytes]:
        position, failed, began = start, 0, self._patience.clock()
        while True:
            before = position
            opening = partial(
                self._open, repository=repository, descriptor=descriptor, start=position, what=what
            )
            answer = self._first(opening)
            ranged = answer.status == HTTPStatus.PARTIAL_CONTENT
            try:
                with answer:
                    # A server that ignores Range sends everything again.
                    for chunk in _without(answer.chunks(), 0 if ranged else position):
                        position += len(chunk)
                        if position > descriptor.size:
                            raise Corrupt(f"{what}: more than {descriptor.size} bytes")
                        yield chunk
            except BrokenOff as error:
                broken = error
            else:
                if position == descriptor.size:
                    return
                broken = BrokenOff(
                    f"{what}: ended after {position} of {descriptor.size} bytes",
                    host=urlsplit(answer.url).netloc,
                )
            if position > before:
                failed, began = 1, self._patience.clock()
            else:
                failed += 1
            if failed >= self._patience.attempts:
                gone = self._patience.clock() - began
                broken.add(f"; tried {failed} times in {gone:.0f} s without another byte")
                raise broken
            pause = self._patience.pause(failed)
            if self._notice is not None:
                self._notice(Retry(broken.host, broken.message, failed, pause))
            self._patience.sleep(pause)

    def _open(
        self, client: Client, repository: str, descriptor: Descriptor, start: int, what: str
    ) -> Answer:
        answer = client.request(
            "GET",
            _content_path(client, repository, descriptor),
            what=what,
            accepted=(200, 206) if start else (200,),
            scopes=_scopes(client, repository, "pull"),
            headers=_ACCEPT | ({"Range": f"bytes={start}-"} if start else {}),
        )
        expected = descriptor.size
        if answer.status == HTTPStatus.PARTIAL_CONTENT:
            given = answer.headers.get("Content-Range", "")
            found = _RANGE.match(given)
            if (
                found is None
                or int(found[1]) != start
                or int(found[2]) != expected - 1
                or found[3] not in ("*", str(expected))
            ):
                answer.close(reuse=False)
                raise TransferFailed(
                    f"{what}: asked for bytes {start}- of {expected}, got {given[:100]!r}",
                    hint="a proxy or mirror answers Range requests wrongly",
                )
            expected -= start
        length = answer.headers.get("Content-Length")
        if length is not None and length != str(expected):
            answer.close(reuse=False)
            raise Corrupt(f"{what}: {length[:20]} bytes instead of {expected}")
        return answer

    def _manifest(self, repository: str, version: str, what: str) -> tuple[bytes, dict[str, str]]:
        def get(client: Client) -> tuple[bytes, dict[str, str]]:
            with client.request(
                "GET",
                f"/{client.endpoint.prefix}{repository}/manifests/{version}",
                what=what,
                scopes=_scopes(client, repository, "pull"),
                headers=_ACCEPT,
            ) as answer:
                names = ("Content-Type", "Docker-Content-Digest")
                return answer.read(MAX_MANIFEST_BYTES), {
                    n: answer.headers.get(n, "") for n in names
                }

        return self._first(get)

    def _held(
        self, client: Client, repository: str, descriptor: Descriptor, what: str, actions: str
    ) -> int | None:
        """Bytes that the registry has of it: after a full disk that may be half of a blob."""
        with client.request(
            "HEAD",
            _content_path(client, repository, descriptor),
            what=what,
            accepted=(200, 404, 412),
            scopes=_scopes(client, repository, actions),
            headers=_ACCEPT,
        ) as answer:
            if answer.status == HTTPStatus.NOT_FOUND:
                return None
            if answer.status == HTTPStatus.PRECONDITION_FAILED:
                return descriptor.size  # there, but a policy of Harbor's refuses to give it
            length = answer.headers.get("Content-Length", "")
            # Servers differ in what they say of a manifest's length to HEAD.
            known = length.isdecimal() and not descriptor.is_manifest
            return int(length) if known else descriptor.size

    def _what(self, repository: str, version: str) -> str:
        """Name an artefact in errors; raises InvalidInput for what is no name."""
        if not _REPOSITORY.match(repository):
            raise InvalidInput(f"{self.host}: not a repository: {repository[:200]!r}")
        if ":" in version:
            return f"{self.host}/{repository}@{Digest.parse(version)}"
        if not _TAG.match(version):
            raise InvalidInput(f"{self.host}/{repository}: not a tag: {version[:140]!r}")
        return f"{self.host}/{repository}:{version}"

    def _remember(self, repository: str, digest: Digest, data: bytes) -> None:
        """Keep a manifest that was just resolved: it is fetched next."""
        with self._lock:
            self._manifests[repository, digest] = data
            while sum(map(len, self._manifests.values())) > _REMEMBERED:
                del self._manifests[next(iter(self._manifests))]

    def _first(self, action: Callable[[Client], T]) -> T:
        """Do it with an endpoint that answers and has it, as often as patience allows."""
        return self._patience.persist(lambda: self._once(action), self._notice)

    def _once(self, action: Callable[[Client], T]) -> T:
        """Do it with the first endpoint that answers and has it; those that are down come last.

        Of several failures that of the last endpoint in the person's order is raised: a mirror may
        lack what the registry itself has, but not the other way round.
        """
        now = self._patience.clock()
        failures: dict[Client, TransferFailed] = {}
        for client in sorted(self._clients, key=lambda c: self._down.get(c, 0.0) > now):
            try:
                return action(client)
            except (Unavailable, NotFound) as error:
                failures[client] = error
                if isinstance(error, Unavailable) and len(self._clients) > 1:
                    self._down[client] = self._patience.clock() + _DOWN_FOR
        last = failures.pop(self._clients[-1])
        if failures:
            others = "; ".join(error.message for error in failures.values())
            last.message = f"{last.message}; and {others}"
            last.args = (last.message,)
        raise last


class _Listing(msgspec.Struct):
    tags: list[str] | None = None
    repositories: list[str] | None = None


class _Claims(msgspec.Struct, rename="camel"):
    schema_version: int = 2
    media_type: str = ""
    manifests: list[object] | None = None


def _listing(data: bytes, what: str) -> _Listing:
    try:
        return decode_json(data, _Listing)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TransferFailed(f"{what}: not a list: {error}") from error


def _pages(
    client: Client, path: str, scopes: tuple[str, ...], what: str
) -> list[tuple[str, bytes]]:
    """Content type and body of each page of a list that goes on by Link (RFC 8288)."""
    pages: list[tuple[str, bytes]] = []
    seen: set[str] = set()
    while path not in seen and len(seen) < _MAX_PAGES:
        seen.add(path)
        with client.request("GET", path, what=what, scopes=scopes) as answer:
            pages.append((answer.headers.get("Content-Type", ""), answer.read(_MAX_PAGE)))
            following = _NEXT.search(answer.headers.get("Link", ""))
            if following is None:
                break
            path = client.location(answer, what, following[1])
    return pages


def _media_type(header: str, data: bytes, what: str) -> str:
    """Say what a manifest is: what it says itself, else what the registry says, else its shape."""
    try:
        claims = decode_json(data, _Claims)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Corrupt(f"{what}: not a manifest: {error}") from error
    if claims.schema_version == 1:
        raise TransferFailed(
            f"{what}: an image in Docker's schema 1, which has no digests to carry",
            hint="pull it with an old Docker, push it again, and name the new one",
        )
    declared = header.partition(";")[0].strip()
    for media_type in (claims.media_type, declared):
        if media_type in ACCEPTED_TYPES:
            return media_type
    return OCI_MANIFEST if claims.manifests is None else OCI_INDEX


def _agree(answer: Answer, digest: str, what: str) -> None:
    stored = answer.headers.get("Docker-Content-Digest", digest)
    if stored.startswith("sha256:") and stored != digest:
        raise Corrupt(f"{what}: the registry stored {stored[:80]}, sent was {digest}")


def _content_path(client: Client, repository: str, descriptor: Descriptor) -> str:
    kind = "manifests" if descriptor.is_manifest else "blobs"
    return f"/{client.endpoint.prefix}{repository}/{kind}/{descriptor.digest}"


def _scopes(client: Client, repository: str, actions: str) -> tuple[str, ...]:
    return (f"repository:{client.endpoint.prefix}{repository}:{actions}",)


def _referrers_tag(digest: Digest) -> str:
    return f"sha256-{digest.hex}"


def _without(chunks: Iterator[bytes], skip: int) -> Iterator[bytes]:
    """Leave out the first ``skip`` bytes."""
    for chunk in chunks:
        if skip < len(chunk):
            yield chunk[skip:] if skip else chunk
        skip = max(0, skip - len(chunk))


def _held_back(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Give each chunk when the next one is there: the last one only after all was checked."""
    held = b""
    for chunk in chunks:
        if held:
            yield held
        held = chunk
    if held:
        yield held
