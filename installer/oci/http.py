"""HTTP as registries speak it: patient, bounded, and careful about who is told a secret.

A ``Client`` talks to one endpoint through one pool of connections that its threads share (measured:
as fast as a session a thread, and a token is fetched once). It sends through the adapter of
requests rather than a Session, because a Session does three things that must not happen here: it
reads ``~/.netrc``, keeps cookies (Harbor then wants a CSRF token), and follows redirects on its
own. Redirects are followed here, and Authorization stays with the origin that it was given for.

A request is sent once; ``Patience.persist`` repeats what may be repeated: with backoff and jitter,
as Retry-After says, a bounded number of times, and each time said to whoever listens. Whatever
fails in the end says which host, which artefact, which status, what the registry itself said, and
how often it was tried. URLs stay out of messages: signed ones are secrets.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

import msgspec

from installer.bundle.digest import CHUNK
from installer.errors import (
    AirgapError,
    Corrupt,
    InvalidInput,
    NotFound,
    TransferFailed,
    cause_of,
)
from installer.oci.auth import Authority, Credentials, TokenRequest
from installer.oci.hosts import DIRECT
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    import requests

    from installer.oci.hosts import Endpoint

    Notice = Callable[["Retry"], object]

T = TypeVar("T")

_SMALL = 1 << 16
_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BUSY = (429, 500, 502, 503, 504)
_CONNECTIONS = 32
_MOMENT = 0.001
"""Seconds: a pause that is shorter may not move a clock at all."""
_LONGEST_PAUSE = 10.0
"""Seconds: a server that was away is found again not much later than it is back."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait and how often to try again; times in seconds.

    ``read`` is the silence after which a connection counts as dead; so does one whose body has come
    with less than ``speed_limit`` bytes a second for ``speed_time``. ``backoff`` doubles with each
    attempt. A server that asks for more than ``longest`` is not waited for. One that is away is
    asked until ``attempts`` are used up and ``outage`` has passed. So a server that accepts
    connections and stays silent is given up after ``attempts`` times ``read`` and the pauses.
    """

    connect: float = 10
    read: float = 30
    speed_limit: float = 1024
    speed_time: float = 60
    attempts: int = 5
    backoff: float = 0.5
    longest: float = 60
    outage: float = 0
    sleep: Callable[[float], object] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def pause(self, attempt: int) -> float:
        """Seconds to wait after the given failed attempt (counted from 1), with jitter."""
        import random  # noqa: PLC0415  # rarely needed

        spread = 0.5 + random.random()  # noqa: S311  # keeps clients apart
        return min(_LONGEST_PAUSE, self.backoff * 2.0 ** min(attempt - 1, 30) * spread)

    def persist(self, action: Callable[[], T], notice: Notice | None = None) -> T:
        """Do it, again while Unavailable is raised and patience lasts; says then what was tried.

        ``notice`` is told of each failure before the pause that follows it.
        """
        began, attempt = self.clock(), 1
        while True:
            try:
                return action()
            except Unavailable as error:
                # A connection that was kept too long says nothing about the server.
                hasty = attempt == 1 and not error.status
                pause = 0.0 if hasty else max(error.retry_after, self.pause(attempt))
                gone = self.clock() - began
                left = self.outage - gone
                spent = attempt >= self.attempts and left < _MOMENT
                if attempt >= self.attempts:
                    pause = max(error.retry_after, min(pause, left))
                if spent or error.retry_after > self.longest:
                    if attempt > 1:
                        error.add(f"; tried {attempt} times in {gone:.0f} s")
                    raise
                if notice is not None and not hasty:
                    notice(Retry(error.host, error.message, attempt, pause))
            self.sleep(pause)
            attempt += 1


@dataclass(frozen=True, slots=True)
class Retry:
    """A failed attempt that is followed by another after ``pause`` seconds."""

    host: str
    reason: str
    attempt: int
    pause: float


class Unavailable(TransferFailed):
    """Connection, 429 or 5xx: another attempt or another endpoint may do.

    ``host`` is who was asked, ``status`` its answer (0: none), ``retry_after`` how many seconds it
    asked to wait (0: it said nothing).
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        host: str = "",
        status: int = 0,
        retry_after: float = 0,
    ) -> None:
        super().__init__(message, hint=hint)
        self.host = host
        self.status = status
        self.retry_after = retry_after

    def add(self, words: str) -> None:
        """Say more at the end of the message."""
        self.message += words
        self.args = (self.message,)


