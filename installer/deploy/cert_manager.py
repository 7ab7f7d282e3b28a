"""cert-manager's part: the objects that ask for a certificate, and the Secret that it answers with.

The objects are the companion chart's. The Secret is cert-manager's own: it has a name that no chart
uses, is read when it is needed and kept nowhere here but in the file that HAProxy wants; only the
authority's certificate, which is public, lies in the state for those who check with it.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from installer.deploy.trust import IssuersAuthority, certificates_of, judge, read_given
from installer.errors import DeploymentFailed, InvalidInput, PreflightFailed
from installer.harbor.values import host_of, issued_name
from installer.site import authority
from installer.site.certificate import TlsFiles, key_block, load_certificates
from installer.site.private import read_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from datetime import datetime

    from installer.deploy.kubectl import Kubectl
    from installer.site.harbor import CaIssuer, CertManager, Harbor, VaultIssuer
    from installer.site.state import State

API = "cert-manager.io/v1"
_CRD = re.compile(r'^  name: "?certificates\.cert-manager\.io"?$', re.MULTILINE)
_PAUSE = 2.0
_WORDS = 600
_COMMON_NAME = 64


def check_api(key: str, served: Collection[str], earlier: Iterable[str]) -> None:
    """Raise PreflightFailed unless cert-manager is there, or comes before the release ``key``.

    ``served`` are the cluster's API versions, ``earlier`` the releases before, rendered.
    """
    if API in served or any(map(_CRD.search, earlier)):
        return
    raise PreflightFailed(
        f"release {key}: harbor.certificate.certManager: the cluster does not serve {API}, and no "
        "release before this one brings it",
        hint="put a release of chart cert-manager before it, with `crds: {enabled: true}` in its "
        "values; nothing was changed",
    )


def chart_values(harbor: Harbor, section: CertManager, release: str) -> dict[str, Any]:
    """What the companion chart makes of the section; ``release`` is Harbor's name.

    Raises InvalidInput for a file that can't be read and for what is no host.
    """
    host = host_of(harbor.external_url)
    hosts = list(dict.fromkeys((host, *section.names)))
    authority.general_names(hosts)
    values: dict[str, Any] = {
        "name": issued_name(release),
        "dnsNames": [one for one in hosts if not _is_address(one)],
        "ipAddresses": [one for one in hosts if _is_address(one)],
        "duration": section.duration,
        "renewBefore": section.renew_before,
    }
    # Vault wants one as a rule; an address as common name is refused by nearly every role.
    common = next((one for one in values["dnsNames"] if len(one) <= _COMMON_NAME), "")
    values["commonName"] = common
    own = {"kind": "Issuer", "group": API.partition("/")[0]}
    if ref := section.issuer:
        return values | {"issuerRef": {"name": ref.name, "kind": ref.kind, "group": ref.group}}
    if section.self_signed is not None:
        # A name for each site of people with several: browsers list them by it.
        issuer: dict[str, Any] = {"selfSigned": {"commonName": f"Harbor at {host}"[:_COMMON_NAME]}}
        name = f"{release}-own-ca"
    elif ca := section.ca:
        issuer = {"ca": _key_pair(ca)}
        name = f"{release}-given-ca"
    else:
        issuer = {"vault": _vault(section.vault)}
        name = f"{release}-vault"
    return values | {"issuerRef": {"name": name, **own}, "issuer": {"name": name, **issuer}}


def secrets_of(values: dict[str, Any]) -> Iterator[str]:
    """Texts in these values that nobody shall see."""
    issuer = values.get("issuer", {})
    for kind, key in (("ca", "key"), ("vault", "secretId")):
        if text := issuer.get(kind, {}).get(key):
            yield text


def _key_pair(ca: CaIssuer) -> dict[str, str]:
    """Certificate and key of an authority; raises InvalidInput for what can't sign."""
    chain, key = certificates_of(ca.certificate), key_block(read_given(ca.key))
    certificates = load_certificates(chain)
    if not certificates:
        raise InvalidInput(f"{ca.certificate}: there is no certificate in it", hint="give PEM")
    try:
        half = serialization.load_pem_private_key(key, password=None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Not the library's words: nobody knows what of the key they hold.
        raise InvalidInput(
            f"{ca.key}: no private key that cert-manager can use",
            hint="give PEM, not encrypted: `openssl pkey -in FILE -out NEW` decrypts it",
        ) from None
    if certificates[0].public_key() != half:
        raise InvalidInput(
            f"{ca.key}: it does not belong to the first certificate of {ca.certificate}",
            hint="the authority's own certificate goes first, then those above it",
        )
    try:
        limits = certificates[0].extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        limits = x509.BasicConstraints(ca=False, path_length=None)
    if not limits.ca:
        raise InvalidInput(
            f"{ca.certificate}: it is no authority (CA:TRUE is missing)",
            hint="a server's certificate belongs in `provided`",
        )
    return {"certificate": chain.decode(), "key": key.decode()}


def _vault(section: VaultIssuer | None) -> dict[str, Any]:
    if section is None:
        raise ValueError("no issuer")
    values: dict[str, Any] = {
        "server": section.address.rstrip("/"),
        "path": f"{section.mount}/sign/{section.role}",
        "namespace": section.namespace,
        "caBundle": certificates_of(section.ca).decode() if section.ca else "",
    }
    if login := section.app_role:
        return values | {
            "appRole": {"path": login.mount, "roleId": login.role_id},
            "secretId": read_secret(Path(login.secret_id_file)),
        }
    if account := section.kubernetes:
        namespace, _, name = account.controller.partition("/")
        values["kubernetes"] = {"role": account.role, "mountPath": f"/v1/auth/{account.mount}"}
        values["controller"] = {"namespace": namespace, "name": name}
    return values


class IssuedSecret:
    """What cert-manager made of the objects of a release, and what it says of it."""

    def __init__(self, kubectl: Callable[[], Kubectl], namespace: str, name: str) -> None:
        """``name`` is that of the Certificate and of its Secret."""
        self._kubectl = kubectl
        self._namespace = namespace
        self.name = name

    def read(self) -> TlsFiles | None:
        """Chain, key and authority; None if there is no Secret, or not all of it."""
        text = self._kubectl().run(
            "get", "secret", self.name, f"--namespace={self._namespace}", "--output=json",
            "--ignore-not-found",
        )  # fmt: skip
        if not text.strip():
            return None
        try:
            data = msgspec.json.decode(text)["data"]
            chain, key, ca = (
                base64.b64decode(data.get(name) or "") for name in ("tls.crt", "tls.key", "ca.crt")
            )
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError, ValueError):
            return None
        return TlsFiles(chain, key_block(key), ca) if chain.strip() and key.strip() else None

    def is_ready(self) -> bool:
        """Whether cert-manager calls the Certificate as it is now Ready."""
        found = self._object(f"/apis/{API}/namespaces/{self._namespace}/certificates/{self.name}")
        return found is not None and _ready(found) is None

    def troubles(self) -> list[str]:
        """What cert-manager says on why there is no certificate, a sentence each; never raises."""
        said: list[str] = []
        for group, kind in (
            (API, "certificates"), (API, "issuers"), (API, "certificaterequests"),
            ("acme.cert-manager.io/v1", "orders"), ("acme.cert-manager.io/v1", "challenges"),
        ):  # fmt: skip
            try:
                found = self._object(f"/apis/{group}/namespaces/{self._namespace}/{kind}") or {}
            except DeploymentFailed as error:
                return [*said, error.message]
            for one in found.get("items", []):
                words = _ready(one)
                if words and (kind != "certificaterequests" or self._is_ours(one)):
                    said.append(f"{kind.removesuffix('s')} {one['metadata']['name']}: {words}")
        return list(dict.fromkeys(said))

    def _is_ours(self, request: dict[str, Any]) -> bool:
        annotations = request["metadata"].get("annotations", {})
        return bool(annotations.get("cert-manager.io/certificate-name") == self.name)

    def _object(self, path: str) -> dict[str, Any] | None:
        try:
            return self._kubectl().raw(path)
        except DeploymentFailed as error:
            # An API that nobody serves is not found, as an object of one that is.
            if "(NotFound)" in error.message:
                return None
            raise


