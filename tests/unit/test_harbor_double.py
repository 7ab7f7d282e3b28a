"""The Harbor double is strict, and its own mistakes end the test that met them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import requests

from tests.harbor_double import HarborDouble
from tests.harbor_double.call import HANDLERS, Answer
from tests.harbor_double.recordings import NotShared, folder

if TYPE_CHECKING:
    from collections.abc import Iterator

ADMIN = ("admin", "Harbor12345")


@pytest.fixture
def harbor() -> Iterator[HarborDouble]:
    try:
        folder()
    except NotShared as missing:
        pytest.skip(str(missing))
    with HarborDouble() as double:
        yield double


def _ask(harbor: HarborDouble, method: str, path: str, **more: object) -> requests.Response:
    return requests.request(method, f"{harbor.url}/api/v2.0{path}", timeout=10, **more)  # type: ignore[arg-type]


def test_a_cookie_that_comes_back_is_refused(harbor: HarborDouble) -> None:
    with requests.Session() as session:
        session.auth = ADMIN
        session.get(f"{harbor.url}/api/v2.0/projects", timeout=10)
        body = {"project_name": "x"}
        refused = session.post(f"{harbor.url}/api/v2.0/projects", json=body, timeout=10)
    assert (refused.status_code, "CSRF" in refused.text) == (403, True)


def test_a_wrong_password_is_nobody(harbor: HarborDouble) -> None:
    wrong = ("admin", "wrong")
    assert _ask(harbor, "GET", "/projects", auth=wrong).status_code == 200
    assert _ask(harbor, "GET", "/users/current", auth=wrong).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/nothing", None, 404),
        ("PUT", "/health", {}, 405),
        ("POST", "/projects", {"project_name": 5}, 422),
        ("POST", "/projects", {"metadata": {"public": True}, "project_name": "x"}, 422),
        ("GET", "/projects?page_size=101", None, 422),
    ],
)
def test_what_the_document_does_not_allow_is_refused(
    harbor: HarborDouble, method: str, path: str, body: object, status: int
) -> None:
    assert _ask(harbor, method, path, auth=ADMIN, json=body).status_code == status


def test_an_answer_outside_the_document_ends_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        folder()
    except NotShared as missing:
        pytest.skip(str(missing))
    monkeypatch.setitem(HANDLERS, "getHealth", lambda _call: Answer(200, {"status": 5}))
    with pytest.raises(AssertionError, match="getHealth"), HarborDouble() as harbor:
        _ask(harbor, "GET", "/health")
