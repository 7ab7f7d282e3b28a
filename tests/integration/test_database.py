"""Harbor's database in a real PostgreSQL: what is made, what is refused, and in which words."""

from __future__ import annotations

import datetime as dt
import re
import socket
import subprocess
import threading
import time
import traceback
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING, Any

import msgspec
import pg8000.native
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from installer.deploy import postgresql as module
from installer.deploy.database import PrepareDatabase
from installer.errors import AirgapError, DeploymentFailed, InvalidInput, PreflightFailed
from installer.site.harbor import Admin, Database
from tests.integration.servers import _running, free_port
from tests.postgresql import (
    ADMIN_PASSWORD,
    USER,
    Server,
    as_postgres,
    initialised,
    open_folder,
    postgresql,
)
from tests.programs import ProgramMissing
from tests.upstream.certificates import make_certificates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PASSWORD = "Harbor's 'quoted' $ecret"
HBA = """
local all all trust
host all all 127.0.0.1/32 scram-sha-256
"""
NUMBERS = count(1)


@contextmanager
def started(
    template: Path, *, hba: str = HBA, host: str = "localhost", tls: bool = True, **settings: str
) -> Iterator[Server]:
    """Run a copy of the cluster; ``host`` is what its certificate is for."""
    with open_folder() as folder:
        subprocess.run(["cp", "-a", template / "data", template / "admin", folder], check=True)
        make_certificates(folder / "tls", [host])
        if change := settings.pop("certificate", ""):
            CERTIFICATES[change](folder / "tls")
        (folder / "data/pg_hba.conf").write_text(hba)
        if settings.pop("standby", ""):
            (folder / "data/standby.signal").touch()
        subprocess.run(["chown", "-R", f"{USER}:{USER}", folder], check=True)
        server = Server(free_port(), folder)
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(server.port),
            "unix_socket_directories": str(folder),
            "ssl": "on" if tls else "off",
            "ssl_cert_file": str(folder / "tls/server.pem"),
            "ssl_key_file": str(folder / "tls/server.key"),
            "fsync": "off",
            "log_statement": "all",
            "log_connections": "on",
            "log_min_messages": "debug1",
            "log_min_error_statement": "debug1",
            "log_parameter_max_length_on_error": "-1",
        } | settings
        command = as_postgres(
            postgresql("postgres"),
            "-D",
            folder / "data",
            *(f"--{key}={text}" for key, text in options.items()),
        )
        ready: list[str | Path] = [
            postgresql("pg_isready"),
            "-q",
            "-h",
            folder,
            "-p",
            str(server.port),
        ]

        def answers() -> bool:
            return subprocess.run(ready, check=False).returncode == 0

        with _running(command, folder / "log", answers):
            yield server


def expire(folder: Path) -> None:
    """Sign the server's certificate anew, with dates in the past."""
    key = ec.generate_private_key(ec.SECP256R1())
    authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    new = (
        x509.CertificateBuilder()
        .subject_name(authority.subject)
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(dt.datetime.now(dt.UTC) - dt.timedelta(days=2))
        .not_valid_after(dt.datetime.now(dt.UTC) - dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_pair(folder, new, key)
    (folder / "ca.pem").write_bytes((folder / "server.pem").read_bytes())


def modern(folder: Path) -> None:
    """A self-signed certificate with Ed25519, which has no hash to bind SCRAM to."""
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([])
    now = dt.datetime.now(dt.UTC)
    new = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=2))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, None)
    )
    _write_pair(folder, new, key)


