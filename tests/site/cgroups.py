"""One cgroup for all pods of a cluster: whatever runs in them is found and ended by it.

Works with version 1 (one hierarchy per controller) and version 2 (one for all).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.site import processes

_ROOT = Path("/sys/fs/cgroup")


def create(name: str) -> None:
    """Make the cgroup in every hierarchy; the kubelet wants it to exist."""
    for hierarchy in _hierarchies():
        (hierarchy / name).mkdir(exist_ok=True)


def kill(name: str) -> None:
    """End every process in it and wait until they are gone."""
    for _ in range(100):
        pids = _members(name)
        if not pids:
            return
        for pid in pids:
            processes.kill(pid)
        time.sleep(0.05)
    raise RuntimeError(f"processes {sorted(pids)} in cgroup {name} do not end")


def remove(name: str) -> None:
    """Remove it with everything below; the kernel may need a moment after the last process."""
    for hierarchy in _hierarchies():
        for _ in range(100):
            if _removed(hierarchy / name):
                break
            time.sleep(0.05)


def _hierarchies() -> list[Path]:
    if (_ROOT / "cgroup.controllers").exists():
        return [_ROOT]
    return [path for path in sorted(_ROOT.iterdir()) if path.is_mount()]


def _members(name: str) -> set[int]:
    found: set[int] = set()
    for hierarchy in _hierarchies():
        for folder in _folders(hierarchy / name):
            try:
                found.update(map(int, (folder / "cgroup.procs").read_text().split()))
            except OSError:  # the cgroup, or what may be read in it, has gone meanwhile
                continue
    return found


def _removed(folder: Path) -> bool:
    try:
        for path in _folders(folder):
            path.rmdir()
    except OSError:
        return False
    return True


def _folders(top: Path) -> list[Path]:
    """List a cgroup and those below it, the deepest first.

    Not ``rglob``: it fails when one goes meanwhile, as those of ending pods do.
    """
    return [Path(path) for path, _, _ in os.walk(top, topdown=False)]
