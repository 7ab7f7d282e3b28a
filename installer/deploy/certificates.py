"""The certificate of a Harbor's external URL: made for the site, provided, or in a Secret already.

What is made lies in the state folder, an authority and a leaf for each Harbor; renewing the leaf
leaves the authority alone, because clients have it. What is provided is only looked at, in full and
before anything is changed. A Secret is somebody else's and is not read.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from installer.errors import InvalidInput, PreflightFailed
from installer.site import authority
from installer.site.certificate import TlsFiles, Verdict, examine, key_block, load_certificates
from installer.site.private import read_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from installer.site.harbor import Harbor, Provided
    from installer.site.state import State

_MAX_BYTES = 4 << 20
"""No certificate or key comes near: the wrong file was named."""
_STORES = (
    # Where containerd and other programs in Go look (crypto/x509, root_linux.go).
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_HTTPS = 443


def registry_host(external_url: str) -> str:
    """What stands before a repository's name when people pull from Harbor: host or host:port."""
    parts = urlsplit(external_url)
    host = (parts.hostname or "").rstrip(".")
    host = f"[{host}]" if ":" in host else host
    return host if parts.port in (None, _HTTPS) else f"{host}:{parts.port}"


class HarborCertificate:
    """Make or check what vouches for ``externalURL``; ``key`` is the release's."""

    def __init__(
        self,
        harbor: Harbor,
        key: str,
        state: State,
        site_name: str,
        clock: Callable[[], datetime],
    ) -> None:
        self._url = harbor.external_url
        self._own_ca = harbor.ca
        certificate = harbor.certificate
        self._self_signed = certificate.self_signed if certificate else None
        self._provided: Provided | None = certificate.provided if certificate else None
        self._key = key
        self._site_name = site_name
        self._state = state
        self._place = f"tls/{key}"
        self._folder = state.path(self._place)
        self._clock = clock
        self.name = f"certificate:{key}"
        self.host = registry_host(self._url)

    @property
    def sentence(self) -> str:
        """What applying it does."""
        verb = "Check the provided certificate" if self._provided else "Make a certificate"
        return f"{verb} for {self._url}"

    def is_needed(self) -> bool:
        """Whether there is anything to make or to check."""
        return bool(self._self_signed is not None or self._provided)

    def preflight(self) -> None:
        """Refuse what can't be used, before anything is changed.

        Raises PreflightFailed with all that is wrong with provided files or with the clock,
        InvalidInput for a file that can't be read and for names that no certificate can have.
        """
        if self._self_signed is not None:
            authority.general_names(self._hosts())
            authority.check_clock(self._folder, self._clock())
        problems = self._verdict().problems
        if problems:
            raise PreflightFailed(
                f"release {self._key}: harbor.certificate.provided:\n  " + "\n  ".join(problems),
                hint="nothing was changed; put the files right and run the same command again",
            )

    def warnings(self) -> tuple[str, ...]:
        """What can be used, but will not do for long or for everybody: a sentence each."""
        return self._verdict().warnings

    def check(self) -> bool:
        """Whether there is one that is good: made for these names and not due, or provided."""
        if self._self_signed is not None:
            return authority.leaf_is_good(self._folder, self._hosts(), self._clock())
        return not self._verdict().problems

    def apply(self) -> str:
        """Make or renew it; the note says what clients need. Raises as ``preflight`` does."""
        self.preflight()
        if self._self_signed is None:
            return ""
        before = self.ca()
        folder = self._state.subfolder(self._place)
        authority.ensure_certificates(
            folder,
            f"Harbor {self._key} of {self._site_name}",
            self._hosts(),
            self._clock(),
            validity=authority.PEOPLE,
        )
        path, after = folder / "ca.crt", self.ca() or b""
        if before == after:
            return f"the certificate for {self._url} is new; clients keep the authority they have"
        fingerprint = x509.load_pem_x509_certificate(after).fingerprint(hashes.SHA256())
        return (
            f"clients have to trust {path} before they reach {self._url}: Docker as "
            f"/etc/docker/certs.d/{self.host}/ca.crt, browsers and others as an authority of their "
            "system (Debian: /usr/local/share/ca-certificates/ and update-ca-certificates; Red "
            "Hat: /etc/pki/ca-trust/source/anchors/ and update-ca-trust); its SHA-256 fingerprint "
            f"is {fingerprint.hex(':').upper()}"
        )

    def files(self) -> TlsFiles | None:
        """Chain, key and authority; None before they are made, and for a Secret.

        Provided ones come without the text that tools write between, which is in any encoding.
        Raises InvalidInput for a file that can't be read.
        """
        if self._provided is not None:
            chain, key, ca = self._read()
            return TlsFiles(_pem(chain), key_block(key), _pem(ca))
        leaf, key = (read_file(self._folder / f"tls.{end}") or b"" for end in ("crt", "key"))
        made = self._self_signed is not None and authority.belong_together(self._folder)
        return TlsFiles(leaf, key, self.ca() or b"") if made else None

    def ca(self) -> bytes | None:
        """What clients and nodes check with, PEM: empty if they know it, None before it is made."""
        if self._self_signed is not None:
            return read_file(self._folder / "ca.crt")
        return _pem(_read(self._given_ca())) if self._given_ca() else b""

    def ca_file(self) -> str:
        """Path of what to check ``externalURL`` with; empty: what this program brings along."""
        if self._self_signed is not None:
            return str(self._folder / "ca.crt")
        return self._given_ca() or trust_store()

    def _given_ca(self) -> str:
        return (self._provided.ca if self._provided else "") or self._own_ca

    def _hosts(self) -> list[str]:
        host = urlsplit(self._url).hostname or ""
        return [host, *(self._self_signed.names if self._self_signed else ())]

    def _read(self) -> tuple[bytes, bytes, bytes]:
        if self._provided is None:
            return b"", b"", b""
        ca = self._given_ca()
        return (
            _read(self._provided.certificate),
            _read(self._provided.key),
            _read(ca) if ca else b"",
        )

    def _verdict(self) -> Verdict:
        if self._provided is None:
            return Verdict((), ())
        chain, key, ca = self._read()
        public = b"" if ca else _read(trust_store() or DEFAULT_CA_BUNDLE_PATH)
        return examine(chain, key, ca, self._url, self._clock(), public)


def trust_store() -> str:
    """Path of the authorities that this machine trusts, empty if it has no such file."""
    named = ssl.get_default_verify_paths().cafile
    return next((path for path in (named, *_STORES) if path and Path(path).is_file()), "")


def _read(path: str) -> bytes:
    # Unlike the installer's own files these may be links: certbot's are.
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"{path}: can't be read: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise InvalidInput(f"{path}: more than {_MAX_BYTES} bytes, so no certificate or key")
    return data


def _pem(data: bytes) -> bytes:
    made = load_certificates(data)
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in made)