def _write_pair(folder: Path, certificate: x509.Certificate, key: Any) -> None:
    (folder / "server.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "server.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


CERTIFICATES: dict[str, Callable[[Path], None]] = {"expired": expire, "modern": modern}


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(initialised())
        except ProgramMissing as missing:
            pytest.skip(str(missing))
        yield folder


@pytest.fixture(scope="module")
def server(template: Path) -> Iterator[Server]:
    with started(template) as running:
        yield running


class Site:
    """A section of site.yaml with names that are new in the server, and what is kept."""

    def __init__(self, server: Server, **changes: Any) -> None:
        number = next(NUMBERS)
        self.server = server
        self.kept: str | None = None
        self.made = PASSWORD
        default = Database(
            host="127.0.0.1",
            port=server.port,
            name=f"registry{number}",
            username=f"harbor{number}",
            ssl_mode="require",
        )
        self.database = msgspec.structs.replace(default, **changes)

    @property
    def role(self) -> str:
        return self.database.username

    @property
    def name(self) -> str:
        return self.database.name

    @property
    def step(self) -> PrepareDatabase:
        return PrepareDatabase(self.database, "harbor/harbor", lambda: self.kept, self.make)

    def make(self) -> str:
        self.kept = self.kept or self.made
        return self.kept

    def refused(self, kind: type[AirgapError] = PreflightFailed, what: str = "preflight") -> str:
        """Message and hint of the error that the step raises, which holds no password."""
        with pytest.raises(kind) as caught:
            getattr(self.step, what)()
        told = "".join(traceback.format_exception(caught.value)) + caught.value.hint
        for secret in (PASSWORD, ADMIN_PASSWORD, self.kept or PASSWORD):
            assert secret not in told
        return f"{caught.value.message}\n{caught.value.hint}"

    def log_in(self, password: str) -> pg8000.native.Connection:
        return pg8000.native.Connection(
            self.role,
            host=self.database.host,
            port=self.database.port,
            database=self.name,
            password=password,
        )

    def works(self) -> None:
        """Harbor's role makes a table and an index in it, writes and drops it."""
        assert self.kept
        with self.log_in(self.kept) as connection:
            connection.run("CREATE TABLE artifact (id serial PRIMARY KEY, word text)")
            connection.run("INSERT INTO artifact (word) VALUES ('ü')")
            assert connection.run("SELECT word FROM artifact") == [["ü"]]
            connection.run("DROP TABLE artifact")


@pytest.mark.parametrize("names", [{}, {"username": "har\"bor' ü", "name": "The Registry; $1 :x"}])
def test_role_and_database_are_made_once(server: Server, names: dict[str, str]) -> None:
    site = Site(server, admin=server.admin, **names)
    before = server.world()
    assert not site.step.check()
    site.step.preflight()
    assert not site.step.check()
    assert server.world() == before, "nothing was changed"
    assert site.kept is None

    note = site.step.apply()
    assert f"role {site.role} was made, database {site.name} was made" in note
    assert site.step.check()
    assert server.owner(site.name) == site.role
    site.works()

    after = server.world()
    site.step.preflight()
    assert site.step.apply() == ""
    assert server.world() == after
    assert site.step.name == "database:harbor/harbor"
    assert site.name in site.step.sentence


@pytest.mark.parametrize("left", ["role", "database"])
def test_what_was_begun_is_finished(server: Server, left: str) -> None:
    site = Site(server, admin=server.admin)
    site.step.apply()
    server.run(f"DROP DATABASE {site.name}")
    if left == "database":
        server.run(f"DROP ROLE {site.role}", f"CREATE DATABASE {site.name} TEMPLATE template0")
    assert not site.step.check()
    site.step.preflight()
    assert ("role" in site.step.apply().partition(",")[0]) == (left == "database")
    assert site.step.check()
    assert server.owner(site.name) == site.role
    site.works()


def test_password_is_nowhere_in_the_log(server: Server) -> None:
    site = Site(server, admin=server.admin)
    site.step.apply()
    server.run(f"ALTER ROLE {site.role} PASSWORD 'of somebody else'")
    assert "has its password" in site.step.apply()
    log = server.log
    assert f'CREATE ROLE "{site.role}" LOGIN PASSWORD \'SCRAM-SHA-256$4096:' in log
    assert f'ALTER ROLE "{site.role}" PASSWORD \'SCRAM-SHA-256$4096:' in log
    for secret in (PASSWORD, ADMIN_PASSWORD, PASSWORD.replace("'", "''")):
        assert secret not in log


@pytest.mark.parametrize("method", ["md5", "password", "trust"])
def test_other_ways_to_log_in(template: Path, method: str) -> None:
    hba = f"local all all trust\nhost all postgres all scram-sha-256\nhost all all all {method}\n"
    with started(template, hba=hba, password_encryption="md5") as server:
        site = Site(server, admin=server.admin)
        site.step.preflight()
        assert "was made" in site.step.apply()
        assert site.step.check()
        site.works()


def test_role_with_another_password(server: Server) -> None:
    site = Site(server, admin=server.admin)
    site.step.apply()
    site.works()
    site.kept = "a new one from passwordFile"
    assert not site.step.check()
    site.step.preflight()
    assert site.step.apply().endswith(f"role {site.role} has its password")
    site.works()
    with pytest.raises(pg8000.native.DatabaseError):
        site.log_in(PASSWORD)

    site.kept = "again another one"
    site.database = msgspec.structs.replace(site.database, admin=None)
    told = site.refused()
    assert "refused, or there is no such role" in told
    assert f"ALTER ROLE \"{site.role}\" LOGIN PASSWORD '<from the file>';" in told
    assert not site.step.check()
    assert "is refused" in site.refused(DeploymentFailed, "apply")


def test_the_hints_sql_is_what_a_dba_needs(server: Server) -> None:
    site = Site(server)
    site.kept = PASSWORD
    told = site.refused()
    quoted = pg8000.native.literal(PASSWORD)
    for kind in ("ROLE", "DATABASE"):
        found = re.search(rf"CREATE {kind} [^;]+", told)
        assert found is not None
        server.run(found[0].replace("'<from the file>'", quoted))
        if kind == "ROLE":
            told = site.refused()
            assert "no such database" in told
    site.step.preflight()
    assert site.step.check()
    assert site.step.apply() == ""
    site.works()


def test_the_sql_for_a_dba_runs_in_psql(server: Server) -> None:
    site = Site(server, username='odd "name"', name="of 'a' ship")
    site.kept = PASSWORD
    made = (module.sql_role(site.database), module.sql_database(site.database))
    text = ";\n".join(made).replace("'<from the file>'", pg8000.native.literal(PASSWORD))
    login = f"host={server.folder} port={server.port} user={USER} dbname=postgres"
    psql: list[str | Path] = [postgresql("psql"), "--no-psqlrc", "--set=ON_ERROR_STOP=1", login]
    subprocess.run(psql, input=f"{text};", text=True, check=True, capture_output=True)
    assert site.step.check()


def test_no_password_and_no_administrator(server: Server) -> None:
    told = Site(server).refused()
    assert "has no password yet" in told
    assert "passwordFile" in told


def test_database_of_somebody_else(server: Server) -> None:
    site = Site(server, admin=server.admin)
    server.run(
        f"CREATE ROLE dba{site.role}",
        f"CREATE DATABASE {site.name} OWNER dba{site.role} TEMPLATE template0",
    )
    site.step.preflight()
    assert server.owner(site.name) == f"dba{site.role}"
    assert f"which was dba{site.role}'s, is {site.role}'s now" in site.step.apply()
    assert server.owner(site.name) == site.role
    site.works()


def test_tables_of_somebody_else_are_left_alone(server: Server) -> None:
    site = Site(server, admin=server.admin)
    server.run(f"CREATE DATABASE {site.name}")
    server.run("CREATE TABLE ledger AS SELECT 1 AS entry", name=site.name)
    before = server.world()
    told = site.refused()
    assert f"database {site.name} is postgres's and holds tables of others" in told
    assert "public.ledger" in told
    assert "public.ledger" in site.refused(DeploymentFailed, "apply")
    assert server.world() == before
    assert server.run("SELECT entry FROM ledger", name=site.name) == [[1]]


def test_tables_of_extensions_are_nobodys(server: Server) -> None:
    site = Site(server, admin=server.admin)
    server.run(f"CREATE DATABASE {site.name}")
    server.run("CREATE EXTENSION pg_stat_statements", name=site.name)
    site.step.preflight()
    site.step.apply()
    assert server.owner(site.name) == site.role
    site.works()


def test_role_that_may_not_create(server: Server) -> None:
    site = Site(server)
    site.kept = PASSWORD
    server.run(
        f"CREATE ROLE {site.role} LOGIN PASSWORD {pg8000.native.literal(PASSWORD)}",
        f"CREATE DATABASE {site.name} TEMPLATE template0",
    )
    told = site.refused()
    assert "lacks a right: schema public" in told
    assert f'a DBA runs: ALTER DATABASE "{site.name}" OWNER TO "{site.role}";' in told
    assert not site.step.check()

    granted = f"GRANT CREATE ON SCHEMA public TO {site.role}"
    server.run(granted, name=site.name)
    assert site.step.check(), "the owner may be another one"
    server.run(f"REVOKE CONNECT ON DATABASE {site.name} FROM PUBLIC")
    assert "lacks a right" in site.refused()

    site.database = msgspec.structs.replace(site.database, admin=server.admin)
    site.step.preflight()
    site.step.apply()
    assert server.owner(site.name) == site.role
    site.works()


def test_owner_stays_where_the_role_has_its_rights(server: Server) -> None:
    site = Site(server, admin=server.admin)
    server.run(
        f"CREATE ROLE {site.role} LOGIN PASSWORD 'of somebody else'",
        f"CREATE DATABASE {site.name} TEMPLATE template0",
    )
    granted = f"GRANT CREATE ON SCHEMA public TO {site.role}"
    server.run(granted, "CREATE TABLE monitoring AS SELECT 1 AS entry", name=site.name)
    site.step.preflight()
    assert site.step.apply().endswith(f": role {site.role} has its password")
    assert server.owner(site.name) == USER
    site.works()


def test_owner_without_its_schema(server: Server) -> None:
    site = Site(server, admin=server.admin)
    site.step.apply()
    server.run("ALTER SCHEMA public OWNER TO postgres", name=site.name)
    assert not site.step.check()
    site.step.preflight()
    assert site.step.apply().endswith(f"{site.role} may create in its schema public")
    site.works()


def test_database_in_another_encoding(server: Server) -> None:
    site = Site(server, admin=server.admin)
    server.run(f"CREATE DATABASE {site.name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    assert "has encoding LATIN1, not UTF8" in site.refused()
    assert "has encoding LATIN1, not UTF8" in site.refused(DeploymentFailed, "apply")
    server.run(
        f"CREATE ROLE {site.role} LOGIN PASSWORD {pg8000.native.literal(PASSWORD)}",
        f"ALTER DATABASE {site.name} OWNER TO {site.role}",
    )
    assert "has encoding LATIN1, not UTF8" in site.refused()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("NOLOGIN", "may not log in"),
        ("LOGIN SUPERUSER PASSWORD 'x'", "is a superuser"),
        ("LOGIN VALID UNTIL '2020-01-01'", "has expired"),
    ],
)
def test_roles_that_are_not_ours_to_change(server: Server, options: str, words: str) -> None:
    site = Site(server, admin=server.admin)
    server.run(f"CREATE ROLE {site.role} {options}")
    before = server.world()
    assert words in site.refused()
    assert words in site.refused(DeploymentFailed, "apply")
    assert server.world() == before


