"""The embedded seed registry: ``/v2/`` read-only, straight from verified bundles.

``registry`` decides what to answer and knows no sockets, ``server`` moves bytes and knows no
names, ``check`` sees to it that no byte of a blob leaves before its digest held.
"""

from __future__ import annotations

from installer.serve.check import ContentCheck
from installer.serve.server import BundleServer, parse_listen

__all__ = ["BundleServer", "ContentCheck", "parse_listen"]
