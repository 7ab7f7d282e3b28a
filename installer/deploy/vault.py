"""Vault's HTTP API as far as a certificate needs it.

Log in (AppRole, or Kubernetes with a service account's token), let a role of a PKI secrets engine
issue certificate and key, hand the token back. Nothing is kept in Vault and nothing revoked: the
certificate before stays good until it ends, for clients that still see it.

Requests and answers are as Vault documents them (its API: auth/approle, auth/kubernetes, pki,
sys/health).
"""

from __future__ import annotations

import re
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec
import requests
from cryptography import x509

from installer.deploy.trust import pem, trust_store
from installer.errors import AirgapError, DeploymentFailed, TransferFailed, cause_of
from installer.site import authority
from installer.site.certificate import TlsFiles, key_block, load_certificates
from installer.site.private import read_secret
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeVar

    from installer.site.harbor import Vault

    T = TypeVar("T")

_TIMEOUT = (10, 60)
_MAX_BYTES = 1 << 20
_WORDS = 600
_COMMON_NAME = 64
"""Longest common name (RFC 5280, ub-common-name); names of any length go into the SANs."""
_SEALED = re.compile(rb'"sealed": ?true|is sealed')


class _Login(msgspec.Struct):
    client_token: str


class _LoggedIn(msgspec.Struct):
    auth: _Login


class _Certificate(msgspec.Struct):
    certificate: str
    private_key: str
    issuing_ca: str = ""
    ca_chain: tuple[str, ...] | None = None


class _Answer(msgspec.Struct):
    data: _Certificate


class _Errors(msgspec.Struct):
    errors: tuple[str, ...] = ()


