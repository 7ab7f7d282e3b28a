"""HAProxy itself, with the configuration that the installer writes, before real HTTP servers.

Nodes have one port in common, so each is an address of its own of the loopback network.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from installer.deploy import haproxy as step_module
from installer.deploy import systemd
from installer.deploy.haproxy import InstallHAProxy, configuration
from installer.errors import DeploymentFailed, PreflightFailed
from installer.site.harbor import Expose, HAProxy, Harbor, LoadBalancer
from tests.integration import servers
from tests.upstream import certificates, images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from email.message import Message

HOST = "harbor.site.test"
KEY = "harbor/harbor"
PEM = "harbor-harbor-harbor.pem"


@pytest.fixture(scope="session")
def program() -> Path:
    found = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if not found:
        pytest.skip("haproxy is missing: apt-get install haproxy")
    if os.geteuid() != 0:
        pytest.skip("haproxy changes its root and its user: run these tests as root")
    return Path(found)


# ---- certificates: an authority, one below it that issues, and a leaf


class Chain:
    """``ca`` is what clients have; ``pem`` is leaf, intermediate, key."""

    def __init__(self, folder: Path) -> None:
        root, middle, leaf = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        top, below = certificates._name("root"), certificates._name("issuing")
        made = [
            _certificate(top, top, root, root),
            _certificate(below, top, middle, root),
            _certificate(certificates._name(HOST), below, leaf, middle, names=[HOST]),
        ]
        pems = [one.public_bytes(serialization.Encoding.PEM) for one in made]
        self.ca = folder / "root.pem"
        self.ca.write_bytes(pems[0])
        self.key = leaf.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        self.chain = pems[2] + pems[1]
        self.pem = self.chain + self.key

    def client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    names: list[str] | None = None,
) -> x509.Certificate:
    builder = certificates._builder(subject, issuer, key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(not names, None), critical=True)
    if names:
        alternative = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(alternative, critical=False)
    return builder.sign(signer, hashes.SHA256())


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path)


# ---- nodes


class Node(ThreadingHTTPServer):
    """Answers as Harbor's nginx does to the health check, and says what reached it."""

    daemon_threads = True
    # A restarted node gets its port back at once, though connections of before linger.
    allow_reuse_address = True

    def __init__(self, address: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        super().__init__((address, port), Handler)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.health = 200
        self.checks: list[dict[str, str]] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that the other side drops are what some of these tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        node = cast("Node", self.server)
        if self.path == "/api/v2.0/ping":
            node.checks.append({"host": self.headers["Host"]})
            self._answer(node.health, b"Pong")
        elif self.path == "/silent":
            time.sleep(60)
        else:
            told = {"node": node.server_address[0], "path": self.path, "body": 0}
            self._answer(200, json.dumps(told | {"headers": dict(self.headers)}).encode())

    def do_PUT(self) -> None:
        left = total = int(self.headers["Content-Length"])
        while left:
            left -= len(self.rfile.read(min(left, 1 << 20)))
        self._answer(201, json.dumps({"body": total}).encode())

    def _answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as inherited
        pass


@contextmanager
def serving(node: ThreadingHTTPServer) -> Iterator[Any]:
    thread = threading.Thread(target=node.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield node
    finally:
        node.shutdown()
        node.server_close()
        thread.join()


def two_nodes(stack: ExitStack, tls: ssl.SSLContext | None = None) -> list[Any]:
    first = Node("127.0.0.1", 0, tls)
    second = Node("127.0.0.2", int(first.server_address[1]), tls)
    return [stack.enter_context(serving(node)) for node in (first, second)]


# ---- HAProxy


def site(folder: Path, node_port: int = 30002, **changes: Any) -> Harbor:
    ports: set[int] = set()
    while len(ports) < 3:
        ports.add(servers.free_port())
    listen, redirect, stats = (f"127.0.0.1:{port}" for port in ports)
    haproxy = HAProxy(
        nodes=("127.0.0.1", "127.0.0.2"),
        listen=listen,
        redirect=redirect,
        stats=stats,
        file=str(folder / "haproxy.cfg"),
        service=False,
    )
    port = listen.rpartition(":")[2]
    return Harbor(
        external_url=f"https://{HOST}:{port}",
        expose=Expose(http_port=node_port, https_port=node_port),
        load_balancer=LoadBalancer(replace(haproxy, **changes)),
    )


def options(harbor: Harbor) -> HAProxy:
    assert harbor.load_balancer
    return harbor.load_balancer.haproxy


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


@contextmanager
def running(program: Path, harbor: Harbor, pem: bytes | None) -> Iterator[Path]:
    """Run HAProxy in the foreground with what the step writes, until its nodes are up."""
    step = InstallHAProxy(harbor, KEY, lambda: pem)
    step.preflight()
    step.apply()
    assert step.check()
    file = Path(options(harbor).file)
    log = file.with_name("haproxy.log")
    with servers._running(
        [program, "-db", "-f", file], log, lambda: step_module._listens(options(harbor).stats)
    ):
        wait(lambda: set(states(harbor).values()) == {"UP"})
        yield log


def states(harbor: Harbor) -> dict[str, str]:
    """State of each node, as HAProxy's statistics have it."""
    connection = http.client.HTTPConnection("127.0.0.1", port_of(options(harbor).stats), timeout=5)
    try:
        connection.request("GET", "/;csv")
        rows = [row.split(",") for row in connection.getresponse().read().decode().splitlines()]
    finally:
        connection.close()
    status = rows[0].index("status")
    kinds = ("FRONTEND", "BACKEND")
    return {row[1]: row[status] for row in rows if row[0] == "nodes" and row[1] not in kinds}


def wait(true: Callable[[], object], seconds: float = 40.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.1)


def get(
    harbor: Harbor, chain: Chain, path: str = "/", headers: dict[str, str] | None = None
) -> tuple[int, Message, Any]:
    """GET over TLS by the public name; what answers is checked against the authority alone."""
    with connected(harbor, chain) as connection:
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        data = answer.read()
        document = json.loads(data) if data.startswith(b"{") else data
        return answer.status, answer.headers, document


@contextmanager
def connected(harbor: Harbor, chain: Chain) -> Iterator[http.client.HTTPConnection]:
    port = port_of(options(harbor).listen)
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    connection.sock = tls_socket(port, chain.client())
    try:
        yield connection
    finally:
        connection.close()


def tls_socket(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    raw = socket.create_connection(("127.0.0.1", port), timeout=30)
    try:
        return context.wrap_socket(raw, server_hostname=HOST)
    except OSError:
        raw.close()
        raise


# ---- what HAProxy says of the text


def accepted(program: Path, folder: Path, harbor: Harbor, pem: bytes) -> str:
    (folder / "h.pem").write_bytes(pem)
    (folder / "h.cfg").write_text(configuration(harbor, "h.pem"))
    command: list[str | Path] = [program, "-c", "-f", folder / "h.cfg"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
HOSTS = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    # A domain for tests, which no server anywhere answers for (RFC 6761).
    LABEL.map(lambda label: f"{label}.invalid"),
)
LISTENS = st.sampled_from(["0.0.0.0", "[::]", "127.0.0.1", "[::1]", "10.1.2.3", "localhost"])  # noqa: S104 - text only, nothing listens


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    nodes=st.lists(HOSTS, min_size=1, max_size=5, unique=True),
    mode=st.sampled_from(["terminate", "passthrough"]),
    hosts=st.tuples(LISTENS, LISTENS, LISTENS),
    empty=st.sets(st.sampled_from(["redirect", "stats"])),
    port=st.integers(1, 65535),
)
def test_haproxy_accepts_every_configuration(
    program: Path,
    tmp_path: Path,
    chain: Chain,
    nodes: list[str],
    mode: str,
    hosts: tuple[str, str, str],
    empty: set[str],
    port: int,
) -> None:
    named = zip(("listen", "redirect", "stats"), hosts, (443, 80, 8404), strict=True)
    places = {key: "" if key in empty else f"{host}:{number}" for key, host, number in named}
    harbor = site(tmp_path, port, nodes=tuple(nodes), mode=mode, **places)
    told = accepted(program, tmp_path, harbor, chain.pem)
    # A name that nobody knows is warned of; nothing else is.
    names = [name for name in nodes if name.endswith(".invalid")]
    warnings = [line for line in told.splitlines() if line.startswith("[WARNING]")]
    assert len([w for w in warnings if "could not resolve address" in w]) == len(names)
    assert len(warnings) == len(names), told


# ---- terminate


def test_terminate(program: Path, tmp_path: Path, chain: Chain) -> None:
    with ExitStack() as stack:
        first, second = two_nodes(stack)
        harbor = site(tmp_path, first.server_address[1])
        stack.enter_context(running(program, harbor, chain.pem))

        spoofed = {
            "X-Forwarded-Proto": "http",
            "Forwarded": "proto=http;host=other",
            "X-Forwarded-For": "6.6.6.6",
        }
        status, headers, told = get(harbor, chain, "/v2/?a=b", spoofed)
        assert (status, told["path"]) == (200, "/v2/?a=b")
        arrived = {name.lower(): value for name, value in told["headers"].items()}
        assert arrived["x-forwarded-proto"] == "https"
        assert arrived["x-forwarded-for"] == "127.0.0.1"
        assert "forwarded" not in arrived
        assert arrived["host"] == f"{HOST}:{port_of(options(harbor).listen)}"
        assert headers["Strict-Transport-Security"] == "max-age=31536000"
        used = {get(harbor, chain)[2]["node"] for _ in range(6)}
        assert used == {"127.0.0.1", "127.0.0.2"}
        assert {c["host"] for c in first.checks + second.checks} == {arrived["host"]}


def test_tls(program: Path, tmp_path: Path, chain: Chain, openssl: Path) -> None:
    with ExitStack() as stack:
        first, _ = two_nodes(stack)
        harbor = site(tmp_path, first.server_address[1])
        stack.enter_context(running(program, harbor, chain.pem))
        port = port_of(options(harbor).listen)

        def client(*arguments: str) -> str:
            target = ["-connect", f"127.0.0.1:{port}", "-servername", HOST]
            command: list[str | Path] = [openssl, "s_client", *target, *arguments]
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=30,
            )
            return done.stdout + done.stderr

        shown = client("-showcerts", "-CAfile", str(chain.ca), "-verify_return_error")
        assert shown.count("BEGIN CERTIFICATE") == 2
        assert "Verify return code: 0 (ok)" in shown
        for version in ("-tls1_2", "-tls1_3"):
            assert "Verify return code: 0 (ok)" in client(version, "-CAfile", str(chain.ca))
        for version in ("-tls1", "-tls1_1"):
            # The client would: it is the server that refuses.
            old = client(version, "-cipher", "ALL:@SECLEVEL=0")
            assert "alert protocol version" in old
        weak = client("-tls1_2", "-cipher", "AES128-SHA:AES256-GCM-SHA384")
        assert "alert handshake failure" in weak
        for protocol in ("h2", "http/1.1"):
            assert f"ALPN protocol: {protocol}" in client("-alpn", protocol)


def test_upload_without_a_limit(program: Path, tmp_path: Path, chain: Chain) -> None:
    size = 300 << 20
    with ExitStack() as stack:
        first, _ = two_nodes(stack)
        harbor = site(tmp_path, first.server_address[1])
        stack.enter_context(running(program, harbor, chain.pem))
        piece = bytes(1 << 20)
        with connected(harbor, chain) as connection:
            body = (piece for _ in range(size >> 20))
            connection.request("PUT", "/blob", body, {"Content-Length": str(size)})
            answer = connection.getresponse()
            assert (answer.status, json.loads(answer.read())) == (201, {"body": size})


def test_redirect_and_stats(program: Path, tmp_path: Path, chain: Chain) -> None:
    with ExitStack() as stack:
        first, _ = two_nodes(stack)
        harbor = site(tmp_path, first.server_address[1])
        stack.enter_context(running(program, harbor, chain.pem))
        port = port_of(options(harbor).redirect)
        for method, host in (("GET", "anything.test"), ("POST", HOST)):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request(method, "/harbor/projects?q=1", headers={"Host": host})
            answer = connection.getresponse()
            answer.read()
            connection.close()
            assert answer.status == 308
            assert answer.headers["Location"] == f"{harbor.external_url}/harbor/projects?q=1"
        connection = http.client.HTTPConnection("127.0.0.1", port_of(options(harbor).stats))
        connection.request("GET", "/")
        page = connection.getresponse().read().decode()
        connection.close()
        assert "Statistics Report" in page
        assert not re.search(r"version \d", page)
        assert states(harbor) == {"127.0.0.1": "UP", "127.0.0.2": "UP"}


def test_a_dead_node_is_taken_out_and_comes_back(
    program: Path, tmp_path: Path, chain: Chain
) -> None:
    with ExitStack() as stack:
        dying = ExitStack()
        stack.enter_context(dying)
        first = stack.enter_context(serving(Node("127.0.0.1", 0)))
        port = first.server_address[1]
        dying.enter_context(serving(Node("127.0.0.2", port)))
        harbor = site(tmp_path, port)
        stack.enter_context(running(program, harbor, chain.pem))
        dying.close()
        # Before the health check knows: the next try of the same request goes to the other node.
        assert {get(harbor, chain)[2]["node"] for _ in range(8)} == {"127.0.0.1"}
        wait(lambda: states(harbor)["127.0.0.2"] == "DOWN")
        assert get(harbor, chain)[0] == 200
        stack.enter_context(serving(Node("127.0.0.2", port)))
        wait(lambda: states(harbor)["127.0.0.2"] == "UP")
        assert {get(harbor, chain)[2]["node"] for _ in range(6)} == {"127.0.0.1", "127.0.0.2"}


def test_a_node_whose_harbor_is_ill_ends_its_requests(
    program: Path, tmp_path: Path, chain: Chain
) -> None:
    with ExitStack() as stack:
        first, second = two_nodes(stack)
        harbor = site(tmp_path, first.server_address[1], nodes=("127.0.0.2",))
        stack.enter_context(running(program, harbor, chain.pem))
        with connected(harbor, chain) as connection:
            connection.request("GET", "/silent")
            begun = time.monotonic()
            second.health = 503
            # The node takes connections all the while: it is what it answers that counts.
            answer = connection.getresponse()
            assert answer.status in (502, 503)
            answer.read()
            assert 5 < time.monotonic() - begun < 28
        wait(lambda: states(harbor) == {"127.0.0.2": "DOWN"})
        assert get(harbor, chain)[0] == 503


def test_a_name_that_nobody_knows_does_not_stop_it(
    program: Path, tmp_path: Path, chain: Chain
) -> None:
    with ExitStack() as stack:
        first, _ = two_nodes(stack)
        port = first.server_address[1]
        harbor = site(tmp_path, port, nodes=("127.0.0.1", "node-2.invalid"))
        step = InstallHAProxy(harbor, KEY, lambda: chain.pem)
        assert "could not resolve address 'node-2.invalid'" in step.apply()
        log = tmp_path / "haproxy.log"
        command: list[str | Path] = [program, "-db", "-f", tmp_path / "haproxy.cfg"]
        stats = options(harbor).stats
        stack.enter_context(servers._running(command, log, lambda: step_module._listens(stats)))
        wait(lambda: states(harbor)["127.0.0.1"] == "UP")
        assert states(harbor)["node-2.invalid"].startswith("MAINT")
        assert get(harbor, chain)[0] == 200


# ---- passthrough


def test_passthrough(program: Path, tmp_path: Path, chain: Chain) -> None:
    leaf = tmp_path / "leaf.pem"
    leaf.write_bytes(chain.pem)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(leaf)
    with ExitStack() as stack:
        first, second = two_nodes(stack, tls)
        harbor = site(tmp_path, first.server_address[1], mode="passthrough")
        stack.enter_context(running(program, harbor, None))
        assert not (tmp_path / PEM).exists()
        sent = {"X-Forwarded-Proto": "as-sent", "Forwarded": "as-sent"}
        status, headers, told = get(harbor, chain, "/v2/", sent)
        assert status == 200
        assert "Strict-Transport-Security" not in headers
        assert {told["headers"][name] for name in sent} == {"as-sent"}
        assert "X-Forwarded-For" not in told["headers"]
        # The very certificate of the node, not one of HAProxy's.
        with tls_socket(port_of(options(harbor).listen), chain.client()) as connection:
            assert connection.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(
                chain.chain.decode().partition("-----END CERTIFICATE-----\n")[0]
                + "-----END CERTIFICATE-----\n"
            )
        assert first.checks
        second.health = 503
        wait(lambda: states(harbor)["127.0.0.2"] == "DOWN")
        assert {get(harbor, chain)[2]["node"] for _ in range(4)} == {"127.0.0.1"}


# ---- a registry behind it


class Front(ThreadingHTTPServer):
    """As much of Harbor's nginx as a health check sees: everything else goes to a registry."""

    daemon_threads = True

    def __init__(self, registry: str) -> None:
        super().__init__(("127.0.0.1", 0), FrontHandler)
        self.registry = ("127.0.0.1", port_of(registry))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """As for Node."""


class FrontHandler(BaseHTTPRequestHandler):
    """Looks at the first bytes of a connection, and passes all of them on."""

    def handle(self) -> None:
        begin = self.connection.recv(64, socket.MSG_PEEK)
        if begin.startswith(b"GET /api/v2.0/ping "):
            self.handle_one_request()
            return
        with socket.create_connection(cast("Front", self.server).registry) as other:
            back = threading.Thread(target=_pump, args=(other, self.connection))
            back.start()
            _pump(self.connection, other)
            back.join()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as inherited
        pass


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


def test_push_and_pull_through_it(
    program: Path,
    tmp_path: Path,
    docker_registry: servers.DockerRegistry,
    skopeo: Callable[..., str],
) -> None:
    made = certificates.make_certificates(tmp_path / "pki")
    pem = made.certificate.read_bytes() + made.key.read_bytes()
    (tmp_path / "trust").mkdir()
    shutil.copy(made.ca, tmp_path / "trust" / "ca.crt")
    image = images.image([images.layer(20 << 20, "big"), images.layer(1000, "small")])
    images.write_layout(tmp_path / "layout", {"latest": image})
    with ExitStack() as stack:
        front = stack.enter_context(serving(Front(docker_registry.host)))
        harbor = site(tmp_path, front.server_address[1], nodes=("127.0.0.1",))
        listen = options(harbor).listen
        harbor = replace(harbor, external_url=f"https://{listen}")
        stack.enter_context(running(program, harbor, pem))
        there = f"docker://{listen}/library/big:1"
        certs = f"--dest-cert-dir={tmp_path / 'trust'}", "--dest-tls-verify=true"
        skopeo("copy", *certs, f"oci:{tmp_path / 'layout'}:latest", there)
        certs = f"--src-cert-dir={tmp_path / 'trust'}", "--src-tls-verify=true"
        skopeo("copy", *certs, there, f"oci:{tmp_path / 'pulled'}:latest")
        for content in image.everything:
            blob = tmp_path / "pulled" / "blobs" / "sha256" / content.digest.split(":")[1]
            assert blob.read_bytes() == content.data

        # Where to upload is told by what HAProxy says of the scheme: http would be a plain port.
        context = ssl.create_default_context(cafile=made.ca)
        connection = http.client.HTTPSConnection("127.0.0.1", port_of(listen), context=context)
        connection.request("POST", "/v2/library/big/blobs/uploads/")
        answer = connection.getresponse()
        answer.read()
        connection.close()
        assert answer.status == 202
        assert answer.headers["Location"].startswith(f"https://{listen}/v2/library/big/blobs/")


# ---- the step, with a service


class Service:
    """In place of systemctl: Debian's haproxy.service, as its unit starts and reloads it.

    systemd itself can't be had in a test: it would take over mounts, cgroups and devices of the
    machine. HAProxy is the real one, in the same mode (master and workers, reload by SIGUSR2).
    """

    def __init__(self, program: Path, file: Path) -> None:
        self._program = program
        self._file = file
        self._process: subprocess.Popen[bytes] | None = None
        self.asked: list[str] = []
        self.before_start: Callable[[], object] = lambda: None

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        self.asked.append(arguments[0])
        assert arguments[-1] == "haproxy"
        code, words = getattr(self, arguments[0].replace("-", "_"))()
        return subprocess.CompletedProcess(arguments, code, "", words)

    def is_active(self) -> tuple[int, str]:
        alive = self._process is not None and self._process.poll() is None
        return (0 if alive else 3), ""

    def enable(self) -> tuple[int, str]:
        return 0, ""

    def reload_or_restart(self) -> tuple[int, str]:
        self.before_start()
        if self._process is None or self.is_active()[0]:
            return self._start()
        check = subprocess.run(
            [self._program, "-W", "-f", self._file, "-c", "-q"], capture_output=True, check=False
        )
        if check.returncode == 0:
            self._process.send_signal(signal.SIGUSR2)
        return check.returncode, check.stderr.decode()

    def _start(self) -> tuple[int, str]:
        command: list[str | Path] = [self._program, "-Ws", "-db", "-f", self._file]
        log = self._file.with_name("service.log")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, log.open("ab") as output:
            told.bind("")  # the kernel gives it a name without a file
            told.settimeout(0.1)
            told_at = f"@{told.getsockname()[1:].decode()}"
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, env=os.environ | {"NOTIFY_SOCKET": told_at}
            )
            while self._process.poll() is None:
                with suppress(TimeoutError):
                    if b"READY=1" in told.recv(4096):
                        return 0, ""
        return 1, "Job failed."

    def stop(self) -> tuple[int, str]:
        if self._process is not None:
            # A master that is just reloading doesn't hear the first one: it executes itself anew.
            wait(self._ended)
        return 0, ""

    def _ended(self) -> bool:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            return False
        return True


