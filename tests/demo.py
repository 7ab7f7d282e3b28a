"""The whole way on one machine: ``make demo``.

A small upstream on loopback stands for the internet, a folder for the disk that is carried, and a
second folder for the site. Every command is the real one, in a process of its own, and every step
says what it did and how long it took. Needs Python and what ``make install`` put in place; no
root, container engine, cluster or internet.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundler.installer_format import ARCHITECTURES
from tests.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path("build/demo")
BIN = Path(sys.executable).parent
INSTALLER = f"./installer-linux-{ARCHITECTURES.get(platform.machine())}"
READY_SECONDS = 30


class DemoFailed(Exception):
    """A step did not do what the demo is there to show."""


@contextmanager
def step(title: str) -> Iterator[None]:
    """Print a step's title before, and its time after."""
    print(f"\n\033[1m{title}\033[0m" if sys.stdout.isatty() else f"\n{title}", flush=True)
    start = time.monotonic()
    yield
    print(f"  ({time.monotonic() - start:.1f} s)", flush=True)


def run(folder: Path, *argv: str, into: Path | None = None) -> str:
    """Run one of the commands as a person would; show the command and what it tells.

    Its standard output goes ``into`` a file if there is one.
    """
    print(f"  $ {' '.join(argv)}{f' > {into.name}' if into else ''}", flush=True)
    done = subprocess.run(
        [program(argv[0]), *argv[1:]],
        cwd=folder,
        env=os.environ | {"AIRGAP_CACHE_DIR": str((FOLDER / "cache").resolve())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if into else subprocess.STDOUT,
        text=True,
        check=False,
    )
    told = done.stderr if into else done.stdout
    if done.returncode:
        raise DemoFailed(f"exit code {done.returncode}\n{told}")
    if into:
        into.write_text(done.stdout)
    print("".join(f"    {line}\n" for line in told.splitlines()), end="", flush=True)
    return done.stdout


def program(name: str) -> str:
    """Our commands are the checkout's; the installer of the site is a file there."""
    return str(BIN / name) if name == "bundler" else name


@contextmanager
def serving(site: Path) -> Iterator[str]:
    """``installer serve`` in the background; gives its URL."""
    argv = [INSTALLER, "serve", "demo.tar", "--key", "release.pub", "--listen", "127.0.0.1:0"]
    argv += ["--ready-file", "ready"]
    print(f"  $ {' '.join(argv)} &", flush=True)
    with (site / "serve.log").open("wb") as log:
        process = subprocess.Popen(argv, cwd=site, stderr=log)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not (site / "ready").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise DemoFailed((site / "serve.log").read_text())
            time.sleep(0.02)
        yield (site / "ready").read_text().strip()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def fetch(url: str) -> bytes:
    """GET without any of the product's code, so that it can't agree with itself by mistake."""
    accept = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"
    docker = "application/vnd.docker.distribution.manifest.v2+json"
    headers = {"Accept": f"{accept}, {docker}"}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (our own server's http URL)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request) as answer:
        data: bytes = answer.read()
    return data


def pull_all(url: str, inspected: dict[str, Any], upstream: Upstream) -> tuple[int, int]:
    """Pull every image by digest, compare all bytes with upstream's; gives blobs and bytes."""
    originals = {
        content.digest: content.data
        for image in upstream.images.values()
        for content in image.everything
    }
    blobs = size = 0
    for image in inspected["images"]:
        path = image["reference"].partition("/")[2].partition("@")[0].rpartition(":")[0]
        manifest = fetch(f"{url}/v2/{path}/manifests/{image['digest']}")
        pieces = [(image["digest"], manifest)]
        for blob in [(m := json.loads(manifest))["config"], *m["layers"]]:
            pieces.append((blob["digest"], fetch(f"{url}/v2/{path}/blobs/{blob['digest']}")))
        for digest, data in pieces:
            found = f"sha256:{hashlib.sha256(data).hexdigest()}"
            if found != digest or data != originals[digest]:
                raise DemoFailed(f"{image['reference']}: {digest} came back as {found}")
            blobs, size = blobs + 1, size + len(data)
    return blobs, size


def main() -> None:
    """Run the demo and say how to go on."""
    start = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    builder, site = FOLDER / "builder", FOLDER / "site"
    site.mkdir(parents=True)
    with step("1  An upstream of our own on loopback: registries, a chart repository, a database"):
        upstream = Upstream(builder)
        upstream.__enter__()
        print(f"  {len(upstream.images)} images, serving at {upstream.docker_io.url}")
    try:
        with step("2  A signing key"):
            (builder / "passphrase").write_text("correct horse battery staple\n")
            (builder / "passphrase").chmod(0o600)
            run(builder, "bundler", "keygen", "--passphrase-file", "passphrase")
        with step("3  Lock: the chart is rendered in every profile, each image resolved"):
            run(builder, "bundler", "lock", "bundle.yaml", "--registry-config", "registries.yaml")
        with step("4  Build: one signed file, with an installer that needs no Python in it"):
            run(builder, "bundler", "build", "bundle.yaml", "--key", "release.key",
                "--passphrase-file", "passphrase", "--out", "demo.tar",
                "--registry-config", "registries.yaml")  # fmt: skip
    finally:
        upstream.__exit__(None, None, None)
    with step(
        "5  The disk is carried to the site; upstream is gone. Take the installer out, verify"
    ):
        shutil.copy2(builder / "demo.tar", site)
        shutil.copy2(builder / "release.pub", site)
        run(site, "tar", "xf", "demo.tar", "README.txt", INSTALLER.removeprefix("./"))
        run(site, INSTALLER, "verify", "demo.tar", "--key", "release.pub")
        inspect = (INSTALLER, "inspect", "demo.tar", "--key", "release.pub")
        run(site, *inspect)
        inspected = json.loads(run(site, *inspect, "--output", "json", into=site / "inside.json"))
        found = {image["reference"] for image in inspected["images"]}
        if found != upstream.expected():
            raise DemoFailed(f"images differ: {found ^ upstream.expected()}")
    with step("6  Serve it as a registry, straight from the file, and pull everything back"):
        with serving(site) as url:
            blobs, size = pull_all(url, inspected, upstream)
        print(f"  {blobs} blobs, {size / 1e6:.1f} MB: every byte as upstream had it")
    with step("7  Render the deployment with the bundle's own Helm; nothing is applied"):
        shutil.copy2(Path(__file__).parent / "demo-site.yaml", site / "site.yaml")
        verified = ("demo.tar", "--key", "release.pub", "--site", "site.yaml", "--state", "state")
        run(site, INSTALLER, "render", *verified, into=site / "objects.yaml")
    total = time.monotonic() - start
    print(f"""
done in {total:.1f} s; the files are in {FOLDER}

With the real Harbor, on a host with internet:
  bundler init harbor && bundler keygen
  bundler build bundle.yaml --key release.key --out harbor.tar
On the isolated site, with harbor.tar from the disk and release.pub from somewhere else:
  tar xf harbor.tar README.txt   # how to check the installer in it, then:
  ./installer-linux-amd64 run harbor.tar --key release.pub --site site.yaml""")


if __name__ == "__main__":
    try:
        main()
    except DemoFailed as failure:
        sys.exit(f"demo failed: {failure}")
