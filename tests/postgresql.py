"""Debian's PostgreSQL for tests: a cluster of its own in a short folder, run as user postgres."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pg8000.native

from installer.site.harbor import Admin
from tests.programs import ProgramMissing

if TYPE_CHECKING:
    from collections.abc import Iterator

ADMIN_PASSWORD = "the DBA's own, 1 of a kind"
USER = "postgres"


def postgresql(name: str) -> Path:
    """Program of Debian's newest PostgreSQL."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda p: int(p.parts[4]))
    if not found:
        raise ProgramMissing(f"{name} is missing: apt-get install postgresql")
    if os.geteuid() != 0:
        raise ProgramMissing("PostgreSQL is run as user postgres: run these tests as root")
    return found[-1]


def as_postgres(*command: str | Path) -> list[str | Path]:
    """Command as the user that PostgreSQL insists on not being root."""
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--", *command]


@dataclass
class Server:
    """A running PostgreSQL with a superuser ``postgres``."""

    port: int
    folder: Path

    @property
    def ca(self) -> str:
        return str(self.folder / "tls/ca.pem")

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def admin(self) -> Admin:
        return Admin(USER, str(self.folder / "admin"))

    def run(self, *statements: str, name: str = "postgres", user: str = USER) -> Any:
        """Run statements through the socket, as a DBA would at the machine; rows of the last."""
        unix = f"{self.folder}/.s.PGSQL.{self.port}"
        with pg8000.native.Connection(user, database=name, unix_sock=unix) as connection:
            return [connection.run(statement) for statement in statements][-1]

    def world(self) -> Any:
        """All roles and databases, with rights and passwords."""
        roles = self.run("SELECT * FROM pg_authid ORDER BY rolname")
        return roles, self.run("SELECT datname, datdba, encoding, datacl FROM pg_database")

    def owner(self, name: str) -> str:
        rows = self.run(
            "SELECT datname, pg_get_userbyid(datdba), pg_encoding_to_char(encoding) "
            "FROM pg_database"
        )
        found = {row[0]: row[1:] for row in rows}
        owner, encoding = found[name]
        assert encoding == "UTF8"
        return str(owner)


@contextmanager
def initialised() -> Iterator[Path]:
    """A data folder of a new cluster, to be copied."""
    program = postgresql("initdb")
    with open_folder() as folder:
        (folder / "admin").write_text(ADMIN_PASSWORD)
        subprocess.run(
            as_postgres(
                program,
                f"--pgdata={folder}/data",
                f"--username={USER}",
                f"--pwfile={folder}/admin",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
            ),
            check=True,
            capture_output=True,
        )
        yield folder


@contextmanager
def open_folder() -> Iterator[Path]:
    """A short folder that is postgres' own."""
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    try:
        shutil.chown(folder, USER, USER)
        yield folder
    finally:
        shutil.rmtree(folder)
