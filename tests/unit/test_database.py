"""Words, SQL and the SCRAM verifier for Harbor's database; servers are in tests/integration."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import socket
import ssl

import pg8000.native
import pytest

from installer.deploy.database import PrepareDatabase, _check_version
from installer.deploy.postgresql import (
    Refusal,
    _explained,
    _tls_failed,
    _unreachable,
    refused,
    scram_verifier,
    sql_database,
    sql_owner,
    sql_role,
)
from installer.errors import PreflightFailed
from installer.site.harbor import Admin, Database

DATABASE = Database("db.example")
ROLE = "CREATE ROLE \"harbor\" LOGIN PASSWORD '<from the file>';"
CREATE = 'CREATE DATABASE "registry" OWNER "harbor" ENCODING \'UTF8\' TEMPLATE template0;'
OWNER = 'ALTER DATABASE "registry" OWNER TO "harbor";'
BY_ROLE = "InitializeSessionUserId"


def test_sql_for_a_dba() -> None:
    made = [f"{sql(DATABASE)};" for sql in (sql_role, sql_database, sql_owner)]
    assert made == [ROLE, CREATE, OWNER]


def test_sql_quotes_names() -> None:
    nasty = Database("h", name='a"; DROP DATABASE x; --', username="o'ne")
    assert sql_role(nasty).startswith('CREATE ROLE "o\'ne" LOGIN')
    assert sql_owner(nasty) == 'ALTER DATABASE "a""; DROP DATABASE x; --" OWNER TO "o\'ne"'
    assert sql_database(nasty).startswith('CREATE DATABASE "a""; DROP DATABASE x; --" OWNER')


def test_scram_verifier_proves_what_rfc_7677_says() -> None:
    """The exchange of RFC 7677, section 3: user, pencil."""
    verifier = scram_verifier("pencil", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="))
    kind, cost, keys = verifier.split("$")
    assert (kind, cost) == ("SCRAM-SHA-256", "4096:W22ZaJ0SNY7soEsUEjb6gQ==")
    stored, server = (base64.b64decode(key, validate=True) for key in keys.split(":"))
    nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    message = (
        "n=user,r=rOprNGfwEbeRWgbNEkqO,"
        f"r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r={nonce}"
    ).encode()
    signature = base64.b64encode(hmac.digest(server, message, "sha256"))
    assert signature == b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    proof = base64.b64decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    mask = hmac.digest(stored, message, "sha256")
    client = bytes(a ^ b for a, b in zip(proof, mask, strict=True))
    assert hashlib.sha256(client).digest() == stored


def test_scram_verifier_has_a_salt_of_its_own() -> None:
    one, other = scram_verifier("secret word"), scram_verifier("secret word")
    assert one != other
    for verifier in (one, other):
        found = re.fullmatch(r"SCRAM-SHA-256\$4096:([^$:]+)\$([^$:]+):([^$:]+)", verifier)
        assert found is not None
        assert [len(base64.b64decode(part)) for part in found.groups()] == [16, 32, 32]
        assert "secret" not in verifier


def test_scram_verifier_refuses_what_saslprep_prohibits() -> None:
    with pytest.raises(Refusal, match="control characters") as caught:
        scram_verifier("a\x07secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("state", "words", "hint", "fixable"),
    [
        ("28P01", "the password of role harbor is refused, or there is no", ROLE, True),
        ("28P01", "refused", "ALTER ROLE \"harbor\" LOGIN PASSWORD '<from the file>';", True),
        ("28000", "role harbor is not let in: SAID", CREATE, True),
        ("3D000", "no such database: SAID", f"a DBA runs: {CREATE}", True),
        ("42501", "lacks a right: SAID", f"a DBA runs: {OWNER}", True),
        ("53300", "no connection left: SAID", "try again", False),
        ("57P03", "is starting or stopping: SAID", "try again", False),
        ("XX000", "SAID (XX000)", "log", False),
    ],
)
def test_words_for_what_the_server_says(
    state: str,
    words: str,
    hint: str,
    fixable: bool,  # noqa: FBT001  # a parameter of the table
) -> None:
    refusal = refused(DATABASE, "harbor", state, "SAID", BY_ROLE)
    assert refusal.message.startswith("PostgreSQL at db.example:5432: ")
    assert words in refusal.message
    assert hint in refusal.hint
    assert refusal.fixable == fixable
    of_admin = refused(DATABASE, "postgres", state, "SAID", BY_ROLE)
    assert not of_admin.fixable
    assert "CREATE" not in of_admin.hint


def test_what_the_server_said_goes_before_how_the_connection_ended() -> None:
    said = {"S": "FATAL", "C": "3D000", "M": "SAID", "R": "InitPostgres"}
    try:
        try:
            raise pg8000.native.DatabaseError(said)
        except pg8000.native.Error:
            try:
                raise BrokenPipeError(32, "Broken pipe")
            except OSError as error:
                raise pg8000.native.InterfaceError("network error") from error
    except pg8000.native.Error as error:
        refusal = _explained(DATABASE, "harbor", error)
    assert (refusal.state, refusal.fixable) == ("3D000", True)


@pytest.mark.parametrize(("mode", "kind"), [("disable", "host"), ("verify-full", "hostssl")])
def test_words_for_pg_hba(mode: str, kind: str) -> None:
    database = Database("::1", ssl_mode=mode)  # type: ignore[arg-type]
    refusal = refused(database, "harbor", "28000", "SAID", "ClientAuthentication")
    assert refusal.message.startswith("PostgreSQL at [::1]:5432: pg_hba.conf there does not let")
    assert f": {kind} registry harbor <addresses" in refusal.hint
    assert not refusal.fixable


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(-2, "Name or service not known"), "knows no host of that name"),
        (UnicodeError("label too long"), "knows no host of that name"),
        (ConnectionRefusedError(111, "Connection refused"), "nobody listens there"),
        (TimeoutError("timed out"), "no answer in time"),
        (OSError(113, "No route to host"), "No route to host"),
    ],
)
def test_words_for_the_way_there(error: OSError | UnicodeError, words: str) -> None:
    refusal = _unreachable(DATABASE, error)
    assert words in refusal.message
    assert refusal.hint
    assert not refusal.fixable


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (10, "has expired"),
        (9, "is not valid yet"),
        (62, "is not for db.example"),
        (64, "is not for db.example"),
        (18, "is not trusted: REASON"),
        (20, "is not trusted: REASON"),
    ],
)
def test_words_for_certificates(code: int, words: str) -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, "REASON"
    refusal = _tls_failed(DATABASE, error)
    assert words in refusal.message
    assert refusal.hint


def test_words_for_no_tls() -> None:
    error = ssl.SSLError(1, "[SSL: UNSUPPORTED_PROTOCOL] unsupported protocol")
    error.reason = "UNSUPPORTED_PROTOCOL"
    assert "no TLS: UNSUPPORTED_PROTOCOL" in _tls_failed(DATABASE, error).message


@pytest.mark.parametrize(
    ("number", "version"), [(90624, "9.6.24"), (110022, "11.22 (Debian 11.22-0+deb10u2)")]
)
def test_old_servers_are_refused(number: int, version: str) -> None:
    with pytest.raises(Refusal) as caught:
        _check_version(DATABASE, number, version)
    assert f"PostgreSQL {version.split(maxsplit=1)[0]} is too old" in caught.value.message
    assert "PostgreSQL 12 or newer" in caught.value.hint


@pytest.mark.parametrize("number", [120000, 150013, 180001])
def test_supported_servers(number: int) -> None:
    _check_version(DATABASE, number, "x")


def test_step_says_what_it_does_and_nothing_secret() -> None:
    admin = Admin("postgres", "/nowhere/admin")
    step = PrepareDatabase(
        Database("db.example", admin=admin), "harbor/harbor", lambda: "pa55", lambda: "pa55"
    )
    assert step.name == "database:harbor/harbor"
    assert step.sentence == (
        "Prepare database registry for role harbor: PostgreSQL at db.example:5432"
    )
    assert "pa55" not in repr(step)


def test_without_any_password() -> None:
    step = PrepareDatabase(DATABASE, "harbor/harbor", lambda: None, lambda: "")
    assert not step.check()
    with pytest.raises(PreflightFailed, match="role harbor has no password yet") as caught:
        step.preflight()
    assert "passwordFile" in caught.value.hint
