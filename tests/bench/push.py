"""The installer's push into a registry, as the step of ``installer run`` does it.

python -m tests.bench.push BUNDLE KEY HOST:PORT
"""

from __future__ import annotations

import sys
from pathlib import Path

from installer.cli.open import TrustOptions, open_verified
from installer.deploy.push import PushBundle
from installer.site.model import Push


def main(bundle: str, key: str, registry: str) -> None:
    """Verify the signature, then push everything; every blob is hashed on its way."""
    with open_verified(Path(bundle), TrustOptions(Path(key), None)) as verified:
        print(PushBundle(Push(registry=registry, plain_http=True), verified).apply())


if __name__ == "__main__":
    main(*sys.argv[1:])
