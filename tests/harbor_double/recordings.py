"""The OpenAPI document and the recorded exchanges, where AIRGAP_SHARED has them; read in place."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

CHECKOUT = Path(__file__).parents[2]


class NotShared(Exception):
    """The folder with Harbor's OpenAPI document is not there: a test that needs it skips."""


def folder() -> Path:
    """Where the OpenAPI documents are; raises NotShared."""
    path = Path(os.environ.get("AIRGAP_SHARED") or CHECKOUT.parent / "shared") / "harbor-api"
    if not (path / "swagger-2.14.yaml").is_file():
        raise NotShared(f"{path} is not there: set AIRGAP_SHARED to the folder with harbor-api/")
    return path


@cache
def openapi(version: str = "2.14") -> dict[str, Any]:
    """The OpenAPI document (Swagger 2.0) of this Harbor."""
    path = folder() / f"swagger-{version}.yaml"
    document: dict[str, Any] = yaml.load(
        path.read_text(encoding="utf-8"),
        Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader),  # noqa: S506  safe either way
    )
    return document


@dataclass(frozen=True)
class Exchange:
    """One entry of a recorded file; without a request it is a remark or a command."""

    topic: str
    position: int
    title: str
    request: Mapping[str, Any] | None
    response: Mapping[str, Any]
    note: str

    @property
    def name(self) -> str:
        """As the lists of exceptions call it."""
        return f"{self.topic}#{self.position}"


@cache
def topics() -> tuple[str, ...]:
    """Names of the recorded files."""
    return tuple(sorted(path.stem for path in (folder() / "recorded-2.14").glob("*.json")))


@cache
def exchanges(topic: str) -> tuple[Exchange, ...]:
    """What was recorded on a topic, in order."""
    text = (folder() / "recorded-2.14" / f"{topic}.json").read_text(encoding="utf-8")
    return tuple(
        Exchange(
            topic,
            position,
            entry.get("title", ""),
            entry.get("request"),
            entry.get("response", {}),
            entry.get("note", ""),
        )
        for position, entry in enumerate(json.loads(text))
    )


def recorded(topic: str, title: str) -> Any:
    """Body of a recorded answer: where a fresh Harbor's state is taken from."""
    for exchange in exchanges(topic):
        if exchange.title == title:
            body = exchange.response["json"]
            return json.loads(json.dumps(body))  # a copy: the double changes it
    raise KeyError(f"{topic}: {title}")
