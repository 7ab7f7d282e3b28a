"""The seed registry as a systemd service, where systemd runs the machine.

It starts again with the machine, which a process in the background does not.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from installer.errors import DeploymentFailed, InvalidInput
from installer.site.private import read_file, write_file

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNITS = Path("/etc/systemd/system")
_SYSTEMCTL = "systemctl"
_TIMEOUT = 60
_READABLE = 0o644
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Controls would end the line and begin another setting; the last are bytes that are no UTF-8."""


def is_there() -> bool:
    """Whether this machine was started by systemd (sd_booted(3)), and we may add a service."""
    return Path("/run/systemd/system").is_dir() and os.geteuid() == 0


def unit_name(site: str) -> str:
    """Name of a site's service."""
    return f"harbor-airgap-{site}.service"


def unit_text(site: str, command: Sequence[str]) -> str:
    """The unit file (systemd.service(5), systemd.exec(5)).

    The cache is where an installer of one file unpacks what it can't run from within the file.
    Raises InvalidInput for a command that no line of it can hold.
    """
    return f"""\
[Unit]
Description=Seed registry of site {site}
Wants=network-online.target
After=network-online.target

[Service]
ExecStart={" ".join(map(_quoted, command))}
Restart=on-failure
RestartSec=5
CacheDirectory=harbor-airgap
CacheDirectoryMode=0700
NoNewPrivileges=yes
ProtectSystem=strict
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
LockPersonality=yes
UMask=0077

[Install]
WantedBy=multi-user.target
"""


def install(name: str, text: str) -> None:
    """Write the unit, and start it anew, now and with the machine; raises DeploymentFailed."""
    write_file(_UNITS / name, text.encode(), mode=_READABLE)
    for arguments in (["daemon-reload"], ["enable", name], ["restart", name]):
        result = _systemctl(*arguments)
        if result.returncode:
            raise DeploymentFailed(
                f"systemctl {' '.join(arguments)}: {result.stderr.strip()[:300]}",
                hint=f"`journalctl --unit={name}` says more",
            )


def is_active(name: str, command: Sequence[str]) -> bool:
    """Whether the service runs, with this command."""
    return _is_active(name, f"\nExecStart={' '.join(map(_quoted, command))}\n")


def is_active_with(name: str, argument: str) -> bool:
    """Whether the service runs, with this argument among others."""
    return _is_active(name, f" {_quoted(argument)}")


def control(*arguments: str) -> str:
    """Run systemctl; gives what it complains of, nothing if it succeeded.

    Raises DeploymentFailed when it can't be run.
    """
    result = _systemctl(*arguments)
    if not result.returncode:
        return ""
    return result.stderr.strip()[:1000] or f"it ended with {result.returncode}"


def _is_active(name: str, wanted: str) -> bool:
    text = read_file(_UNITS / name) or b""
    return wanted.encode() in text and _systemctl("is-active", "--quiet", name).returncode == 0


def _systemctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [_SYSTEMCTL, *arguments],  # found on PATH: its folder differs between systems
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeploymentFailed(f"systemctl {arguments[0]}: {error}") from error


def _quoted(word: str) -> str:
    """Write one argument so that systemd takes it as it is (systemd.service(5), quoting)."""
    if _UNWRITABLE.search(word):
        raise InvalidInput(
            f"a systemd unit can't hold the argument {word[:200]!r}",
            hint="rename the file: no line breaks or control characters, and UTF-8",
        )
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'
