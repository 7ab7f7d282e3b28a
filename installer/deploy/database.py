"""The database at the site: an external PostgreSQL that Harbor's role may work in.

Harbor logs in as a role of its own and makes its tables itself; what it takes from others is that
role and a database that is its role's. With an administrator's account both are made here, without
one the hint is the SQL that a DBA runs. Nothing that is there is lost: a database with tables of
others is refused, and a password is only set where the wanted one does not work.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from installer.deploy.postgresql import (
    NO_RIGHT,
    WRONG_PASSWORD,
    Refusal,
    refused,
    scram_verifier,
    session,
    sql_database,
    sql_role,
    where_is,
)
from installer.errors import AirgapError, DeploymentFailed, InvalidInput, PreflightFailed
from installer.site.private import read_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pg8000.native import Connection

    from installer.site.harbor import Admin, Database

_OLDEST = 12
"""Harbor's requirement since 2.9, whose migrations use ``jsonb_path_exists``."""
_SERVER = """
SELECT CAST(current_setting('server_version_num') AS integer), current_setting('server_version'),
       pg_is_in_recovery(), current_setting('transaction_read_only')
"""
_ROLE = """
SELECT rolcanlogin, rolsuper, coalesce(rolvaliduntil < now(), false)
FROM pg_roles WHERE rolname = CAST(:role AS name)
"""
_RIGHTS = "SELECT rolsuper, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolname = current_user"
_DATABASE = """
SELECT pg_get_userbyid(datdba), pg_encoding_to_char(encoding)
FROM pg_database WHERE datname = CAST(:name AS name)
"""
_MAY_CREATE = """
SELECT has_schema_privilege(CAST(:role AS name), oid, 'USAGE')
   AND has_schema_privilege(CAST(:role AS name), oid, 'CREATE')
   AND has_database_privilege(CAST(:role AS name), current_database(), 'CONNECT')
FROM pg_namespace WHERE nspname = 'public'
"""
_OF_OTHERS = """
SELECT nspname || '.' || relname
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
  AND nspname !~ '^pg_' AND nspname <> 'information_schema'
  AND pg_get_userbyid(relowner) <> CAST(:role AS name)
  AND NOT EXISTS (
    SELECT FROM pg_depend
    WHERE classid = CAST('pg_class' AS regclass) AND objid = pg_class.oid AND deptype = 'e')
ORDER BY 1
"""
"""Tables and the like that another role owns, but for those that belong to an extension."""


@dataclass(frozen=True)
class _Found:
    """What an administrator sees: is there the role, whose is the database, may the role use it."""

    role: bool
    owner: str | None
    usable: bool


