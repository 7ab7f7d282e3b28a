"""The certificate that a server shows, looked at without trusting it, and then with trust."""

from __future__ import annotations

import socket
import ssl

from cryptography import x509
from requests.utils import DEFAULT_CA_BUNDLE_PATH

_PATIENCE = 10.0


def shown_leaf(host: str, port: int) -> x509.Certificate:
    """Ask for it without trusting it; raises OSError, and ValueError for what is no certificate."""
    anybody = ssl.create_default_context()
    anybody.check_hostname = False
    anybody.verify_mode = ssl.CERT_NONE
    return x509.load_der_x509_certificate(_handshake(host, port, anybody))


def distrust(host: str, port: int, ca_file: str) -> str:
    """Why it is not trusted with these authorities ("": the system's), "" if it is.

    Raises OSError.
    """
    try:
        trusting = ssl.create_default_context(cafile=ca_file or DEFAULT_CA_BUNDLE_PATH)
    except OSError as error:
        return f"{ca_file}: {error.strerror or 'no certificates'}"
    try:
        _handshake(host, port, trusting)
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    return ""


def _handshake(host: str, port: int, context: ssl.SSLContext) -> bytes:
    with (
        socket.create_connection((host, port), timeout=_PATIENCE) as channel,
        context.wrap_socket(channel, server_hostname=host) as tls,
    ):
        return tls.getpeercert(binary_form=True) or b""
