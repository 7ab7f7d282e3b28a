"""The database at the site: an external PostgreSQL that Harbor's role may work in.

Harbor logs in as a role of its own and makes its tables itself; what it takes from others is that
role and a database that is its role's. With an administrator's account both are made here, without
one the hint is the SQL that a DBA runs. Nothing that is there is lost: a database with tables of
others is refused, and a password is only set where the wanted one does not work.

A role's password goes to the server as what is derived from it (a SCRAM verifier), so that no log
of the server has it, whatever it logs. The connection is a plain socket: no proxy is asked.
"""

from __future__ import annotations

import base64
import secrets
import socket
import ssl
import struct
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from installer.errors import AirgapError, DeploymentFailed, InvalidInput, PreflightFailed
from installer.site.private import read_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pg8000.native import Connection

    from installer.site.harbor import Admin, Database

_TIMEOUT = 10.0
"""Seconds to wait for each answer until the login is done."""
_PATIENCE = 120.0
"""Seconds that a statement may take: CREATE DATABASE copies files and waits for a checkpoint."""
_OLDEST = 12
"""Harbor's requirement since 2.9, whose migrations use ``jsonb_path_exists``."""
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
_NOT_POSTGRESQL = (LookupError, ValueError, TypeError, AttributeError, struct.error)
"""What pg8000 raises besides its own errors when other bytes come than PostgreSQL's."""

_OF_ROLES = "InitializeSessionUserId"
"""Where the server refuses a login for what the role is, not for a line of pg_hba.conf."""
# SQLSTATEs; SCRAM and md5 give the first one for a role that is not there as well.
_WRONG_PASSWORD, _NOT_LET_IN, _NO_DATABASE, _NO_RIGHT = "28P01", "28000", "3D000", "42501"
_NO_CONNECTION_LEFT, _NOT_READY = "53300", "57P03"

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