@pytest.fixture
def service(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    made = Service(program, tmp_path / "haproxy.cfg")
    monkeypatch.setattr(systemd, "is_there", lambda: True)
    monkeypatch.setattr(systemd, "_systemctl", made)
    monkeypatch.setattr(step_module, "_PATIENCE", 4.0)
    yield made
    made.stop()


def test_service(tmp_path: Path, chain: Chain, service: Service) -> None:
    file = tmp_path / "haproxy.cfg"
    file.write_text("global\n    # of the distribution\n")
    with ExitStack() as stack:
        first, _ = two_nodes(stack)
        harbor = site(tmp_path, first.server_address[1], service=True)
        step = InstallHAProxy(harbor, KEY, lambda: chain.pem)
        step.preflight()
        assert not step.check()
        assert "before-harbor-airgap" in step.apply()
        assert service.asked[-1] == "enable"
        assert step.check()
        wait(lambda: set(states(harbor).values()) == {"UP"})
        assert get(harbor, chain)[0] == 200

        # Its own ports are no obstacle; those of others are, also for a file that is ours.
        step.preflight()
        with socket.create_server(("127.0.0.1", 0)) as other:
            taken = replace(options(harbor), stats=f"127.0.0.1:{other.getsockname()[1]}")
            moved = replace(harbor, load_balancer=LoadBalancer(taken))
            with pytest.raises(PreflightFailed, match=r"stats: .*: Address already in use"):
                InstallHAProxy(moved, KEY, lambda: chain.pem).preflight()

            # Also if it was taken after that.
            before = file.read_bytes()
            with pytest.raises(PreflightFailed, match=r"stats: .*: Address already in use"):
                InstallHAProxy(moved, KEY, lambda: chain.pem).apply()
        assert file.read_bytes() == before
        assert step.check()

        # A new certificate is served after the next run.
        renewed = Chain(tmp_path)
        step = InstallHAProxy(harbor, KEY, lambda: renewed.pem)
        assert not step.check()
        step.apply()
        wait(lambda: _works(harbor, renewed))
        assert step.check()


def _works(harbor: Harbor, chain: Chain) -> bool:
    try:
        return get(harbor, chain)[0] == 200
    except (ssl.SSLError, ConnectionError):
        return False


def test_a_foreign_configuration_comes_back_when_ours_can_not_start(
    tmp_path: Path, chain: Chain, service: Service
) -> None:
    file = tmp_path / "haproxy.cfg"
    file.write_text("global\n    # of somebody\n")
    file.chmod(0o640)
    harbor = site(tmp_path, service=True)
    with ExitStack() as stack:
        address = ("127.0.0.1", port_of(options(harbor).listen))
        service.before_start = lambda: stack.enter_context(socket.create_server(address))
        with pytest.raises(DeploymentFailed, match="reload-or-restart"):
            InstallHAProxy(harbor, KEY, lambda: chain.pem).apply()
    assert file.read_text() == "global\n    # of somebody\n"
    assert file.stat().st_mode & 0o777 == 0o640
    assert not (tmp_path / PEM).exists()
    assert not list(tmp_path.glob(".haproxy*"))
    assert service.asked[-1] == "stop"


def test_a_service_that_reads_another_file(tmp_path: Path, chain: Chain, service: Service) -> None:
    (tmp_path / "etc").mkdir()
    step = InstallHAProxy(site(tmp_path, service=True), KEY, lambda: chain.pem)
    service._file = tmp_path / "etc" / "haproxy.cfg"
    other = site(tmp_path / "etc")
    InstallHAProxy(other, KEY, lambda: chain.pem).apply()
    service.reload_or_restart()
    with pytest.raises(DeploymentFailed, match="does not listen on") as caught:
        step.apply()
    assert "does the service read" in caught.value.hint
    assert not (tmp_path / "haproxy.cfg").exists()
    # It was running before, and goes on.
    assert service.asked[-1] == "reload-or-restart"
    assert service.is_active()[0] == 0


def test_haproxys_words_on_a_certificate_that_is_none(
    program: Path, tmp_path: Path, chain: Chain
) -> None:
    del program
    other = Chain(tmp_path)
    harbor = site(tmp_path)
    good = InstallHAProxy(harbor, KEY, lambda: chain.pem)
    good.apply()
    before = (tmp_path / "haproxy.cfg").read_bytes()
    for bad in (b"nothing\n", chain.chain, chain.chain + other.key):
        step = InstallHAProxy(harbor, KEY, partial(bytes, bad))
        with pytest.raises(DeploymentFailed, match="refuses its new configuration") as caught:
            step.apply()
        assert PEM in caught.value.message
        assert "PRIVATE" not in caught.value.message
        assert "/tmp/harbor-airgap" not in caught.value.message
    assert (tmp_path / "haproxy.cfg").read_bytes() == before
    assert good.check()


def test_preflight_with_a_service(
    program: Path, tmp_path: Path, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    del program
    step = InstallHAProxy(site(tmp_path, service=True), KEY, lambda: chain.pem)
    if not systemd.is_there():
        with pytest.raises(PreflightFailed, match="systemd") as caught:
            step.preflight()
        assert "service: false" in caught.value.hint
    monkeypatch.setattr(systemd, "is_there", lambda: True)
    step.preflight()
    nowhere = InstallHAProxy(site(tmp_path, service=True, listen="192.0.2.1:443"), KEY, lambda: b"")
    with pytest.raises(PreflightFailed, match=re.escape("listen: 192.0.2.1:443")):
        nowhere.preflight()
    old = tmp_path / "bin"
    old.mkdir()
    (old / "haproxy").write_text("#!/bin/sh\necho 'HA-Proxy version 2.0.29 2022/05/13'\n")
    (old / "haproxy").chmod(0o755)
    monkeypatch.setattr("installer.environment._PATH", str(old))
    with pytest.raises(PreflightFailed, match="too old"):
        step.preflight()
    (old / "haproxy").unlink()
    with pytest.raises(PreflightFailed, match="not installed"):
        step.preflight()
