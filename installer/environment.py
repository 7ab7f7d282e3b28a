"""What programs that the installer starts see of this machine: nothing that it did not choose.

The operator's shell may name proxies, other clusters and passphrases. A cluster that is asked
through a proxy is another answer, and a process in the background shows its environment for years.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def closed_environment(home: Path) -> dict[str, str]:
    """The whole environment of a program; ``home`` is a folder for it alone."""
    return {"HOME": str(home), "PATH": _PATH, "LC_ALL": "C.UTF-8"}