class PrepareDatabase:
    """Make Harbor's role and database in an external PostgreSQL, or see that they are there.

    ``key`` is the release (namespace/name). ``password`` gives that of Harbor's role, None as long
    as there is none; ``make_password`` makes and keeps one then, and is only called by ``apply``.
    """

    def __init__(
        self,
        database: Database,
        key: str,
        password: Callable[[], str | None],
        make_password: Callable[[], str],
    ) -> None:
        self._database = database
        self._password = password
        self._make_password = make_password
        self.name = f"database:{key}"

    @property
    def sentence(self) -> str:
        """What applying it does."""
        database = self._database
        return (
            f"Prepare database {database.name} for role {database.username}: {where_is(database)}"
        )

    def preflight(self) -> None:
        """Look whether Harbor can work there, or whether ``apply`` can make it so; read-only.

        Raises PreflightFailed, and InvalidInput for a ``ca`` that is no certificate or for the
        administrator's password file, if it is needed and not there.
        """
        with _raising(PreflightFailed):
            refusal = self._refusal(self._password())
            if refusal is not None:
                self._survey(refusal)

    def check(self) -> bool:
        """Whether Harbor's role can log in to the database and create tables there."""
        return self._refusal(self._password()) is None

    def apply(self) -> str:
        """Make what is missing; gives what was made. Raises DeploymentFailed."""
        with _raising(DeploymentFailed):
            password = self._make_password()
            refusal = self._refusal(password)
            if refusal is None:
                return ""
            made = self._make(self._survey(refusal), refusal, password)
            refusal = self._refusal(password)
            if refusal is not None:
                raise refusal
        return f"{where_is(self._database)}: {', '.join(made)}"

    def _refusal(self, password: str | None) -> Refusal | None:
        """Why Harbor can't work there with this password, None if it can."""
        database = self._database
        if password is None:
            message = f"{where_is(database)}: role {database.username} has no password yet"
            hint = "name its file as harbor.database.passwordFile, or an admin who makes the role"
            return Refusal(message, hint, state=WRONG_PASSWORD, fixable=True)
        try:
            with session(database, database.username, password, database.name) as connection:
                _check_server(database, connection)
                ((_, encoding),) = connection.run(_DATABASE, name=database.name)
                _check_encoding(database, encoding)
                if not _may_create(database, connection):
                    raise refused(database, database.username, NO_RIGHT, "schema public")
        except Refusal as refusal:
            return refusal
        return None

    def _survey(self, refusal: Refusal) -> _Found:
        """Look as the administrator; raises Refusal for all that ``_make`` can't put right."""
        database = self._database
        admin = database.admin
        if admin is None or not refusal.fixable:
            raise refusal
        with self._administrator(admin, refusal) as connection:
            _check_server(database, connection)
            roles = connection.run(_ROLE, role=database.username)
            databases = connection.run(_DATABASE, name=database.name)
            ((superuser, may_make_roles, may_make_databases),) = connection.run(_RIGHTS)
        sets_password = refusal.state == WRONG_PASSWORD
        if roles:
            _check_role(database, *roles[0], sets_password=sets_password)
        if not (superuser or may_make_roles) and (not roles or sets_password):
            raise _powerless(database, admin, "CREATEROLE")
        if not databases:
            if not (superuser or may_make_databases):
                raise _powerless(database, admin, "CREATEDB")
            return _Found(bool(roles), None, usable=False)
        owner, encoding = databases[0]
        _check_encoding(database, encoding)
        with self._administrator(admin, refusal, database.name) as connection:
            usable = bool(roles) and _may_create(database, connection)
            others = connection.run(_OF_OTHERS, role=database.username)
        if not usable and owner != database.username and others:
            raise Refusal(
                f"{where_is(database)}: database {database.name} is {owner}'s and "
                f"holds tables of others, {others[0][0]} among them: it is left alone",
                "give Harbor another harbor.database.name; if they are Harbor's, of a restored "
                "backup, a DBA makes them and the database its role's",
            )
        return _Found(bool(roles), owner, usable)

    @contextmanager
    def _administrator(
        self, admin: Admin, refusal: Refusal, name: str = ""
    ) -> Iterator[Connection]:
        password = _password_of(admin, refusal)
        login = (admin.username, password, name or admin.database)
        with session(self._database, *login) as connection:
            yield connection

    def _make(self, found: _Found, refusal: Refusal, password: str) -> list[str]:
        from pg8000.native import identifier, literal  # noqa: PLC0415  # slow to import

        database = self._database
        admin = database.admin
        if admin is None:
            raise refusal
        role, name = identifier(database.username), identifier(database.name)
        made = []
        with self._administrator(admin, refusal) as connection:
            if not found.role:
                secret = literal(scram_verifier(password))
                connection.run(f"CREATE ROLE {role} LOGIN PASSWORD {secret}")
                made.append(f"role {database.username} was made")
            elif refusal.state == WRONG_PASSWORD:
                secret = literal(scram_verifier(password))
                connection.run(f"ALTER ROLE {role} PASSWORD {secret}")
                made.append(f"role {database.username} has its password")
            if found.owner is None:
                with _membership(connection, role):
                    connection.run(sql_database(database))
                made.append(f"database {database.name} was made")
            elif not found.usable and found.owner != database.username:
                with _membership(connection, role):
                    connection.run(f"ALTER DATABASE {name} OWNER TO {role}")
                made.append(
                    f"database {database.name}, which was {found.owner}'s, is "
                    f"{database.username}'s now"
                )
        if not found.usable:
            with self._administrator(admin, refusal, database.name) as connection:
                if not _may_create(database, connection):
                    connection.run(f"GRANT USAGE, CREATE ON SCHEMA public TO {role}")
                    made.append(f"{database.username} may create in its schema public")
        return made


