"""A small signer that plays cert-manager's part where its controllers can't be had.

It does what they do as far as an installation sees it: it looks at Issuers and Certificates, writes
the Secret that a Certificate names, signed as its issuer says (selfSigned or ca), and tells of it
in the conditions of both. Objects it only reads; that they are right is the API server's word, by
the schemas of cert-manager's own CRDs.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.site.cluster import CommandFailed

if TYPE_CHECKING:
    from tests.site.cluster import Cluster

_PAUSE = 0.5
_PEM = serialization.Encoding.PEM


class Signer:
    """A thread that signs for one namespace, as a context manager."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.failures: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def renew(self, name: str) -> None:
        """Issue a Certificate anew, as when its time has come."""
        self._sign(self._named("certificate", name))

    def _run(self) -> None:
        while not self._stop.wait(_PAUSE):
            for kind, act in (("issuers", self._vouch), ("certificates", self._sign)):
                for found in self._all(kind):
                    if not _is_ready(found):
                        try:
                            act(found)
                        except CommandFailed as failure:  # its issuer has no Secret yet
                            self.failures.append(str(failure))

    def _vouch(self, issuer: dict[str, Any]) -> None:
        self._tell(issuer, "signs")

    def _all(self, kind: str) -> list[dict[str, Any]]:
        path = f"/apis/cert-manager.io/v1/namespaces/{self._namespace}/{kind}"
        try:
            text = self._cluster.kubectl("get", "--raw", path)
        except CommandFailed as failure:  # as long as there are no CRDs
            self.failures.append(str(failure))
            return []
        items: list[dict[str, Any]] = json.loads(text)["items"]
        kinds = {"issuers": "Issuer", "certificates": "Certificate"}
        return [{"kind": kinds[kind]} | item for item in items]

    def _named(self, kind: str, name: str) -> dict[str, Any]:
        text = self._cluster.kubectl(
            "get", kind, name, f"--namespace={self._namespace}", "--output=json"
        )
        found: dict[str, Any] = json.loads(text)
        return found

    def _sign(self, wanted: dict[str, Any]) -> None:
        spec = wanted["spec"]
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = self._named("issuer", spec["issuerRef"]["name"])["spec"]
        if "ca" in issuer:
            secret = self._named("secret", issuer["ca"]["secretName"])["data"]
            above = base64.b64decode(secret["tls.crt"])
            authority = x509.load_pem_x509_certificate(above)
            loaded = serialization.load_pem_private_key(base64.b64decode(secret["tls.key"]), None)
            assert isinstance(loaded, ec.EllipticCurvePrivateKey)
            made = _issue(spec, key, authority.subject, loaded)
        else:
            made, above = _issue(spec, key, _name(spec), key), b""
        chain = made.public_bytes(_PEM)
        private = key.private_bytes(
            _PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        content = {"tls.crt": chain, "tls.key": private, "ca.crt": above or chain}
        document = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": spec["secretName"], "namespace": self._namespace},
            "type": "kubernetes.io/tls",
            "data": {name: base64.b64encode(data).decode() for name, data in content.items()},
        }
        self._cluster.kubectl("apply", "--filename=-", stdin=json.dumps(document))
        self._tell(wanted, "Certificate is up to date and has not expired")

    def _tell(self, found: dict[str, Any], message: str) -> None:
        condition = {
            "type": "Ready",
            "status": "True",
            "reason": "Ready",
            "message": message,
            "observedGeneration": found["metadata"]["generation"],
            "lastTransitionTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        self._cluster.kubectl(
            "patch",
            f"{found['kind'].lower()}s.cert-manager.io",
            found["metadata"]["name"],
            f"--namespace={self._namespace}",
            "--subresource=status",
            "--type=merge",
            f"--patch={json.dumps({'status': {'conditions': [condition]}})}",
        )


def _is_ready(found: dict[str, Any]) -> bool:
    return any(
        one["type"] == "Ready"
        and one["status"] == "True"
        and one.get("observedGeneration") == found["metadata"]["generation"]
        for one in found.get("status", {}).get("conditions", ())
    )


def _name(spec: dict[str, Any]) -> x509.Name:
    text = spec.get("commonName")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def _issue(
    spec: dict[str, Any],
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    signer: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    now, ca = datetime.now(UTC), bool(spec.get("isCA"))
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in spec.get("dnsNames", ())]
    names += [x509.IPAddress(ipaddress.ip_address(one)) for one in spec.get("ipAddresses", ())]
    usage = x509.KeyUsage(
        digital_signature=not ca,
        key_encipherment=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    lifetime = timedelta(hours=int(spec["duration"].partition("h")[0]))
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(spec))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if not ca:
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        builder = builder.add_extension(purpose, critical=False)
    return builder.sign(signer, hashes.SHA256())