class BrokenOff(Unavailable):
    """A body ended too early: what came so far may be kept, and the rest asked for."""


class PolicyRefused(TransferFailed):
    """Harbor has it, and a policy of its project refuses this: HTTP 412."""


class Upload:
    """A body of known length that is streamed from an iterable; each attempt asks for a new one."""

    def __init__(self, content: Callable[[], Iterable[bytes]], size: int) -> None:
        self._content = content
        self._size = size
        self.failure: Exception | None = None

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._content()
        except Exception as error:
            # urllib3 would take an OSError of the source for one of the connection.
            self.failure = error
            raise


class Answer:
    """A response whose body is read as a stream; leaving the ``with`` block gives it back."""

    def __init__(self, response: requests.Response, what: str) -> None:
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.url: str = response.url or ""
        self._response = response
        self._what = what

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(reuse=kind is None)

    def close(self, *, reuse: bool = True) -> None:
        """End it; with ``reuse`` a short rest of the body is read, so that the connection stays."""
        import urllib3  # noqa: PLC0415  # loaded with the client

        if reuse:
            with suppress(urllib3.exceptions.HTTPError, OSError):
                self._response.raw.read(_SMALL, decode_content=False)
        self._response.close()

    def chunks(self) -> Iterator[bytes]:
        """Give the body as it comes from the wire; raises BrokenOff when it ends too early."""
        import urllib3  # noqa: PLC0415  # loaded with the client

        read = self._response.raw.read
        seen = 0
        try:
            while chunk := read(CHUNK, decode_content=False):
                seen += len(chunk)
                yield chunk
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise BrokenOff(
                f"{self._what}: the connection broke off after {seen} bytes: {cause_of(error)}",
                hint="run it again: what is complete is kept",
                host=urlsplit(self.url).netloc,
            ) from error

    def read(self, limit: int) -> bytes:
        """Read a small body whole; raises Corrupt when it has more than ``limit`` bytes."""
        data = bytearray()
        for chunk in self.chunks():
            data += chunk
            if len(data) > limit:
                raise Corrupt(f"{self._what}: more than {limit} bytes")
        return bytes(data)


