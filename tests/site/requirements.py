"""What the site tier needs on a machine, and a sentence for whoever has to install it."""

from __future__ import annotations

import os
import shutil

from tests import programs

_PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
_PACKAGES = {
    "docker-registry": "docker-registry",
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "etcd": "etcd-server",
    "iptables": "iptables",
    "nft": "nftables",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "sysctl": "procps",
    "busybox": "busybox-static",
    "redis-server": "redis-server",
}
_CNI = ("bridge", "host-local", "loopback", "portmap")


def for_upstream() -> str:
    """Why the upstream can't be started here, "" when it can."""
    return _sentence(_packages(("docker-registry", "busybox")))


def for_cluster() -> str:
    """Why a cluster can't be started here, "" when it can."""
    if os.geteuid() != 0:
        return "a cluster needs root: run the site tier with sudo or as root"
    packages = _packages(tuple(_PACKAGES))
    if not all(os.access(f"/usr/lib/cni/{plugin}", os.X_OK) for plugin in _CNI):
        packages.append("containernetworking-plugins")
    if sentence := _sentence(packages):
        return sentence
    try:
        programs.kubectl()
    except programs.ProgramMissing as missing:
        return str(missing)
    return ""


def _packages(commands: tuple[str, ...]) -> list[str]:
    return [_PACKAGES[name] for name in commands if not shutil.which(name, path=_PATH)]


def _sentence(packages: list[str]) -> str:
    if packages:
        return f"Debian packages are missing: apt-get install {' '.join(sorted(set(packages)))}"
    if not shutil.which("go"):
        return "Go is not installed: install Go 1.24 or newer (https://go.dev/dl)"
    return ""