class CertManagerCertificate:
    """What cert-manager issued for ``externalURL``; it renews by itself, this only waits."""

    verb = "Wait for cert-manager's certificate"

    def __init__(
        self,
        external_url: str,
        state: State,
        place: str,
        clock: Callable[[], datetime],
        issued: IssuedSecret | None,
        given_ca: str,
        timeout: float,
    ) -> None:
        """``issued`` None: the cluster is not asked, and nothing is known but the authority.

        ``place`` is a folder of the state, ``given_ca`` a path, ``timeout`` in seconds.
        """
        self._url = external_url
        self._clock = clock
        self._issued = issued
        self._authority = IssuersAuthority(state, place, given_ca)
        self._timeout = timeout

    def preflight(self) -> None:
        """Refuse nothing: the companion's objects are looked at where they are made."""

    def warnings(self) -> tuple[str, ...]:
        """What can be used, but will not do for everybody."""
        files = self.files()
        return judge(files, self._url, self._clock()).warnings if files else ()

    def check(self) -> bool:
        """Whether cert-manager calls it Ready, it is good, and its authority is the known one."""
        files = self.files()
        if files is None or self._issued is None:
            return False
        if self.ca() != files.ca or judge(files, self._url, self._clock()).problems:
            return False
        return self._issued.is_ready()

    def apply(self) -> str:
        """Wait for it and keep its authority; raises DeploymentFailed with cert-manager's words."""
        files = self._wait()
        if problems := judge(files, self._url, self._clock()).problems:
            raise DeploymentFailed(
                f"what cert-manager issued for {self._url} can't be used:\n  "
                + "\n  ".join(problems),
                hint="if the issuer does not know its root, give that as harbor.ca",
            )
        self._authority.keep(files.ca)
        return ""

    def files(self) -> TlsFiles | None:
        """What is in the Secret now, None before it is there."""
        files = self._issued.read() if self._issued else None
        return TlsFiles(files.chain, files.key, self._authority.of(files.ca)) if files else None

    def ca(self) -> bytes | None:
        """What clients check with; empty if they know it, None before it is there."""
        return self._authority.pem()

    def ca_file(self) -> str:
        """Path of the same; empty: what this program brings along."""
        return self._authority.path()

    def _wait(self) -> TlsFiles:
        if self._issued is None:
            raise ValueError("no cluster")
        end = time.monotonic() + self._timeout
        while True:
            if self._issued.is_ready() and (files := self.files()):
                return files
            if time.monotonic() >= end:
                said = self._issued.troubles()
                raise DeploymentFailed(
                    f"cert-manager has issued no certificate for {self._url} in "
                    f"{int(self._timeout)} s" + "".join(f"\n  {words}" for words in said),
                    hint="run again when that is put right; `kubectl describe certificate "
                    f"{self._issued.name}` in Harbor's namespace says more",
                )
            time.sleep(_PAUSE)


def _ready(found: dict[str, Any]) -> str | None:
    """None if it is Ready as it is now, else what is said of it."""
    if state := found.get("status", {}).get("state"):  # ACME's orders and challenges have no Ready
        reason = " ".join(str(found["status"].get("reason", "")).split())
        return None if state == "valid" else f"{state}: {reason}"[:_WORDS]
    generation = found["metadata"].get("generation")
    conditions = {one.get("type"): one for one in found.get("status", {}).get("conditions", ())}
    ready = conditions.get("Ready")
    if ready is None:
        return "cert-manager has said nothing of it yet: does its controller run?"
    if ready.get("status") == "True":
        seen = ready.get("observedGeneration", generation)
        return None if seen == generation else "cert-manager has not seen its last change yet"
    words = [
        " ".join(f"{one.get('reason', '')}: {one.get('message', '')}".split())
        for kind in ("Ready", "Issuing", "InvalidRequest", "Denied")
        if (one := conditions.get(kind)) and one.get("message")
    ]
    return "; ".join(dict.fromkeys(words))[:_WORDS] or "not ready"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
