"""What is taken from the operator's environment, and what programs see of it: what was chosen.

The operator's shell may name proxies, other clusters and passphrases. A cluster that is asked
through a proxy is another answer, and a process in the background shows its environment for years.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def variable(name: str) -> str | None:
    """What a variable that site.yaml names holds, None if there is none."""
    return os.environ.get(name)


def closed_environment(home: Path) -> dict[str, str]:
    """The whole environment of a program; ``home`` is a folder for it alone."""
    return {"HOME": str(home), "PATH": _PATH, "LC_ALL": "C.UTF-8"}
