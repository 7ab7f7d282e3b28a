"""Vault's certificate, against a small server that speaks the documented requests and checks them.

The server is real HTTPS with a PKI of its own: what it issues is used like anything Vault issues.
"""

from __future__ import annotations

import ipaddress
import json
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from installer.deploy.certificates import HarborCertificate
from installer.errors import (
    AirgapError,
    DeploymentFailed,
    InvalidInput,
    PreflightFailed,
    TransferFailed,
)
from installer.site.certificate import Verdict, examine
from installer.site.harbor import Harbor
from installer.site.state import State
from tests.upstream.certificates import make_certificates

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW = datetime(2026, 11, 23, tzinfo=UTC)
URL = "https://harbor.plant.test"
ROLE_ID, SECRET_ID, JWT, TOKEN = "the-role-id", "the secret id", "ey.the.jwt", "hvs.the-token"
PEM = serialization.Encoding.PEM


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Pki:
    """A root and an intermediate that signs; ``clock`` is Vault's."""

    clock: Clock
    lifetime: timedelta = timedelta(days=90)
    with_root: bool = True
    ends: int = 0

    def __post_init__(self) -> None:
        self.keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
        root_key, key = self.keys
        self.root = self._made("root", "root", root_key, root_key, ca=True)
        self.intermediate = self._made("intermediate", "root", key, root_key, ca=True)

    def issue(self, names: list[x509.GeneralName], common: str) -> dict[str, Any]:
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = self._made(common, "intermediate", key, self.keys[1], names=names)
        text = key.private_bytes(
            PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode().strip()  # fmt: skip
        above = [self.intermediate, *([self.root] if self.with_root else [])]
        self.ends += 1
        return {
            "certificate": pem(leaf), "issuing_ca": pem(self.intermediate),
            "ca_chain": [pem(one) for one in above], "private_key": text,
            "private_key_type": "ec", "serial_number": "39:dd:2e", "expiration": 1654105687,
        }  # fmt: skip

    def _made(
        self,
        subject: str,
        issuer: str,
        key: ec.EllipticCurvePrivateKey,
        signer: ec.EllipticCurvePrivateKey,
        *,
        ca: bool = False,
        names: list[x509.GeneralName] | None = None,
    ) -> x509.Certificate:
        now = self.clock()
        usage = x509.KeyUsage(
            digital_signature=not ca, key_encipherment=not ca, key_cert_sign=ca, crl_sign=ca,
            content_commitment=False, data_encipherment=False, key_agreement=False,
            encipher_only=False, decipher_only=False,
        )  # fmt: skip
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(subject))
            .issuer_name(named(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(seconds=30))
            .not_valid_after(now + (timedelta(days=3650) if ca else self.lifetime))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
                critical=False,
            )
        )
        if names:
            purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
            builder = builder.add_extension(purpose, critical=False)
        return builder.sign(signer, hashes.SHA256())


def named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(PEM).decode().strip()


@dataclass
class Vault:
    """What the server is and was asked; ``answers`` overrides the answer to a path."""

    pki: Pki
    address: str = ""
    sealed: bool = False
    namespace: str = ""
    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    # Each check answers for itself, as the real one does.
    def answer(  # noqa: PLR0911
        self, method: str, path: str, headers: Any, body: Any
    ) -> tuple[int, Any]:
        self.asked.append((f"{method} {path}", body))
        if headers.get("X-Vault-Request") != "true":
            return 412, refused("required header is missing")
        if headers.get("X-Vault-Namespace", "") != self.namespace:
            return 404, refused("no handler for route")
        if path.startswith("/v1/sys/health"):
            if self.sealed:
                return 503, {"initialized": True, "sealed": True, "standby": True}
            return 200, {"initialized": True, "sealed": False}
        if self.sealed:
            return 503, refused("Vault is sealed")
        if path in self.answers:
            status, data = self.answers[path]
            return status, data
        return self._route(path, headers.get("X-Vault-Token"), body)

    def _route(  # noqa: PLR0911 - as above
        self, path: str, token: str | None, body: Any
    ) -> tuple[int, Any]:
        if path == "/v1/auth/approle/login":
            if body != {"role_id": ROLE_ID, "secret_id": SECRET_ID}:
                return 400, refused(f"invalid role or secret ID {body.get('secret_id')}")
            return self._token()
        if path == "/v1/auth/plant/k8s/login":
            if body != {"role": "harbor", "jwt": JWT}:
                return 403, refused("permission denied")
            return self._token()
        if token not in self.tokens:
            return 403, refused("permission denied", "invalid token")
        if path == "/v1/auth/token/revoke-self":
            self.tokens.remove(token)
            return 204, None
        if path == "/v1/pki/plant/issue/harbor":
            return self._issue(body)
        return 404, refused("no handler for route")

    def _token(self) -> tuple[int, Any]:
        self.tokens.add(TOKEN)
        auth = {"client_token": TOKEN, "policies": ["default"], "lease_duration": 1200}
        return 200, {"auth": auth, "data": None}

    def _issue(self, body: dict[str, str]) -> tuple[int, Any]:
        dns = list(filter(None, body.get("alt_names", "").split(",")))
        for name in [body.get("common_name", "x.plant.test"), *dns]:
            if not name.endswith("plant.test"):
                return 400, refused(f"common name {name} not allowed by this role")
        if "common_name" not in body and not dns:
            return 400, refused("the common_name field is required, unless require_cn is false")
        if body["format"] != "pem":
            return 400, refused("the format path parameter must be pem")
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in dns]
        addresses = filter(None, body.get("ip_sans", "").split(","))
        names += [x509.IPAddress(ipaddress.ip_address(text)) for text in addresses]
        return 200, {"data": self.pki.issue(names, body.get("common_name", "")), "auth": None}


