"""Signatures of images as cosign writes them, made with a key and nothing else; pure.

Both forms that ``installer.oci.cosign`` checks are made: the older one counts as a signature with
every Harbor from 2.12 on, the newer one is what cosign 3 looks for first. No transparency log and
no certificate takes part, so that ``cosign verify`` wants ``--insecure-ignore-tlog``.
"""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from installer.oci.artefact import Blob, author
from installer.oci.cosign import (
    IN_TOTO,
    SIGN_PREDICATE,
    SIGNATURE_ANNOTATION,
    SIGSTORE_BUNDLE,
    SIMPLE_SIGNING,
    pre_authentication_encoding,
)
from installer.oci.graph import OCI_CONFIG, OCI_EMPTY

if TYPE_CHECKING:
    from installer.bundle.digest import Digest
    from installer.keys import SigningKey
    from installer.oci.artefact import Artefact
    from installer.oci.graph import Descriptor, ImageManifest

_EPOCH = "0001-01-01T00:00:00Z"


def simple_signing(
    key: SigningKey, repository: str, digest: Digest, before: ImageManifest | None = None
) -> Artefact:
    """Sign the image ``digest`` in the older form: what stands under the tag ``sha256-HEX.sig``.

    ``repository`` (host and path) is what the signature says it was made for. The signatures of
    others, which ``before`` has, stay (cosign, specs/SIGNATURE_SPEC.md).
    """
    payload = _json(
        {
            "critical": {
                "identity": {"docker-reference": repository},
                "image": {"docker-manifest-digest": str(digest)},
                "type": "cosign container image signature",
            },
            "optional": None,
        }
    )
    signature = base64.b64encode(key.sign(payload).der).decode()
    signed = Blob.of(SIMPLE_SIGNING, payload, {SIGNATURE_ANNOTATION: signature})
    layers = [*(before.layers if before else ()), signed.descriptor]
    config = Blob.of(
        OCI_CONFIG,
        _json(
            {
                "architecture": "",
                "created": _EPOCH,
                "history": [{"created": _EPOCH}] * len(layers),
                "os": "",
                "rootfs": {"type": "layers", "diff_ids": [str(one.digest) for one in layers]},
                "config": {},
            }
        ),
    )
    return author(config, layers, [signed])


def sigstore_bundle(key: SigningKey, image: Descriptor) -> Artefact:
    """Sign an image in the newer form: a referrer of it with a Sigstore bundle v0.3.

    The bundle's DSSE envelope holds an in-toto statement about the image's digest
    (protobuf-specs, sigstore_bundle.proto).
    """
    statement = _json(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"digest": {"sha256": image.digest.hex}}],
            "predicateType": SIGN_PREDICATE,
            "predicate": {},
        }
    )
    signature = key.sign(pre_authentication_encoding(IN_TOTO, statement))
    hint = base64.b64encode(bytes.fromhex(signature.key_id)).decode()
    bundle = Blob.of(
        SIGSTORE_BUNDLE,
        _json(
            {
                "mediaType": SIGSTORE_BUNDLE,
                "verificationMaterial": {"publicKey": {"hint": hint}},
                "dsseEnvelope": {
                    "payload": base64.b64encode(statement).decode(),
                    "payloadType": IN_TOTO,
                    "signatures": [{"sig": base64.b64encode(signature.der).decode()}],
                },
            }
        ),
    )
    return author(
        Blob.of(OCI_EMPTY, b"{}"),
        [bundle.descriptor],
        [bundle],
        artifact_type=SIGSTORE_BUNDLE,
        subject=replace(image, annotations={}),
        annotations={
            "dev.sigstore.bundle.content": "dsse-envelope",
            "dev.sigstore.bundle.predicateType": SIGN_PREDICATE,
        },
    )


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