class Refusal(Exception):
    """The server, or the way to it, says no; ``fixable`` if an administrator's account helps.

    ``state`` is PostgreSQL's SQLSTATE where the server said it itself.
    """

    def __init__(self, message: str, hint: str, *, state: str = "", fixable: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.state = state
        self.fixable = fixable


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
        return f"Prepare database {database.name} for role {database.username}: {_where(database)}"

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
        return f"{_where(self._database)}: {', '.join(made)}"

    def _refusal(self, password: str | None) -> Refusal | None:
        """Why Harbor can't work there with this password, None if it can."""
        database = self._database
        if password is None:
            message = f"{_where(database)}: role {database.username} has no password yet"
            hint = "name its file as harbor.database.passwordFile, or an admin who makes the role"
            return Refusal(message, hint, state=_WRONG_PASSWORD, fixable=True)
        try:
            with _session(database, database.username, password, database.name) as connection:
                _check_server(database, connection)
                ((_, encoding),) = connection.run(_DATABASE, name=database.name)
                _check_encoding(database, encoding)
                if not _may_create(database, connection):
                    raise _refused(database, database.username, _NO_RIGHT, "schema public")
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
        sets_password = refusal.state == _WRONG_PASSWORD
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
                f"{_where(database)}: database {database.name} is {owner}'s and "
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
        with _session(self._database, *login) as connection:
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
            elif refusal.state == _WRONG_PASSWORD:
                secret = literal(scram_verifier(password))
                connection.run(f"ALTER ROLE {role} PASSWORD {secret}")
                made.append(f"role {database.username} has its password")
            if found.owner is None:
                with _membership(connection, role):
                    connection.run(_sql_database(database))
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


def setup_sql(database: Database) -> str:
    """What a DBA runs where no administrator is named; holds no password."""
    return (
        f"{_sql_role(database)};\n"
        f"{_sql_database(database)};\n"
        "-- if the database is there already, and is empty or Harbor's own:\n"
        f"{_sql_owner(database)};\n"
    )


def scram_verifier(password: str, salt: bytes = b"") -> str:
    """What PostgreSQL keeps of a password (RFC 5803), as libpq's PQencryptPasswordConn makes it.

    ``salt`` is random if none is given. Raises Refusal for characters that SASLprep prohibits.
    """
    import scramp  # noqa: PLC0415  # slow to import

    mechanism = scramp.ScramMechanism("SCRAM-SHA-256")
    try:
        salt, stored, server, rounds = mechanism.make_auth_info(
            password, iteration_count=4096, salt=salt or secrets.token_bytes(16)
        )
    except scramp.ScramException as error:
        raise _unusable_password(error) from None
    salted, *keys = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return f"SCRAM-SHA-256${rounds}:{salted}${':'.join(keys)}"


def _sql_role(database: Database) -> str:
    from pg8000.native import identifier  # noqa: PLC0415  # slow to import

    return f"CREATE ROLE {identifier(database.username)} LOGIN PASSWORD '<from the file>'"


def _sql_password(database: Database) -> str:
    from pg8000.native import identifier  # noqa: PLC0415  # slow to import

    return f"ALTER ROLE {identifier(database.username)} LOGIN PASSWORD '<from the file>'"


def _sql_database(database: Database) -> str:
    from pg8000.native import identifier  # noqa: PLC0415  # slow to import

    # template1 may have another encoding, or a site's own tables.
    return (
        f"CREATE DATABASE {identifier(database.name)} OWNER {identifier(database.username)} "
        "ENCODING 'UTF8' TEMPLATE template0"
    )


def _sql_owner(database: Database) -> str:
    from pg8000.native import identifier  # noqa: PLC0415  # slow to import

    return f"ALTER DATABASE {identifier(database.name)} OWNER TO {identifier(database.username)}"


def _where(database: Database) -> str:
    host = f"[{database.host}]" if ":" in database.host else database.host
    return f"PostgreSQL at {host}:{database.port}"


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


@contextmanager
def _session(database: Database, user: str, password: str, name: str) -> Iterator[Connection]:
    """Log in, without a transaction; raises Refusal for the login and for what fails later."""
    from pg8000 import native  # noqa: PLC0415  # slow to import
    from scramp import ScramException  # noqa: PLC0415  # the same

    with _ending(_connect(database)) as channel:
        try:
            connection = native.Connection(
                user, database=name, password=password, sock=channel, ssl_context=False
            )
        except ScramException as error:
            raise _unusable_password(error) from None
        except (native.Error, OSError, *_NOT_POSTGRESQL) as error:
            raise _explained(database, user, error) from error
        channel.settimeout(_PATIENCE)
        try:
            yield connection
        except (native.Error, OSError) as error:
            raise _explained(database, user, error) from error
        finally:
            with suppress(native.Error, OSError):
                connection.close()


@contextmanager
def _ending(channel: socket.socket) -> Iterator[socket.socket]:
    """Close in the end, also where pg8000 has left a file object open around it."""
    try:
        yield channel
    finally:
        with suppress(OSError):
            channel.shutdown(socket.SHUT_RDWR)
        channel.close()


def _connect(database: Database) -> socket.socket:
    """Connect, with TLS as ``sslMode`` says; raises Refusal."""
    context = None if database.ssl_mode == "disable" else _tls_context(database)
    try:
        channel = socket.create_connection((database.host, database.port), _TIMEOUT)
    except (OSError, UnicodeError) as error:
        raise _unreachable(database, error) from error
    if context is None:
        return channel
    try:
        return _with_tls(database, channel, context)
    except BaseException:
        channel.close()
        raise


def _with_tls(database: Database, channel: socket.socket, context: ssl.SSLContext) -> socket.socket:
    try:
        channel.sendall(_SSL_REQUEST)
        answer = channel.recv(1)
        if answer == b"S":
            # The host goes along (SNI) in all modes; only verify-full compares it.
            return context.wrap_socket(channel, server_hostname=database.host)
    except ssl.SSLError as error:
        raise _tls_failed(database, error) from error
    except OSError as error:
        raise _unreachable(database, error) from error
    raise _without_tls(database, answer)


def _tls_context(database: Database) -> ssl.SSLContext:
    """What libpq's modes mean; without ``ca`` the authorities are those of this system."""
    try:
        context = ssl.create_default_context(cafile=database.ca or None)
    except OSError as error:
        raise InvalidInput(
            f"harbor.database.ca: {database.ca}: {error.strerror or 'no certificate in PEM'}"
        ) from error
    context.check_hostname = database.ssl_mode == "verify-full"
    if database.ssl_mode == "require":
        context.verify_mode = ssl.CERT_NONE
    return context


def _unreachable(database: Database, error: OSError | UnicodeError) -> Refusal:
    where = _where(database)
    if isinstance(error, socket.gaierror | UnicodeError):
        return Refusal(
            f"{where}: this machine knows no host of that name",
            "check harbor.database.host; the name has to be known to this machine and to the pods",
        )
    if isinstance(error, TimeoutError):
        return Refusal(
            f"{where}: no answer in time",
            "a firewall in between, or another program at that port?",
        )
    if isinstance(error, ConnectionRefusedError):
        return Refusal(
            f"{where}: nobody listens there",
            "is PostgreSQL running, and do its listen_addresses and port fit?",
        )
    return Refusal(f"{where}: {error.strerror or error}", "check harbor.database.host and port")


def _without_tls(database: Database, answer: bytes) -> Refusal:
    where = _where(database)
    if answer == b"N":
        return Refusal(
            f"{where}: the server offers no TLS, and sslMode is {database.ssl_mode}",
            "have it switched on there (ssl = on), or write sslMode: disable if nobody else is on "
            "the network in between",
        )
    return _no_postgresql(database)


def _no_postgresql(database: Database) -> Refusal:
    return Refusal(
        f"{_where(database)}: it ends the connection, or is no PostgreSQL",
        "check harbor.database.host and port; the server's log may tell more",
    )


def _tls_failed(database: Database, error: ssl.SSLError) -> Refusal:
    where = _where(database)
    if not isinstance(error, ssl.SSLCertVerificationError):
        return Refusal(f"{where}: no TLS: {error.reason or error}", "which TLS does it speak?")
    expired, not_yet, wrong_names = 10, 9, (62, 64)  # OpenSSL's X509_V_ERR_…; 64 is of addresses
    if error.verify_code in wrong_names:
        return Refusal(
            f"{where}: the server's certificate is not for {database.host}",
            "write a name of the certificate (subjectAltName) as harbor.database.host, or have one "
            "made for this name; sslMode: verify-ca compares no names",
        )
    if error.verify_code in (expired, not_yet):
        state = "has expired" if error.verify_code == expired else "is not valid yet"
        return Refusal(
            f"{where}: the server's certificate, or its authority's, {state}",
            "have it renewed there; is this machine's clock right?",
        )
    return Refusal(
        f"{where}: the server's certificate is not trusted: {error.verify_message}",
        "harbor.database.ca has to be the certificate of the authority that signed it"
        + ("" if database.ca else "; without it those of this system count"),
    )


def _unusable_password(error: Exception) -> Refusal:
    return Refusal(
        f"the password, or the server's proof for it, can't be used: {error}",
        "passwords are best of printable ASCII, the server's certificate of RSA or ECDSA",
    )


def _explained(database: Database, user: str, error: BaseException) -> Refusal:
    """Words for what pg8000 raised.

    A server that refuses a login also closes the connection. What the server said is then behind
    the error of the close.
    """
    from pg8000.native import DatabaseError  # noqa: PLC0415  # slow to import

    chain: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in chain:
        chain.append(step)
        step = step.__cause__ or step.__context__
    for one in chain:
        if isinstance(one, DatabaseError) and isinstance(one.args[0], dict):
            said: Mapping[str, str] = one.args[0]
            words, routine = said.get("M", ""), said.get("R", "")
            return _refused(database, user, said.get("C", ""), words, routine)
    for one in chain:
        if isinstance(one, ssl.SSLError):
            return _tls_failed(database, one)
        if isinstance(one, OSError):
            return _unreachable(database, one)
    return _no_postgresql(database)


def _refused(database: Database, user: str, state: str, said: str, routine: str = "") -> Refusal:
    """Words for what the server answers, by SQLSTATE; ``said`` is in the server's language."""
    where, role = _where(database), f"role {user}"
    if state == _NOT_LET_IN and routine != _OF_ROLES:
        kind = "host" if database.ssl_mode == "disable" else "hostssl"
        return Refusal(
            f"{where}: pg_hba.conf there does not let {role} in: {said}",
            f"a DBA adds a line to it and reloads: {kind} {database.name} {database.username} "
            "<addresses of this machine and the nodes> scram-sha-256",
            state=state,
        )
    words = {
        _WRONG_PASSWORD: f"the password of {role} is refused, or there is no such role",
        _NOT_LET_IN: f"{role} is not let in: {said}",
        _NO_DATABASE: f"there is no such database: {said}",
        _NO_RIGHT: f"{role} lacks a right: {said}",
        _NO_CONNECTION_LEFT: f"it has no connection left: {said}",
        _NOT_READY: f"it is starting or stopping: {said}",
    }
    message = f"{where}: {words.get(state, f'{said} ({state})')}"
    all_of_it = f"{_sql_role(database)}; {_sql_database(database)};"
    hints = {
        _WRONG_PASSWORD: f"if nothing is prepared yet, a DBA runs: {all_of_it} where the role is "
        f"there: {_sql_password(database)};",
        _NOT_LET_IN: f"if nothing is prepared yet, a DBA runs: {all_of_it}",
        _NO_DATABASE: f"a DBA runs: {_sql_database(database)};",
        _NO_RIGHT: f"a DBA runs: {_sql_owner(database)};",
    }
    if state not in hints:
        return Refusal(message, "try again in a while; the server's log may tell more")
    if user != database.username:
        return Refusal(message, "see harbor.database.admin in site.yaml", state=state)
    return Refusal(message, hints[state], state=state, fixable=True)


def _check_server(database: Database, connection: Connection) -> None:
    """Refuse a server that Harbor can't work with, whatever role it has."""
    ((number, version, recovering, read_only),) = connection.run(_SERVER)
    _check_version(database, number, version)
    if recovering:
        raise Refusal(
            f"{_where(database)}: it is a standby, which only reads",
            "name the primary as harbor.database.host, or an address that follows it",
        )
    if read_only == "on":
        raise Refusal(
            f"{_where(database)}: it is set to read only (default_transaction_read_only)",
            "a DBA resets that for the server, the database or the role",
        )


def _check_version(database: Database, number: int, version: str) -> None:
    """Refuse too old a server; ``number`` is its ``server_version_num``."""
    if number < _OLDEST * 10_000:
        raise Refusal(
            f"{_where(database)}: PostgreSQL {version.split(maxsplit=1)[0]} is too old",
            f"Harbor needs PostgreSQL {_OLDEST} or newer",
        )


def _check_encoding(database: Database, encoding: str) -> None:
    if encoding != "UTF8":
        raise Refusal(
            f"{_where(database)}: database {database.name} has encoding {encoding}, not UTF8",
            f"that can't be changed: give Harbor another name, or a DBA drops it and runs: "
            f"{_sql_database(database)};",
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

    where, quoted = f"{_where(database)}: role {database.username}", identifier(database.username)
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
        f"{_where(database)}: harbor.database.admin: role {admin.username} lacks {right}",
        f"give it that right, or leave admin out and have a DBA run: {_sql_role(database)}; "
        f"{_sql_database(database)};",
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
