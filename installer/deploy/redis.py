"""Whether a Redis will do for Harbor: asked before anything is changed, as Harbor will ask it.

A port that takes connections says little: a wrong password, a certificate for another name or one
that is asked of the client show only in the logs of pods that start again and again. So a
connection is made here with the same certificate authority, user and password, and one PING.
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import yaml
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from installer.deploy.trust import trust_store
from installer.errors import AirgapError, PreflightFailed
from installer.site.private import read_secret
from installer.site.section import split_address

if TYPE_CHECKING:
    from installer.site.harbor import Redis

_SECONDS = 5.0
_LONGEST = 4096
_WORDS = 200


class Unreachable(AirgapError):
    """Nothing takes a connection, seen from this machine."""


class _Refused(Exception):
    """Redis answered with an error: its words."""


def ask(redis: Redis, address: str) -> str:
    """Log in at ``address`` (host:port) and say so; with Sentinel, at the master that it names.

    Raises Unreachable, and PreflightFailed for what can't work from anywhere; InvalidInput for the
    password's file.
    """
    if redis.password_file:
        check_password(read_secret(Path(redis.password_file)), redis.password_file)
    if not redis.sentinel_master:
        _ping(redis, address)
        return f"{address} answers" + (" over TLS" if redis.tls else "")
    master = _master(redis, address)
    try:
        _ping(redis, master)
    except Unreachable as error:
        raise Unreachable(f"{address} names the master {error.message}") from error
    return f"{address} names the master {master}, which answers"


def check_password(word: str, where: str) -> None:
    """Refuse a password that another one would become on its way; raises PreflightFailed.

    Harbor's chart writes it into URLs as form data, where a space is a plus, and the registry reads
    what it is given as YAML, without quotes (charts 1.18 and 1.19).
    """
    try:
        good = yaml.safe_load(f"password: {word}") == {"password": word} and " " not in word
    except yaml.YAMLError:
        good = False
    if not good:
        raise PreflightFailed(
            f"{where}: this password would reach Harbor's pods as another one: it has a space, is "
            "a number, or is not what it seems to be in YAML",
            hint="take a long one of letters, digits and - . _",
        )


def _ping(redis: Redis, address: str) -> None:
    with _Connection(redis, address) as connection:
        try:
            _log_in(redis, connection)
            answer = connection("PING")
        except _Refused as error:
            raise PreflightFailed(f"{address}: {error}", hint=_hint(str(error))) from None
    if answer != "PONG":
        raise PreflightFailed(f"{address}: PING is not answered as a Redis does", hint=_PORT)


def _master(redis: Redis, address: str) -> str:
    words = ("SENTINEL", "get-master-addr-by-name", redis.sentinel_master)
    with _Connection(redis, address) as connection:
        try:
            try:
                found = connection(*words)
            except _Refused as error:
                if not str(error).startswith("NOAUTH"):
                    raise
                _log_in(redis, connection)
                found = connection(*words)
        except _Refused as error:
            raise PreflightFailed(f"{address}: {error}", hint="is it a Sentinel?") from None
    if not isinstance(found, list) or len(found) != 2:  # noqa: PLR2004 - address and port
        raise PreflightFailed(
            f"{address}: this Sentinel knows no master {redis.sentinel_master!r}",
            hint="redis.sentinelMaster is the name in `sentinel monitor NAME …`",
        )
    host, port = found
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def _log_in(redis: Redis, connection: _Connection) -> None:
    if redis.password_file:
        password = read_secret(Path(redis.password_file))
        connection("AUTH", *([redis.username] if redis.username else []), password)


_PORT = "is it the port of a Redis, and does `tls` say what that port speaks?"

# What a server says to a client that shows no certificate depends on the version of TLS, and with
# 1.3 it comes only after the handshake, or as a closed connection.
_CLIENT = (
    "does it want a certificate of its clients? Harbor has none to show: write `tls-auth-clients "
    "no` or `optional` into redis.conf; or is it a port without TLS?"
)


def _hint(words: str) -> str:
    if words.startswith("WRONGPASS"):
        return "look at redis.username and the file that redis.passwordFile names"
    if words.startswith("NOAUTH"):
        return "name a file with its password: redis.passwordFile"
    if words.startswith("DENIED"):
        return "it takes connections from its own machine only: give it a password"
    if "without any password" in words:
        return "it has no password: leave redis.passwordFile out, or better set one"
    return "Harbor's pods will be told the same"


class _Connection:
    """Sends commands to a Redis, one at a time (RESP2)."""

    def __init__(self, redis: Redis, address: str) -> None:
        self._redis = redis
        self._address = address

    def __enter__(self) -> Self:
        host, port = split_address(self._address)
        try:
            self._socket = socket.create_connection((host, port), timeout=_SECONDS)
        except OSError as error:
            raise Unreachable(f"{self._address}: {error.strerror or error}") from error
        try:
            if self._redis.tls:
                self._socket = self._secured(host)
            self._file: IO[bytes] = self._socket.makefile("rb")
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def _secured(self, host: str) -> ssl.SSLSocket:
        ca = self._redis.ca or trust_store() or DEFAULT_CA_BUNDLE_PATH
        try:
            context = ssl.create_default_context(cafile=ca)
        except OSError as error:
            raise PreflightFailed(
                f"redis.ca: {ca}: {error.strerror or 'no certificates'}", hint="PEM is expected"
            ) from error
        # Programs in Go, which Harbor's are, take what RFC 5280 would not.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        try:
            return context.wrap_socket(self._socket, server_hostname=host)
        except ssl.SSLCertVerificationError as error:
            raise PreflightFailed(
                f"{self._address}: its certificate is refused: {error.verify_message}",
                hint="write the name that its certificate is for, and as redis.ca the authority "
                "that issued it",
            ) from error
        except OSError as error:
            raise PreflightFailed(
                f"{self._address}: no TLS: {_said(error)}", hint=_CLIENT
            ) from error

    def __call__(self, *words: str) -> Any:
        """Answer to a command; raises _Refused with Redis' words, PreflightFailed."""
        parts = [word.encode() for word in words]
        data = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        try:
            self._socket.sendall(b"*%d\r\n%s" % (len(parts), data))
            return self._answer()
        except (OSError, ValueError) as error:
            raise PreflightFailed(
                f"{self._address}: no answer of a Redis: {_said(error)}",
                hint=_CLIENT if self._redis.tls else _PORT,
            ) from error

    def _answer(self) -> Any:
        line = self._file.readline(_LONGEST)
        if not line.endswith(b"\r\n"):
            raise ValueError("the connection was closed" if not line else "other words")
        kind, text = line[:1], line[1:-2].decode(errors="replace")
        if kind == b"-":
            raise _Refused(text[:_WORDS])
        if kind == b"+":
            return text
        size = int(text)
        if kind == b"$":
            if not -1 <= size <= _LONGEST:
                raise ValueError("other words")
            return None if size < 0 else self._file.read(size + 2)[:-2].decode(errors="replace")
        if kind == b"*":
            return None if size < 0 else [self._answer() for _ in range(min(size, _LONGEST))]
        if kind == b":":
            return size
        raise ValueError("other words")


def _said(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return str(error.reason or error).replace("_", " ").lower()
    return str(getattr(error, "strerror", None) or error or "it took too long")