class VaultClient:
    """Vault's API as far as a certificate needs it; as a context manager it logs in and out.

    Raises DeploymentFailed for what Vault refuses, TransferFailed when it can't be reached; neither
    ever holds a secret.
    """

    def __init__(self, section: Vault) -> None:
        self._section = section
        self._address = section.address.rstrip("/")
        self._secrets: list[str] = []
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy and no ~/.netrc of the operator's
        self._session.verify = section.ca or trust_store() or True
        self._session.headers["X-Vault-Request"] = "true"
        self._session.headers["Connection"] = "close"  # three requests, then never again
        if section.namespace:
            self._session.headers["X-Vault-Namespace"] = section.namespace

    def __enter__(self) -> Self:
        try:
            self._login()
        except BaseException:
            self._session.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            # A token that can't be handed back (a batch token) ends by itself.
            self._call("POST", "auth/token/revoke-self", "hand the token back", {})
        except AirgapError:
            pass
        finally:
            self._session.close()

    def check_health(self) -> None:
        """Raise what keeps it from answering anybody; needs no login."""
        try:
            self._call("GET", "sys/health?standbyok=true&perfstandbyok=true", "its health")
        finally:
            self._session.close()

    def _login(self) -> None:
        if by_role := self._section.app_role:
            secret = read_secret(Path(by_role.secret_id_file))
            body = {"role_id": by_role.role_id, "secret_id": secret}
            mount, method = by_role.mount, "AppRole"
        elif by_token := self._section.kubernetes:
            # Kubernetes lays tokens out as links.
            secret = read_secret(Path(by_token.token_file).resolve())
            body = {"role": by_token.role, "jwt": secret}
            mount, method = by_token.mount, "Kubernetes"
        else:
            raise ValueError("no login")
        self._secrets += body.values()
        data = self._call("POST", f"auth/{mount}/login", f"the login by {method}", body)
        token = self._decoded(data, _LoggedIn).auth.client_token
        self._secrets.append(token)
        self._session.headers["X-Vault-Token"] = token

    def issue(self, hosts: Sequence[str]) -> TlsFiles:
        """Let the role issue a certificate for all of them: names, wildcards and addresses.

        Its authority are the roots that came with it; none, if Vault has only an intermediate.
        """
        names = authority.general_names(hosts)
        dns = [name.value for name in names if isinstance(name, x509.DNSName)]
        addresses = [str(name.value) for name in names if isinstance(name, x509.IPAddress)]
        # Only with a name: an address as common name is refused by nearly every role.
        common = next((name for name in dns if len(name) <= _COMMON_NAME), "")
        body = {
            "common_name": common,
            "alt_names": ",".join(dns),
            "ip_sans": ",".join(addresses),
            "ttl": self._section.ttl,
            "format": "pem",
        }
        asked = {key: text for key, text in body.items() if text}
        path = f"{self._section.mount}/issue/{self._section.role}"
        what = f"a certificate for {', '.join(hosts)} by role {self._section.role}"
        issued = self._decoded(self._call("POST", path, what, asked), _Answer).data
        text = "\n".join((*(issued.ca_chain or ()), issued.issuing_ca))
        above = list(dict.fromkeys(load_certificates(text.encode())))
        roots = [one for one in above if one.subject == one.issuer]
        leaf = load_certificates(issued.certificate.encode())
        chain = pem([*leaf, *(one for one in above if one not in roots)])
        return TlsFiles(chain, key_block(issued.private_key.encode()), pem(roots))

    def _call(self, method: str, path: str, what: str, body: dict[str, str] | None = None) -> bytes:
        try:
            with self._session.request(
                method,
                f"{self._address}/v1/{path}",
                json=body,
                timeout=_TIMEOUT,
                # requests would send the token along to another host.
                allow_redirects=False,
                stream=True,
            ) as answer:
                data = answer.raw.read(_MAX_BYTES + 1, decode_content=True)
                status = answer.status_code
                leads = answer.headers.get("Location", "") if answer.is_redirect else ""
        except requests.exceptions.SSLError as error:
            raise TransferFailed(
                f"Vault at {self._address}: {cause_of(error)}",
                hint="give the authority of its certificate as vault.ca, and the address as it is "
                "named there",
            ) from None
        except (requests.RequestException, OSError) as error:
            raise TransferFailed(
                f"Vault at {self._address} can't be reached: {cause_of(error)}",
                hint="is vault.address right, and does a firewall let this machine through?",
            ) from None
        if len(data) > _MAX_BYTES:
            raise TransferFailed(f"Vault at {self._address}: the answer has no end")
        if leads:
            raise DeploymentFailed(
                f"Vault at {self._address} sends us to {leads.partition('?')[0][:200]}",
                hint="it is a standby: give the address of the active one, or of what is before "
                "them",
            )
        if status not in (HTTPStatus.OK, HTTPStatus.NO_CONTENT):
            raise self._refusal(status, data, what)
        return bytes(data)

    def _refusal(self, status: int, data: bytes, what: str) -> DeploymentFailed:
        said = self._said(data)
        if status == HTTPStatus.NOT_IMPLEMENTED:
            return DeploymentFailed(
                f"Vault at {self._address} is not initialized", hint="initialize and unseal it"
            )
        if status == HTTPStatus.SERVICE_UNAVAILABLE and _SEALED.search(data):
            return DeploymentFailed(
                f"Vault at {self._address} is sealed", hint="unseal it: `vault operator unseal`"
            )
        words = f"Vault at {self._address} refuses {what} (HTTP {status})" + (
            f": {said}" if said else ""
        )
        section = self._section
        hint = "Vault's audit log says more"
        if status == HTTPStatus.FORBIDDEN and "login" in what:
            hint = "is the login right, and not used up or expired? check its role and secret"
        elif status == HTTPStatus.FORBIDDEN:
            hint = f"the login's policy has to allow update on {section.mount}/issue/{section.role}"
        elif status == HTTPStatus.NOT_FOUND:
            hint = "is vault.mount right, and vault.namespace?"
        elif "login" in what:
            hint = "check its role, secret and mount: `vault auth list` shows the mounts"
        elif "common_name" in said:
            hint = f"for an address set require_cn=false on {section.mount}/roles/{section.role}"
        elif status == HTTPStatus.BAD_REQUEST:
            hint = (
                f"check allowed_domains, allow_ip_sans and max_ttl of "
                f"{section.mount}/roles/{section.role}, and externalURL"
            )
        return DeploymentFailed(words, hint=hint)

    def _said(self, data: bytes) -> str:
        try:
            errors = decode_json(data, _Errors).errors
        except (msgspec.DecodeError, UnicodeDecodeError):
            return ""
        words = " ".join(" ".join(errors).split())
        for secret in filter(None, self._secrets):
            words = words.replace(secret, "***")
        return words[:_WORDS]

    def _decoded(self, data: bytes, type_: type[T]) -> T:
        try:
            return decode_json(data, type_)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            # msgspec names the place, never what is there.
            raise TransferFailed(
                f"Vault at {self._address}: not an answer of Vault's: {error}",
                hint="is vault.address the API, and vault.mount a PKI engine?",
            ) from None
