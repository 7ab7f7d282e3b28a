"""The recorded exchanges sent again, to the double, and both answers compared.

Each recorded file begins with a Harbor in the state that it found (``worlds.py``). What can't be
the same twice is told apart: times, random ids, secrets, digests of images whose bytes were not
recorded. Everything else has to be equal: status, headers that carry meaning, and the body, key by
key and value by value.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import requests

from tests.harbor_double.worlds import CUT, digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.harbor_double import HarborDouble
    from tests.harbor_double.recordings import Exchange

HOST = "10.55.0.1:30002"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
_NEVER = "0001-01-01"
_LOOSE = {
    # Random, or counted by what happened before the recording.
    "id", "artifact_id", "repository_id", "report_id", "uuid", "job_id", "subject_artifact_id",
    "child_id", "parent_id", "execution_id", "secret", "token", "duration", "policy_id",
    "expires_at", "retention_id", "project_id", "ref", "user_id", "entity_id",
    # Of images whose bytes were not recorded.
    "size", "used", "total_storage_consumption", "digest", "sbom_digest", "pull_count", "total",
    "issued_at", "next_scheduled_time", "error",
    "signature",  # dev.cosignproject.cosign/signature
}  # fmt: skip
_LEARNED = ("report_id", "uuid", "sbom_digest", "digest")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_HEADERS = (
    "X-Total-Count", "Location", "Www-Authenticate", "Docker-Distribution-Api-Version",
    "Oci-Subject", "Oci-Filters-Applied", "Range", "Link", "Content-Disposition",
)  # fmt: skip
_SEQUENCES = (
    (r"/projects$", "project"),
    (r"/robots$", "robot"),
    (r"/labels$", "label"),
    (r"/users$", "user"),
    (r"/members$", "member"),
    (r"/retentions$", "retention"),
    (r"/immutabletagrules$", "immutable"),
    (r"/registries$", "registry"),
    (r"/replication/policies$", "replication"),
    (r"/webhook/policies$", "webhook"),
    (r"/executions$|/system/(gc|purgeaudit)/schedule$|/export/cve$", "execution"),
)
"""Where things are made → what counts their ids."""
_WRONG = re.compile(r"wrong|old secret|refused password|broken|deleted user")
_PATIENCE = 30


def _moment(text: str) -> str:
    """``never`` or ``once`` for a time, "" for another text."""
    if not _TIME.fullmatch(text):
        return ""
    return "never" if text.startswith(_NEVER) else "once"


@dataclass
class Clock:
    """The double's time, which stands still but for what the replay lets pass."""

    passed: float = 0.0
    begin: datetime = datetime(2026, 11, 23, 21, 29, 49, 553000, tzinfo=UTC)

    def seconds(self) -> float:
        """For the state's ``clock``."""
        return self.passed

    def now(self) -> datetime:
        """For the state's ``now``."""
        return self.begin + timedelta(seconds=self.passed)

    def pass_by(self, seconds: float) -> None:
        """Let time pass."""
        self.passed += seconds


