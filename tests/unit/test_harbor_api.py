"""Harbor's API client, against a server that answers as Harbor 2.14 was recorded to."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from installer.errors import DeploymentFailed, TransferFailed
from installer.harbor.api import HarborClient, HarborRefused, Version, WrongPassword, segment
from installer.site.http import NotAnswering

if TYPE_CHECKING:
    from collections.abc import Iterator

PASSWORD = "Pässw0rd of admin"
ME = "/api/v2.0/users/current"


class Server:
    """Answers a request with the first of ``answers[method path]``; the last one stays."""

    def __init__(self) -> None:
        self.answers: dict[str, list[tuple[int, Any, dict[str, str]]]] = {}
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""

    def on(self, asked: str, status: int, body: Any = "", **headers: str) -> None:
        self.answers.setdefault(asked, []).append((status, body, headers))

    def answer(self, asked: str, headers: Any) -> tuple[int, bytes, dict[str, str]]:
        self.asked.append(asked)
        self.headers.append(dict(headers))
        login = base64.b64decode(headers.get("Authorization", "Basic Og==").split()[1]).decode()
        good = login.partition(":")[2] == PASSWORD
        if asked == f"GET {ME}":
            robot = login.startswith("robot$")
            status = (412 if robot else 200) if good else 401
            return status, json.dumps(_errors("unauthorized") if status == 401 else {}).encode(), {}
        several = self.answers[asked]
        status, body, more = several.pop(0) if len(several) > 1 else several[0]
        return status, body.encode() if isinstance(body, str) else json.dumps(body).encode(), more


def _errors(message: str, code: str = "X") -> dict[str, Any]:
    return {"errors": [{"code": code, "message": message}]}


@pytest.fixture
def server() -> Iterator[Server]:
    script = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _ask(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            line = f"{self.command} {self.path}" + (f" {sent}" if sent else "")
            status, body, headers = script.answer(line, self.headers)
            self.send_response(status)
            self.send_header("Set-Cookie", "sid=of-a-browser; Path=/; HttpOnly")
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do_HEAD = _ask  # noqa: N815 (library's)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        http_server.daemon_threads = True
        thread = threading.Thread(target=http_server.serve_forever, args=(0.02,))
        thread.start()
        script.url = f"http://127.0.0.1:{http_server.server_port}"
        try:
            yield script
        finally:
            http_server.shutdown()
            thread.join()


@pytest.fixture
def client(server: Server) -> Iterator[HarborClient]:
    with HarborClient(server.url, "", [PASSWORD], pauses=(0, 0)) as made:
        yield made


def test_the_first_question_is_who_we_are_and_only_once(
    server: Server, client: HarborClient
) -> None:
    server.on("GET /api/v2.0/systeminfo", 200, {"harbor_version": "v2.14.4-79a297f7"})
    assert client.version() == Version(2, 14, 4)
    assert client.version() > Version(2, 12, 11)
    assert server.asked == [f"GET {ME}", *["GET /api/v2.0/systeminfo"] * 2]
    assert not any("Cookie" in headers for headers in server.headers)


def test_a_wrong_password_is_told_also_where_harbor_answers_to_everybody(server: Server) -> None:
    server.on("GET /api/v2.0/systeminfo", 200, {"auth_mode": "db_auth"})
    with pytest.raises(WrongPassword, match="password of admin") as refused:
        HarborClient(server.url, "", ["wrong"]).version()
    assert "adminPasswordFile" in refused.value.hint
    assert "wrong" not in refused.value.message
    # The next one that is known may be today's.
    HarborClient(server.url, "", ["wrong", PASSWORD]).login()


def test_a_robot_is_let_in_and_nobody_has_no_login(server: Server) -> None:
    HarborClient(server.url, "", [PASSWORD], username="robot$ci").login()
    with pytest.raises(WrongPassword) as refused:
        HarborClient(server.url, "", ["wrong"], username="robot$ci").login()
    assert refused.value.hint == ""
    server.asked.clear()
    server.on("GET /api/v2.0/ping", 200, "Pong")
    assert HarborClient(server.url).text("/ping") == "Pong"
    assert server.asked == ["GET /api/v2.0/ping"]
    assert "Authorization" not in server.headers[-1]


def test_a_list_comes_page_after_page(server: Server, client: HarborClient) -> None:
    path = "/api/v2.0/projects?page={}&page_size=100"
    link = f'<{path.format(1)}>; rel="prev" , <{path.format(3)}>; rel="next"'
    server.on(f"GET {path.format(1)}", 200, [{"name": "a"}], Link='<x>; rel="next"')
    server.on(f"GET {path.format(2)}", 200, [{"name": "b"}], Link=link)
    server.on(f"GET {path.format(3)}", 200, [{"name": "c"}], Link='<x>; rel="prev"')
    assert [one["name"] for one in client.pages("/projects")] == ["a", "b", "c"]
    server.on("GET /api/v2.0/quotas?sort=-id&page=1&page_size=100", 200, [])
    assert list(client.pages("/quotas", {"sort": "-id"})) == []


def test_a_name_with_a_slash_is_encoded_twice(server: Server, client: HarborClient) -> None:
    assert segment("library") == "library"
    assert segment("a+b c") == "a%2Bb%20c"
    path = f"/projects/2024/repositories/{segment('team/app')}"
    server.on("GET /api/v2.0/projects/2024/repositories/team%252Fapp", 200, {"name": "x"})
    assert client.get(path)["name"] == "x"
    assert server.headers[-1]["X-Is-Resource-Name"] == "true"


def test_what_may_be_sent_twice_is_tried_again_and_the_rest_is_not(
    server: Server, client: HarborClient
) -> None:
    server.on("GET /api/v2.0/ping", 502, "<html>")
    server.on("GET /api/v2.0/ping", 503, "")
    server.on("GET /api/v2.0/ping", 200, "Pong")
    assert client.text("/ping") == "Pong"
    server.on('POST /api/v2.0/labels {"name": "l"}', 502, "<html>")
    with pytest.raises(NotAnswering, match="HTTP 502") as silent:
        client.post("/labels", {"name": "l"})
    assert isinstance(silent.value, TransferFailed)
    assert sum(asked.startswith("POST") for asked in server.asked) == 1
    server.on("GET /api/v2.0/health", 502, "<html>")
    with pytest.raises(NotAnswering):
        client.get("/health")
    assert server.asked.count("GET /api/v2.0/health") == 3


def test_a_refusal_has_harbors_words_and_no_secret(server: Server, client: HarborClient) -> None:
    words = f"secret s3cret!Word and {PASSWORD} are\nweak"
    server.on("PATCH /api/v2.0/robots/5 {}", 400, _errors(words))
    client.hide("s3cret!Word")
    with pytest.raises(HarborRefused) as refused:
        client.patch("/robots/5", {})
    assert refused.value.status == 400
    assert refused.value.exit_code == 7
    assert refused.value.message.endswith("PATCH: HTTP 400: secret *** and *** are weak")
    server.on(
        "PUT /api/v2.0/quotas/4 {}", 403, _errors("The system is in read only mode.", "DENIED")
    )
    with pytest.raises(HarborRefused) as refused:
        client.put("/quotas/4", {})
    assert "read-only" in refused.value.hint
    server.on("DELETE /api/v2.0/projects/x", 500, "")
    with pytest.raises(HarborRefused, match=r"DELETE: HTTP 500\Z"):
        client.delete("/projects/x")


def test_answers_are_what_they_are_asked_to_be(server: Server, client: HarborClient) -> None:
    # A schedule that is not there is 200 and nothing.
    server.on("GET /api/v2.0/system/gc/schedule", 200, "")
    assert client.get("/system/gc/schedule") is None
    server.on("GET /api/v2.0/health", 200, "<html>a proxy's page</html>")
    with pytest.raises(DeploymentFailed, match="not Harbor's"):
        client.get("/health")
    server.on("GET /api/v2.0/quotas/4", 200, {"id": "four"})
    with pytest.raises(DeploymentFailed, match="not Harbor's"):
        client.get("/quotas/4", type=dict[str, int])
    server.on(
        'POST /api/v2.0/projects {"project_name": "p"}', 201, "", Location="/api/v2.0/projects/4"
    )
    assert client.post("/projects", {"project_name": "p"}).id == "4"
    server.on("HEAD /api/v2.0/projects?project_name=p&with_detail=true", 200)
    server.on("HEAD /api/v2.0/projects?project_name=q", 404, _errors("x"))
    assert client.exists("/projects", {"project_name": "p", "with_detail": True})
    assert not client.exists("/projects", {"project_name": "q"})
    server.on("DELETE /api/v2.0/robots/6", 404, _errors("robot 6 not found"))
    client.delete("/robots/6", missing_ok=True)
    with pytest.raises(HarborRefused, match="robot 6 not found"):
        client.delete("/robots/6")