def test_administrator_without_all_rights(server: Server) -> None:
    number = next(NUMBERS)
    file = server.folder / f"admin{number}"
    file.write_text(f"{ADMIN_PASSWORD}\n")
    quoted = pg8000.native.literal(ADMIN_PASSWORD)
    server.run(f"CREATE ROLE admin{number} LOGIN PASSWORD {quoted}")
    site = Site(server, admin=Admin(f"admin{number}", str(file)))
    assert f"admin{number} lacks CREATEROLE" in site.refused()
    server.run(f"ALTER ROLE admin{number} CREATEROLE")
    told = site.refused()
    assert f"admin{number} lacks CREATEDB" in told
    assert f'CREATE DATABASE "{site.name}"' in told

    server.run(f"ALTER ROLE admin{number} CREATEDB")
    site.step.preflight()
    site.step.apply()
    assert server.owner(site.name) == site.role
    inherits = f"SELECT pg_has_role('admin{number}', '{site.role}', 'USAGE')"
    assert server.run(inherits) == [[False]], "membership was only for the making"
    site.works()

    # One that may neither give away nor look into what is another's.
    other = Site(server, admin=site.database.admin)
    server.run(f"CREATE DATABASE {other.name} TEMPLATE template0")
    other.step.preflight()
    assert "lacks a right" in other.refused(DeploymentFailed, "apply")
    assert server.owner(other.name) == USER


