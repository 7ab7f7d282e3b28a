"""What cert-manager says of a certificate, read by the real kubectl from a small API server."""

from __future__ import annotations

import base64
import json
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

import msgspec
import pytest
import yaml

from installer.deploy.cert_manager import IssuedSecret
from installer.deploy.certificates import HarborCertificate
from installer.deploy.kubectl import Kubectl
from installer.errors import DeploymentFailed
from installer.site.authority import ensure_certificates, utc_now
from installer.site.harbor import Harbor
from installer.site.model import Cluster
from installer.site.state import State
from tests.programs import ProgramMissing, kubectl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

SECRET = "/api/v1/namespaces/prod/secrets/hub-issued-tls"
OF_CERT_MANAGER = "/apis/cert-manager.io/v1/namespaces/prod"
CERTIFICATE = f"{OF_CERT_MANAGER}/certificates/hub-issued-tls"


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, objects: dict[str, Any], *arguments: Any) -> None:
        self._objects = objects
        super().__init__(*arguments)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        found = self._objects.get(path)
        status = 200 if found is not None else 404
        if isinstance(found, int):
            status = found
        refused = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status}
        reasons = {404: "NotFound", 403: "Forbidden"}
        answer = found if status == 200 else refused | {"reason": reasons[status], "message": "no"}
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the parent's name
        """Keep quiet."""


class Api(ThreadingHTTPServer):
    """Answers for the objects by their paths; a number is the status to refuse with."""

    daemon_threads = False

    def __init__(self) -> None:
        secrets = {
            "name": "secrets",
            "singularName": "secret",
            "namespaced": True,
            "kind": "Secret",
        }
        self.objects: dict[str, Any] = {
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
            "/api/v1": {
                "kind": "APIResourceList", "groupVersion": "v1",
                "resources": [secrets | {"verbs": ["get"]}],
            },
        }  # fmt: skip
        super().__init__(("127.0.0.1", 0), partial(_Handler, self.objects))
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as running:
        yield running


@pytest.fixture
def issued(api: Api, tmp_path: Path) -> IssuedSecret:
    try:
        binary = kubectl()
    except ProgramMissing as missing:
        pytest.skip(str(missing))
    file = tmp_path / "kubeconfig"
    document = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": api.url}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
    }  # fmt: skip
    file.write_text(yaml.safe_dump(document))
    there = Kubectl(binary, Cluster(str(file)), tmp_path / "cache")
    return IssuedSecret(lambda: there, "prod", "hub-issued-tls")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = State(tmp_path / "state")
    with state.held():
        yield state


def condition(status: str, reason: str, message: str, generation: int = 1) -> dict[str, Any]:
    return {
        "type": "Ready", "status": status, "reason": reason, "message": message,
        "observedGeneration": generation,
    }  # fmt: skip


def one(name: str, *conditions: dict[str, Any], generation: int = 1, **meta: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "generation": generation} | meta,
        "status": {"conditions": list(conditions)},
    }


def secret(folder: Path, host: str = "h.test") -> dict[str, Any]:
    ensure_certificates(folder, "plant", [host], utc_now())
    files = {name: (folder / name).read_bytes() for name in ("tls.crt", "tls.key", "ca.crt")}
    data = {name: base64.b64encode(content).decode() for name, content in files.items()}
    return {
        "kind": "Secret", "apiVersion": "v1", "metadata": {"name": "hub-issued-tls"}, "data": data,
    }  # fmt: skip


def step(issued: IssuedSecret, state: State) -> HarborCertificate:
    section = {"externalURL": "https://h.test", "certificate": {"certManager": {"selfSigned": {}}}}
    harbor = msgspec.convert(section, Harbor)
    return HarborCertificate(harbor, "prod/hub", state, "s", utc_now, issued=issued, timeout=1)


READY = one("hub-issued-tls", condition("True", "Ready", "up to date"))


