"""Life after the first install: an upgrade that keeps what was, and the way back to it.

The demo site with its external PostgreSQL, which is a real one: a row is written, the upgrade keeps
it in its snapshot, and it is there again after the undo, although another Harbor has made tables
since that point to it.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.site import test_run_demo
from tests.site.network import POD_NET
from tests.site.story import NEW, OLD, Story, told
from tests.site.test_run_demo import RUNNING, SEED, Demo, start_haproxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tests.postgresql import Server
    from tests.site.cluster import Cluster
    from tests.site.connected import Connected, Made
    from tests.site.network import Outbound

pytestmark = pytest.mark.site

KEY = "undo/harbor"
database = test_run_demo.database


@pytest.fixture(scope="module")
def story(
    cluster: Cluster,
    before: Outbound,
    database: Server,
    connected: Connected,
    bundles: Mapping[str, Made],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Demo]:
    if shutil.which("haproxy", path="/usr/sbin") is None:
        pytest.skip("haproxy is missing: apt-get install haproxy")
    # A real Harbor's pods come to it from their own addresses; so does the one that dumps it.
    hba = database.folder / "data" / "pg_hba.conf"
    hba.write_text(f"{hba.read_text()}hostssl registry harbor {POD_NET} scram-sha-256\n")
    database.run("SELECT pg_reload_conf()")
    folder = tmp_path_factory.mktemp("undo")
    with told(
        Demo(cluster, folder, before, namespace="undo", port=30082, database=database)
    ) as story:
        for name in ("old", "new"):
            story.carry(name, bundles[name].path, connected.public_key)
        yield story
        cluster.stop("haproxy")
        volume = f"demo-{story.namespace}-harbor"
        cluster.kubectl("delete", "persistentvolume", volume, "--wait=false", "--ignore-not-found")


def undo(story: Story, bundle: str, *more: str) -> subprocess.CompletedProcess[str]:
    argv = story.argv(bundle, *more)
    return story.cluster.run([argv[0], "undo", *argv[2:]], check=False, timeout=900)


def sql(story: Demo, *statements: str) -> Any:
    """What Harbor does in its database, as its role."""
    return story.database.run("SET ROLE harbor", *statements, name="registry")


def events(story: Story, event: str) -> list[str]:
    return [step for what, step in story.events() if what == event]


def snapshot(story: Story) -> Path:
    return story.state / "snapshots" / "undo" / "harbor" / "1"


def test_it_is_installed_and_used(story: Demo) -> None:
    started = start_haproxy(story)
    report = story.json("old")
    started.join(10)
    assert not {f"snapshot:{KEY}", f"writable:{KEY}"} & set(report["changed"])
    sql(
        story,
        "CREATE TABLE project (id serial PRIMARY KEY, name text NOT NULL)",
        "INSERT INTO project (name) VALUES ('library')",
    )


def test_the_plan_says_what_the_next_bundle_changes(story: Demo) -> None:
    done = story.run("new", "--plan")
    assert done.returncode == 0, done.stderr
    assert f"chart: harbor-{OLD} → harbor-{NEW} (application 2.14.4 → 2.15.1)" in done.stdout
    images = f"images: 0 added, 0 removed, {len(RUNNING)} changed (goharbor/harbor-core, "
    assert images in done.stdout, done.stdout
    assert "values: as they are" in done.stdout
    assert re.search(
        r"objects: 0 added, 0 removed, \d+ changed \(ConfigMap/.*Deployment/harbor-c", done.stdout
    )
    secrets = json.loads((story.state / "secrets.json").read_text())["harbor"][KEY]
    for word in (secrets["adminPassword"], secrets["databasePassword"], secrets["secretKey"]):
        assert word not in done.stdout + done.stderr
    assert not snapshot(story).exists()


def test_an_upgrade_that_fails_says_how_things_are(story: Demo) -> None:
    nowhere = {"core": {"nodeSelector": {"is": "nowhere"}}}
    done = story.run("new", timeout=30, values=nowhere)
    assert done.returncode == 7, done.stderr
    words = f"{KEY} is failed at harbor-{NEW}, revision 2; before it was harbor-{OLD}, whose values"
    assert words in done.stderr, done.stderr
    assert f"`installer undo` with the bundle of harbor-{OLD}" in done.stderr
    assert str(snapshot(story)) in done.stderr
    assert story.revision_of("harbor") == ("2", "failed", f"harbor-{NEW}")
    assert f"snapshot:{KEY}" in events(story, "done")


def test_an_upgrade_keeps_what_was(story: Demo, connected: Connected) -> None:
    before = (snapshot(story) / "database.sql.gz").stat().st_mtime_ns
    report = story.json("new")
    assert f"release:{KEY}" in report["changed"]
    # The upgrade had begun: what is in the database now may not be what was.
    assert f"snapshot:{KEY}" in report["unchanged"]
    assert story.revision_of("harbor") == ("3", "deployed", f"harbor-{NEW}")
    files = {path.name: path for path in snapshot(story).iterdir()}
    assert set(files) == {"database.sql.gz", "database.sql.gz.sha256", "snapshot.json"}
    assert files["database.sql.gz"].stat().st_mtime_ns == before
    assert {path.stat().st_mode & 0o777 for path in files.values()} == {0o600}
    assert b"library" in gzip.decompress(files["database.sql.gz"].read_bytes())
    subprocess.run(
        ["sha256sum", "--check", "--quiet", "database.sql.gz.sha256"],
        cwd=snapshot(story),
        check=True,
    )
    assert json.loads((story.state / "read-only.json").read_text()) == {"since": {}}
    # The pod that dumped it is gone, and nothing but the bundle's ran.
    story.check_pods(SEED, NEW, connected.upstream, RUNNING)
    assert story.json("new")["changed"] == []


def test_an_upgrade_is_not_taken_back_by_a_run(story: Demo) -> None:
    done = story.run("old", "--allow-downgrade=drill")
    assert done.returncode == 5, done.stderr
    assert "installer undo" in done.stderr
    assert story.revision_of("harbor")[0] == "3"


def test_undo_asks_first(story: Demo) -> None:
    done = undo(story, "old")
    assert done.returncode == 2, done.stderr
    assert f"{KEY} returns from harbor-{NEW} to harbor-{OLD}" in done.stderr
    assert not (story.state / "undo.json").exists()
    assert story.revision_of("harbor")[0] == "3"


def test_undo_that_is_killed_goes_on(story: Demo) -> None:
    # What a newer Harbor and its users do: tables that point to older ones, rows that change.
    sql(
        story,
        "CREATE TABLE later (project integer REFERENCES project (id))",
        "INSERT INTO later VALUES (1)",
        "UPDATE project SET name = 'renamed'",
    )
    argv = story.argv("old", "--yes")
    process = story.cluster.spawn("undo", [argv[0], "undo", *argv[2:]])
    deadline = time.monotonic() + 120
    while f"restore:{KEY}" not in events(story, "started"):
        assert time.monotonic() < deadline, story.cluster.log("undo").read_text()
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    story.cluster.stop("undo")
    refused = story.run("new")
    assert refused.returncode == 5, refused.stderr
    assert "an undo has begun and is not finished" in refused.stderr


def test_undo_returns_to_release_and_database(story: Demo, connected: Connected) -> None:
    done = undo(story, "old", "--yes", "--output=json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {f"restore:{KEY}", f"back:{KEY}"} <= set(report["changed"])
    assert report["chart"] == f"harbor-{OLD}"
    assert sql(story, "SELECT name FROM project") == [["library"]]
    assert sql(story, "SELECT to_regclass('later')") == [[None]]
    assert sql(story, "INSERT INTO project (name) VALUES ('next') RETURNING id") == [[2]]
    assert story.revision_of("harbor")[1:] == ("deployed", f"harbor-{OLD}")
    story.check_pods(SEED, OLD, connected.upstream, RUNNING)
    assert story.get("/api/v2.0/health") == "200"
    assert not (story.state / "undo.json").exists()
    assert json.loads((story.state / "read-only.json").read_text()) == {"since": {}}
    lines = map(json.loads, (story.state / "journal.jsonl").read_text().splitlines())
    assert "undo" in [line["text"] for line in lines if line["event"] == "downgrade"]


def test_a_second_undo_has_nothing_to_do(story: Demo) -> None:
    done = undo(story, "old", "--yes", "--output=json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["changed"] == []
    assert story.json("old", "--allow-downgrade=undone")["changed"] == []


def test_nothing_tried_to_leave(story: Demo, tell: Callable[[str], None]) -> None:
    tell(story.check_silence())
