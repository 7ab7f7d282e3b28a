"""A dump and the way back with a real PostgreSQL, through the code that streams.

``kubectl`` is a script that runs here what it is told to run in a pod; pg_dump, psql and the server
are Debian's.
"""

from __future__ import annotations

import gzip
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from installer.deploy.dump import Login, Programs, programs, statements
from installer.deploy.kubectl import Kubectl
from installer.deploy.snapshot import Snapshot, Snapshots
from installer.errors import Corrupt, DeploymentFailed
from installer.site.model import Cluster
from installer.site.state import State
from tests.integration.test_database import started
from tests.postgresql import Server, initialised, postgresql
from tests.programs import ProgramMissing

if TYPE_CHECKING:
    from collections.abc import Iterator

PASSWORD = r" Harbor's \'quoted' $ecret"
_KUBECTL = """#!/bin/sh
# What comes before -- says where; here is here. Everything that is asked is kept, to look at.
echo "$@" >> "{log}"
while [ $# -gt 0 ]; do
  case "$1" in
    get) cat "{folder}/pods.json"; exit;;
    create) cat > "{folder}/created.json"; exit;;
    delete|wait) exit 0;;
    --) shift; break;;
    *) shift;;
  esac
done
PATH="{bin}:$PATH"
{before}
exec "$@"
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    try:
        with initialised() as template, started(template, host="127.0.0.1") as server:
            name, password = "registry", PASSWORD.replace("'", "''")
            server.run(f"CREATE ROLE harbor LOGIN PASSWORD '{password}'")
            server.run("CREATE ROLE reader")
            server.run(f"CREATE DATABASE {name} OWNER harbor TEMPLATE template0")
            server.run("CREATE EXTENSION pg_trgm", name=name)
            yield server
    except ProgramMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def used(server: Server) -> Server:
    """The same with what a Harbor has in its database."""
    server.run(
        "DROP OWNED BY harbor CASCADE",
        "GRANT ALL ON SCHEMA public TO harbor",
        "SET ROLE harbor",
        "CREATE TYPE kind AS ENUM ('a', 'b')",
        "CREATE TABLE project (id serial PRIMARY KEY, name text NOT NULL, kind kind)",
        "CREATE TABLE blob (project integer REFERENCES project (id), bytes bytea)",
        "CREATE VIEW names AS SELECT name FROM project",
        "CREATE FUNCTION one() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "CREATE SEQUENCE lonely START 7",
        "GRANT SELECT ON project TO reader",
        # What would end a COPY, were it not quoted, and what psql would take for a command.
        r"INSERT INTO project (name) VALUES ('library'), (E'\\.'), (E'\\! id')",
        "UPDATE project SET kind = 'b'",
        "INSERT INTO blob SELECT 1, decode(repeat('0f', 999), 'hex') FROM generate_series(1, 3000)",
        name="registry",
    )
    return server


def kubectl(folder: Path, *, before: str = "") -> Kubectl:
    folder.mkdir(exist_ok=True)
    script = folder / "kubectl"
    words = {"log": folder / "log", "folder": folder, "bin": postgresql("psql").parent}
    script.write_text(_KUBECTL.format(before=before, **words))
    script.chmod(0o755)
    return Kubectl(script, Cluster(kubeconfig="/nowhere"), folder)


def login(server: Server, **more: Any) -> Login:
    words = {
        "name": "registry",
        "username": "harbor",
        "host": "127.0.0.1",
        "port": str(server.port),
        "password": PASSWORD,
    }
    return Login(**words | more)


def there(server: Server, folder: Path, **how: Any) -> Programs:
    return Programs(kubectl(folder, **how), login(server), "harbor", "pod")


def content(server: Server) -> Any:
    questions = (
        "SELECT id, name, kind::text FROM project ORDER BY id",
        "SELECT count(*), md5(string_agg(bytes, '')) FROM blob",
        """SELECT relname, relkind, relacl FROM pg_class
        WHERE relnamespace = 'public'::regnamespace ORDER BY 1""",
        "SELECT last_value FROM lonely",
        "SELECT extname FROM pg_extension ORDER BY 1",
    )
    return [server.run(statement, name="registry") for statement in questions]


def kept(server: Server, folder: Path) -> tuple[Snapshots, Snapshot]:
    state = State(folder / "state")
    with state.held():
        snapshots = Snapshots(state, "harbor/harbor")
        begun = Snapshot("now", 1, "harbor-1", "2.14.4", "harbor-2", {}, "", 0)
        return snapshots, snapshots.make(begun, there(server, folder / "dump"))


def test_the_way_back_undoes_all_that_came_later(used: Server, tmp_path: Path) -> None:
    before = content(used)
    snapshots, made = kept(used, tmp_path)
    assert made.postgresql == int(postgresql("psql").parts[4])
    used.run(
        "SET ROLE harbor",
        "UPDATE project SET name = 'renamed'",
        "ALTER TABLE project ADD COLUMN later text DEFAULT 'x'",
        "CREATE TABLE later (project integer REFERENCES project (id))",
        "CREATE VIEW more AS SELECT * FROM project",
        "CREATE FUNCTION two() RETURNS kind LANGUAGE sql AS 'SELECT ''a''::kind'",
        "CREATE TYPE pair AS (a integer, b kind)",
        "DROP TABLE blob",
        name="registry",
    )
    path = snapshots.dump(made)
    there(used, tmp_path / "back").restore(statements(path, made.dump_sha256))
    assert content(used) == before
    # And once more: what an undo that was killed after it does.
    there(used, tmp_path / "back").restore(statements(path, made.dump_sha256))
    assert content(used) == before
    assert used.run("SELECT to_regclass('later')::text", name="registry") == [[None]]
    assert used.run("SELECT count(*) FROM pg_proc WHERE proname = 'two'", name="registry") == [[0]]


def test_a_restore_that_fails_changes_nothing(used: Server, tmp_path: Path) -> None:
    snapshots, made = kept(used, tmp_path)
    used.run("SET ROLE harbor", "UPDATE project SET name = 'renamed'", name="registry")
    before = content(used)
    lines = list(statements(snapshots.dump(made), made.dump_sha256))
    back = there(used, tmp_path / "back")

    def damaged() -> Iterator[bytes]:
        yield from lines[: len(lines) // 2]
        raise Corrupt("the disk is damaged here")

    with pytest.raises(Corrupt, match="damaged here"):
        back.restore(damaged())
    assert content(used) == before
    with pytest.raises(DeploymentFailed, match="nonsense"):
        back.restore([*lines, b"SELECT nonsense;\n"])
    assert content(used) == before
    # A connection that breaks and looks as if all had come.
    with pytest.raises(DeploymentFailed, match="before the end of the dump"):
        there(used, tmp_path / "cut", before='head -c 20000 | "$@"; exit 0').restore(lines)
    assert content(used) == before


def test_a_dump_that_ends_early_is_none(used: Server, tmp_path: Path) -> None:
    short = there(used, tmp_path, before='"$@" | head -c 3000; exit 0')
    with pytest.raises(DeploymentFailed, match="ends in the middle"):
        list(short.dump())


def test_what_pg_dump_says_is_told(used: Server, tmp_path: Path) -> None:
    wrong = Programs(kubectl(tmp_path), login(used, password="another"), "harbor", "pod")
    with pytest.raises(DeploymentFailed, match="password authentication failed"):
        list(wrong.dump())
    used.run("CREATE TABLE foreign_one (id integer)", name="registry")
    try:
        with pytest.raises(DeploymentFailed, match="permission denied for table foreign_one"):
            list(there(used, tmp_path).dump())
    finally:
        used.run("DROP TABLE foreign_one", name="registry")


def test_the_password_is_in_no_argument_and_no_log(used: Server, tmp_path: Path) -> None:
    watched = there(used, tmp_path, before=f'ps -eo args >> "{tmp_path}/processes"')
    logged = len(used.log)
    assert b"library" in b"".join(watched.dump())
    for name in ("log", "processes"):
        text = (tmp_path / name).read_text()
        assert "pg_dump" in text
        assert "$ecret" not in text
    assert "COPY public.project" in used.log[logged:]
    assert "$ecret" not in used.log[logged:]


def test_a_database_is_streamed_not_held(used: Server, tmp_path: Path) -> None:
    snapshots, made = kept(used, tmp_path)
    with gzip.open(snapshots.dump(made)) as file:
        assert len(file.read()) > 6_000_000
    first = next(iter(there(used, tmp_path).dump()))
    assert len(first) <= 64 * 1024


def test_a_dump_that_nobody_reads_on_is_ended(used: Server, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    pieces = there(used, tmp_path, before=f'echo $$ > "{pid}"').dump()
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_kubectl_that_hangs_is_given_up(tmp_path: Path) -> None:
    hanging = kubectl(tmp_path, before="exec sleep 60")
    start = time.monotonic()
    with pytest.raises(DeploymentFailed, match="not done after"):
        list(hanging.stream("exec", "--", "true", timeout=0.5))
    assert time.monotonic() - start < 30


def test_an_external_server_is_checked_from_a_pod_of_ours(used: Server, tmp_path: Path) -> None:
    folder = tmp_path / "pod"
    ca = Path(used.ca).read_bytes()
    asked = kubectl(folder)
    wanted = login(used, ssl_mode="verify-full", ca=ca)
    with programs(asked, "harbor", "harbor", wanted, "seed:5000/goharbor/harbor-db@sha256:1") as at:
        # The script has no file system of its own: the pod's folder is one here.
        at._ca = str(folder / "ca.crt")
        at.give_authority()
        assert at.size() > 0
        used_tls = at._query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        assert used_tls == "t"
    log = (folder / "log").read_text()
    assert log.count("delete pod harbor-snapshot") == 2
    created = (folder / "created.json").read_text()
    assert "$ecret" not in created
    assert "seed:5000/goharbor/harbor-db@sha256:1" in created


def test_an_authority_that_is_lost_on_its_way_is_sent_again(used: Server, tmp_path: Path) -> None:
    ca, lost = Path(used.ca).read_bytes(), tmp_path / "lost"
    first = f'[ -e "{lost}" ] || exec < /dev/null; : > "{lost}"'
    for before, arrives in ((first, True), ("exec < /dev/null", False)):
        asked = kubectl(tmp_path / "pod", before=before)
        at = Programs(asked, login(used, ca=ca), "harbor", "pod", own=str(tmp_path))
        if arrives:
            at.give_authority()
            assert (tmp_path / "ca.crt").read_bytes() == ca
        else:
            with pytest.raises(DeploymentFailed, match="does not get what is sent"):
                at.give_authority()


def test_a_person_can_read_the_dump_without_us(used: Server, tmp_path: Path) -> None:
    """The file is what pg_dump made: PostgreSQL's own client takes it."""
    snapshots, made = kept(used, tmp_path)
    used.run("CREATE DATABASE by_hand OWNER harbor TEMPLATE template0")
    try:
        script = gzip.decompress(snapshots.dump(made).read_bytes())
        command = [str(postgresql("psql")), "-Xq", "-h", str(used.folder), "-p", str(used.port)]
        command += ["-U", "postgres", "-v", "ON_ERROR_STOP=1", "by_hand"]
        subprocess.run(command, input=script, check=True, capture_output=True)
        assert used.run("SELECT count(*) FROM project", name="by_hand") == [[3]]
    finally:
        used.run("DROP DATABASE by_hand")
