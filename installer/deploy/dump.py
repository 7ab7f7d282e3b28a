"""A dump of Harbor's database, and the way back: PostgreSQL's own programs, where they are.

An internal database has them in its pod; for an external one a pod from the bundle's harbor-db
image lives for as long as it takes. This machine needs no PostgreSQL: the dump streams through
``kubectl exec`` into a file.

The dump is SQL text and not pg_dump's own format, so that the way back is one transaction that
this side opens and commits: whatever breaks in between, nothing was changed. It first removes what
is Harbor's, because a newer Harbor has made tables that the dump knows nothing of. A password goes
in as the first line of the input, never as an argument.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import secrets
import ssl
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from installer.deploy.kubectl import troubles
from installer.errors import Corrupt, DeploymentFailed, PreflightFailed
from installer.site.private import read_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from installer.deploy.kubectl import Kubectl

_LONGEST = 4 * 3600
"""Seconds after which a dump, or the way back, is given up."""
_QUICK = 120.0
_PULL = 300
_TRIES = 5
_POSTGRES = 999
"""User id of postgres in Harbor's image."""
_COMPLETE = b"-- PostgreSQL database dump complete"
_TAIL = 512
_HEADER_LINES = 60
_RESTRICT = re.compile(rb"\\restrict (\w+)\n\Z")
_FAST = 1
_PIECE = 1024 * 1024

# The first line of the input is the password, the rest is the program's.
_LOGGED_IN = 'IFS= read -r PGPASSWORD; export PGPASSWORD; exec "$@"'

_CLEAN = """
SET LOCAL lock_timeout = '60s';
DO $clean$
DECLARE one record;
BEGIN
  FOR one IN
    SELECT format('DROP SCHEMA IF EXISTS %I CASCADE', nspname) AS command
    FROM pg_catalog.pg_namespace AS n
    WHERE nspname <> 'public' AND nspname !~ '^pg_' AND nspname <> 'information_schema'
      AND pg_catalog.pg_has_role(nspowner, 'MEMBER') AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend
        WHERE classid = 'pg_namespace'::regclass AND objid = n.oid AND deptype = 'e')
  LOOP EXECUTE one.command; END LOOP;
  FOR one IN
    SELECT format('DROP %s IF EXISTS %I.%I CASCADE',
      CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
        WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END, nspname, relname) AS command
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = relnamespace
    WHERE nspname = 'public' AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
      AND pg_catalog.pg_has_role(relowner, 'MEMBER') AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend
        WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')
    ORDER BY relkind = 'S'
  LOOP EXECUTE one.command; END LOOP;
  FOR one IN
    SELECT format('DROP ROUTINE IF EXISTS %s CASCADE', p.oid::regprocedure) AS command
    FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n ON n.oid = pronamespace
    WHERE nspname = 'public' AND pg_catalog.pg_has_role(proowner, 'MEMBER') AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend
        WHERE classid = 'pg_proc'::regclass AND objid = p.oid AND deptype = 'e')
  LOOP EXECUTE one.command; END LOOP;
  FOR one IN
    SELECT format('DROP TYPE IF EXISTS %I.%I CASCADE', nspname, typname) AS command
    FROM pg_catalog.pg_type AS t JOIN pg_catalog.pg_namespace AS n ON n.oid = typnamespace
    LEFT JOIN pg_catalog.pg_class AS c ON c.oid = typrelid
    WHERE nspname = 'public' AND (typtype IN ('e', 'd', 'r') OR relkind = 'c')
      AND pg_catalog.pg_has_role(typowner, 'MEMBER') AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend
        WHERE classid = 'pg_type'::regclass AND objid = t.oid AND deptype = 'e')
  LOOP EXECUTE one.command; END LOOP;
END
$clean$;
"""
"""Removes what is the role's: tables, views, sequences, routines and types, but no extension's."""


@dataclass(frozen=True)
class Login:
    """Where a release has its database; an empty ``host`` is its own pod.

    ``ca`` is PEM, empty for the authorities that this machine knows.
    """

    name: str
    username: str
    host: str = ""
    port: str = "5432"
    ssl_mode: str = "disable"
    password: str = field(default="", repr=False)
    ca: bytes = field(default=b"", repr=False)

    def __str__(self) -> str:
        return f"database {self.name} at {self.host}:{self.port}" if self.host else "its database"


