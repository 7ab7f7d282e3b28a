"""The HTTP(S) server in front: cookies and CSRF, routes, and Harbor's order of checks."""

from __future__ import annotations

import re
import secrets
import threading
import time
import traceback
from contextlib import suppress
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from tests.harbor_double.accounts import account, basic, log_in
from tests.harbor_double.call import HANDLERS, Answer, Call, NotHere, Refused, forbidden
from tests.harbor_double.specification import BASE
from tests.harbor_double.system import READ_ONLY

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from tests.harbor_double import HarborDouble

_UNSAFE = ("POST", "PUT", "PATCH", "DELETE")
_STAYS_OPEN = re.compile(r"PUT /api/v2.0/configurations|POST /c/login")
_BAD_GATEWAY = (
    "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n"
    "<center><h1>502 Bad Gateway</h1></center>\r\n<hr><center>nginx</center>\r\n"
    "</body>\r\n</html>\r\n"
)
_PORTAL = (
    '<!DOCTYPE html>\n<html>\n    <head>\n        <meta charset="utf-8"/>\n'
    "        <title>Harbor</title>\n"
)
_SECONDS_WITHOUT_A_WORD = 30


class Server(ThreadingHTTPServer):
    """One double's server; what went wrong in the double itself is kept in ``mistakes``."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, double: HarborDouble, context: ssl.SSLContext | None) -> None:
        super().__init__((double.address, double.port), Handler)
        self.double = double
        self.context = context

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are no mistake."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = _SECONDS_WITHOUT_A_WORD
    disable_nagle_algorithm = True  # headers and body are two writes: 40 ms for each answer
    server_version = "nginx"
    sys_version = ""

    def setup(self) -> None:
        """The TLS handshake belongs to the connection's own thread."""
        if self.server.context:
            self.request = self.server.context.wrap_socket(self.request, server_side=True)
        super().setup()

    def finish(self) -> None:
        """The server closes only the socket that it knows of."""
        with suppress(OSError):
            super().finish()
        if self.server.context:
            self.request.close()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base's name
        """Nothing is printed."""

    def _any(self) -> None:
        body = self._body()
        self.server.double.requests.append((self.command, self.path))
        status, headers, content = self._answer(body)
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
        except OSError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _any  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(  # noqa: PLR0911  the order of Harbor's checks
        self, body: bytes
    ) -> tuple[int, Mapping[str, str], bytes]:
        double = self.server.double
        path, _, query = self.path.partition("?")
        if double.gateway_down or {"core", "redis"} & double.state.down:
            return 502, {"Content-Type": "text/html"}, _BAD_GATEWAY.encode()
        cookies = {
            name: one.value for name, one in SimpleCookie(self.headers.get("Cookie", "")).items()
        }
        extra: dict[str, str] = {
            "X-Request-Id": self.headers.get("X-Request-Id") or secrets.token_hex(16)
        }
        if not path.startswith(("/api/", "/v2", "/c/", "/service/")):
            return 200, {"Content-Type": "text/html"}, _PORTAL.encode()
        sid = cookies.get("sid", "")
        registry = path.startswith(("/v2", "/service/"))
        if sid and not registry:
            extra["X-Harbor-CSRF-Token"] = double.csrf
            extra["Set-Cookie"] = f"_gorilla_csrf={double.csrf}; Path=/; HttpOnly"
        elif not sid:
            extra["Set-Cookie"] = f"sid={secrets.token_hex(16)}; Path=/; HttpOnly"
        if self.command in _UNSAFE and not registry and (sid or path.startswith("/c/")):
            token = self.headers.get("X-Harbor-CSRF-Token", "")
            if token != double.csrf or cookies.get("_gorilla_csrf") != double.csrf:
                refused = forbidden("CSRF token not found in request").answer
                extra.setdefault("X-Harbor-CSRF-Token", double.csrf)
                return _sent(refused, extra)
        headers = _Headers(self.headers.items())
        self._slow(headers)
        base = f"{double.scheme}://{self.headers.get('Host', '')}"
        with double.state.lock:
            if path.startswith("/service/token"):
                return _sent(double.distribution.token(self.command, query, headers), extra)
            if path.startswith("/v2"):
                status, more, content = double.distribution.answer(
                    self.command, path, query, headers, body, base
                )
                return status, {**extra, **more}, content
            if path.startswith("/c/"):
                return _sent(self._session(path, sid, body), extra)
            return _sent(self._api(path, query, headers, body, sid), extra)

    def _slow(self, headers: Mapping[str, str]) -> None:
        double = self.server.double
        login = basic(headers.get("Authorization", ""))
        if double.wrong_password_seconds and login and not log_in(double.state, *login).known:
            time.sleep(double.wrong_password_seconds)

    def _session(self, path: str, sid: str, body: bytes) -> Answer:
        state = self.server.double.state
        if path == "/c/log_out":
            state.sessions.pop(sid, None)
            return Answer()
        form = parse_qs(body.decode())
        name, password = form.get("principal", [""])[0], form.get("password", [""])[0]
        found = log_in(state, name, password)
        state.log(name, "login", "user", name, "login", result=found.known)
        if not found.known:
            return Answer(401)
        state.sessions[sid] = found.user
        return Answer()

    def _api(
        self, path: str, query: str, headers: Mapping[str, str], body: bytes, sid: str
    ) -> Answer:
        double = self.server.double
        try:
            return self._handled(path, query, headers, body, sid)
        except Refused as refused:
            return refused.answer
        except NotHere as missing:
            double.mistakes.append(f"{self.command} {path}: nobody wrote {missing}")
            return Answer(501, text=f"the double has no {missing}")
        except Exception as error:  # noqa: BLE001  a mistake of the double's, told at the end
            double.mistakes.append(f"{self.command} {self.path}: {type(error).__name__}: {error}")
            if double.loud:
                traceback.print_exc()
            return Answer(599, text=str(error))

    def _handled(
        self, path: str, query: str, headers: Mapping[str, str], body: bytes, sid: str
    ) -> Answer:
        double = self.server.double
        if not path.startswith(BASE):
            page = "<!DOCTYPE HTML>\n<html>\n<head>\n<title>404 - Page Not Found</title>\n"
            return Answer(404, text=page, content_type="text/html; charset=utf-8")
        operation, parts = double.specification.find(self.command, path)
        if (
            self.command in _UNSAFE
            and double.state.setting("read_only")
            and not _STAYS_OPEN.match(f"{self.command} {path}")
        ):
            raise Refused(403, "DENIED", READ_ONLY)
        values, document = double.specification.request(operation, parts, query, headers, body)
        handler = HANDLERS.get(operation.name)
        if handler is None:
            raise NotHere(operation.name)
        who = account(double.state, headers, sid)
        call = Call(double.state, who, operation.name, parts, values, document, headers, self.path)
        answer = handler(call)
        double.specification.check_answer(operation, answer.status, answer.document)
        return answer


class _Headers(dict[str, str]):
    """Names in any case."""

    def __init__(self, pairs: object) -> None:
        super().__init__({name.title(): value for name, value in pairs})  # type: ignore[attr-defined]

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.title())

    def __contains__(self, name: object) -> bool:
        return super().__contains__(str(name).title())

    def get(self, name: str, default: str = "") -> str:  # type: ignore[override]
        return super().get(name.title(), default)


def _sent(answer: Answer, extra: Mapping[str, str]) -> tuple[int, Mapping[str, str], bytes]:
    headers = dict(extra)
    body = answer.body
    if answer.content_type:
        headers["Content-Type"] = answer.content_type
    elif answer.document is not None:
        refused = answer.status >= 400
        headers["Content-Type"] = (
            "application/json; charset=utf-8" if refused else "application/json"
        )
    return answer.status, {**headers, **answer.headers}, body


def serve(server: Server) -> threading.Thread:
    """Start answering, in a thread of its own."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    return thread