def test_administrators_login(server: Server, tmp_path: Path) -> None:
    site = Site(server, admin=Admin(USER, str(tmp_path / "gone")))
    with pytest.raises(InvalidInput, match=r"passwordFile: .*gone: there is no such file"):
        site.step.preflight()
    (tmp_path / "gone").write_text("not the DBA's")
    told = site.refused()
    assert "the password of role postgres is refused" in told
    assert "harbor.database.admin" in told

    site.database = msgspec.structs.replace(site.database, admin=server.admin)
    site.step.apply()
    (tmp_path / "gone").unlink()
    gone = Admin(USER, str(tmp_path / "gone"))
    site.database = msgspec.structs.replace(site.database, admin=gone)
    site.step.preflight()
    assert site.step.check(), "who made it is not needed any more"


def test_pg_hba(template: Path) -> None:
    hba = "local all all trust\nhost all postgres all scram-sha-256\nhost all robot all reject\n"
    with started(template, hba=hba) as server:
        site = Site(server, admin=server.admin)
        site.kept = PASSWORD
        told = site.refused()
        assert f"pg_hba.conf there does not let role {site.role} in" in told
        assert f"hostssl {site.name} {site.role} <addresses" in told
        site = Site(server, username="robot", ssl_mode="disable")
        site.kept = PASSWORD
        told = site.refused()
        assert "pg_hba.conf" in told
        assert f"host {site.name} robot" in told


