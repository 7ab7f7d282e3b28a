"""What a handler of the double gets and gives: a call that was checked, an answer, a refusal."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tests.harbor_double.accounts import Account
    from tests.harbor_double.state import State

Document = dict[str, Any]
MAXIMUM_PAGE = 100


@dataclass(frozen=True)
class Answer:
    """Status, headers and body: ``document`` is sent as JSON, else ``text``."""

    status: int = 200
    document: Any = None
    text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = ""

    @property
    def body(self) -> bytes:
        """The bytes to send; JSON as Harbor writes it, with a newline at its end."""
        if self.document is None:
            return self.text.encode()
        return json.dumps(self.document, separators=(",", ":")).encode() + b"\n"


class Refused(Exception):
    """Harbor's answer to a call that it doesn't take."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = headers or {}

    @property
    def answer(self) -> Answer:
        """As Harbor sends it."""
        document = {"errors": [{"code": self.code, "message": self.message}]}
        return Answer(self.status, document, headers=self.headers)


class NotHere(Exception):
    """The double was asked for something that nobody has written yet."""


def bad_request(message: str) -> Refused:
    return Refused(400, "BAD_REQUEST", message)


def unauthorized(message: str = "unauthorized") -> Refused:
    return Refused(401, "UNAUTHORIZED", message)


def forbidden(message: str = "forbidden") -> Refused:
    return Refused(403, "FORBIDDEN", message)


def not_found(message: str) -> Refused:
    return Refused(404, "NOT_FOUND", message)


def conflict(message: str) -> Refused:
    return Refused(409, "CONFLICT", message)


def precondition(message: str) -> Refused:
    return Refused(412, "PRECONDITION", message)


def invalid(*failures: str) -> Refused:
    lines = "\n".join(("validation failure list:", *failures))
    return Refused(422, "UNPROCESSABLE_ENTITY", lines)


def broken() -> Refused:
    """Harbor's answer to several mistakes of the client's."""
    return Refused(500, "UNKNOWN", "internal server error")


@dataclass(frozen=True)
class Call:
    """One request whose path, parameters and body hold the OpenAPI document."""

    state: State
    account: Account
    operation: str
    path: Mapping[str, str]
    query: Mapping[str, Any]
    body: Any
    headers: Mapping[str, str]
    url: str
    """Path and query as they came."""

    def number(self, name: str) -> int:
        """An id of the path."""
        return int(self.path[name])

    def page(self, items: Sequence[Document]) -> Answer:
        """The page that was asked for, with the count of all in the header."""
        number, size = self.query.get("page", 1), self.query.get("page_size", 10)
        total = len(items)
        headers = {"X-Total-Count": str(total)}
        if link := _link(self.url, number, size, total):
            headers["Link"] = link
        start = (number - 1) * size
        shown = list(items) if size <= 0 else list(items[start : start + size])
        return Answer(200, shown, headers=headers)

    def created(self, identity: int | str, document: Any = None) -> Answer:
        """201 with the place of what was made below the path of the call."""
        return Answer(
            201, document, headers={"Location": f"{self.url.partition('?')[0]}/{identity}"}
        )


def _link(url: str, number: int, size: int, total: int) -> str:
    path, _, query = url.partition("?")
    from urllib.parse import parse_qsl, unquote  # noqa: PLC0415

    given = dict(parse_qsl(query, keep_blank_values=True))

    def to(page: int, rel: str) -> str:
        changed = given | {"page": str(page), "page_size": str(size)}
        words = "&".join(f"{key}={changed[key]}" for key in sorted(changed))
        return f'<{unquote(path)}?{words}>; rel="{rel}"'

    links = []
    if size and number > 1 and (number - 1) * size <= total:
        links.append(to(number - 1, "prev"))
    if size and number * size < total:
        links.append(to(number + 1, "next"))
    return " , ".join(links)


Handler = "Callable[[Call], Answer]"
HANDLERS: dict[str, Callable[[Call], Answer]] = {}
"""operationId of the OpenAPI document → what does it; ``operation`` fills it."""


def operation(*names: str) -> Callable[[Callable[[Call], Answer]], Callable[[Call], Answer]]:
    """Register what does these operations of the OpenAPI document."""

    def register(function: Callable[[Call], Answer]) -> Callable[[Call], Answer]:
        for name in names:
            HANDLERS[name] = function
        return function

    return register


def matching(items: Sequence[Document], q: str, fields: Mapping[str, str]) -> list[Document]:
    """Those that ``q`` lets through: ``a=b`` exact, ``a=~b`` part; unknown fields are ignored.

    ``fields`` is the name in q → the key in the document. The value is decoded once more.
    """
    from urllib.parse import unquote_plus  # noqa: PLC0415

    chosen = list(items)
    for part in filter(None, q.split(",")):
        name, _, value = part.partition("=")
        key = fields.get(name)
        if key is None:
            continue
        wanted = unquote_plus(value)
        if wanted.startswith("~"):
            chosen = [item for item in chosen if wanted[1:] in str(item.get(key, ""))]
        else:
            chosen = [item for item in chosen if str(item.get(key, "")) == wanted]
    return chosen


def ordered(
    items: Sequence[Document], sort: str, default: str, keys: Sequence[str]
) -> list[Document]:
    """In the order asked for, ``-`` in front for descending; one that isn't known is ignored."""
    chosen = sort if sort.lstrip("-") in keys else default
    key = chosen.lstrip("-")

    def value(item: Document) -> Any:
        found: Any = item
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return (found is not None, found)

    return sorted(items, key=value, reverse=chosen.startswith("-"))
