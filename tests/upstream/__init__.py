"""A small upstream of our own, in pure Python: no root, no download, made in a second or two.

Images, charts and databases are made on the fly and served by a registry and a chart repository on
loopback, so that unit tests, the demo and the benchmarks need nothing from the internet. The code
here shares nothing with the product on purpose: a peer that has the same bugs finds none.
"""

from __future__ import annotations

from tests.upstream.demo import Upstream

__all__ = ["Upstream"]