def login_of(values: Mapping[str, Any], ca_file: str, kubectl: Kubectl, namespace: str) -> Login:
    """Read from the values of a release (with the chart's defaults) where its database is.

    ``ca_file`` is what an external server is checked with, "" for what this machine trusts.
    Raises DeploymentFailed when the Secret with the password is not there.
    """
    database = values.get("database") or {}
    if database.get("type") != "external":
        password = (database.get("internal") or {}).get("password", "")
        return Login("registry", "postgres", password=str(password))
    external = database.get("external") or {}
    password = str(external.get("password", ""))
    if secret := external.get("existingSecret"):
        found = kubectl.get("get", "secret", str(secret), f"--namespace={namespace}")
        try:
            password = base64.b64decode(found["data"]["password"]).decode()
        except (KeyError, TypeError, ValueError) as error:
            raise DeploymentFailed(f"secret {namespace}/{secret}: no key password") from error
    mode = str(external.get("sslmode", "disable"))
    ca = b""
    if mode.startswith("verify-"):
        path = ca_file or ssl.get_default_verify_paths().cafile or ""
        ca = (read_file(Path(path).resolve()) if path else None) or b""
    return Login(
        str(external.get("coreDatabase", "registry")),
        str(external.get("username", "user")),  # the chart's default
        str(external.get("host", "")),
        str(external.get("port", "5432")),
        mode,
        password,
        ca,
    )


class Programs:
    """psql and pg_dump in a container that reaches the database."""

    def __init__(
        self, kubectl: Kubectl, login: Login, namespace: str, pod: str, *, own: str = ""
    ) -> None:
        """``own`` is the folder of a pod that was made for this: for files of ours."""
        self._kubectl = kubectl
        self._login = login
        container = "postgresql" if own else "database"
        self._exec = (
            "exec",
            "--stdin",
            f"--namespace={namespace}",
            pod,
            f"--container={container}",
        )
        self._ca = f"{own}/ca.crt" if own else ""

    def give_authority(self) -> None:
        """Lay what the server is checked with where the programs look for it.

        Raises DeploymentFailed when it does not arrive.
        """
        # An input that ends at once may be lost on its way into the pod (seen with containerd 1.6).
        command = ("sh", "-c", 'cat > "$1" && wc -c < "$1"', "sh", self._ca)
        for _ in range(_TRIES):
            feed = [self._login.ca]
            there = self._kubectl.stream(*self._exec, "--", *command, feed=feed, timeout=_QUICK)
            if b"".join(there).strip() == str(len(self._login.ca)).encode():
                return
        raise DeploymentFailed(
            "kubectl exec: the pod does not get what is sent into it", hint="run it again"
        )

    def size(self) -> int:
        """Bytes that the database takes on its server: no dump of it is larger."""
        return int(self._query("SELECT pg_database_size(current_database())"))

    def version(self) -> int:
        """Major version of the server."""
        return int(self._query("SHOW server_version_num")) // 10000

    def dump(self) -> Iterator[bytes]:
        """Give the database as SQL; raises DeploymentFailed, also when its end is missing."""
        tail = b""
        # Comments and publications take rights that Harbor's role doesn't have when they come back.
        options = ("--format=plain", "--no-comments", "--no-publications", "--no-subscriptions")
        for piece in self._run("pg_dump", *options, timeout=_LONGEST):
            tail = (tail + piece)[-_TAIL:]
            yield piece
        # A connection that ends early may look like one that ended well.
        if _COMPLETE not in tail:
            raise DeploymentFailed("pg_dump's output ends in the middle", hint="run it again")

    def restore(self, statements: Iterable[bytes]) -> None:
        """Put the database back as ``statements`` say, whole or not at all.

        Raises DeploymentFailed, and what reading the statements raises: then it is as it was.
        """
        word = f"restored-{secrets.token_hex(8)}"
        output = b"".join(
            self._run(
                "psql",
                *("--no-psqlrc", "--quiet", "--no-align", "--tuples-only"),
                # Terse: what an error quotes may be somebody's password hash.
                *("--set=ON_ERROR_STOP=1", "--set=VERBOSITY=terse", "--set=SHOW_CONTEXT=never"),
                "--output=/dev/null",
                feed=_transaction(statements, word),
                timeout=_LONGEST,
            )
        )
        if word.encode() not in output:
            raise DeploymentFailed("psql ended before the end of the dump; nothing was changed")

    def _query(self, statement: str) -> str:
        options = ("--no-psqlrc", "--no-align", "--tuples-only", f"--command={statement}")
        return b"".join(self._run("psql", *options, timeout=_QUICK)).decode().strip()

    def _run(
        self, program: str, *options: str, feed: Iterable[bytes] = (), timeout: float
    ) -> Iterator[bytes]:
        command = ("sh", "-c", _LOGGED_IN, "sh", program, f"--dbname={self._conninfo()}")
        try:
            yield from self._kubectl.stream(
                *self._exec,
                *("--", *command, *options),
                feed=_after(f"{self._login.password}\n".encode(), feed),
                timeout=timeout,
            )
        except DeploymentFailed as error:
            if self._login.host and not error.hint:
                error.hint = "it is asked from a pod in Harbor's namespace, as Harbor itself does"
            raise

    def _conninfo(self) -> str:
        login = self._login
        words = {
            "dbname": login.name,
            "user": login.username,
            "connect_timeout": "20",
            "application_name": "harbor-airgap",
            "client_encoding": "UTF8",
        }
        if login.host:
            words |= {"host": login.host, "port": login.port, "sslmode": login.ssl_mode}
        if login.ca:
            words["sslrootcert"] = self._ca
        quoted = {k: v.replace("\\", "\\\\").replace("'", "\\'") for k, v in words.items()}
        return " ".join(f"{key}='{value}'" for key, value in quoted.items())


