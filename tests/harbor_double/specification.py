"""Harbor's OpenAPI document as judge of both sides.

A request is refused as go-swagger in Harbor refuses it, with its words; an answer of the double
that the document doesn't allow is a mistake of the double's, and ends the test that met it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

import jsonschema

from tests.harbor_double.call import Refused, invalid, not_found
from tests.harbor_double.recordings import openapi

if TYPE_CHECKING:
    from collections.abc import Mapping

BASE = "/api/v2.0"
_GO_KINDS = {
    bool: "bool",
    int: "number",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}


class AnswerOutsideSchema(AssertionError):
    """The double said what Harbor's OpenAPI document doesn't allow."""


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    name: str
    method: str
    pattern: re.Pattern[str]
    fixed: int
    """How many parts of the path are words: the more, the better the match."""
    parameters: tuple[Mapping[str, Any], ...]
    responses: Mapping[str, Any]


class Specification:
    """The document of one version."""

    def __init__(self, version: str = "2.14") -> None:
        self.version = version
        self._document = openapi(version)

    @cached_property
    def operations(self) -> tuple[Operation, ...]:
        """All of them, those with more fixed words in their path first."""
        found = []
        for path, methods in self._document["paths"].items():
            for method, operation in methods.items():
                given = (self._resolve(one) for one in operation.get("parameters", ()))
                pattern = re.sub(r"\\?\{(\w+)\\?\}", r"(?P<\1>[^/]+)", re.escape(path))
                parts = path.split("/")
                fixed = sum("{" not in part for part in parts)
                responses = {
                    status: self._resolve(one) for status, one in operation["responses"].items()
                }
                found.append(
                    Operation(
                        operation["operationId"],
                        method.upper(),
                        re.compile(pattern),
                        fixed,
                        tuple(given),
                        responses,
                    )
                )
        return tuple(sorted(found, key=lambda one: -one.fixed))

    def find(self, method: str, path: str) -> tuple[Operation, dict[str, str]]:
        """The operation and its path parameters; raises Refused for an unknown path or method.

        The router sees the path decoded once; a parameter is decoded once more, which is why a
        slash in a repository's name is encoded twice.
        """
        seen = unquote(path)
        inner = seen.removeprefix(BASE)
        others = []
        for operation in self.operations:
            if match := operation.pattern.fullmatch(inner):
                if operation.method == method:
                    return operation, {k: unquote(v) for k, v in match.groupdict().items()}
                others.append(operation.method)
        if not others:
            raise not_found(f"path {seen} was not found")
        allowed = ",".join(sorted(set(others)))
        raise Refused(
            405,
            "METHOD_NOT_ALLOWED",
            f"method {method} is not allowed, but [{allowed}] are",
            {"Allow": allowed},
        )

    def request(
        self,
        operation: Operation,
        path: Mapping[str, str],
        query: str,
        headers: Mapping[str, str],
        body: bytes,
    ) -> tuple[dict[str, Any], Any]:
        """Query parameters, with defaults, and the decoded body; raises Refused (422)."""
        values: dict[str, Any] = {}
        given = dict(parse_qsl(query, keep_blank_values=True))
        document: Any = None
        for parameter in operation.parameters:
            name, place = parameter["name"], parameter["in"]
            if place == "path":
                _typed(path[name], parameter)
            elif place == "query":
                if given.get(name):
                    values[name] = _typed(given[name], parameter)
                elif "default" in parameter:
                    values[name] = parameter["default"]
                elif parameter.get("required"):
                    raise invalid(f"{name} in query is required")
            elif place == "header" and parameter.get("required") and name not in headers:
                raise invalid(f"{name} in header is required")
            elif place == "body":
                document = self._body(parameter, headers, body)
        return values, document

    def check_answer(self, operation: Operation, status: int, document: Any) -> None:
        """Raise AnswerOutsideSchema where the document names no such answer."""
        described = operation.responses.get(str(status))
        if status >= 400:
            schema: Any = {"$ref": "#/definitions/Errors"}
        elif described is None:
            # Harbor 2.14 answers a few calls with a success that its document leaves out.
            if document is not None:
                raise AnswerOutsideSchema(f"{operation.name}: {status} is not in the document")
            return
        else:
            schema = described.get("schema")
        if document is None or schema is None or schema.get("type") == "string":
            return  # a string is what Harbor hands through, whatever it is
        for error in self._validator(json.dumps(schema)).iter_errors(document):
            where = "/".join(map(str, error.absolute_path))
            raise AnswerOutsideSchema(f"{operation.name} {status}: {where}: {error.message}")

    @cache  # noqa: B019  one object a version, as long as the process
    def _validator(self, schema: str) -> jsonschema.Draft4Validator:
        definitions = {name: _strict(one) for name, one in self._document["definitions"].items()}
        return jsonschema.Draft4Validator(
            _strict(json.loads(schema)) | {"definitions": definitions}
        )

    def _resolve(self, node: Mapping[str, Any]) -> Mapping[str, Any]:
        if "$ref" not in node:
            return node
        found: Any = self._document
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        resolved: Mapping[str, Any] = found
        return resolved

    def _body(self, parameter: Mapping[str, Any], headers: Mapping[str, str], body: bytes) -> Any:
        name = parameter["name"]
        if not body:
            if parameter.get("required"):
                raise invalid(f"{name} in body is required")
            return None
        kind = headers.get("Content-Type", "application/json").partition(";")[0]
        if kind != "application/json":
            raise invalid(f'unsupported media type "{kind}", only [application/json] are allowed')
        try:
            document = json.loads(body)
        except ValueError as error:
            raise invalid(
                f'parsing {name} body from "" failed, because {go_syntax(error, body)}'
            ) from None
        self._decode(document, parameter["schema"], parameter["name"], "", "")
        self._bounds(document, parameter["schema"], "")
        return document

    def _decode(
        self, value: Any, schema: Mapping[str, Any], name: str, struct: str, path: str
    ) -> None:
        """Go's decoder: every value has to fit the type of its field; null fits all."""
        if value is None:
            return
        kind, target = self._go_type(schema)
        resolved = self._resolve(schema)
        if not _fits(value, kind):
            raise invalid(
                f'parsing {name} body from "" failed, because json: cannot unmarshal '
                f"{_GO_KINDS[type(value)]} into Go struct field {struct}.{path} of type {target}"
            )
        here = schema["$ref"].rpartition("/")[2] if "$ref" in schema else struct
        if isinstance(value, dict):
            fields = resolved.get("properties", {})
            more = resolved.get("additionalProperties")
            for key, inner in value.items():
                if key in fields:
                    self._decode(inner, fields[key], name, here, f"{path}.{key}".lstrip("."))
                elif isinstance(more, dict):
                    self._decode(inner, more, name, struct or here, path)
        elif isinstance(value, list):
            for inner in value:
                self._decode(inner, resolved.get("items", {}), name, here, path)

    def _go_type(self, schema: Mapping[str, Any]) -> tuple[str, str]:
        resolved = self._resolve(schema)
        kind = resolved.get("type", "object" if "properties" in resolved else "")
        if kind == "object" and not {"properties", "additionalProperties"} & resolved.keys():
            return "", ""  # Go's interface{}
        if "$ref" in schema and kind == "object":
            return kind, "models." + schema["$ref"].rpartition("/")[2]
        names = {"integer": resolved.get("format", "int64"), "boolean": "bool", "number": "float64"}
        return kind, names.get(kind, kind)

    def _bounds(self, value: Any, schema: Mapping[str, Any], path: str) -> None:
        """go-swagger's own validation of what was decoded."""
        resolved = self._resolve(schema)
        if isinstance(value, str) and value:
            if (most := resolved.get("maxLength")) and len(value) > most:
                raise invalid(
                    "validation failure list:",
                    f"{path} in body should be at most {most} chars long",
                )
            if (words := resolved.get("enum")) and value not in words:
                raise invalid(
                    "validation failure list:",
                    f"{path} in body should be one of [{' '.join(words)}]",
                )
        elif isinstance(value, dict):
            for key, inner in resolved.get("properties", {}).items():
                if key in value:
                    self._bounds(value[key], inner, f"{path}.{key}".lstrip("."))
        elif isinstance(value, list):
            for position, inner in enumerate(value):
                self._bounds(inner, resolved.get("items", {}), f"{path}.{position}")