@dataclass
class Replay:
    """One file's exchanges against one double."""

    harbor: HarborDouble
    clock: Clock
    same: dict[str, str] = field(default_factory=dict)
    """Recorded word → what it is here: digests, ids in uploads."""
    passwords: dict[str, str] = field(default_factory=dict)
    """Name → password or secret."""
    upload: str = ""
    session: requests.Session = field(default_factory=requests.Session)
    sid: str = ""

    def translated(self, text: str) -> str:
        """What was recorded, in this double's words."""
        for there, here in self.same.items():
            text = text.replace(there, here)
        return text

    def seed(self, exchange: Exchange) -> None:
        """Let what is made get the id that it got: other files had made things before."""
        request, answer = exchange.request, exchange.response
        assert request is not None
        if request["method"] != "POST":
            return
        number = answer["headers"].get("Location", "").rpartition("/")[2]
        if request["path"].endswith("/export/cve"):
            number = str(answer["json"]["id"])
        for ending, kind in _SEQUENCES:
            if number.isdigit() and number != "0" and re.search(ending, request["path"]):
                self.harbor.state.start_at(kind, int(number))
                return

    def send(self, exchange: Exchange) -> requests.Response:
        """Send the recorded request."""
        request = exchange.request
        assert request is not None
        self.seed(exchange)
        path = self.translated(request["path"])
        if request["method"] == "PUT" and "/manifests/" in path:
            path = self._blobs_first(path, request["body"])
        if query := request.get("query"):
            path += "?" + urlencode(query)
        headers = {"Host": HOST} | dict(request.get("headers", {}))
        body: bytes | None = None
        if "json" in request:
            text = json.dumps(request["json"])
            body = self._secrets(exchange, self.translated(text)).encode()
            headers.setdefault("Content-Type", "application/json")
        elif "body" in request:
            body = self.translated(request["body"]).encode()
            kind = "application/x-www-form-urlencoded" if path.startswith("/c/") else None
            if kind:
                headers.setdefault("Content-Type", kind)
        if "Cookie" in headers:
            headers["Cookie"] = (
                headers["Cookie"]
                .replace("sid=<…>", f"sid={self.sid or 'given'}")
                .replace("_gorilla_csrf=<…>", f"_gorilla_csrf={self.harbor.csrf}")
                .replace("<…>", "x")
            )
        if "X-Harbor-CSRF-Token" in headers:
            headers["X-Harbor-CSRF-Token"] = self.harbor.csrf
        if login := self._login(exchange, path):
            headers["Authorization"] = login
        prepared = requests.Request(
            request["method"], self.harbor.url, headers, data=body
        ).prepare()
        prepared.url = self.harbor.url + self._upload(path)
        with requests.Session() as fresh:  # no cookie is kept
            answer = fresh.send(prepared, timeout=_PATIENCE, allow_redirects=False)
        self._learn(exchange, answer)
        return answer

    def _blobs_first(self, path: str, body: str) -> str:
        """Push the blobs that a recorded manifest names, whose bytes were not recorded.

        Ours have other digests, so the manifest has another one as well.
        """
        try:
            document = json.loads(body)
        except ValueError:
            return path
        name = path.removeprefix("/v2/").partition("/manifests/")[0]
        for part in (document.get("config", {}), *document.get("layers", ())):
            word = part.get("digest", "").removeprefix("sha256:")
            if not word or len(set(word)) == 1:  # 2222…: missing on purpose
                continue
            if self._has_blob(name, self.same.get(word, word)):
                continue
            known = {digest(data)[7:]: data for data in (b"{}", b"hello")}
            data = known.get(word, f"made up for {word}".encode())
            if self.upload_blob(name, data):
                self.same.setdefault(word, digest(data)[7:])
        reference = path.rpartition("/")[2]
        if reference.startswith("sha256:"):
            ours = digest(self.translated(body).encode())
            self.same[reference[7:]] = ours[7:]
            return path.replace(reference, ours)
        return path

    def _has_blob(self, name: str, word: str) -> bool:
        answer = requests.head(
            f"{self.harbor.url}/v2/{name}/blobs/sha256:{word}",
            auth=("admin", self.harbor.password),
            timeout=_PATIENCE,
        )
        return answer.status_code == 200

    def upload_blob(self, name: str, data: bytes) -> bool:
        """Upload a blob as any client does; False where that is refused."""
        login = ("admin", self.harbor.password)
        url = f"{self.harbor.url}/v2/{name}/blobs/uploads/"
        started = requests.post(url, auth=login, timeout=_PATIENCE)
        if started.status_code != 202:
            return False
        where = f"{started.headers['Location']}&digest={digest(data)}"
        return requests.put(where, data, auth=login, timeout=_PATIENCE).status_code == 201

    def _login(self, exchange: Exchange, path: str) -> str:
        assert exchange.request is not None
        kind = exchange.request["auth"]
        if kind == "none":
            return ""
        if kind == "Bearer":
            if "broken" in exchange.title:
                return "Bearer x.y.z"
            match = re.match(r"/v2/(.+?)/(manifests|blobs|tags|referrers)/", path)
            scope = {"scope": f"repository:{match[1]}:pull,push"} if match else {}
            if "_catalog" in path or "project list" in exchange.title:
                scope = {"scope": "registry:catalog:*"}
            answer = requests.get(
                f"{self.harbor.url}/service/token",
                {"service": "harbor-registry"} | scope,
                auth=("admin", self.harbor.password),
                timeout=_PATIENCE,
            )
            return f"Bearer {answer.json()['token']}"
        name = "admin" if kind.startswith("admin") else kind.removeprefix("HTTP Basic ")
        password = self.passwords.get(name, "none")
        if name == "admin":
            password = self.harbor.password if kind.startswith("admin") else "wrong"
        elif _WRONG.search(exchange.title) and "old one" not in exchange.title:
            password = "wrong"
        return str(requests.auth._basic_auth_str(name, password))

    def _secrets(self, exchange: Exchange, text: str) -> str:
        if "weak" in exchange.title and "<SECRET>" in text:
            return text.replace("<SECRET>", "weak")
        if exchange.topic == "replication":
            good = "wrong" not in exchange.title
            return text.replace("<SECRET>", self.harbor.password if good else "wrong")
        assert exchange.request is not None
        if "<SECRET>" in text and exchange.request["method"] == "PATCH":
            self.passwords["robot$ci"] = "Own1Secret"
        return text.replace("<SECRET>", "Own1Secret")

    def _upload(self, path: str) -> str:
        """An upload goes on where the double said; a test's own begins one."""
        match = re.match(r"/v2/(.+?)/blobs/uploads/([0-9a-f-]{36})(\?.*)?$", path)
        if not match:
            return path
        digest = re.search(r"digest=(sha256:[0-9a-f]+)", path)
        started = requests.post(
            f"{self.harbor.url}/v2/{match[1]}/blobs/uploads/",
            auth=("admin", self.harbor.password),
            timeout=_PATIENCE,
        )
        where = started.headers["Location"].partition("/v2/")[2]
        return f"/v2/{where}" + (f"&digest={digest[1]}" if digest else "")

    def _learn(self, exchange: Exchange, answer: requests.Response) -> None:
        request = exchange.request
        assert request is not None
        sent = request.get("json")
        if isinstance(sent, dict) and answer.ok:
            if request["path"].endswith("/users"):
                self.passwords[sent["username"]] = sent["password"]
            elif "new_password" in sent:
                self.passwords["alice"] = sent["new_password"]
        was, here = (
            one.rpartition("/")[2]
            for one in (
                exchange.response["headers"].get("Location", ""),
                answer.headers.get("Location", ""),
            )
        )
        if _UUID.fullmatch(was):
            self.same[was] = here
        pushed = exchange.response["headers"].get("Docker-Content-Digest", "")
        if request["method"] == "PUT" and pushed:
            self.same.setdefault(pushed[7:], answer.headers.get("Docker-Content-Digest", "")[7:])
        if "json" in answer.headers.get("Content-Type", "") and answer.content:
            said = answer.json()
            if isinstance(said, dict) and "secret" in said:
                self.passwords[said.get("name", "robot$ci")] = said["secret"]
            self._learn_words(exchange.response.get("json"), said)

    def _learn_words(self, was: Any, here: Any) -> None:
        """Digests and random ids that stand in the same place."""
        if isinstance(was, dict) and isinstance(here, dict):
            for key in was.keys() & here.keys():
                one, other = was[key], here[key]
                if key in _LEARNED and isinstance(one, str) and isinstance(other, str):
                    self.same.setdefault(one.removeprefix("sha256:"), other.removeprefix("sha256:"))
                else:
                    self._learn_words(one, other)
        elif isinstance(was, list) and isinstance(here, list) and len(was) == len(here):
            for one, other in zip(was, here, strict=True):
                self._learn_words(one, other)

    def differences(
        self, exchange: Exchange, answer: requests.Response, *, shape: bool = False
    ) -> list[str]:
        """Where the double's answer is another one than was recorded; ``shape``: types alone."""
        recorded = exchange.response
        found = []
        if answer.status_code != recorded["status"]:
            said = answer.text[:200]
            return [f"status {recorded['status']} was recorded, {answer.status_code} is {said}"]
        found += self._header_differences(recorded["headers"], answer.headers)
        if "json" in recorded:
            try:
                said = answer.json()
            except ValueError:
                return [*found, f"not JSON: {answer.text[:100]}"]
            cut = exchange.name in CUT or "cut" in exchange.note or "(cut)" in str(recorded["json"])
            least = recorded.get("json_truncated_to")
            wanted = json.loads(self.translated(json.dumps(recorded["json"])))
            shown = said[: len(wanted)] if least is not None and isinstance(said, list) else said
            if shape:
                wanted, shown = _shape(wanted), _shape(shown)
            found += _unlike(wanted, shown, "", cut=cut)
        elif recorded.get("text") == "":
            if answer.content:
                found.append(f"a body that was not recorded: {answer.text[:100]}")
        elif not answer.content:
            found.append("no body")
        elif "text_truncated_from_chars" not in recorded and "INFO]" not in recorded["text"]:
            kind = recorded["headers"].get("Content-Type", "")
            if "html" not in kind and self.translated(recorded["text"]) != answer.text:
                found.append(
                    f"text {recorded['text'][:80]!r} was recorded, is {answer.text[:80]!r}"
                )
        return found

    def _header_differences(
        self, recorded: Mapping[str, str], said: Mapping[str, str]
    ) -> list[str]:
        found = []
        for name in _HEADERS:
            wanted, is_ = recorded.get(name), said.get(name)
            if name == "Location" and wanted and is_:
                wanted, is_ = (re.sub(r"[0-9a-f-]{36}.*|\d+$", "*", one) for one in (wanted, is_))
            if name == "X-Total-Count" and (wanted is None) == (is_ is None):
                continue  # counts what other files left behind
            if name == "Link":
                continue  # whether there is a next page hangs on that count
            if wanted is not None:
                wanted = self.translated(wanted)
            if wanted != is_:
                found.append(f"header {name} {wanted!r} was recorded, is {is_!r}")
        kind, is_kind = (one.get("Content-Type", "").partition(";")[0] for one in (recorded, said))
        if kind != is_kind:
            found.append(f"Content-Type {kind!r} was recorded, is {is_kind!r}")
        return found