def refused(*words: str) -> dict[str, Any]:
    return {"errors": [*words]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, vault: Vault, *arguments: Any) -> None:
        self.vault = vault
        super().__init__(*arguments)

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"null")
        status, answer = self.vault.answer(self.command, self.path, self.headers, body)
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        data = b"" if answer is None else data
        self.send_response(status)
        if status == 307:
            self.send_header("Location", data.decode())
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET  # noqa: N815 - the parent's name

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the parent's name
        """Keep quiet."""


class Server(ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, vault: Vault, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, vault))
        context = make_certificates(folder).context()
        self.socket = context.wrap_socket(self.socket, server_side=True)
        vault.address = f"https://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})

    def handle_error(self, *_: Any) -> None:
        """Keep quiet about clients that don't trust it."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def vault(tmp_path: Path, clock: Clock) -> Iterator[Vault]:
    vault = Vault(Pki(clock))
    with Server(vault, tmp_path / "server"):
        yield vault


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = State(tmp_path / "state")
    with state.held():
        yield state


@dataclass
class Plant:
    vault: Vault
    state: State
    clock: Clock
    folder: Path

    def step(self, url: str = URL, **changes: Any) -> HarborCertificate:
        secret = self.folder / "secret-id"
        if not secret.exists():
            secret.write_text(f"{SECRET_ID}\n")
        own_ca = changes.pop("own_ca", "")
        section = {
            "address": self.vault.address,
            "mount": "pki/plant",
            "role": "harbor",
            "ca": str(self.folder / "server" / "ca.pem"),
            "appRole": {"roleId": ROLE_ID, "secretIdFile": str(secret)},
        }
        section |= changes
        written = {"externalURL": url, "ca": own_ca, "certificate": {"vault": section}}
        harbor = msgspec.convert(written, Harbor)
        return HarborCertificate(harbor, "harbor/hub", self.state, "plant-7", self.clock)

    @property
    def folder_of_files(self) -> Path:
        return self.state.path("tls/harbor/hub/vault")


@pytest.fixture
def plant(vault: Vault, state: State, clock: Clock, tmp_path: Path) -> Plant:
    return Plant(vault, state, clock, tmp_path)


def paths(vault: Vault) -> list[str]:
    return [asked for asked, _ in vault.asked]


def test_a_certificate_is_issued_kept_and_told_of(plant: Plant) -> None:
    made = plant.step(names=["*.plant.test", "10.0.0.7"], ttl="2160h")
    assert made.name == "certificate:harbor/hub"
    assert made.sentence == f"Have Vault issue a certificate for {URL}"
    assert made.is_needed()
    assert not made.in_cluster
    made.preflight()
    assert (made.check(), made.files(), made.ca()) == (False, None, None)
    assert not plant.folder_of_files.exists()
    note = made.apply()
    assert made.check()
    assert paths(plant.vault)[-3:] == [
        "POST /v1/auth/approle/login", "POST /v1/pki/plant/issue/harbor",
        "POST /v1/auth/token/revoke-self",
    ]  # fmt: skip
    assert plant.vault.asked[-2][1] == {
        "common_name": "harbor.plant.test", "alt_names": "harbor.plant.test,*.plant.test",
        "ip_sans": "10.0.0.7", "ttl": "2160h", "format": "pem",
    }  # fmt: skip
    assert plant.vault.tokens == set()
    files = made.files()
    assert files is not None
    for url in (URL, "https://10.0.0.7", "https://x.plant.test"):
        assert examine(files.chain, files.key, files.ca, url, NOW) == Verdict((), ())
    assert files.chain.count(b"BEGIN") == 2
    assert files.ca.decode().strip() == pem(plant.vault.pki.root)
    assert made.ca_file() == str(plant.folder_of_files / "ca.crt")
    assert made.ca_file() in note
    assert plant.vault.pki.root.fingerprint(hashes.SHA256()).hex(":").upper() in note
    modes = {path.name: path.stat().st_mode & 0o777 for path in plant.folder_of_files.iterdir()}
    assert modes["tls.key"] == 0o600
    assert plant.folder_of_files.stat().st_mode & 0o777 == 0o700


def test_the_token_of_a_service_account_does_as_well(plant: Plant, tmp_path: Path) -> None:
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "token").write_text(JWT)
    (tmp_path / "token").symlink_to("..data/token")
    login = {"role": "harbor", "tokenFile": str(tmp_path / "token"), "mount": "plant/k8s"}
    plant.vault.namespace = "plant/one"
    made = plant.step(appRole=None, kubernetes=login, namespace="plant/one")
    made.preflight()
    made.apply()
    assert made.check()
    assert "POST /v1/auth/plant/k8s/login" in paths(plant.vault)


def test_what_is_good_is_left_alone_and_vault_not_asked(plant: Plant) -> None:
    plant.step().apply()
    before = len(plant.vault.asked)
    (plant.folder / "secret-id").unlink()
    plant.clock.now += timedelta(days=59)
    made = plant.step()
    (plant.folder / "secret-id").unlink()
    made.preflight()
    assert made.check()
    assert len(plant.vault.asked) == before


def test_it_is_renewed_in_its_last_third(plant: Plant) -> None:
    made = plant.step()
    made.apply()
    first = made.files()
    plant.clock.now += timedelta(days=61)
    assert not made.check()
    assert "clients keep the authority" in made.apply()
    assert made.check()
    second = made.files()
    assert first is not None
    assert second is not None
    assert first.chain != second.chain
    assert first.ca == second.ca


def test_a_vault_that_fails_does_no_harm_while_there_is_a_good_one(plant: Plant) -> None:
    made = plant.step()
    made.apply()
    plant.clock.now += timedelta(days=61)
    plant.vault.sealed = True
    made.preflight()
    note = made.apply()
    assert "was not renewed, and ends on 2027-02-21 00:00 UTC: Vault at" in note
    assert "is sealed" in note
    assert not made.check()
    plant.clock.now += timedelta(days=30)
    for call in (made.preflight, made.apply):
        with pytest.raises(PreflightFailed, match="is sealed"):
            call()


@pytest.mark.parametrize("change", [{"names": ["more.plant.test"]}, {"namespace": "other"}])
def test_other_names_or_another_issuer_make_a_new_one(plant: Plant, change: dict[str, Any]) -> None:
    plant.step().apply()
    other = plant.step(**change)
    assert not other.check()
    plant.vault.namespace = change.get("namespace", "")
    other.apply()
    assert other.check()
    assert plant.vault.pki.ends == 2


@pytest.mark.parametrize("harm", ["key", "chain", "gone"])
def test_files_that_do_not_fit_are_never_handed_out(plant: Plant, harm: str) -> None:
    made = plant.step()
    made.apply()
    if harm == "gone":
        (plant.folder_of_files / "tls.key").unlink()
    elif harm == "chain":
        (plant.folder_of_files / "tls.crt").write_bytes(b"nothing")
    else:
        other = ec.generate_private_key(ec.SECP256R1())
        text = other.private_bytes(
            PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (plant.folder_of_files / "tls.key").write_bytes(text)
    assert made.files() is None
    assert not made.check()
    made.apply()
    assert made.check()


def test_a_root_that_vault_does_not_have_is_given(plant: Plant) -> None:
    plant.vault.pki.with_root = False
    root = plant.folder / "root.pem"
    root.write_text(f"text\n{pem(plant.vault.pki.root)}\n")
    without = plant.step()
    assert without.apply() == ""
    assert without.ca() == b""
    assert any("this machine's trust store" in text for text in without.warnings())
    made = plant.step(own_ca=str(root))
    assert made.warnings() == ()
    assert made.check()
    assert made.ca() == plant.vault.pki.root.public_bytes(PEM)
    assert made.ca_file() == str(root)


# What Vault refuses, and what is no Vault


def failure(made: HarborCertificate) -> AirgapError:
    with pytest.raises(AirgapError) as caught:
        made.apply()
    told = f"{caught.value.message} {caught.value.hint}"
    for secret in (ROLE_ID, SECRET_ID, JWT, TOKEN):
        assert secret not in told
    assert "\n" not in told
    return caught.value


def test_a_sealed_vault_is_known_before_anything_is_changed(plant: Plant) -> None:
    plant.vault.sealed = True
    with pytest.raises(PreflightFailed, match="is sealed") as caught:
        plant.step().preflight()
    assert "vault operator unseal" in caught.value.hint
    assert paths(plant.vault) == ["GET /v1/sys/health?standbyok=true&perfstandbyok=true"]


def test_a_wrong_secret_id_is_not_shown_even_if_vault_does(plant: Plant) -> None:
    (plant.folder / "secret-id").write_text("another secret")
    error = failure(plant.step())
    assert "refuses the login by AppRole (HTTP 400): invalid role or secret ID ***" in error.message
    assert "another secret" not in error.message


def test_a_token_that_vault_does_not_know(plant: Plant, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("other")
    login = {"role": "harbor", "tokenFile": str(tmp_path / "token"), "mount": "plant/k8s"}
    error = failure(plant.step(appRole=None, kubernetes=login))
    assert "refuses the login by Kubernetes (HTTP 403): permission denied" in error.message
    assert "is the login right" in error.hint


def test_a_name_that_the_role_does_not_allow(plant: Plant) -> None:
    error = failure(plant.step("https://harbor.elsewhere.test"))
    assert "common name harbor.elsewhere.test not allowed by this role" in error.message
    assert "allowed_domains" in error.hint
    assert plant.vault.tokens == set()  # handed back all the same


def test_an_address_needs_a_role_without_common_name(plant: Plant) -> None:
    error = failure(plant.step("https://10.0.0.7"))
    assert "common_name field is required" in error.message
    assert "require_cn=false on pki/plant/roles/harbor" in error.hint


def test_a_policy_that_does_not_allow_it(plant: Plant) -> None:
    denied = json.dumps(refused("1 error occurred:\n\t* permission denied\n\n")).encode()
    plant.vault.answers["/v1/pki/plant/issue/harbor"] = (403, denied)
    error = failure(plant.step())
    assert "HTTP 403" in error.message
    assert "policy has to allow update on pki/plant/issue/harbor" in error.hint


def test_a_mount_that_is_not_there(plant: Plant) -> None:
    assert "vault.mount" in failure(plant.step(mount="pki")).hint


def test_a_standby_that_redirects_gets_no_secret_sent_along(plant: Plant) -> None:
    where = b"https://active.plant.test:8200/v1/auth/approle/login?x=1"
    plant.vault.answers["/v1/auth/approle/login"] = (307, where)
    error = failure(plant.step())
    assert "sends us to https://active.plant.test:8200/v1/auth/approle/login" in error.message
    assert "standby" in error.hint


@pytest.mark.parametrize("answer", [b"<html>proxy</html>", b"{}", b'{"auth": {}}', b"\xff"])
def test_what_is_no_vault_is_told(plant: Plant, answer: bytes) -> None:
    plant.vault.answers["/v1/auth/approle/login"] = (200, answer)
    error = failure(plant.step())
    assert isinstance(error, TransferFailed)
    assert "not an answer of Vault's" in error.message


def test_an_answer_without_end_is_not_read(plant: Plant) -> None:
    plant.vault.answers["/v1/auth/approle/login"] = (200, b" " * (2 << 20))
    assert "has no end" in failure(plant.step()).message


def test_what_vault_issued_is_looked_at(plant: Plant) -> None:
    good = plant.vault.pki.issue([x509.DNSName("other.plant.test")], "other.plant.test")
    data = json.dumps({"data": good}).encode()
    plant.vault.answers["/v1/pki/plant/issue/harbor"] = (200, data)
    with pytest.raises(DeploymentFailed, match=r"can't be used:\n.*other\.plant\.test"):
        plant.step().apply()
    assert plant.step().files() is None


def test_a_vault_that_is_not_trusted(plant: Plant) -> None:
    error = failure(plant.step(ca=""))
    assert "certificate verify failed" in error.message
    assert "vault.ca" in error.hint
    assert plant.vault.asked == []


def test_a_vault_that_is_not_there(plant: Plant) -> None:
    error = failure(plant.step(address="https://127.0.0.1:1"))
    assert error.message == (
        "Vault at https://127.0.0.1:1 can't be reached: [Errno 111] Connection refused"
    )


def test_no_proxy_of_the_operators_hears_of_it(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")
    plant.step().apply()


def test_a_secret_file_that_is_needed_and_gone(plant: Plant) -> None:
    made = plant.step()
    (plant.folder / "secret-id").unlink()
    with pytest.raises(InvalidInput, match="secret-id: there is no such file"):
        made.apply()