class Client:
    """Requests to one endpoint of the registry ``host``; safe to share between threads.

    ``credentials`` are sent to this endpoint and to the token service that it names, and nowhere
    else. ``environment`` says whether its proxies and CA certificates count. If so, the CA of the
    endpoint is trusted besides the usual ones, here and where the registry redirects to, as docker
    does; if not, it alone is, as a site means it. Raises InvalidInput when its file is missing or
    has no certificate.
    """

    def __init__(
        self,
        host: str,
        endpoint: Endpoint,
        credentials: Credentials | None = None,
        patience: Patience | None = None,
        *,
        environment: bool = True,
    ) -> None:
        from installer.oci.adapter import Adapter  # noqa: PLC0415  # 83 ms: only for the network

        authorities = _authorities(host, endpoint.ca) if endpoint.ca else ""
        if endpoint.cert is not None:
            _check_client_certificate(host, endpoint.cert, endpoint.key)
        self.endpoint = endpoint
        self.patience = patience or Patience()
        self._host = host
        self._environment = environment
        self._pinned = None if environment else endpoint.ca
        self._origin = _origin(endpoint.api)
        self._authority = Authority(credentials, self._token)
        self._settings: dict[str, dict[str, Any]] = {}
        besides = "" if self._pinned else authorities
        self._adapter = Adapter(self.patience, besides, _CONNECTIONS)

    def close(self) -> None:
        """Close every connection."""
        self._adapter.close()

    def request(
        self,
        method: str,
        url: str,
        *,
        what: str,
        accepted: tuple[int, ...] = (200,),
        scopes: tuple[str, ...] = (),
        headers: Mapping[str, str] | None = None,
        body: bytes | Upload | None = None,
    ) -> Answer:
        """Send a request and give the answer if its status is an accepted one.

        ``url`` is a path below the API or a whole URL that the registry named; ``what`` is the
        artefact in errors; ``scopes`` is what a token has to open. Raises NotFound, Unavailable,
        TransferFailed or Corrupt.
        """
        url = self.endpoint.api + url if url.startswith("/") else url
        renewed = False
        hops = 0
        while True:
            ours = _origin(url) == self._origin
            authorization = self._authority.header(scopes) if ours else None
            answer = self._send(method, url, headers or {}, authorization, body, what)
            if answer.status in accepted:
                return answer
            with answer:
                if answer.status == HTTPStatus.UNAUTHORIZED and ours and not renewed:
                    renewed = True
                    challenge = answer.headers.get("WWW-Authenticate", "")
                    if self._authority.renew(challenge, scopes, authorization):
                        continue
                if answer.status in _REDIRECTS and method in ("GET", "HEAD"):
                    hops += 1
                    url = self.location(answer, what)
                    if hops <= _MAX_REDIRECTS:
                        continue
                raise self._refusal(answer, what)

    def location(self, answer: Answer, what: str, link: str | None = None) -> str:
        """Make a link (of Location) absolute; raises TransferFailed for an unsafe one."""
        found = answer.headers.get("Location", "") if link is None else link
        try:
            url = urljoin(answer.url, found)
        except ValueError:  # as for http://[::1
            url = ""
        scheme, host, _ = _origin(url)
        if not found or scheme not in ("http", "https") or not host:
            raise TransferFailed(f"{what}: HTTP {answer.status} without a usable Location")
        if scheme == "http" and urlsplit(answer.url).scheme == "https":
            raise TransferFailed(
                f"{what}: sends us from https to plain http at {host}",
                hint="the proxy in front of the registry has to set X-Forwarded-Proto: https",
            )
        return url

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        authorization: str | None,
        body: bytes | Upload | None,
        what: str,
    ) -> Answer:
        import requests  # noqa: PLC0415  # loaded by __init__
        import urllib3  # noqa: PLC0415

        sent = {"User-Agent": _user_agent(), "Accept-Encoding": "identity", **headers}
        if authorization:
            sent["Authorization"] = authorization
        try:
            prepared = requests.Request(method, url, headers=sent, data=body).prepare()
            response = self._adapter.send(
                prepared,
                stream=True,
                timeout=(self.patience.connect, self.patience.read),
                **self._reach(url),
            )
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            if isinstance(body, Upload) and body.failure is not None:
                raise body.failure from None
            raise _unreachable(error, self._at(url, what), urlsplit(url).netloc) from error
        return Answer(response, self._at(url, what))

    def _at(self, url: str, what: str) -> str:
        """Name the artefact, and the host if it is another than the artefact's own."""
        host = urlsplit(url).netloc
        return what if host == self._host else f"{what} (at {host})"

    def _reach(self, url: str) -> dict[str, Any]:
        """Proxies and certificates for a host; the environment is asked once."""
        key = urlsplit(url).netloc
        if key not in self._settings:
            import requests  # noqa: PLC0415  # loaded by __init__

            with requests.Session() as session:
                session.trust_env = self._environment
                found = session.merge_environment_settings(url, {}, None, None, None)
            at = self.endpoint
            proxies = found["proxies"]
            if at.proxy:
                named = {} if at.proxy == DIRECT else {"http": at.proxy, "https": at.proxy}
                proxies = named
            self._settings[key] = {
                "proxies": proxies,
                "verify": str(self._pinned) if self._pinned else found["verify"],
                # Who one is, is told to the registry alone: not to where it redirects to.
                "cert": at.certificate if _origin(url) == self._origin else None,
            }
        return self._settings[key]

    def _token(self, asked: TokenRequest) -> tuple[str, float]:
        """Ask the token service; give the token and how many seconds it lives."""
        what = f"{self._host}: token service"
        realm, authorization = asked.realm, asked.basic
        secret = authorization or asked.identity_token
        if _origin(realm)[0] not in ("http", "https"):
            raise TransferFailed(f"{what}: its address is no URL")
        if secret and self._origin[0] == "https" and _origin(realm)[0] != "https":
            raise TransferFailed(
                f"{what}: wants the password without TLS at {urlsplit(realm).netloc}",
                hint="the registry's token realm has to be an https URL",
            )
        url = f"{realm}{'&' if urlsplit(realm).query else '?'}{asked.query}"
        home = _origin(url)
        if asked.identity_token:
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            with self._send("POST", realm, form, None, asked.form, what) as answer:
                return self._read_token(answer, what)
        for _ in range(_MAX_REDIRECTS):
            ours = authorization if _origin(url) == home else None
            with self._send("GET", url, {}, ours, None, what) as answer:
                if answer.status in _REDIRECTS:
                    url = self.location(answer, what)
                    continue
                return self._read_token(answer, what)
        raise TransferFailed(f"{what}: redirected too often")

    def _read_token(self, answer: Answer, what: str) -> tuple[str, float]:
        if answer.status != HTTPStatus.OK:
            raise self._refusal(answer, what)
        try:
            reply = decode_json(answer.read(CHUNK), _TokenReply)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TransferFailed(f"{what}: not a token reply: {error}") from error
        token = reply.token or reply.access_token
        if not token or not token.isascii() or not token.isprintable():
            raise TransferFailed(f"{what}: gave no token")
        return token, reply.expires_in or 60

    def _refusal(self, answer: Answer, what: str) -> AirgapError:
        status = answer.status
        words, codes = _words(answer)
        message = f"{self._at(answer.url, what)}: HTTP {status}" + (f": {words}" if words else "")
        if "DIGEST_INVALID" in codes:
            return Corrupt(message)
        if status == HTTPStatus.NOT_FOUND:
            return NotFound(message, hint="check host, name and tag; a private one needs a login")
        if status == HTTPStatus.PRECONDITION_FAILED:
            return PolicyRefused(message, hint=_POLICY)
        if status in _BUSY:
            wait = _seconds(answer.headers.get("Retry-After", ""))
            asked = f"it asks to wait {wait:.0f} s; " if wait else ""
            hint = "the registry has trouble: see its log, and run it again"
            if status == HTTPStatus.TOO_MANY_REQUESTS:
                hint = "the registry limits requests: log in, or use a mirror"
            host = urlsplit(answer.url).netloc
            return Unavailable(
                message, hint=asked + hint, host=host, status=status, retry_after=wait
            )
        if status == HTTPStatus.BAD_REQUEST and "HTTPS server" in words:
            return TransferFailed(
                message, hint=f"it speaks TLS: write https://{self.endpoint.host} as its endpoint"
            )
        return TransferFailed(message, hint=_HINTS.get(status, ""))


