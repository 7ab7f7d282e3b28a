"""Upgrades: which are refused, what is shown of them, and what is kept whatever ends a run."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.server
import json
import threading
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from installer.deploy.dump import Login, compressed, login_of, statements
from installer.deploy.installed import ChartIdentity
from installer.deploy.read_only import LiftReadOnly, ReadOnly
from installer.deploy.snapshot import (
    DUMP,
    KEPT,
    UNDO,
    Snapshot,
    Snapshots,
    Undoing,
    check_dump,
)
from installer.deploy.upgrade import TakeSnapshot, check_no_undo
from installer.errors import (
    AirgapError,
    Corrupt,
    DeploymentFailed,
    PreflightFailed,
    TransferFailed,
)
from installer.harbor.api import HarborClient, WrongPassword
from installer.helm.client import Helm
from installer.helm.difference import (
    changed_images,
    changed_objects,
    changed_values,
    check_jump,
    summary,
)
from installer.site.harbor import Harbor as Section
from installer.site.http import NotAnswering
from installer.site.model import Release
from installer.site.state import State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = "harbor/harbor"
PASSWORD = "pässword: 1 of a kind"


# The supported jump


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2.14.4", "2.14.4"),
        ("2.14.4", "2.14.5"),
        ("2.13.0", "2.14.4"),
        ("2.13.9", "2.15.1"),
        ("v2.14.4", "2.15.1"),
        ("dev", "2.15.1"),
    ],
)
def test_two_minor_versions_are_supported(old: str, new: str) -> None:
    check_jump(KEY, old, new)


@pytest.mark.parametrize(
    ("old", "new", "words", "way"),
    [
        ("2.12.2", "2.15.1", "too far", "Harbor 2.14 first"),
        ("1.10.0", "2.1.0", "too far", "migration"),
        ("2.15.1", "2.14.4", "can't be downgraded", "installer undo"),
        ("2.15.1", "2.15.0", "can't be downgraded", "installer undo"),
    ],
)
def test_what_harbor_cannot_do_is_refused(old: str, new: str, words: str, way: str) -> None:
    with pytest.raises(PreflightFailed, match=words) as refused:
        check_jump(KEY, old, new)
    assert way in refused.value.hint


# What changes


def test_values_are_told_by_path_and_never_by_content() -> None:
    old = {"a": {"x": 1, "y": "hidden-1"}, "gone": {"deep": True}, "core": {"image": {"tag": "1"}}}
    new = {"a": {"x": 1, "y": "hidden-2"}, "new": [1], "core": {"image": {"tag": "2"}}}
    assert list(changed_values(old, new)) == ["~ a.y", "- gone.deep", "+ new"]
    assert list(changed_values(old, old)) == []
    assert list(changed_values({"a": {"b": 1}}, {"a": 5})) == ["- a.b", "~ a"]


def _object(kind: str, name: str, **more: Any) -> str:
    return "---\n" + json.dumps({"kind": kind, "metadata": {"name": name, **more}}) + "\n"


def test_objects_are_told_by_kind_and_name() -> None:
    hook = {"annotations": {"helm.sh/hook": "pre-upgrade"}}
    old = (
        _object("Secret", "same", labels={"app.kubernetes.io/version": "2.14"})
        + _object("Job", "gone")
        + _object("Service", "other", labels={"app": "a"})
    )
    new = (
        _object("Secret", "same", labels={"app.kubernetes.io/version": "2.15"})
        + _object("Deployment", "new")
        + _object("Service", "other", labels={"app": "b"})
        + _object("Job", "migration", **hook)
    )
    changes = changed_objects(old, new)
    assert changes == (["Deployment/new"], ["Job/gone"], ["Service/other"])
    assert summary("objects", changes) == (
        "objects: 1 added (Deployment/new), 1 removed (Job/gone), 1 changed (Service/other)"
    )


def test_images_are_counted() -> None:
    def pods(*images: str) -> str:
        return "".join(
            "---\n" + json.dumps({"kind": "Pod", "spec": {"containers": [{"image": image}]}}) + "\n"
            for image in images
        )

    old = pods("seed:5000/goharbor/core:v1", "seed:5000/goharbor/redis:v1", "seed:5000/same:1")
    new = pods("seed:5000/goharbor/core:v2", "seed:5000/goharbor/valkey:v1", "seed:5000/same:1")
    assert changed_images(old, new) == (["goharbor/valkey"], ["goharbor/redis"], ["goharbor/core"])


# Snapshots


class Database:
    """Stands for the programs at a database: gives a dump, or stops in the middle."""

    def __init__(self, text: bytes, *, breaks: bool = False, size: int = 1000) -> None:
        self.text = text
        self.breaks = breaks
        self._size = size

    def size(self) -> int:
        return self._size

    def version(self) -> int:
        return 15

    def dump(self) -> Iterator[bytes]:
        yield self.text[:5]
        if self.breaks:
            raise DeploymentFailed("the connection broke")
        yield self.text[5:]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = State(tmp_path / "state")
    with state.held():
        yield state


def snapshot(revision: int, **more: Any) -> Snapshot:
    return Snapshot(
        time="2026-01-01T00:00:00Z",
        revision=revision,
        chart="harbor-1.18.4",
        app_version="2.14.4",
        target="harbor-1.19.1",
        values={"harborAdminPassword": "hidden"},
        dump_sha256="",
        postgresql=0,
        **more,
    )


def make(snapshots: Snapshots, revision: int, text: bytes = b"SELECT 1;\n") -> Snapshot:
    return snapshots.make(snapshot(revision), Database(text))  # type: ignore[arg-type]


def test_a_snapshot_is_private_and_comes_back_whole(state: State) -> None:
    snapshots = Snapshots(state, KEY)
    made = make(snapshots, 3)
    assert snapshots.read(3) == made
    path = snapshots.dump(made)
    assert gzip.decompress(path.read_bytes()) == b"SELECT 1;\n"
    assert made.dump_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (path.parent / f"{DUMP}.sha256").read_text() == f"{made.dump_sha256}  {DUMP}\n"
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}
    assert "hidden" not in repr(made)
    check_dump(path, made.dump_sha256)


def test_a_dump_that_breaks_leaves_no_snapshot(state: State) -> None:
    snapshots = Snapshots(state, KEY)
    with pytest.raises(DeploymentFailed, match="broke"):
        snapshots.make(snapshot(3), Database(b"SELECT 1;\n", breaks=True))  # type: ignore[arg-type]
    assert snapshots.read(3) is None
    assert list((snapshots.folder / "3").iterdir()) == []
    assert make(snapshots, 3) == snapshots.read(3)


@pytest.mark.parametrize("files", [0, 1, 2])
def test_a_run_killed_after_any_file_begins_anew(state: State, files: int) -> None:
    """``files`` are those that a killed run wrote, in the order in which they are written."""
    snapshots = Snapshots(state, KEY)
    made = make(snapshots, 3, b"the older dump\n")
    folder = snapshots.dump(made).parent
    for name in (DUMP, f"{DUMP}.sha256", "snapshot.json")[files:]:
        (folder / name).unlink()
    assert snapshots.read(3) is None
    assert snapshots.all() == []
    again = make(snapshots, 3, b"the newer dump\n")
    assert snapshots.all() == [again]
    assert gzip.decompress(snapshots.dump(again).read_bytes()) == b"the newer dump\n"


def test_a_dump_is_not_begun_where_it_has_no_room(state: State) -> None:
    snapshots = Snapshots(state, KEY)
    with pytest.raises(PreflightFailed, match="MB are free"):
        snapshots.make(snapshot(3), Database(b"", size=1 << 60))  # type: ignore[arg-type]
    assert snapshots.read(3) is None


def test_the_last_two_are_kept(state: State) -> None:
    snapshots = Snapshots(state, KEY)
    for revision in (2, 9, 10):
        make(snapshots, revision)
    state.subfolder(f"snapshots/{KEY}/11")  # of a killed run
    snapshots.prune()
    assert [one.revision for one in snapshots.all()] == [9, 10][-KEPT:]
    assert sorted(path.name for path in snapshots.folder.iterdir()) == ["10", "9"]


def test_a_dump_that_was_changed_is_not_restored(state: State) -> None:
    snapshots = Snapshots(state, KEY)
    made = make(snapshots, 3)
    path = snapshots.dump(made)
    path.write_bytes(b"".join(compressed([b"DROP TABLE users;\n"])))
    with pytest.raises(Corrupt, match="damaged"):
        check_dump(path, made.dump_sha256)
    with pytest.raises(Corrupt, match="damaged"):
        list(statements(path, made.dump_sha256))
    path.unlink()
    with pytest.raises(Corrupt):
        list(statements(path, made.dump_sha256))


def test_what_only_newer_programs_know_is_left_out(tmp_path: Path) -> None:
    text = (
        b"--\n\\restrict kEy1\n\nSET transaction_timeout = 0;\nCOPY t FROM stdin;\n"
        b"\\\\restrict kEy1\n\\.\n\\unrestrict other\n\\unrestrict kEy1\n"
    )
    path = tmp_path / DUMP
    path.write_bytes(b"".join(compressed([text])))
    found = b"".join(statements(path, hashlib.sha256(path.read_bytes()).hexdigest()))
    assert found == b"--\n\nCOPY t FROM stdin;\n\\\\restrict kEy1\n\\.\n\\unrestrict other\n"


def test_the_database_is_found_in_the_values() -> None:
    internal = login_of({"database": {"internal": {"password": "hidden"}}}, "", None, "harbor")  # type: ignore[arg-type]
    assert (internal.host, internal.name, internal.username) == ("", "registry", "postgres")
    values = {
        "database": {
            "type": "external",
            "external": {"host": "10.0.0.7", "port": 5433, "username": "h", "password": "hidden"},
        }
    }
    external = login_of(values, "", None, "harbor")  # type: ignore[arg-type]
    assert external == Login("registry", "h", "10.0.0.7", "5433", "disable", "hidden", b"")
    assert "hidden" not in repr(external) + str(external)


# Read-only, against a server that answers as Harbor 2.14 was recorded to


class Harbor:
    """Keeps the switch; ``status`` other than 0 is what it answers to everything."""

    def __init__(self) -> None:
        self.read_only = False
        self.password = PASSWORD
        self.status = 0
        self.ignores = False
        self.asked: list[str] = []


@contextmanager
def answering(harbor: Harbor) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self, status: int, body: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("Set-Cookie", "sid=of-a-browser; Path=/; HttpOnly")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _ask(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path.endswith("/configurations"):
                harbor.asked.append(self.command)
            given = base64.b64decode(self.headers["Authorization"].split()[1]).decode()
            if harbor.status:
                self._answer(harbor.status)
            elif given != f"admin:{harbor.password}":
                self._answer(401)
            elif "Cookie" in self.headers:
                self._answer(403)
            elif self.command == "GET":
                value = {"read_only": {"editable": True, "value": harbor.read_only}, "scan": {}}
                self._answer(200, json.dumps(value).encode())
            else:
                if not harbor.ignores:
                    harbor.read_only = json.loads(sent)["read_only"]
                self._answer(200)

        do_GET = do_PUT = _ask  # noqa: N815 - names of the standard library

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def harbor() -> Harbor:
    return Harbor()


@pytest.fixture
def url(harbor: Harbor) -> Iterator[str]:
    with answering(harbor) as url:
        yield url


def switch(state: State, url: str, *, runs: bool = True, passwords: Any = (PASSWORD,)) -> ReadOnly:
    client = HarborClient(url, "", passwords, pauses=())
    return ReadOnly(state, KEY, lambda: client, lambda: runs, pause=lambda _: None)


def test_it_is_set_noted_and_lifted(state: State, url: str, harbor: Harbor) -> None:
    read_only = switch(state, url)
    lift = LiftReadOnly(KEY, read_only, lambda: False)
    assert lift.check()
    assert read_only.set() == ""
    assert harbor.read_only
    assert switch(state, url).since()  # a run that comes after this one was killed knows of it
    assert not lift.check()
    lift.apply()
    assert not harbor.read_only
    assert lift.check()


def test_what_people_set_is_theirs(state: State, url: str, harbor: Harbor) -> None:
    harbor.read_only = True
    read_only = switch(state, url)
    assert "already" in read_only.set()
    read_only.lift()
    assert harbor.read_only
    assert "PUT" not in harbor.asked


def test_what_was_killed_before_it_was_set_is_lifted_all_the_same(
    state: State, url: str, harbor: Harbor
) -> None:
    read_only = switch(state, url)
    read_only.note()
    read_only.lift()
    # Its word that it is not may come from a cache.
    assert harbor.asked[0] == "PUT"
    assert not read_only.since()


def test_a_harbor_that_runs_and_does_not_answer_is_not_dumped(
    state: State, url: str, harbor: Harbor
) -> None:
    harbor.status = 502
    with pytest.raises(DeploymentFailed, match="can't be set read-only"):
        switch(state, url).set()
    with pytest.raises(PreflightFailed, match="can't be set read-only"):
        switch(state, url).preflight()
    switch(state, url, runs=False).preflight()
    assert "not running" in switch(state, url, runs=False).set()
    assert not switch(state, url).since()


def test_read_only_that_cannot_be_lifted_stays_noted(
    state: State, url: str, harbor: Harbor
) -> None:
    read_only = switch(state, url)
    read_only.set()
    harbor.status = 502
    with pytest.raises(DeploymentFailed, match="still read-only"):
        read_only.lift(patience=0)
    assert read_only.since()
    harbor.status = 0
    read_only.lift()
    assert not harbor.read_only


def test_a_password_that_was_changed_is_told(state: State, url: str) -> None:
    with pytest.raises(WrongPassword) as refused:
        switch(state, url, passwords=("old",)).preflight()
    assert refused.value.exit_code == 5
    assert "adminPasswordFile" in refused.value.hint
    switch(state, url, passwords=("old", PASSWORD)).preflight()


def test_an_answer_that_is_not_harbors(state: State, url: str, harbor: Harbor) -> None:
    harbor.ignores = True
    with pytest.raises(DeploymentFailed, match="and is not"):
        switch(state, url).set()
    harbor.status = 418
    with pytest.raises(DeploymentFailed, match="HTTP 418"):
        switch(state, url).preflight()


def test_nobody_there_is_no_defect() -> None:
    client = HarborClient("http://127.0.0.1:1", "", [PASSWORD], pauses=())
    with pytest.raises(NotAnswering) as silent:
        client.get("/configurations")
    assert isinstance(silent.value, TransferFailed)
    assert PASSWORD not in str(silent.value)
    assert isinstance(silent.value, AirgapError)


# Which snapshot counts


def test_a_snapshot_is_for_one_chart() -> None:
    target = ChartIdentity("harbor", "1.19.1", "ab")
    made = msgspec.structs.replace(snapshot(1), target_sha256="ab")
    assert made.is_for(target)
    assert not made.is_for(ChartIdentity("harbor", "1.19.1", "cd"))


# Whether there is something to keep; Helm is a script that knows a history

_HELM = """#!/bin/sh
case "$1" in
  version) echo v4.3.1;;
  history) cat "{folder}/history.json";;
  *) exit 1;;
