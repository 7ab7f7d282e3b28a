"""Sessions with a PostgreSQL at the site, and words for every way in which one does not come about.

The connection is a plain socket, so that no proxy is asked; TLS means what it means to libpq. What
goes wrong becomes a Refusal that says where it was refused (the name, the port, TLS, pg_hba.conf,
the role, the database) and what a DBA runs, since at a site two people have to talk about it.

A role's password goes to the server as what is derived from it (a SCRAM verifier), so that no log
of the server has it, whatever it logs.
"""

from __future__ import annotations

import base64
import secrets
import socket
import ssl
import struct
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from installer.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pg8000.native import Connection

    from installer.site.harbor import Database

_TIMEOUT = 10.0
"""Seconds to wait for each answer until the login is done."""
_PATIENCE = 120.0
"""Seconds that a statement may take: CREATE DATABASE copies files and waits for a checkpoint."""
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
_NOT_POSTGRESQL = (LookupError, ValueError, TypeError, AttributeError, struct.error)
"""What pg8000 raises besides its own errors when other bytes come than PostgreSQL's."""

_OF_ROLES = "InitializeSessionUserId"
"""Where the server refuses a login for what the role is, not for a line of pg_hba.conf."""
# SQLSTATEs; SCRAM and md5 give the first one for a role that is not there as well.
WRONG_PASSWORD, _NOT_LET_IN, _NO_DATABASE, NO_RIGHT = "28P01", "28000", "3D000", "42501"
_NO_CONNECTION_LEFT, _NOT_READY = "53300", "57P03"


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


def sql_role(database: Database) -> str:
    """Statement that makes Harbor's role; it holds no password."""
    from pg8000.native import identifier  # noqa: PLC0415  # slow to import

    return f"CREATE ROLE {identifier(database.username)} LOGIN PASSWORD '<from the file>'"


def sql_password(database: Database) -> str:
    """Statement that lets an existing role log in with the given password; it holds none."""
    from pg8000.native import identifier  # noqa: PLC0415  # slow to import

    return f"ALTER ROLE {identifier(database.username)} LOGIN PASSWORD '<from the file>'"


def sql_database(database: Database) -> str:
    """Statement that makes Harbor's database."""
    from pg8000.native import identifier  # noqa: PLC0415  # slow to import

    # template1 may have another encoding, or a site's own tables.
    return (
        f"CREATE DATABASE {identifier(database.name)} OWNER {identifier(database.username)} "
        "ENCODING 'UTF8' TEMPLATE template0"
    )


def sql_owner(database: Database) -> str:
    """Statement that gives an existing database to Harbor's role."""
    from pg8000.native import identifier  # noqa: PLC0415  # slow to import

    return f"ALTER DATABASE {identifier(database.name)} OWNER TO {identifier(database.username)}"


def where_is(database: Database) -> str:
    """What errors call the server."""
    host = f"[{database.host}]" if ":" in database.host else database.host
    return f"PostgreSQL at {host}:{database.port}"


@contextmanager
def session(database: Database, user: str, password: str, name: str) -> Iterator[Connection]:
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
    where = where_is(database)
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
    where = where_is(database)
    if answer == b"N":
        return Refusal(
            f"{where}: the server offers no TLS, and sslMode is {database.ssl_mode}",
            "have it switched on there (ssl = on), or write sslMode: disable if nobody else is on "
            "the network in between",
        )
    return _no_postgresql(database)


def _no_postgresql(database: Database) -> Refusal:
    return Refusal(
        f"{where_is(database)}: it ends the connection, or is no PostgreSQL",
        "check harbor.database.host and port; the server's log may tell more",
    )


def _tls_failed(database: Database, error: ssl.SSLError) -> Refusal:
    where = where_is(database)
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
            return refused(database, user, said.get("C", ""), words, routine)
    for one in chain:
        if isinstance(one, ssl.SSLError):
            return _tls_failed(database, one)
        if isinstance(one, OSError):
            return _unreachable(database, one)
    return _no_postgresql(database)


def refused(database: Database, user: str, state: str, said: str, routine: str = "") -> Refusal:
    """Words for what the server answers, by SQLSTATE; ``said`` is in the server's language."""
    where, role = where_is(database), f"role {user}"
    if state == _NOT_LET_IN and routine != _OF_ROLES:
        kind = "host" if database.ssl_mode == "disable" else "hostssl"
        return Refusal(
            f"{where}: pg_hba.conf there does not let {role} in: {said}",
            f"a DBA adds a line to it and reloads: {kind} {database.name} {database.username} "
            "<addresses of this machine and the nodes> scram-sha-256",
            state=state,
        )
    words = {
        WRONG_PASSWORD: f"the password of {role} is refused, or there is no such role",
        _NOT_LET_IN: f"{role} is not let in: {said}",
        _NO_DATABASE: f"there is no such database: {said}",
        NO_RIGHT: f"{role} lacks a right: {said}",
        _NO_CONNECTION_LEFT: f"it has no connection left: {said}",
        _NOT_READY: f"it is starting or stopping: {said}",
    }
    message = f"{where}: {words.get(state, f'{said} ({state})')}"
    all_of_it = f"{sql_role(database)}; {sql_database(database)};"
    hints = {
        WRONG_PASSWORD: f"if nothing is prepared yet, a DBA runs: {all_of_it} where the role is "
        f"there: {sql_password(database)};",
        _NOT_LET_IN: f"if nothing is prepared yet, a DBA runs: {all_of_it}",
        _NO_DATABASE: f"a DBA runs: {sql_database(database)};",
        NO_RIGHT: f"a DBA runs: {sql_owner(database)};",
    }
    if state not in hints:
        return Refusal(message, "try again in a while; the server's log may tell more")
    if user != database.username:
        return Refusal(message, "see harbor.database.admin in site.yaml", state=state)
    return Refusal(message, hints[state], state=state, fixable=True)