def _shape(document: Any) -> Any:
    """Names and types; a list by its first entry."""
    if isinstance(document, dict):
        return {key: _shape(value) for key, value in document.items()}
    if isinstance(document, list):
        return [_shape(document[0])] if document else []
    return type(document).__name__


def _sorted(document: Any) -> Any:
    if isinstance(document, dict) and "access" in document:
        return document | {"access": _any_order(document["access"])}
    return document


def _any_order(items: list[Any]) -> list[Any]:
    return sorted(items, key=lambda one: json.dumps(one, sort_keys=True))


def _unlike(  # noqa: PLR0911  one return a kind of value
    wanted: Any, said: Any, path: str, *, cut: bool
) -> list[str]:
    key = path.rpartition("/")[2]
    if isinstance(wanted, dict) and isinstance(said, dict):
        wanted = {k: v for k, v in wanted.items() if k != "(cut)"}
        if key == "used":
            return []
        missing, more = sorted(wanted.keys() - said.keys()), sorted(said.keys() - wanted.keys())
        found = [f"{path}: no {missing}"] if missing else []
        if more and not cut:
            found.append(f"{path}: also {more}")
        for name in wanted.keys() & said.keys():
            found += _unlike(wanted[name], said[name], f"{path}/{name}", cut=cut)
        return found
    if isinstance(wanted, list) and isinstance(said, list):
        if len(wanted) != len(said):
            return [f"{path}: {len(wanted)} items were recorded, {len(said)} are {str(said)[:150]}"]
        if key in ("permissions", "access"):  # Go's maps have no order
            wanted, said = (_any_order([_sorted(one) for one in part]) for part in (wanted, said))
        return [
            one
            for position, (a, b) in enumerate(zip(wanted, said, strict=True))
            for one in _unlike(a, b, f"{path}/{position}", cut=cut)
        ]
    if type(wanted) is not type(said):
        return [f"{path}: {wanted!r} was recorded, {said!r} is"]
    if wanted == said or key in _LOOSE or "diff_ids" in path:
        return []
    if isinstance(wanted, str) and _moment(wanted) and _moment(wanted) == _moment(said):
        return []
    return [f"{path}: {wanted!r} was recorded, {said!r} is"]
