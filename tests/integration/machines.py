"""Machines as an installer may find them, as folders to be the root of a process.

The Debian roots are what debootstrap unpacks in its first stage, from the mirror that apt uses
here; they are kept in the tests' cache. Processes run in a mount namespace of their own, so that
nothing is left mounted and nothing is written into a root that is kept.
"""

from __future__ import annotations

import shutil
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from filelock import FileLock

from tests.integration.servers import debian, need_root
from tests.programs import ProgramMissing, cache_folder

if TYPE_CHECKING:
    from pathlib import Path

OLDEST = ("buster", "bullseye", "bookworm", "trixie")
"""Suites from old to new; the oldest one that the mirror has is taken."""
NEWEST = "sid"
NOBODY = 65534
_ENTER = """\
set -e
root=$1 folder=$2 proc=$3 ids=$4 access=$5
shift 5
mount --bind "$root" /mnt
mount --bind "$folder" /mnt/mnt
for place in tmp var/cache; do
  if test -d "/mnt/$place"; then mount -t tmpfs -o mode=1777 tmpfs "/mnt/$place"; fi
done
test "$proc" = no || mount -t proc proc /mnt/proc
test "$access" = rw || mount -o remount,bind,ro /mnt
exec chroot --userspec="$ids" /mnt "$@"
"""


@dataclass(frozen=True)
class Machine:
    """A root with or without /proc; ``read_only`` leaves nothing to write to but a tmpfs."""

    root: Path
    proc: bool = True
    read_only: bool = False

    def command(self, folder: Path, *argv: str, user: int = 0) -> list[str]:
        """What runs a program there; ``folder`` is /mnt, and the user has no home."""
        need_root("another root")
        (self.root / "mnt").mkdir(exist_ok=True)
        words = ("yes" if self.proc else "no", f"{user}:{user}", "ro" if self.read_only else "rw")
        enter = [debian("unshare"), "--mount", "sh", "-c", _ENTER, "sh", self.root, folder]
        return [str(word) for word in (*enter, *words, *argv)]

    def run(self, folder: Path, *argv: str, user: int = 0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(folder, *argv, user=user),
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


def busybox(folder: Path, *, temporary: bool = True) -> Path:
    """Make a root with busybox and no other file; ``temporary`` adds an empty /tmp."""
    for name in ("bin", "proc", *(["tmp"] if temporary else [])):
        (folder / name).mkdir(parents=True)
    shutil.copy(debian("busybox"), folder / "bin" / "busybox")
    (folder / "bin" / "sh").symlink_to("busybox")
    return folder


def suite_root(suite: str) -> Path:
    """A minimal Debian of a suite; raises ProgramMissing."""
    need_root("debootstrap")
    folder = cache_folder() / "roots" / suite
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{suite}.lock")):
        if not folder.exists():
            unfinished = folder.with_name(f"{suite}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            stage = (debian("debootstrap"), "--foreign", "--variant=minbase")
            done = subprocess.run(
                [*stage, suite, unfinished, _mirror()], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise ProgramMissing(f"debootstrap {suite}: {(done.stdout + done.stderr)[-1000:]}")
            unfinished.rename(folder)
    return folder


@cache
def oldest() -> str:
    """The oldest suite that the mirror has."""
    for suite in OLDEST:
        try:
            url = f"{_mirror()}/dists/{suite}/Release"
            with urllib.request.urlopen(url, timeout=30):  # noqa: S310 (apt's own mirror)
                return suite
        except urllib.error.URLError:
            continue
    raise ProgramMissing(f"{_mirror()} has none of {', '.join(OLDEST)}")


@cache
def _mirror() -> str:
    sites = subprocess.run(
        [debian("apt-get"), "indextargets", "--format", "$(SITE)", "Created-By: Packages"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    for site in sites:
        if site.rstrip("/").endswith("/debian"):
            return site
    raise ProgramMissing("apt has no Debian mirror in its sources")