_POLICY = (
    "a policy of the project: content trust wants a signature (`installer image sign`), another "
    "one a scan without findings; an immutable tag can't be set again"
)
_HINTS = {
    401: "log in to this registry, or check user name and password",
    403: "this login may not do that, or there is no such repository",
    405: "this registry is read-only: a cache or a mirror can't be pushed to",
    413: "a proxy in front of the registry limits the size of uploads (client_max_body_size)",
    507: "the registry's disk is full",
} | dict.fromkeys(_REDIRECTS, "write the address that it redirects to as its endpoint")


class _TokenReply(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: float | None = None


class _Word(msgspec.Struct):
    code: str = ""
    message: str | None = None


class _Words(msgspec.Struct):
    errors: list[_Word] = []


def _words(answer: Answer) -> tuple[str, frozenset[str]]:
    """What a registry said about an error, on one line, and its error codes."""
    try:
        body = answer.read(_SMALL)
    except (Corrupt, Unavailable):
        return "", frozenset()
    try:
        errors = decode_json(body, _Words).errors
    except (msgspec.DecodeError, UnicodeDecodeError):
        html = "html" in answer.headers.get("Content-Type", "")
        return "" if html else _line(body.decode("utf-8", "replace")), frozenset()
    said = (f"{e.code} ({e.message})" if e.message else e.code for e in errors)
    return _line(", ".join(said)), frozenset(e.code for e in errors)


def _line(text: str) -> str:
    """Make foreign text fit for a terminal: one line, no control characters, not long."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))[:300]


def _seconds(retry_after: str) -> float:
    """Seconds of a Retry-After header, which is a number or a date; 0 for anything else."""
    if re.fullmatch(r"\s*[0-9]{1,9}\s*", retry_after):
        return float(retry_after)
    from email.utils import parsedate_to_datetime  # noqa: PLC0415  # rarely needed

    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _unreachable(error: Exception, what: str, host: str) -> TransferFailed:
    """Say why no answer came; never with the URL, which may be a signed one."""
    import requests  # noqa: PLC0415  # loaded by the client

    cause = cause_of(error)
    message = f"{what}: {cause}"
    if isinstance(error, requests.exceptions.ProxyError):
        return Unavailable(message, hint="check HTTPS_PROXY, HTTP_PROXY and NO_PROXY", host=host)
    if isinstance(error, requests.exceptions.SSLError):
        if "CERTIFICATE_VERIFY_FAILED" in cause:
            hint = "name its CA file as `ca` of this host in registries.yaml"
        elif any(word in cause for word in ("WRONG_VERSION_NUMBER", "RECORD_LAYER", "TOO_LONG")):
            hint = "it seems to speak plain HTTP: write its endpoint with http://"
        elif "EOF" in cause:  # it hung up in the handshake, as one does that is starting
            return Unavailable(message, hint="check the registry's TLS", host=host)
        else:
            hint = "check certificate and TLS version of the registry"
        return TransferFailed(message, hint=hint)
    if isinstance(error, requests.Timeout):
        hint = "check network and proxy"
        return Unavailable(f"{what}: no answer: {cause}", hint=hint, host=host)
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
        return TransferFailed(f"{what}: not a URL")
    hint = "check that the registry runs and can be reached from here"
    if "Name or service" in cause or "name resolution" in cause:
        hint = "its name can't be looked up: check the spelling, and the name server (DNS)"
    return Unavailable(message, hint=hint, host=host)


def _authorities(host: str, ca: Path) -> str:
    """Read the certificates of a CA file; raises InvalidInput."""
    import ssl  # noqa: PLC0415  # loaded with the client

    why = f"no CA file {ca}"
    try:
        # Only between certificates, in what is said of them, may other characters stand.
        text = ca.read_bytes().decode("ascii", "ignore")
        why = f"no certificate in the CA file {ca}"
        ssl.create_default_context(cadata=text or "none")
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{host}: {why}",
            hint="`ca` is a PEM file, relative to the registries.yaml that names it",
        ) from error
    return text


def _check_client_certificate(host: str, cert: Path, key: Path | None) -> None:
    """Refuse what TLS would stumble over later, and with less words; raises InvalidInput."""
    import ssl  # noqa: PLC0415  # loaded with the client

    try:
        # Without an answer OpenSSL would ask for a passphrase on the terminal.
        ssl.create_default_context().load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ValueError) as error:
        file = cert if not cert.is_file() else key if key and not key.is_file() else None
        why = f"no file {file}" if file else f"{cert} and its key: {cause_of(error)}"
        raise InvalidInput(
            f"{host}: client certificate: {why}",
            hint="`cert` and `key` are PEM files that belong together, the key without passphrase",
        ) from error


def _origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port: what a secret belongs to."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return "", "", None
    return parts.scheme, parts.hostname or "", port


@cache
def _user_agent() -> str:
    import importlib.metadata  # noqa: PLC0415  # once, and only for the network

    try:
        version = importlib.metadata.version("harbor-airgap")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    return f"harbor-airgap/{version}"
