"""Harbor's API v2.0, as one client that all rooms use.

What practice shows of it (2.12 to 2.15) is dealt with here. Cookies are refused, because Harbor
takes who brings one back for a browser and asks for a CSRF token. A wrong password is not always
401: what is open to everybody is answered as to nobody, so the first thing asked is who we are. A
list comes in pages of at most 100; a repository's name with a slash is encoded twice. A refusal
becomes a sentence with Harbor's own words in it. What was set is for the caller to read back:
Harbor answers 200 to what it ignores.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar, overload
from urllib.parse import quote, urlencode

import msgspec

from installer.errors import DeploymentFailed, PreflightFailed
from installer.redaction import redact
from installer.site.http import Answer, Connection, NotAnswering
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Query = Mapping[str, str | int | bool]

T = TypeVar("T")

BASE = "/api/v2.0"
_PAGE = 100
"""Most entries that Harbor gives at once; more is 422."""
_MOST_PAGES = 10_000
_MAX_BYTES = 256 * 1024 * 1024
"""Of one answer: the vulnerability report of a large image has some ten MB."""
_TIMEOUT = 60.0
"""Seconds: Harbor itself asks others before it answers (endpoints, scanners, directories)."""
PAUSES = (1.0, 2.0, 4.0)
"""Seconds before each further try of a request that may be made twice."""
_REPEATABLE = ("GET", "HEAD", "PUT")
_PASSING = (
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
)
_WORDS = 500
_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?")


class WrongPassword(PreflightFailed):
    """Harbor answers, and lets nobody in with a password that is known here."""


class HarborRefused(DeploymentFailed):
    """Harbor answered, but not with 2xx: ``status`` is the HTTP status, ``words`` Harbor's own."""

    def __init__(self, method: str, url: str, status: int, words: str, *, hint: str = "") -> None:
        super().__init__(
            f"{url}: {method}: HTTP {status}{f': {words}' if words else ''}", hint=hint
        )
        self.method = method
        self.url = url
        self.status = status
        self.words = words

    def with_hint(self, hint: str) -> HarborRefused:
        """The same with what to do next."""
        return HarborRefused(self.method, self.url, self.status, self.words, hint=hint)


@dataclass(frozen=True, order=True)
class Version:
    """A release of Harbor; compared by its numbers."""

    major: int
    minor: int
    patch: int = 0

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


@dataclass(frozen=True)
class Created:
    """What a POST made: where it is (``/api/v2.0/projects/4``), and the answer's JSON or None."""

    location: str
    document: Any

    @property
    def id(self) -> str:
        """Last part of the location, which names it; "" without one."""
        return self.location.rpartition("/")[2]


class _Error(msgspec.Struct):
    message: str = ""
    code: str = ""


class _Errors(msgspec.Struct):
    errors: list[_Error] = []


class _SystemInfo(msgspec.Struct):
    harbor_version: str = ""


def segment(name: str) -> str:
    """A name as a part of a path: encoded twice if it has a slash, as only Harbor wants it."""
    once = quote(name, safe="")
    return quote(once, safe="") if "/" in name else once


