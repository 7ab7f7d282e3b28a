"""What clients of an external URL check with: a file that a person gave, what was kept, or nothing.

Nothing means that everybody knows the authority: then the trust store of this machine counts.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import serialization
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from installer.errors import InvalidInput
from installer.site.certificate import examine, load_certificates
from installer.site.private import read_file, write_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from cryptography import x509

    from installer.site.certificate import TlsFiles, Verdict
    from installer.site.state import State

_MAX_BYTES = 4 << 20
"""No certificate or key comes near: the wrong file was named."""
_READABLE = 0o644
_STORES = (
    # Where containerd and other programs in Go look (crypto/x509, root_linux.go).
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


def trust_store() -> str:
    """Path of the authorities that this machine trusts, empty if it has no such file."""
    named = ssl.get_default_verify_paths().cafile
    return next((path for path in (named, *_STORES) if path and Path(path).is_file()), "")


def read_given(path: str) -> bytes:
    """Bytes of a file with certificates or a key that a person named; raises InvalidInput."""
    # Unlike the installer's own files these may be links: certbot's are.
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"{path}: can't be read: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise InvalidInput(f"{path}: more than {_MAX_BYTES} bytes, so no certificate or key")
    return data


def pem(certificates: Iterable[x509.Certificate]) -> bytes:
    """Certificates as PEM, one after the other."""
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)


def certificates_of(path: str) -> bytes:
    """Certificates of a file that a person named, without other text; raises InvalidInput."""
    return pem(load_certificates(read_given(path)))


def judge(files: TlsFiles, external_url: str, now: datetime) -> Verdict:
    """Whether a certificate will do; without an authority, this machine's trust store counts."""
    public = b"" if files.ca else read_given(trust_store() or DEFAULT_CA_BUNDLE_PATH)
    return examine(files.chain, files.key, files.ca, external_url, now, public)


class IssuersAuthority:
    """The authority of what somebody else issues: what a person gave, else what came with it.

    The latter is kept in the state; an empty file says that everybody knows the authority.
    """

    def __init__(self, state: State, place: str, given: str) -> None:
        """``place`` is a folder of the state, ``given`` a path or empty."""
        self._state = state
        self._place = place
        self._given = given
        self._path = state.path(place) / "ca.crt"

    def pem(self) -> bytes | None:
        """What clients check with: empty if they know it, None before it is there."""
        return certificates_of(self._given) if self._given else read_file(self._path)

    def path(self) -> str:
        """Path of the same; empty: what this program brings along."""
        if self._given:
            return self._given
        return trust_store() if read_file(self._path) == b"" else str(self._path)

    def of(self, issued: bytes) -> bytes:
        """Authority of a certificate that came with ``issued``."""
        return certificates_of(self._given) if self._given else issued

    def keep(self, issued: bytes) -> None:
        """Keep what came with a certificate, for those who check with it."""
        write_file(self._state.subfolder(self._place) / "ca.crt", issued, mode=_READABLE)
