"""The machine that we run on, in OCI's words (image-spec 1.1, image-index.md)."""

from __future__ import annotations

import platform

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def own_platform() -> str:
    """Operating system and architecture of this machine, as OCI writes them."""
    machine = platform.machine()
    return f"{platform.system().lower()}/{_MACHINES.get(machine, machine)}"