class HarborClient:
    """One Harbor at its external URL, asked as ``username``.

    ``ca`` is the path of what https is checked with, "" for the system's. ``passwords`` are tried
    in order, once, before the first request; without any Harbor is asked as nobody. ``secrets``
    are texts besides these that no error may show. ``pauses`` are the seconds before each further
    try of what may be made twice. Paths start after ``/api/v2.0`` and name projects by their names,
    also those that look like a number. Not for several threads at once.

    All methods raise NotAnswering, WrongPassword, and HarborRefused for another answer than 2xx.
    """

    def __init__(
        self,
        external_url: str,
        ca: str = "",
        passwords: Sequence[str] = (),
        *,
        username: str = "admin",
        secrets: Sequence[str] = (),
        pauses: Sequence[float] = PAUSES,
    ) -> None:
        self._root = external_url.rstrip("/")
        self._ca = ca
        self._passwords = list(passwords)
        self._username = username
        self._secrets = [*passwords, *secrets]
        self._pauses = tuple(pauses)
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; the next request logs in again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def url(self) -> str:
        """Where it is, without a slash at its end."""
        return self._root

    def hide(self, *secrets: str) -> None:
        """Let no error show these texts either."""
        self._secrets += secrets

    def login(self) -> None:
        """Log in, if that is not done yet; every request does so by itself.

        Asked is who we are, because what is open to everybody tells nothing of a password. Of a
        robot Harbor says with 412 that it is one.
        """
        self._connected()

    def version(self) -> Version:
        """The release that Harbor says it is; raises DeploymentFailed for no number."""
        said = self.get("/systeminfo", type=_SystemInfo).harbor_version
        match = _VERSION.match(said)
        if match is None:
            raise DeploymentFailed(f"{self._root}: Harbor's version is no number: {said[:40]!r}")
        return Version(int(match[1]), int(match[2]), int(match[3] or 0))

    def exists(self, path: str, query: Query | None = None) -> bool:
        """Whether a HEAD finds it: False for 404."""
        try:
            self._ask("HEAD", path, query)
        except HarborRefused as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return False
            raise
        return True

    @overload
    def get(self, path: str, query: Query | None = None) -> Any: ...
    @overload
    def get(self, path: str, query: Query | None = None, *, type: type[T]) -> T: ...
    def get(
        self,
        path: str,
        query: Query | None = None,
        *,
        type: Any = Any,  # noqa: A002 (as msgspec calls it)
    ) -> Any:
        """JSON of an answer as ``type``; None for an empty body where any type will do.

        Raises DeploymentFailed for what is not that.
        """
        answer = self._ask("GET", path, query)
        return self._decode(path, answer, type)

    def text(self, path: str, query: Query | None = None) -> str:
        """An answer that is text, such as the log of a task."""
        return self._ask("GET", path, query).body.decode(errors="replace")

    @overload
    def pages(self, path: str, query: Query | None = None) -> Iterator[Any]: ...
    @overload
    def pages(self, path: str, query: Query | None = None, *, type: type[T]) -> Iterator[T]: ...
    def pages(
        self,
        path: str,
        query: Query | None = None,
        *,
        type: Any = Any,  # noqa: A002 (as msgspec calls it)
    ) -> Iterator[Any]:
        """Every entry of a list, page after page."""
        for page in range(1, _MOST_PAGES):
            answer = self._ask("GET", path, {**(query or {}), "page": page, "page_size": _PAGE})
            yield from self._decode(path, answer, list[type] | None) or ()
            if 'rel="next"' not in answer.headers.get("Link", ""):
                return

    def post(
        self,
        path: str,
        document: Any = None,
        query: Query | None = None,
    ) -> Created:
        """Make something, or start it; never sent twice."""
        answer = self._ask("POST", path, query, document)
        return Created(answer.headers.get("Location", ""), self._decode(path, answer, Any))

    def put(
        self,
        path: str,
        document: Any = None,
        query: Query | None = None,
    ) -> None:
        """Set something."""
        self._ask("PUT", path, query, document)

    def patch(self, path: str, document: Any = None) -> Any:
        """Change something, never sent twice; gives the answer's JSON, or None."""
        return self._decode(path, self._ask("PATCH", path, None, document), Any)

    def delete(self, path: str, *, missing_ok: bool = False) -> None:
        """Take something away; with ``missing_ok`` also what is not there."""
        try:
            self._ask("DELETE", path, None)
        except HarborRefused as error:
            if not (missing_ok and error.status == HTTPStatus.NOT_FOUND):
                raise

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._login()
        return self._connection

    def _login(self) -> Connection:
        if not self._passwords:
            return Connection(self._ca, max_bytes=_MAX_BYTES)
        for password in self._passwords:
            connection = Connection(self._ca, (self._username, password), _MAX_BYTES)
            answer = self._send(connection, "GET", f"{BASE}/users/current")
            if answer.good or answer.status == HTTPStatus.PRECONDITION_FAILED:
                return connection
            connection.close()
            if answer.status != HTTPStatus.UNAUTHORIZED:
                self._refuse("GET", f"{BASE}/users/current", answer)
        raise WrongPassword(
            f"{self._root}: Harbor doesn't take the password of {self._username} that is known "
            "here",
            hint="somebody has changed it: write today's into a file and name that as "
            "harbor.adminPasswordFile"
            if self._username == "admin"
            else "",
        )

    def _ask(
        self,
        method: str,
        path: str,
        query: Query | None,
        document: Any = None,
    ) -> Answer:
        target = BASE + path
        if query:
            target += "?" + urlencode({key: _text(value) for key, value in query.items()})
        answer = self._send(self._connected(), method, target, document)
        if not HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
            self._refuse(method, target, answer)
        return answer

    def _send(
        self, connection: Connection, method: str, target: str, document: Any = None
    ) -> Answer:
        url = self._root + target
        # Without it a project called 2024 is looked for by its id.
        headers = {"X-Is-Resource-Name": "true"} if target.startswith(f"{BASE}/projects/") else {}
        pauses = list(self._pauses) if method in _REPEATABLE else []
        while True:
            try:
                answer = connection.request(
                    method, url, document=document, headers=headers, timeout=_TIMEOUT
                )
            except NotAnswering:
                if not pauses:
                    raise
            else:
                if answer.status not in _PASSING:
                    return answer
                if not pauses:
                    raise NotAnswering(url, f"HTTP {answer.status}")
            time.sleep(pauses.pop(0))

    def _refuse(self, method: str, target: str, answer: Answer) -> NoReturn:
        try:
            found = decode_json(answer.body, _Errors).errors
            words = "; ".join(error.message or error.code for error in found)
        except (msgspec.DecodeError, UnicodeDecodeError):
            words = ""
        words = redact(" ".join(words.split())[:_WORDS], self._secrets)
        hint = ""
        if answer.status == HTTPStatus.FORBIDDEN and "read only" in words:
            hint = "Harbor is set read-only: an upgrade of ours lifts that itself, else an admin"
        url = redact(self._root + target, self._secrets)
        raise HarborRefused(method, url, answer.status, words, hint=hint)

    def _decode(self, path: str, answer: Answer, type_: Any) -> Any:
        if not answer.body.strip():
            if type_ is Any or answer.status != HTTPStatus.OK:
                return None
            raise DeploymentFailed(f"{self._root}{BASE}{path}: the answer is empty")
        try:
            return decode_json(answer.body, type_)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DeploymentFailed(
                f"{self._root}{BASE}{path}: the answer is not Harbor's: {error}"
            ) from None


def _text(value: str | int | bool) -> str:  # noqa: FBT001 (a value, not a switch)
    return str(value).lower() if isinstance(value, bool) else str(value)
