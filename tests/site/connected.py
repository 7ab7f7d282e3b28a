"""The connected side: the real ``bundler`` makes bundles from the shipped specs, outside the site.

A shipped spec is changed as a person would change it: addresses that this machine can reach, Helm
and kubectl from a local disk, the image and the database that upstream has. Charts, profiles and
everything else stay as ``bundler init`` writes them. One folder and one lock serve all bundles, as
they serve a person who makes one release after the other.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests import programs
from tests.site.upstream import BUSYBOX, TRIVY_DB

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.site.upstream import Upstream

BUNDLER = str(Path(sys.executable).with_name("bundler"))
CHARTS = {
    "harbor": "https://helm.goharbor.io",
    "cert-manager": "https://charts.jetstack.io",
    "csi-driver-nfs": (
        "https://raw.githubusercontent.com/kubernetes-csi/csi-driver-nfs/master/charts"
    ),
}
"""The addresses that the shipped specs have, and that are replaced."""
PASSPHRASE = "correct horse battery staple"


class BundlerFailed(Exception):
    """A command of the connected side failed; the message has what it said."""


@dataclass(frozen=True)
class Made:
    """A bundle, the lock that it was built from, and what ``bundler build`` said of it."""

    path: Path
    lock: dict[str, Any]
    built: dict[str, Any]

    def digests(self, kind: str = "images") -> dict[str, str]:
        """Digest of each entry of that kind by its reference, or its name."""
        return {one.get("reference") or one["name"]: one["digest"] for one in self.lock[kind]}


class Connected:
    """A folder with a signing key, ``registries.yaml`` and the bundles that were made so far."""

    def __init__(self, folder: Path, upstream: Upstream) -> None:
        """Make the key; raises BundlerFailed."""
        self.folder = folder
        self.upstream = upstream
        self._passphrase = folder / "passphrase"
        self._passphrase.touch(mode=0o600)
        self._passphrase.write_text(f"{PASSPHRASE}\n")
        self.key = folder / "release.key"
        self.run("keygen", f"--out={self.key}", f"--passphrase-file={self._passphrase}")
        self.registries = folder / "registries.yaml"
        there = {"endpoints": [upstream.registry.url]}
        self.registries.write_text(
            yaml.safe_dump(
                {
                    "registries": dict.fromkeys(
                        ("docker.io", "ghcr.io", "quay.io", "registry.k8s.io"), there
                    )
                }
            )
        )

    @property
    def public_key(self) -> Path:
        return self.key.with_suffix(".pub")

    def private_key(self) -> ec.EllipticCurvePrivateKey:
        """The key that ``bundler keygen`` made, for bundles that bundler refuses to make."""
        loaded = serialization.load_pem_private_key(self.key.read_bytes(), PASSPHRASE.encode())
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        return loaded

    def make(
        self,
        name: str,
        version: str,
        *,
        profiles: Sequence[str] = (),
        helm: int = 4,
        product: str = "harbor",
        since: Made | None = None,
        also: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Made:
        """Init, lock and build ``NAME.tar`` with Harbor ``version`` (2.14 or 2.15).

        ``product`` is the shipped spec's, harbor or harbor-platform.
        ``profiles`` are those to render, if not all that the shipped spec lists; ``helm`` is the
        major version that goes in. With ``since`` it is a delta to that bundle. ``also`` are
        further charts of upstream's: ``version`` and ``values`` of the one profile, by name.
        Raises BundlerFailed.
        """
        spec = self.folder / "bundle.yaml"
        spec.unlink(missing_ok=True)
        self.run("init", product, str(self.folder), f"--version={version}")
        document = self._reachable(yaml.safe_load(spec.read_text()), helm)
        if profiles:
            document["charts"][0]["profiles"] = list(profiles)
        for chart, wanted in (also or {}).items():
            document["profiles"][chart] = {"values": wanted["values"]}
            document["charts"].append(
                {
                    "name": chart,
                    "source": self.upstream.charts_url,
                    "version": wanted["version"],
                    "profiles": [chart],
                }
            )
        spec.write_text(yaml.safe_dump(document))
        self.run("lock", str(spec), f"--registry-config={self.registries}")
        path = self.folder / f"{name}.tar"
        built = self.run(
            "build",
            str(spec),
            f"--key={self.key}",
            f"--passphrase-file={self._passphrase}",
            f"--out={path}",
            f"--registry-config={self.registries}",
            "--no-installer",
            "--output=json",
            *([f"--since={since.path}"] if since else []),
        )
        lock = json.loads(spec.with_name("bundle.lock").read_text())
        return Made(path, lock, json.loads(built))

    def run(self, *arguments: str) -> str:
        """Output of a ``bundler`` of its own process; raises BundlerFailed."""
        # a cache of its own: what another run left behind would hide what is not fetched
        environment = {**os.environ, "AIRGAP_CACHE_DIR": str(self.folder / "cache")}
        done = subprocess.run(
            [BUNDLER, *arguments], capture_output=True, text=True, env=environment, check=False
        )
        if done.returncode:
            raise BundlerFailed(f"bundler {arguments[0]}: exit {done.returncode}\n{done.stderr}")
        return done.stdout

    def _reachable(self, document: dict[str, Any], helm: int) -> dict[str, Any]:
        for chart in document["charts"]:
            assert chart["source"] == CHARTS[chart["name"]]
            chart["source"] = self.upstream.charts_url
        local = {"helm": programs.helm(helm), "kubectl": programs.kubectl()}
        document["tools"] = [
            {"name": tool["name"], "source": str(path), "sha256": sha256(path)}
            for tool in document["tools"]
            for path in [local.pop(tool["name"])]
        ]
        assert not local
        document["images"].append(f"docker.io/{BUSYBOX}")
        document["databases"] = [
            one for one in document["databases"] if one["source"] == f"ghcr.io/{TRIVY_DB}"
        ]
        assert document["databases"]
        return document


def sha256(path: Path) -> str:
    """Digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
