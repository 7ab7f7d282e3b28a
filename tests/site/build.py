"""Builds what the site tier runs and no Debian package brings: Kubernetes, CoreDNS, the stand-ins.

Each program is built once per machine into the cache folder, beside its final name, and renamed
when it is complete: what has the name is whole. A lock keeps two test sessions from building the
same program at the same time. Kubernetes' release binaries can't be had from a Go module proxy,
its source can: the staging modules, which the source tree replaces by folders, are published
under ``v0.MINOR.PATCH`` and are replaced by those. CoreDNS is built in the same module, of whose
libraries nine in ten are Kubernetes': they have one version there and are compiled once.

For people: ``python -m tests.site.build [NAME…]`` builds all or the named programs. From an empty
Go cache that takes fifteen minutes of processor time, and two cores share it.
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

from tests.programs import GO_ENVIRONMENT, GO_FLAGS, cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

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
    _once([folder / name for name in names], _build)
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
    _once([target], lambda out, _: _compile(STANDINS, [f"./{name}"], out))
    return target


def _programs_folder() -> Path:
    return cache_folder().resolve() / f"kubernetes-{KUBERNETES}" / "bin"


def _once(targets: Sequence[Path], build: Callable[[Path, Sequence[str]], None]) -> None:
    """Have those of a folder's targets built that are missing: into a folder, by these names."""
    if all(target.is_file() for target in targets):
        return
    folder = targets[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        # without those that another session built while this one waited
        missing = [target for target in targets if not target.is_file()]
        if not missing:
            return
        with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as work:
            build(Path(work), [target.name for target in missing])
            for target in missing:
                (Path(work) / target.name).replace(target)


def _build(out: Path, names: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(dir=out) as work:
        module = Path(work)
        _write_module(module)
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
        packages = [
            "./coredns" if name == "coredns" else f"k8s.io/kubernetes/cmd/{name}" for name in names
        ]
        _compile(module, packages, out, flags)


def _write_module(folder: Path) -> None:
    kubernetes = f"k8s.io/kubernetes@v{KUBERNETES}"
    downloaded = json.loads(_go(["mod", "download", "-json", kubernetes], folder))
    source: dict[str, Any] = json.loads(_go(["mod", "edit", "-json", downloaded["GoMod"]], folder))
    staging = [one["Path"] for one in source["Require"] if one["Version"] == "v0.0.0"]
    lines = [
        "module site",
        f"go {source['Go']}",
        f"require k8s.io/kubernetes v{KUBERNETES}",
        f"require github.com/coredns/coredns v{COREDNS}",
        *(f"replace {path} => {path} v0.{KUBERNETES.removeprefix('1.')}" for path in staging),
    ]
    (folder / "go.mod").write_text("\n".join(lines) + "\n")
    imports = "".join(f'\t_ "github.com/coredns/coredns/plugin/{p}"\n' for p in COREDNS_PLUGINS)
    (folder / "coredns").mkdir()
    (folder / "coredns" / "main.go").write_text(
        "package main\n\n"
        f'import (\n\t"github.com/coredns/coredns/coremain"\n{imports})\n\n'
        "func main() { coremain.Run() }\n"
    )


def _compile(folder: Path, packages: Sequence[str], out: Path, ldflags: Iterable[str] = ()) -> None:
    """Build commands of a module into a folder, under their own names."""
    link = " ".join(["-s", "-w", *ldflags])
    # -mod=mod: go.mod and go.sum get what is needed, and no more is downloaded than that
    flags = [*GO_FLAGS, "-mod=mod", "-ldflags", link, "-o", f"{out}/"]
    _go(["build", *flags, *packages], folder)


def _go(arguments: list[str], folder: Path) -> str:
    go = shutil.which("go")
    if go is None:
        raise BuildFailed("Go is not installed: install Go 1.24 or later and put it on PATH")
    done = subprocess.run(
        [go, *arguments],
        cwd=folder,
        env={**os.environ, **GO_ENVIRONMENT, "GOFLAGS": ""},
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
