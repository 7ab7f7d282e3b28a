"""Harbor's health, asked of a server that answers what a real Harbor was recorded to answer."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from installer.errors import AcceptanceFailed
from installer.harbor.health import ask, wait_until_healthy
from tests.upstream.server import Answer, LoopbackServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.upstream.server import Request

PARTS = ("core", "database", "jobservice", "portal", "redis", "registry", "registryctl", "trivy")
HEALTHY = {
    "status": "healthy",
    "components": [{"name": name, "status": "healthy"} for name in PARTS],
}
ILL = {
    "status": "unhealthy",
    "components": [
        {"name": "core", "status": "healthy"},
        {"name": "jobservice", "status": "unhealthy", "error": "connection refused"},
    ],
}


class Harbor(LoopbackServer):
    answers: list[Answer]
    cookies: list[str | None]

    def answer(self, request: Request) -> Answer:
        self.cookies.append(request.headers.get("Cookie"))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def said(document: object, status: int = 200, **headers: str) -> Answer:
    return Answer(status, {"Set-Cookie": "sid=1; Path=/", **headers}, json.dumps(document).encode())


@contextmanager
def harbor(*answers: Answer) -> Iterator[Harbor]:
    server = Harbor()
    server.answers, server.cookies = list(answers), []
    with server:
        yield server


def test_a_healthy_harbor_is_healthy() -> None:
    with harbor(said(HEALTHY)) as server:
        assert ask(server.url + "/").healthy
        assert server.count("GET", "/api/v2.0/health") == 1


def test_what_is_200_and_ill_is_ill() -> None:
    with harbor(said(ILL)) as server:
        health = ask(server.url)
    assert not health.healthy
    assert "jobservice unhealthy connection refused" in health.problem


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (said(HEALTHY, 502), "HTTP 502"),
        (said({}, 302, Location="/elsewhere"), "HTTP 302"),
        (Answer(200, {}, b"<html>portal</html>"), "not Harbor's"),
        (said([]), "not Harbor's"),
        (said({"status": "healthy", "components": ILL["components"]}), "jobservice"),
    ],
)
def test_nothing_else_passes_for_healthy(answer: Answer, words: str) -> None:
    with harbor(answer) as server:
        health = ask(server.url)
    assert not health.healthy
    assert words in health.problem


def test_nobody_there_is_told_in_few_words() -> None:
    with harbor(said(HEALTHY)) as server:
        url = server.url
    health = ask(url)
    assert "refused" in health.problem
    assert "object at" not in health.problem


def test_patience_bears_what_a_starting_harbor_says() -> None:
    with harbor(said({}, 502), said(ILL), said(HEALTHY)) as server:
        wait_until_healthy(server.url, patience=60, pause=lambda _: None)
        assert server.cookies == [None, None, None]


def test_patience_ends() -> None:
    times = iter(range(0, 1000, 20))
    with (
        harbor(said(ILL)) as server,
        pytest.raises(AcceptanceFailed, match=r"after 60 s: .*jobservice") as caught,
    ):
        wait_until_healthy(
            server.url, patience=60, pause=lambda _: None, clock=lambda: float(next(times))
        )
    assert caught.value.exit_code == 8


def test_what_a_real_harbor_was_recorded_to_say() -> None:
    base = Path(os.environ.get("AIRGAP_SHARED") or Path(__file__).parents[3] / "shared")
    folder = base / "harbor-api" / "recorded-2.14"
    if not folder.is_dir():
        pytest.skip("no recorded answers: set AIRGAP_SHARED to the folder that has harbor-api/")
    seen = set()
    for name in ("health.json", "health-when-something-is-down.json"):
        for entry in json.loads((folder / name).read_text()):
            response = entry.get("response", {})
            if "health" not in entry.get("request", {}).get("path", "") or "json" not in response:
                continue
            with harbor(said(response["json"], response["status"])) as server:
                healthy = ask(server.url).healthy
            assert healthy == (response["json"].get("status") == "healthy"), entry["title"]
            seen.add(healthy)
    assert seen == {True, False}
