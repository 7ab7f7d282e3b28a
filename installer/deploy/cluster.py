"""What a cluster says of itself, as far as it decides how charts are rendered."""

from __future__ import annotations

import msgspec


class ClusterInfo(msgspec.Struct, frozen=True):
    """What charts are rendered for: the server's version and the API versions that it serves."""

    version: str
    api_versions: tuple[str, ...]