esac
"""
OLD, NEW = ChartIdentity("harbor", "1.18.4", "ab"), ChartIdentity("harbor", "1.19.1", "cd")


@pytest.fixture
def site(state: State, tmp_path: Path) -> Site:
    return Site(state, tmp_path)


class Site:
    """One Harbor and what Helm says of it: pairs of a chart's version and a status."""

    def __init__(self, state: State, folder: Path) -> None:
        self.state = state
        self.folder = folder
        script = folder / "helm"
        script.write_text(_HELM.format(folder=folder))
        script.chmod(0o755)
        self._context: Any = SimpleNamespace(
            helm=Helm(script, folder / "home", kubeconfig=folder / "kubeconfig"), state=state
        )
        self.read_only = ReadOnly(state, KEY, lambda: HarborClient("", "", []), lambda: False)
        self.snapshots = Snapshots(state, KEY)

    def history(self, *revisions: tuple[str, str]) -> None:
        entries = [
            {"revision": number, "status": status, "chart": f"harbor-{chart}", "app_version": ""}
            for number, (chart, status) in enumerate(revisions, start=1)
        ]
        (self.folder / "history.json").write_text(json.dumps(entries))

    def step(self, target: ChartIdentity = NEW) -> TakeSnapshot:
        release = Release("harbor", harbor=Section(external_url="https://harbor.example"))
        return TakeSnapshot(self._context, release, target, self.read_only)

    def keep(self, revision: int, **more: Any) -> Snapshot:
        begun = snapshot(revision, target_sha256=NEW.sha256, **more)
        return self.snapshots.make(begun, Database(b"SELECT 1;\n"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "revisions",
    [[], [("1.18.4", "failed")], [("1.18.4", "pending-install")], [("1.18.4", "uninstalled")]],
)
def test_without_a_release_there_is_nothing_to_keep(
    site: Site, revisions: list[tuple[str, str]]
) -> None:
    site.history(*revisions)
    assert site.step().check()


def test_another_digest_of_the_same_version_is_another_chart(site: Site) -> None:
    site.history(("1.18.4", "deployed"))
    assert site.step(OLD).check()
    (site.state.folder / "releases.json").write_text(json.dumps({"charts": {KEY: "ab"}}))
    assert site.step(OLD).check()
    assert not site.step(ChartIdentity("harbor", "1.18.4", "ef")).check()


def test_what_was_kept_and_written_to_since_is_kept_anew(site: Site) -> None:
    site.history(("1.18.4", "deployed"))
    assert not site.step().check()
    site.keep(1)
    assert not site.step().check()  # nobody says that Harbor was read-only since
    site.read_only.note()
    assert site.step().check()
    assert not site.step(ChartIdentity("harbor", "1.19.2", "ef")).check()


@pytest.mark.parametrize("status", ["failed", "pending-upgrade"])
def test_once_an_upgrade_has_begun_its_snapshot_stays(site: Site, status: str) -> None:
    site.history(("1.18.4", "deployed"))
    kept = site.keep(1)
    assert site.step().begin() == kept
    site.history(("1.18.4", "deployed"), ("1.19.1", status))
    for target in (NEW, ChartIdentity("harbor", "1.19.2", "ef")):
        assert site.step(target).check()
    assert site.step().begin() is None
    state, way = site.step().failed(None)
    assert f"is {status} at harbor-1.19.1, revision 2; before it was harbor-1.18.4" in state
    assert "installer undo" in way


def test_an_upgrade_that_helm_refused_at_once_has_not_begun(site: Site) -> None:
    site.history(("1.18.4", "deployed"))
    site.keep(1)
    state, way = site.step().failed(site.step().begin())
    assert (state, way) == (f"{KEY} is as it was: harbor-1.18.4, revision 1", "")
    assert not site.step().check()


def test_after_an_undo_the_next_upgrade_is_kept_by_itself(site: Site) -> None:
    site.history(("1.18.4", "superseded"), ("1.19.1", "superseded"), ("1.18.4", "deployed"))
    site.keep(1, began="2026-01-01T00:00:00Z", undone="2026-01-02T00:00:00Z")
    assert not site.step().check()


def test_an_undo_that_is_not_finished_comes_first(state: State) -> None:
    check_no_undo(state)
    state.write(UNDO, Undoing(KEY, 1, 2))
    with pytest.raises(PreflightFailed, match="undo has begun"):
        check_no_undo(state)
