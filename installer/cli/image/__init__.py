"""``installer image``: what Harbor is for, with nothing but the installer.

Every verb reaches Harbor in one of two ways: as admin of the site (``--site``), or at the host that
the image's name has, with the login of a robot or a person. A password is never an argument.
"""

from __future__ import annotations

from installer.cli.console import LazyGroup

command = LazyGroup(
    "image",
    package="installer.cli.image",
    verbs={
        "keygen": "Make a key to sign images with.",
        "push": "Push images and charts into Harbor.",
        "sign": "Sign an image in Harbor, as cosign does.",
        "verify": "Check that an image is signed with a key.",
        "scan": "Let Harbor scan an image and show what it found.",
    },
    help="Push, sign, verify and scan images in Harbor.",
)