def test_a_role_that_is_missing_where_no_password_is_asked(template: Path) -> None:
    with started(template, hba="local all all trust\nhost all all all trust\n") as server:
        site = Site(server)
        site.kept = PASSWORD
        told = site.refused()
        assert f'role {site.role} is not let in: role "{site.role}" does not exist' in told
        assert f'CREATE ROLE "{site.role}" LOGIN' in told
        site.database = msgspec.structs.replace(site.database, admin=server.admin)
        site.step.preflight()
        site.step.apply()
        site.works()


def test_tls_modes(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The certificate is for localhost only, and its authority is known to nobody."""
    others = make_certificates(tmp_path, ["localhost"]).ca
    good = {"disable": "", "require": "", "verify-ca": server.ca, "verify-full": server.ca}
    for mode, ca in good.items():
        site = Site(server, host="localhost", ssl_mode=mode, ca=ca, admin=server.admin)
        site.step.preflight()
        site.step.apply()
        assert site.step.check()
        logins = re.findall(rf"connection authorized: user={site.role} .*", server.log)
        assert logins
        assert all(("SSL enabled" in line) == (mode != "disable") for line in logins)

    for mode in ("verify-ca", "verify-full"):
        site = Site(server, host="localhost", ssl_mode=mode, ca=str(others), admin=server.admin)
        assert "is not trusted" in site.refused()
        assert not site.step.check()
        site = Site(server, host="localhost", ssl_mode=mode, admin=server.admin)
        assert "those of this system count" in site.refused()
        with monkeypatch.context() as patch:
            patch.setenv("SSL_CERT_FILE", server.ca)
            site.step.preflight()

    site = Site(server, ssl_mode="verify-ca", ca=server.ca, admin=server.admin)
    site.step.preflight()
    site = Site(server, ssl_mode="verify-full", ca=server.ca, admin=server.admin)
    assert "certificate is not for 127.0.0.1" in site.refused()
    site = Site(server, ssl_mode="verify-full", ca=str(server.folder / "admin"))
    site.kept = PASSWORD
    assert "harbor.database.ca" in site.refused(InvalidInput)
    site = Site(server, ssl_mode="verify-full", ca=str(tmp_path / "none"))
    site.kept = PASSWORD
    assert "No such file" in site.refused(InvalidInput)


def test_name_of_the_certificate(template: Path) -> None:
    with started(template, host="db.example") as server:
        site = Site(server, host="localhost", ssl_mode="verify-full", ca=server.ca)
        site.database = msgspec.structs.replace(site.database, admin=server.admin)
        assert "certificate is not for localhost" in site.refused()
        site.database = msgspec.structs.replace(site.database, ssl_mode="verify-ca")
        site.step.preflight()


def test_expired_certificate(template: Path) -> None:
    with started(template, certificate="expired") as server:
        site = Site(server, host="localhost", ssl_mode="verify-ca", ca=server.ca)
        site.database = msgspec.structs.replace(site.database, admin=server.admin)
        assert "has expired" in site.refused()
        site.database = msgspec.structs.replace(site.database, ssl_mode="require", ca="")
        site.step.preflight()


def test_certificate_without_a_hash(template: Path) -> None:
    with started(template, certificate="modern") as server:
        site = Site(server, admin=server.admin)
        assert re.search("digest|can't be used", site.refused())


def test_server_without_tls(template: Path) -> None:
    with started(template, tls=False) as server:
        site = Site(server, admin=server.admin)
        told = site.refused()
        assert "the server offers no TLS, and sslMode is require" in told
        site.database = msgspec.structs.replace(site.database, ssl_mode="disable")
        site.step.apply()
        site.works()


def test_server_that_wants_tls(template: Path) -> None:
    hba = "local all all trust\nhostssl all all all scram-sha-256\n"
    with started(template, hba=hba) as server:
        site = Site(server, ssl_mode="disable", admin=server.admin)
        assert "pg_hba.conf there does not let role postgres in" in site.refused()


def test_standby(template: Path) -> None:
    with started(template, standby="yes") as server:
        site = Site(server, admin=server.admin)
        assert "it is a standby, which only reads" in site.refused()


def test_read_only(server: Server) -> None:
    site = Site(server, admin=server.admin)
    site.step.apply()
    server.run(f"ALTER DATABASE {site.name} SET default_transaction_read_only = on")
    assert "default_transaction_read_only" in site.refused()
    assert not site.step.check()
    assert "read only" in site.refused(DeploymentFailed, "apply")


def test_nobody_listens(server: Server) -> None:
    site = Site(server, port=free_port(), admin=server.admin)
    assert "nobody listens there" in site.refused()
    assert not site.step.check()
    assert "nobody listens there" in site.refused(DeploymentFailed, "apply")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 64])
def test_unknown_host(server: Server, host: str) -> None:
    site = Site(server, host=host)
    site.kept = PASSWORD
    assert "knows no host of that name" in site.refused()


@pytest.mark.parametrize("mode", ["disable", "require"])
def test_server_that_never_answers(
    server: Server, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module._TIMEOUT == 10.0
    monkeypatch.setattr(module, "_TIMEOUT", 0.5)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        site = Site(server, port=silent.getsockname()[1], ssl_mode=mode)
        site.kept = PASSWORD
        begin = time.monotonic()
        assert "no answer in time" in site.refused()
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize("mode", ["disable", "require"])
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        b"S" + b"no TLS at all" * 10,
        b"R\0\0\0\x06\0\0",
        b"?\0\0\0\x04",
        b"E\0\0\0\x05\xff",
    ],
)
def test_what_is_no_postgresql(server: Server, mode: str, answer: bytes) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:

        def serve() -> None:
            channel, _ = other.accept()
            with channel, suppress(OSError):
                channel.recv(4096)
                channel.sendall(answer)
                channel.shutdown(socket.SHUT_WR)
                while channel.recv(4096):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        site = Site(server, port=other.getsockname()[1], ssl_mode=mode)
        site.kept = PASSWORD
        told = site.refused()
        assert re.search("is no PostgreSQL|no TLS", told)
        thread.join(10)
        assert not thread.is_alive(), "the connection was closed"


def test_server_that_is_full(template: Path) -> None:
    with started(
        template, max_connections="5", superuser_reserved_connections="1", max_wal_senders="0"
    ) as server:
        site = Site(server, admin=server.admin)
        site.step.apply()
        assert site.kept
        with ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(site.log_in(site.kept))
            assert "it has no connection left" in site.refused()


def test_server_that_dies_in_the_middle(template: Path) -> None:
    with started(template) as server:
        site = Site(server, admin=server.admin)
        with (
            pytest.raises(module.Refusal),
            module.session(site.database, USER, ADMIN_PASSWORD, "postgres") as connection,
        ):
            connection.run("SELECT pg_terminate_backend(pg_backend_pid())")
