"""The certificate of a Harbor's external URL, by one interface whoever vouches for it.

A way of getting one is a class: made for the site, provided, issued by Vault, issued by
cert-manager. What is made or issued for the installer lies in the state folder; renewing the leaf
leaves the authority alone, because clients have it. What is provided is only looked at, in full and
before anything is changed. A Secret that is there is somebody else's and is not read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from installer.deploy.cert_manager import CertManagerCertificate
from installer.deploy.trust import certificates_of, judge, pem, read_given, trust_store
from installer.deploy.vault_certificate import VaultCertificate
from installer.errors import PreflightFailed
from installer.site import authority
from installer.site.certificate import TlsFiles, Verdict, key_block, load_certificates
from installer.site.private import read_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from installer.deploy.cert_manager import IssuedSecret
    from installer.site.harbor import Harbor, Provided
    from installer.site.state import State

_HTTPS = 443


def registry_host(external_url: str) -> str:
    """What stands before a repository's name when people pull from Harbor: host or host:port."""
    parts = urlsplit(external_url)
    host = (parts.hostname or "").rstrip(".")
    host = f"[{host}]" if ":" in host else host
    return host if parts.port in (None, _HTTPS) else f"{host}:{parts.port}"


class _Way(Protocol):
    """How a certificate comes about; see HarborCertificate for what each says and raises."""

    @property
    def verb(self) -> str: ...

    def preflight(self) -> None: ...

    def warnings(self) -> tuple[str, ...]: ...

    def check(self) -> bool: ...

    def apply(self) -> str: ...

    def files(self) -> TlsFiles | None: ...

    def ca(self) -> bytes | None: ...

    def ca_file(self) -> str: ...


class HarborCertificate:
    """Make, check or wait for what vouches for ``externalURL``; ``key`` is the release's."""

    def __init__(
        self,
        harbor: Harbor,
        key: str,
        state: State,
        site_name: str,
        clock: Callable[[], datetime],
        *,
        issued: IssuedSecret | None = None,
        timeout: float = 0,
    ) -> None:
        """``issued`` is where cert-manager puts it; without, the cluster is not asked.

        ``timeout`` in seconds is how long cert-manager is waited for.
        """
        self._url = harbor.external_url
        self.name = f"certificate:{key}"
        self.host = registry_host(self._url)
        self.in_cluster = bool(harbor.certificate and harbor.certificate.cert_manager)
        """Whether it comes about only with the companion's objects, and not before."""
        self._way = _way(harbor, key, state, site_name, clock, issued, timeout)

    @property
    def sentence(self) -> str:
        """What applying it does."""
        return f"{self._way.verb} for {self._url}"

    def is_needed(self) -> bool:
        """Whether there is anything to make, to wait for or to check."""
        return bool(self._way.verb)

    def preflight(self) -> None:
        """Refuse what can't be used, before anything is changed.

        Raises PreflightFailed with all that is wrong with provided files or with the clock, and if
        Vault is needed and does not answer; InvalidInput for a file that can't be read and for
        names that no certificate can have.
        """
        self._way.preflight()

    def warnings(self) -> tuple[str, ...]:
        """What can be used, but will not do for long or for everybody: a sentence each."""
        return self._way.warnings()

    def check(self) -> bool:
        """Whether there is one that is good: for these names and not due, or provided."""
        return self._way.check()

    def apply(self) -> str:
        """Make, renew or wait for it; the note says what clients need. Raises as ``preflight``.

        Raises DeploymentFailed with the words of Vault or cert-manager, TransferFailed if Vault
        can't be reached.
        """
        self.preflight()
        if isinstance(self._way, _Given):
            return ""
        before = self.ca()
        note, after = self._way.apply(), self.ca()
        if note:
            return note
        if before == after:
            return f"the certificate for {self._url} is new; clients keep the authority they have"
        if not after:
            return ""
        fingerprint = x509.load_pem_x509_certificate(after).fingerprint(hashes.SHA256())
        return (
            f"clients have to trust {self.ca_file()} before they reach {self._url}: Docker as "
            f"/etc/docker/certs.d/{self.host}/ca.crt, browsers and others as an authority of their "
            "system (Debian: /usr/local/share/ca-certificates/ and update-ca-certificates; Red "
            "Hat: /etc/pki/ca-trust/source/anchors/ and update-ca-trust); its SHA-256 fingerprint "
            f"is {fingerprint.hex(':').upper()}"
        )

    def files(self) -> TlsFiles | None:
        """Chain, key and authority; None before they are there, and for somebody else's Secret.

        Raises InvalidInput for a file that can't be read.
        """
        return self._way.files()

    def ca(self) -> bytes | None:
        """What clients and nodes check with, PEM: empty if they know it, None before it is made."""
        return self._way.ca()

    def ca_file(self) -> str:
        """Path of what to check ``externalURL`` with; empty: what this program brings along."""
        return self._way.ca_file()


