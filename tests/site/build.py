"""Builds what the site tier runs and no Debian package brings: Kubernetes, CoreDNS, the stand-ins.

Each program is built once per machine into the cache folder, beside its final name, and renamed
when it is complete: what has the name is whole. A lock keeps two test sessions from building the
same program at the same time. Kubernetes' release binaries can't be had from a Go module proxy,
its source can: the staging modules, which the source tree replaces by folders, are published
under ``v0.MINOR.PATCH`` and are replaced by those.

For people: ``python -m tests.site.build [NAME…]`` builds all or the named programs. From an empty
Go cache that takes about twenty minutes on two cores.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from tests.programs import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

KUBERNETES = "1.34.4"
COREDNS = "1.12.4"
KUBERNETES_PROGRAMS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
)
PROGRAMS = (*KUBERNETES_PROGRAMS, "coredns")
# what a cluster's DNS needs and nothing else: all plugins would double time and size
COREDNS_PLUGINS = ("bind", "cache", "errors", "hosts", "kubernetes", "log", "ready")
STANDINS = Path(__file__).parent / "standins"


class BuildFailed(Exception):
    """A build tool failed; the message has its last lines."""


def programs(names: Iterable[str] = PROGRAMS) -> Path:
    """Build what is not there yet; the folder that has all of the names. Raises BuildFailed."""
    folder = _programs_folder()
    for name in names:
        if not (folder / name).is_file():
            _once(folder / name, _coredns if name == "coredns" else _kubernetes)
    return folder


def standin(name: str) -> Path:
    """Program ``standin`` or ``pause`` from this checkout's source, built when the source changed.

    The folder's name has a digest of the source and of Go's version, so that several checkouts
    share a cache. Raises BuildFailed.
    """
    digest = hashlib.sha256(_go(["env", "GOVERSION"], STANDINS).encode())
    for path in sorted(STANDINS.rglob("*")):
        if path.is_file():
            digest.update(f"\0{path.relative_to(STANDINS)}\0".encode() + path.read_bytes())
    target = cache_folder().resolve() / f"standins-{digest.hexdigest()[:16]}" / name
    if not target.is_file():
        _once(target, lambda _, part: _compile(STANDINS, f"./{name}", part))
    return target


def _programs_folder() -> Path:
    return cache_folder().resolve() / f"kubernetes-{KUBERNETES}" / "bin"


def _once(target: Path, build: Callable[[Path, Path], None]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if target.is_file():  # another session built it while this one waited
            return
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as work:
            part = Path(work) / target.name
            build(Path(work), part)
            part.replace(target)


def _kubernetes(work: Path, part: Path) -> None:
    module = f"k8s.io/kubernetes@v{KUBERNETES}"
    downloaded = json.loads(_go(["mod", "download", "-json", module], work))
    source: dict[str, Any] = json.loads(_go(["mod", "edit", "-json", downloaded["GoMod"]], work))
    staging = [one["Path"] for one in source["Require"] if one["Version"] == "v0.0.0"]
    package = f"k8s.io/kubernetes/cmd/{part.name}"
    _module(
        work,
        go=source["Go"],
        require={"k8s.io/kubernetes": f"v{KUBERNETES}"},
        replace=dict.fromkeys(staging, f"v0.{KUBERNETES.removeprefix('1.')}"),
    )
    (work / "tools.go").write_text(f'//go:build tools\n\npackage tools\n\nimport _ "{package}"\n')
    _go(["mod", "tidy"], work)
    minor = KUBERNETES.split(".")[1]
    version = {
        "gitVersion": f"v{KUBERNETES}",
        "gitMajor": "1",
        "gitMinor": minor,
        "gitCommit": "unknown",
        "gitTreeState": "clean",
    }
    # a plain go build leaves them at v0.0.0-master: kubectl version and the node would say that
    flags = [
        f"-X {place}.{key}={value}"
        for place in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
        for key, value in version.items()
    ]
    _compile(work, package, part, flags)


def _coredns(work: Path, part: Path) -> None:
    imports = "".join(f'\t_ "github.com/coredns/coredns/plugin/{p}"\n' for p in COREDNS_PLUGINS)
    (work / "main.go").write_text(
        "package main\n\n"
        f'import (\n\t"github.com/coredns/coredns/coremain"\n{imports})\n\n'
        "func main() { coremain.Run() }\n"
    )
    _module(work, go="1.24.0", require={"github.com/coredns/coredns": f"v{COREDNS}"}, replace={})
    _go(["mod", "tidy"], work)
    _compile(work, ".", part)


def _module(work: Path, *, go: str, require: Mapping[str, str], replace: Mapping[str, str]) -> None:
    lines = ["module site", f"go {go}"]
    lines += [f"require {path} {version}" for path, version in require.items()]
    lines += [f"replace {path} => {path} {version}" for path, version in replace.items()]
    (work / "go.mod").write_text("\n".join(lines) + "\n")


def _compile(folder: Path, package: str, part: Path, ldflags: Iterable[str] = ()) -> None:
    link = " ".join(["-s", "-w", *ldflags])
    _go(
        ["build", "-trimpath", "-buildvcs=false", "-ldflags", link, "-o", str(part), package],
        folder,
    )


def _go(arguments: list[str], folder: Path) -> str:
    go = shutil.which("go")
    if go is None:
        raise BuildFailed("Go is not installed: install Go 1.24 or later and put it on PATH")
    done = subprocess.run(
        [go, *arguments],
        cwd=folder,
        env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).splitlines()[-8:])
        raise BuildFailed(f"go {arguments[0]} failed for {folder}:\n{last}")
    return done.stdout


def main(names: list[str]) -> int:
    if unknown := sorted(set(names) - set(PROGRAMS)):
        print(f"unknown: {' '.join(unknown)}; there is {' '.join(PROGRAMS)}", file=sys.stderr)
        return 2
    try:
        print(programs(names or PROGRAMS))
    except BuildFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