def _fits(value: Any, kind: str) -> bool:  # noqa: PLR0911  one return a kind
    match kind:
        case "string":
            return isinstance(value, str)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "boolean":
            return isinstance(value, bool)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
    return True


def _typed(text: str, parameter: Mapping[str, Any]) -> Any:
    name, place = parameter["name"], parameter["in"]
    kind = parameter.get("type")
    if kind == "integer":
        try:
            number = int(text)
        except ValueError:
            raise invalid(
                f'{name} in {place} must be of type {parameter.get("format", "int64")}: "{text}"'
            ) from None
        if (most := parameter.get("maximum")) is not None and number > most:
            raise invalid(f"{name} in {place} should be less than or equal to {most}")
        return number
    if kind == "boolean":
        if text.lower() not in ("true", "false", "1", "0"):
            raise invalid(f'{name} in {place} must be of type boolean: "{text}"')
        return text.lower() in ("true", "1")
    if (words := parameter.get("enum")) and text not in words:
        raise invalid(f"{name} in {place} should be one of [{' '.join(words)}]")
    return text


def go_syntax(error: ValueError, body: bytes) -> str:
    place = getattr(error, "pos", 0)
    text = body.decode(errors="replace")
    found = text[place] if place < len(text) else ""
    if not found:
        return "unexpected EOF"
    where = "object key string" if "property name" in str(error) else "value"
    return f"invalid character '{found}' looking for beginning of {where}"


def _strict(node: Any) -> Any:
    """As Go writes it: a nil list or map is null, and no field beyond those that are named."""
    if isinstance(node, list):
        return [_strict(one) for one in node]
    if not isinstance(node, dict):
        return node
    done = {key: _strict(value) for key, value in node.items()}
    if "$ref" in done and isinstance(done["$ref"], str):
        return {"$ref": done["$ref"]}
    if done.get("type") == "object" and not {"properties", "additionalProperties"} & done.keys():
        return {}  # Go's interface{}: anything
    if isinstance(done.get("properties"), dict) and "additionalProperties" not in done:
        done["additionalProperties"] = False
        if any("os.features" in name for name in done["properties"]):
            done["properties"]["OsFeatures"] = {}  # what Harbor 2.14 calls it
    if done.get("type") in ("array", "object") or node.get("x-nullable"):
        done["type"] = [done["type"], "null"]
    return done
