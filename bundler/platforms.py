"""Platforms as a spec writes them: ``os/architecture[/variant]``, such as ``linux/arm/v7``.

A list of them says what an image has to be built for. ``all`` among them asks for nothing more of
the image: it says that an index comes along with everything that it lists, whatever that is for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

Platform = Literal[
    "linux/amd64",
    "linux/arm64",
    "linux/arm/v7",
    "linux/arm/v6",
    "linux/386",
    "linux/ppc64le",
    "linux/s390x",
    "linux/riscv64",
    "all",
]
"""What can be asked for. Windows is left to ``all``: no site of ours has nodes with it."""

ALL = "all"

# Variants that are the default of their architecture (containerd's platforms.Normalize).
_SAME = {"arm": "arm/v7", "arm64/v8": "arm64", "amd64/v1": "amd64"}


def named(platforms: Iterable[str]) -> tuple[str, ...]:
    """The platforms of a list, without ``all``."""
    return tuple(platform for platform in platforms if platform != ALL)


def normal_platform(platform: str) -> str:
    """A platform without its architecture's default variant."""
    system, _, architecture = platform.partition("/")
    return f"{system}/{_SAME.get(architecture, architecture)}"