def _password_of(admin: Admin, refusal: Refusal) -> str:
    path = f"harbor.database.admin.passwordFile: {admin.password_file}"
    data = read_file(Path(admin.password_file))
    if data is None:
        raise InvalidInput(f"{path}: there is no such file", hint=f"why it's needed: {refusal}")
    try:
        return data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise InvalidInput(f"{path}: not UTF-8 text") from None


@contextmanager
def _raising(kind: type[AirgapError]) -> Iterator[None]:
    """Turn a Refusal into an error of the project's."""
    try:
        yield
    except Refusal as refusal:
        raise kind(refusal.message, hint=refusal.hint) from refusal


def _check_server(database: Database, connection: Connection) -> None:
    """Refuse a server that Harbor can't work with, whatever role it has."""
    ((number, version, recovering, read_only),) = connection.run(_SERVER)
    _check_version(database, number, version)
    if recovering:
        raise Refusal(
            f"{where_is(database)}: it is a standby, which only reads",
            "name the primary as harbor.database.host, or an address that follows it",
        )
    if read_only == "on":
        raise Refusal(
            f"{where_is(database)}: it is set to read only (default_transaction_read_only)",
            "a DBA resets that for the server, the database or the role",
        )


def _check_version(database: Database, number: int, version: str) -> None:
    """Refuse too old a server; ``number`` is its ``server_version_num``."""
    if number < _OLDEST * 10_000:
        raise Refusal(
            f"{where_is(database)}: PostgreSQL {version.split(maxsplit=1)[0]} is too old",
            f"Harbor needs PostgreSQL {_OLDEST} or newer",
        )


def _check_encoding(database: Database, encoding: str) -> None:
    if encoding != "UTF8":
        raise Refusal(
            f"{where_is(database)}: database {database.name} has encoding {encoding}, not UTF8",
            f"that can't be changed: give Harbor another name, or a DBA drops it and runs: "
            f"{sql_database(database)};",
        )


def _check_role(
    database: Database,
    may_log_in: bool,  # noqa: FBT001  # a row of _ROLE
    superuser: bool,  # noqa: FBT001  # the same
    expired: bool,  # noqa: FBT001  # the same
    *,
    sets_password: bool,
) -> None:
    """Refuse a role that somebody has set up in a way that is not ours to change."""
    from pg8000.native import identifier  # noqa: PLC0415  # slow to import

    where, quoted = f"{where_is(database)}: role {database.username}", identifier(database.username)
    if not may_log_in:
        hint = f"take another harbor.database.username, or a DBA runs: ALTER ROLE {quoted} LOGIN;"
        raise Refusal(f"{where} may not log in (NOLOGIN)", hint)
    if expired:
        hint = f"a DBA runs: ALTER ROLE {quoted} VALID UNTIL 'infinity';"
        raise Refusal(f"{where}: its password has expired (VALID UNTIL)", hint)
    if superuser and sets_password:
        raise Refusal(
            f"{where} is a superuser, whose password is not touched, and the given one is wrong",
            "take another harbor.database.username: Harbor needs no superuser",
        )


def _powerless(database: Database, admin: Admin, right: str) -> Refusal:
    return Refusal(
        f"{where_is(database)}: harbor.database.admin: role {admin.username} lacks {right}",
        f"give it that right, or leave admin out and have a DBA run: {sql_role(database)}; "
        f"{sql_database(database)};",
    )


def _may_create(database: Database, connection: Connection) -> bool:
    """Whether Harbor's role may create tables in schema public of the session's database."""
    rows: list[list[bool]] = connection.run(_MAY_CREATE, role=database.username)
    return bool(rows) and rows[0][0]


@contextmanager
def _membership(connection: Connection, role: str) -> Iterator[None]:
    """Be a member of ``role`` (quoted) meanwhile: who gives a database away has to be one.

    A superuser is a member of all. PostgreSQL 16 asks for more than membership, so it is tried
    instead of looked up.
    """
    from pg8000.native import DatabaseError  # noqa: PLC0415  # slow to import

    try:
        connection.run(f"SET ROLE {role}")
        connection.run("RESET ROLE")
    except DatabaseError:
        connection.run(f"GRANT {role} TO CURRENT_USER")
    else:
        yield
        return
    try:
        yield
    finally:
        connection.run(f"REVOKE {role} FROM CURRENT_USER")