def _way(
    harbor: Harbor,
    key: str,
    state: State,
    site_name: str,
    clock: Callable[[], datetime],
    issued: IssuedSecret | None,
    timeout: float,
) -> _Way:
    certificate, place = harbor.certificate, f"tls/{key}"
    host = urlsplit(harbor.external_url).hostname or ""
    if certificate and (own := certificate.self_signed) is not None:
        subject = f"Harbor {key} of {site_name}"
        return _SelfSigned(subject, [host, *own.names], state, place, clock)
    if certificate and certificate.vault:
        return VaultCertificate(
            certificate.vault, harbor.external_url, [host, *certificate.vault.names], state,
            f"{place}/vault", clock, harbor.ca,
        )  # fmt: skip
    if certificate and certificate.cert_manager:
        return CertManagerCertificate(
            harbor.external_url, state, f"{place}/cert-manager", clock, issued, harbor.ca, timeout
        )
    return _Given(harbor, key, clock)


class _SelfSigned:
    """An authority of the site's own, and a leaf that it signs."""

    verb = "Make a certificate"

    def __init__(
        self,
        subject: str,
        hosts: Sequence[str],
        state: State,
        place: str,
        clock: Callable[[], datetime],
    ) -> None:
        self._subject = subject
        self._hosts = hosts
        self._state = state
        self._place = place
        self._folder = state.path(place)
        self._clock = clock

    def preflight(self) -> None:
        authority.general_names(self._hosts)
        authority.check_clock(self._folder, self._clock())

    def warnings(self) -> tuple[str, ...]:
        return ()

    def check(self) -> bool:
        return authority.leaf_is_good(self._folder, self._hosts, self._clock())

    def apply(self) -> str:
        folder = self._state.subfolder(self._place)
        authority.ensure_certificates(
            folder, self._subject, self._hosts, self._clock(), validity=authority.PEOPLE
        )
        return ""

    def files(self) -> TlsFiles | None:
        leaf, key = (read_file(self._folder / f"tls.{end}") or b"" for end in ("crt", "key"))
        made = authority.belong_together(self._folder)
        return TlsFiles(leaf, key, self.ca() or b"") if made else None

    def ca(self) -> bytes | None:
        return read_file(self._folder / "ca.crt")

    def ca_file(self) -> str:
        return str(self._folder / "ca.crt")


class _Given:
    """What somebody else sees to: files, which are looked at, or a Secret, or plain HTTP.

    Files come without the text that tools write between, which is in any encoding.
    """

    def __init__(self, harbor: Harbor, key: str, clock: Callable[[], datetime]) -> None:
        self._url = harbor.external_url
        self._key = key
        self._clock = clock
        self._provided = harbor.certificate.provided if harbor.certificate else None
        self._ca = (self._provided.ca if self._provided else "") or harbor.ca
        self.verb = "Check the provided certificate" if self._provided else ""

    def preflight(self) -> None:
        problems = self._verdict().problems
        if problems:
            raise PreflightFailed(
                f"release {self._key}: harbor.certificate.provided:\n  " + "\n  ".join(problems),
                hint="nothing was changed; put the files right and run the same command again",
            )

    def warnings(self) -> tuple[str, ...]:
        return self._verdict().warnings

    def check(self) -> bool:
        return not self._verdict().problems

    def apply(self) -> str:
        return ""

    def files(self) -> TlsFiles | None:
        if self._provided is None:
            return None
        given = self._read(self._provided)
        chain = pem(load_certificates(given.chain))
        return TlsFiles(chain, key_block(given.key), self.ca() or b"")

    def ca(self) -> bytes | None:
        return certificates_of(self._ca) if self._ca else b""

    def ca_file(self) -> str:
        return self._ca or trust_store()

    def _read(self, provided: Provided) -> TlsFiles:
        ca = read_given(self._ca) if self._ca else b""
        return TlsFiles(read_given(provided.certificate), read_given(provided.key), ca)

    def _verdict(self) -> Verdict:
        if self._provided is None:
            return Verdict((), ())
        return judge(self._read(self._provided), self._url, self._clock())
