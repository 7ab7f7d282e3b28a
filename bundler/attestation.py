"""in-toto statements about a bundle, signed as DSSE, in the form that cosign reads.

A statement's subject is ``index.json``, the index of the OCI image layout: it names the manifest of
every content by digest, and is known before bundle.json is written. bundle.json itself can't be the
subject of one of its own members (docs/adr/0012-attestations.md).

The member is a Sigstore bundle v0.3 with a DSSE envelope (github.com/secure-systems-lab/dsse,
protocol.md) and has the same size whoever signs, so that the file can be laid out before a key is
used: first an envelope without a signature stands there, spaces behind it, then the signed one.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from installer.bundle.signature import MAX_DER, SIGSTORE_TYPE

if TYPE_CHECKING:
    from installer.bundle.digest import Digest
    from installer.keys import SigningKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
SUBJECT = "index.json"
PROVENANCE = "provenance.sigstore.json"
SBOM = "sbom.sigstore.json"
_KEY_ID_BYTES = 32


def statement(subject: Digest, predicate_type: str, predicate: dict[str, Any]) -> bytes:
    """Write an in-toto statement v1 about ``index.json`` with this digest."""
    document = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": SUBJECT, "digest": {"sha256": subject.hex}}],
        "predicateType": predicate_type,
        "predicate": predicate,
    }
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def unsigned(payload: bytes) -> bytes:
    """The member without a signature: as long as the signed one will be."""
    return _envelope(payload, bytes(_KEY_ID_BYTES), bytes(MAX_DER)) + b"\n"


def signed(payload: bytes, key: SigningKey) -> bytes:
    """The member signed by ``key``, the same bytes each time."""
    signature = key.sign(_encoded(payload))
    text = _envelope(payload, bytes.fromhex(key.public.key_id), signature.der)
    return text.ljust(len(unsigned(payload)) - 1) + b"\n"


def _encoded(payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _envelope(payload: bytes, key_id: bytes, signature: bytes) -> bytes:
    document = {
        "mediaType": SIGSTORE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": _base64(key_id)}},
        "dsseEnvelope": {
            "payload": _base64(payload),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": _base64(signature)}],
        },
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