@contextmanager
def programs(
    kubectl: Kubectl, namespace: str, release: str, login: Login, image: str
) -> Iterator[Programs]:
    """Give PostgreSQL's programs: in the database's pod, or in one from ``image`` that goes again.

    Raises DeploymentFailed when there is no such pod, or the new one does not start.
    """
    if not login.host:
        yield Programs(kubectl, login, namespace, _database_pod(kubectl, namespace, release))
        return
    name = f"{release}-snapshot"
    remove = ("delete", "pod", name, f"--namespace={namespace}", "--ignore-not-found")
    kubectl.run(*remove, timeout=_QUICK)  # that of a run which was killed
    try:
        document = json.dumps(_pod(name, namespace, image)).encode()
        for _ in kubectl.stream("create", "--filename=-", feed=[document], timeout=_QUICK):
            pass
        _wait_for(kubectl, namespace, name)
        made = Programs(kubectl, login, namespace, name, own="/work")
        if login.ca:
            made.give_authority()
        yield made
    finally:
        # It ends by itself as well (activeDeadlineSeconds).
        with suppress(DeploymentFailed):
            kubectl.run(*remove, timeout=_QUICK)


def compressed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Gzip, in a moment: the disk is slower."""
    packer = zlib.compressobj(_FAST, zlib.DEFLATED, 31)
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()


def statements(path: Path, sha256: str) -> Iterator[bytes]:
    """Read a gzipped dump, for ``Programs.restore``; raises Corrupt unless it has this digest.

    Left out is what only psql and servers of the very version of pg_dump know: restrict, and a
    setting of PostgreSQL 17.
    """
    with _open(path) as file:
        digest = hashlib.sha256()
        while piece := file.read(_PIECE):
            digest.update(piece)
        if digest.hexdigest() != sha256:
            raise Corrupt(
                f"{path}: the snapshot is damaged: not the file that was written",
                hint="bring it back from a backup of the state folder",
            )
        file.seek(0)
        with gzip.open(file) as lines:
            unknown = {b"SET transaction_timeout = 0;\n"}
            for number, line in enumerate(lines):
                if number < _HEADER_LINES and (match := _RESTRICT.match(line)):
                    unknown |= {line, b"\\unrestrict " + match[1] + b"\n"}
                if line not in unknown:
                    yield line


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise Corrupt(f"{path}: {error.strerror}", hint="the snapshot's dump is gone") from error


def _transaction(body: Iterable[bytes], word: str) -> Iterator[bytes]:
    yield b"BEGIN;\n" + _CLEAN.encode()
    yield from body
    yield f"COMMIT;\n\\o\n\\echo {word}\n".encode()


def _after(first: bytes, rest: Iterable[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _database_pod(kubectl: Kubectl, namespace: str, release: str) -> str:
    for pod in kubectl.pods(namespace):
        labels = pod["metadata"].get("labels") or {}
        if (labels.get("release"), labels.get("component")) != (release, "database"):
            continue
        states = {c["name"]: c for c in pod.get("status", {}).get("containerStatuses", ())}
        if states.get("database", {}).get("ready"):
            return str(pod["metadata"]["name"])
    raise DeploymentFailed(
        f"release {namespace}/{release}: no pod of its database is ready",
        hint="; ".join(troubles(kubectl, namespace)) or "look at it with kubectl",
    )


def _wait_for(kubectl: Kubectl, namespace: str, name: str) -> None:
    try:
        kubectl.run(
            *("wait", f"pod/{name}", f"--namespace={namespace}", "--for=condition=Ready"),
            f"--timeout={_PULL}s",
            timeout=_PULL + 20,
        )
    except DeploymentFailed as error:
        error.hint = "; ".join(troubles(kubectl, namespace)) or error.hint
        raise


def _pod(name: str, namespace: str, image: str) -> dict[str, Any]:
    if not image:
        raise PreflightFailed("the bundle has no image goharbor/harbor-db, which has pg_dump")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": "harbor-airgap"},
        },
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": _LONGEST,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _POSTGRES,
                "runAsGroup": _POSTGRES,
                "fsGroup": _POSTGRES,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "postgresql",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sleep", str(_LONGEST)],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": "work", "mountPath": "/work"}],
                }
            ],
            "volumes": [{"name": "work", "emptyDir": {}}],
        },
    }
