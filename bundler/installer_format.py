"""What is known of the installer's file by who makes one and by who only reads it.

It is an executable (``bundler/loader``), a table, and a zip archive, one behind the other.
"""

from __future__ import annotations

import msgspec

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""Machines that have a first program, by their names in OCI platforms."""
PLACE = b"AIRGAP-LOADER-1\0"
"""Stands in the first program; the eight bytes behind it say where the table begins."""
COMPONENTS = "components.json"
"""The archive's list of what was packed, for the bundle's SBOM."""


class Component(msgspec.Struct, frozen=True):
    """A part of the installer for the SBOM.

    ``kind`` is ``python`` for distributions of the package index, ``interpreter`` or ``library``.
    ``sha256`` is of the library's file, or of the lines ``sha256  path`` of a distribution's
    files, sorted. ``version`` and ``license`` are empty where they are not known.
    """

    kind: str
    name: str
    version: str
    license: str
    sha256: str