def test_nothing_is_there_yet(api: Api, issued: IssuedSecret) -> None:
    assert issued.read() is None
    assert not issued.is_ready()
    assert issued.troubles() == []
    api.objects[SECRET] = {"kind": "Secret", "apiVersion": "v1", "metadata": {}, "data": {}}
    assert issued.read() is None


def test_a_certificate_counts_when_it_is_ready_as_it_is_now(
    api: Api, issued: IssuedSecret, state: State, tmp_path: Path
) -> None:
    made = step(issued, state)
    api.objects[SECRET] = secret(tmp_path)
    for found, ready in (
        (one("hub-issued-tls"), False),
        (one("hub-issued-tls", condition("False", "Issuing", "soon")), False),
        (one("hub-issued-tls", condition("True", "Ready", ""), generation=2), False),
        (READY, True),
    ):
        api.objects[CERTIFICATE] = found
        assert issued.is_ready() is ready
    assert not made.check()  # its authority is not known yet
    assert "clients have to trust" in made.apply()
    assert made.check()
    files = made.files()
    assert files is not None
    assert files.key == (tmp_path / "tls.key").read_bytes()
    assert made.ca() == (tmp_path / "ca.crt").read_bytes()
    kept = [path.name for path in state.path("tls").rglob("*") if path.is_file()]
    assert kept == ["ca.crt"]


def test_what_cert_manager_says_is_told(api: Api, issued: IssuedSecret, state: State) -> None:
    annotation: dict[str, Any] = {
        "annotations": {"cert-manager.io/certificate-name": "hub-issued-tls"}
    }
    refused = "Vault failed to sign:\n  permission denied"
    api.objects |= {
        CERTIFICATE: one("hub-issued-tls", condition("False", "DoesNotExist", "no Secret")),
        f"{OF_CERT_MANAGER}/certificates": {
            "items": [one("hub-issued-tls", condition("False", "DoesNotExist", "no Secret"))]
        },
        f"{OF_CERT_MANAGER}/issuers": {
            "items": [
                one("hub-vault", condition("True", "VaultVerified", "good")),
                one("theirs", condition("False", "VaultError", "sealed")),
            ]
        },
        f"{OF_CERT_MANAGER}/certificaterequests": {
            "items": [
                one("hub-issued-tls-1", condition("False", "Failed", refused), **annotation),
                one("other-1", condition("False", "Failed", "another's")),
            ]
        },
        "/apis/acme.cert-manager.io/v1/namespaces/prod/orders": {
            "items": [
                {
                    "metadata": {"name": "o"},
                    "status": {"state": "errored", "reason": "rate limited"},
                },
                {"metadata": {"name": "p"}, "status": {"state": "valid"}},
            ]
        },
    }
    with pytest.raises(DeploymentFailed) as caught:
        step(issued, state).apply()
    assert caught.value.message.splitlines() == [
        "cert-manager has issued no certificate for https://h.test in 1 s",
        "  certificate hub-issued-tls: DoesNotExist: no Secret",
        "  issuer theirs: VaultError: sealed",
        "  certificaterequest hub-issued-tls-1: Failed: Vault failed to sign: permission denied",
        "  order o: errored: rate limited",
    ]


def test_what_was_issued_is_looked_at(
    api: Api, issued: IssuedSecret, state: State, tmp_path: Path
) -> None:
    api.objects |= {SECRET: secret(tmp_path, "other.test"), CERTIFICATE: READY}
    made = step(issued, state)
    assert not made.check()
    with pytest.raises(DeploymentFailed, match=r"can't be used:\n  .*'other\.test'"):
        made.apply()


def test_a_cluster_that_refuses_is_no_certificate_that_is_missing(
    api: Api, issued: IssuedSecret
) -> None:
    api.objects |= {SECRET: 403, CERTIFICATE: 403, f"{OF_CERT_MANAGER}/certificates": 403}
    for call in (issued.read, issued.is_ready):
        with pytest.raises(DeploymentFailed, match="Forbidden"):
            call()
    (said,) = issued.troubles()
    assert "Forbidden" in said
