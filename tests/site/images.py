"""OCI images made in pure Python: layer, config, manifest; pushed by the distribution API.

No Docker is needed, and the same input gives the same digests: times are zero and the tar headers
are fixed. Every Harbor stand-in has three layers as real images have them: one shared by many
images (Debian's static busybox), one shared by all stand-ins (the program), one of its own.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urljoin

import requests

from tests.postgresql import postgresql
from tests.programs import ProgramMissing
from tests.site.build import standin

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

HARBOR = (
    "nginx-photon",
    "harbor-portal",
    "harbor-core",
    "harbor-jobservice",
    "registry-photon",
    "harbor-registryctl",
    "trivy-adapter-photon",
    "harbor-db",
    "redis-photon",
    "harbor-exporter",
)
"""The ten images of Harbor's chart, metrics and nodePort included (valkey-photon from 1.19.2)."""

Flavour = Literal["oci", "docker"]
_TYPES: dict[Flavour, tuple[str, str, str]] = {
    "oci": (
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.oci.image.layer.v1.tar+gzip",
    ),
    "docker": (
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.container.image.v1+json",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
    ),
}


@dataclass(frozen=True)
class Layer:
    """A gzipped layer and the digest of its tar, which the image's config names."""

    blob: bytes
    diff_id: str


@dataclass(frozen=True)
class Image:
    """Exact bytes of a single-platform image (linux/amd64)."""

    manifest: bytes
    media_type: str
    config: bytes
    layers: tuple[Layer, ...]

    @property
    def digest(self) -> str:
        return sha256(self.manifest)

    @property
    def blobs(self) -> list[bytes]:
        return [self.config, *(layer.blob for layer in self.layers)]


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layer(
    files: Mapping[str, bytes],
    links: Mapping[str, str] | None = None,
    *,
    shared: Iterable[str] = (),
) -> Layer:
    """Make a layer of executable files, and of symbolic links (name to target).

    ``shared`` are folders that everybody may write to, as /tmp is.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        folders = {
            str(parent) for name in (*files, *(links or {})) for parent in Path(name).parents
        }
        folders |= {str(parent) for name in shared for parent in (Path(name), *Path(name).parents)}
        for name in sorted(folders - {"."}):
            header = _header(name, tarfile.DIRTYPE)
            header.mode = 0o1777 if name in shared else header.mode
            tar.addfile(header)
        for name, data in sorted(files.items()):
            header = _header(name, tarfile.REGTYPE)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
        for name, target in sorted((links or {}).items()):
            header = _header(name, tarfile.SYMTYPE)
            header.linkname = target
            tar.addfile(header)
    content = buffer.getvalue()
    return Layer(gzip.compress(content, compresslevel=6, mtime=0), sha256(content))


def image(
    layers: Iterable[Layer],
    entrypoint: Sequence[str] = (),
    *,
    command: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    user: str = "",
    flavour: Flavour = "oci",
) -> Image:
    """Make an image from layers, in the media types of OCI or of Docker's schema 2."""
    layers = tuple(layers)
    manifest_type, config_type, layer_type = _TYPES[flavour]
    variables = {"PATH": "/usr/bin:/bin", **(env or {})}
    config = _json(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "Env": [f"{key}={value}" for key, value in variables.items()],
                "Entrypoint": list(entrypoint),
                "Cmd": list(command),
                "User": user,
            },
            "rootfs": {"type": "layers", "diff_ids": [one.diff_id for one in layers]},
            "history": [{"created": "1970-01-01T00:00:00Z"} for _ in layers],
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": _descriptor(config_type, config),
            "layers": [_descriptor(layer_type, one.blob) for one in layers],
        }
    )
    return Image(manifest, manifest_type, config, layers)


@cache
def busybox() -> Image:
    """Debian's static busybox with all its applets; raises FileNotFoundError without it."""
    return image([_busybox_layer()], command=["/bin/sh"])


@cache
def pause() -> Image:
    return image([layer({"pause": standin("pause").read_bytes()})], ["/pause"], user="65535:65535")


@cache
def harbor(name: str, version: str, flavour: Flavour = "oci") -> Image:
    """Make the stand-in for Harbor's image ``name``; ``version`` is the tag, such as v2.14.4."""
    own = layer({f"etc/{name}": f"stands for goharbor/{name}:{version}\n".encode()})
    layers, entrypoint = [_busybox_layer(), _standin_layer(), own], ["/usr/bin/standin"]
    if name == "harbor-db" and (database := _postgresql_layer()):
        layers.append(database)
        entrypoint = ["/bin/sh", "/usr/bin/database"]
    return image(
        layers,
        entrypoint,
        env={"STANDIN_NAME": name, "STANDIN_VERSION": version},
        flavour=flavour,
    )


