"""An image with a known hole, to see whether the scanner finds it; pure.

A scan that finds nothing proves nothing: an empty database calls every image clean. So this image
says of itself that it is Alpine 3.10 with the musl of its first days, which CVE-2019-14697 is
about; every database since has that entry. Nothing in it can run: two texts are all that Trivy
reads of an Alpine image, ``etc/alpine-release`` and ``lib/apk/db/installed``.
"""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING

from installer.bundle.digest import Digest
from installer.bundle.layout import TRAILER, header, padding
from installer.oci.artefact import Blob, author
from installer.oci.graph import OCI_CONFIG, OCI_LAYER

if TYPE_CHECKING:
    from installer.oci.artefact import Artefact

CVE = "CVE-2019-14697"
"""What a scan of the image must find; its fix is musl 1.1.22-r3 in Alpine 3.10."""
PACKAGE = "musl"
PACKAGE_VERSION = "1.1.22-r2"
ALPINE = "3.10.2"

_FILES = {
    "etc/alpine-release": f"{ALPINE}\n",
    "etc/os-release": (
        f'NAME="Alpine Linux"\nID=alpine\nVERSION_ID={ALPINE}\n'
        f'PRETTY_NAME="Alpine Linux v{ALPINE.rpartition(".")[0]}"\n'
    ),
    "lib/apk/db/installed": (
        f"P:{PACKAGE}\nV:{PACKAGE_VERSION}\nA:x86_64\nS:368204\nI:614400\n"
        f"T:the musl c library (libc) implementation\nL:MIT\no:{PACKAGE}\n\n"
    ),
}


def planted_image(label: str = "") -> Artefact:
    """Make the image, the same bytes for the same ``label``.

    Another label is another digest, which a Harbor that has scanned the first has not scanned yet.
    """
    tar = _tar()
    # Stored, not compressed: the bytes are the same whichever zlib is here.
    deflate = zlib.compressobj(0, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    layer = Blob.of(OCI_LAYER, deflate.compress(tar) + deflate.flush())
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {"Labels": {"io.harbor-airgap.planted": label or CVE}},
        "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(tar))]},
        "history": [{"created": "1970-01-01T00:00:00Z", "comment": f"planted {CVE}"}],
    }
    configured = Blob.of(OCI_CONFIG, json.dumps(config, separators=(",", ":")).encode())
    return author(configured, [layer.descriptor], [layer])


def _tar() -> bytes:
    entries = ((name, text.encode()) for name, text in _FILES.items())
    pieces = (header(name, len(data)) + data + bytes(padding(len(data))) for name, data in entries)
    return b"".join(pieces) + TRAILER
