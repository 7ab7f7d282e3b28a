"""NFS-Ganesha, a real NFS server in user space: this kernel needs neither server nor client."""

from __future__ import annotations

import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.integration.servers import debian, free_port, need_root

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONFIGURATION = """
NFS_CORE_PARAM {{
  Protocols = 4; NFS_Port = {port}; Bind_addr = 127.0.0.1;
  Enable_RQUOTA = false; Enable_NLM = false; Enable_UDP = false;
}}
NFS_KRB5 {{ Active_krb5 = false; }}
NFSv4 {{ Graceless = true; Minor_Versions = {minors}; }}
EXPORT {{
  Export_Id = 1; Path = {folder}; Pseudo = {path};
  Access_Type = {access}; Squash = {squash}; SecType = sys; Manage_Gids = false;
  FSAL {{ Name = VFS; }}
}}
"""
# Ganesha looks for file systems in /etc/mtab, which not every machine has: it gets one in a mount
# namespace of its own, over a folder that goes with it.
_START = """
set -e
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work"
ln -s /proc/self/mounts "$1/upper/mtab"
mount -t overlay -o "lowerdir=/etc,upperdir=$1/upper,workdir=$1/work" none /etc
shift
exec "$@"
"""
_SECONDS = 30.0


@dataclass(frozen=True)
class NfsServer:
    """An export ``path`` of ``folder`` at 127.0.0.1:``port``."""

    port: int
    path: str
    folder: Path


@contextmanager
def ganesha(
    folder: Path, *, minors: str = "0, 1, 2", squash: str = "no_root_squash", access: str = "RW"
) -> Iterator[NfsServer]:
    """Export a folder until the block ends; raises ProgramMissing."""
    program = debian("ganesha.nfsd")
    need_root("ganesha.nfsd")
    port, path = free_port(), "/srv/nfs/harbor"
    with tempfile.TemporaryDirectory() as name:
        own = Path(name)
        (own / "etc").mkdir()
        (own / "ganesha.conf").write_text(
            _CONFIGURATION.format(
                port=port, minors=minors, folder=folder, path=path, access=access, squash=squash
            )
        )
        log = own / "log"
        command = ["unshare", "--mount", "sh", "-c", _START, "sh", str(own / "etc"), str(program)]
        command += ["-F", "-f", str(own / "ganesha.conf"), "-L", str(log), "-p", str(own / "pid")]
        with subprocess.Popen(command) as process:
            try:
                end = time.monotonic() + _SECONDS
                while "NFS SERVER INITIALIZED" not in (log.read_text() if log.exists() else ""):
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < end, log.read_text()
                    time.sleep(0.1)
                yield NfsServer(port, path, folder)
            finally:
                process.kill()