def push_image(registry_url: str, repository: str, tag: str, content: Image) -> str:
    """Push to ``http://host:port``; the manifest's digest, as the registry confirmed it.

    Raises requests.HTTPError when the registry refuses.
    """
    base = f"{registry_url.rstrip('/')}/v2/{repository}"
    with requests.Session() as session:
        session.trust_env = False  # a proxy has no part in loopback
        for blob in content.blobs:
            digest = sha256(blob)
            if session.head(f"{base}/blobs/{digest}", timeout=60).status_code == 200:
                continue
            started = session.post(f"{base}/blobs/uploads/", timeout=60)
            started.raise_for_status()
            session.put(
                urljoin(started.url, started.headers["Location"]),
                params={"digest": digest},
                data=blob,
                headers={"Content-Type": "application/octet-stream"},
                timeout=60,
            ).raise_for_status()
        done = session.put(
            f"{base}/manifests/{tag}",
            data=content.manifest,
            headers={"Content-Type": content.media_type},
            timeout=60,
        )
        done.raise_for_status()
    confirmed = done.headers["Docker-Content-Digest"]
    if confirmed != content.digest:
        raise ValueError(f"{repository}:{tag}: the registry says {confirmed}, not {content.digest}")
    return confirmed


def write_archive(target: Path, images: Mapping[str, Image]) -> None:
    """Write an OCI archive for ``ctr images import``, by full reference (``host/path:tag``)."""
    blobs: dict[str, bytes] = {}
    entries = []
    for reference, content in images.items():
        for blob in (content.manifest, *content.blobs):
            blobs[f"blobs/sha256/{sha256(blob).removeprefix('sha256:')}"] = blob
        entries.append(
            {
                **_descriptor(content.media_type, content.manifest),
                "platform": {"architecture": "amd64", "os": "linux"},
                "annotations": {"io.containerd.image.name": reference},
            }
        )
    members = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json({"schemaVersion": 2, "manifests": entries}),
        **blobs,
    }
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            header = _header(name, tarfile.REGTYPE)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))


@cache
def _busybox_layer() -> Layer:
    program = shutil.which("busybox")
    if program is None:
        raise FileNotFoundError("busybox is not installed: apt-get install busybox-static")
    listed = subprocess.run([program, "--list"], capture_output=True, text=True, check=True)
    applets = {f"bin/{name}": "busybox" for name in listed.stdout.split() if name != "busybox"}
    return layer({"bin/busybox": Path(program).read_bytes()}, applets)


@cache
def _standin_layer() -> Layer:
    return layer(
        {"usr/bin/standin": standin("standin").read_bytes()},
        {
            "docker-healthcheck.sh": "/usr/bin/standin",  # the database's probes run it
            "harbor/harbor_core": "/usr/bin/standin",  # the migration job runs it
        },
    )


@cache
def _postgresql_layer() -> Layer | None:
    """Debian's real PostgreSQL with the libraries that it needs, None where it isn't installed.

    It is started as Harbor's image does: a cluster below PGDATA, local logins without password,
    a database ``registry``.
    """
    try:
        folder = postgresql("postgres").parents[1]
    except ProgramMissing:
        return None
    major = folder.name
    programs = [folder / "bin" / name for name in ("postgres", "initdb", "pg_dump", "psql")]
    programs += [folder / "lib" / name for name in ("plpgsql.so", "dict_snowball.so")]
    linked = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=True).stdout
    files = {word for line in linked.splitlines() for word in line.split() if word[0] == "/"}
    share = Path("/usr/share/postgresql") / major
    found = [
        *programs,
        *(Path(name) for name in files if not name.endswith(":")),
        *(path for path in share.rglob("*") if path.is_file() and "man" not in path.parts),
    ]
    contents = {str(path).lstrip("/"): path.read_bytes() for path in found}
    contents["etc/passwd"] = b"root:x:0:0::/:/bin/sh\npostgres:x:999:999::/tmp:/bin/sh\n"
    contents["usr/bin/database"] = _DATABASE.replace("MAJOR", major).encode()
    links = {f"usr/bin/{path.name}": str(path) for path in programs if path.parent.name == "bin"}
    return layer(contents, links, shared=("tmp", "run/postgresql", "var/run/postgresql"))


_DATABASE = """
set -e
PATH=/usr/lib/postgresql/MAJOR/bin:$PATH
data="$PGDATA/pgMAJOR"
if [ ! -s "$data/PG_VERSION" ]; then
  mkdir -p "$PGDATA"
  printf %s "$POSTGRES_PASSWORD" > /tmp/password
  initdb --pgdata="$data" --username=postgres --pwfile=/tmp/password --auth-local=trust \\
    --auth-host=scram-sha-256 --encoding=UTF8 --locale=C --no-sync
  echo "host all all all scram-sha-256" >> "$data/pg_hba.conf"
  echo "CREATE DATABASE registry;" | postgres --single -D "$data" postgres
fi
exec postgres -D "$data" --listen_addresses='*' --fsync=off --shared_buffers=16MB \\
  --unix_socket_directories=/var/run/postgresql
"""


def _header(name: str, kind: bytes) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type, header.mode, header.mtime = kind, 0o755, 0
    return header


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data)}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
