"""A Harbor for tests: it answers as Harbor 2.14.4 was recorded to answer.

Driven by Harbor's OpenAPI document and by recorded exchanges, both read where AIRGAP_SHARED has
them; a test replays every recorded exchange against it. Its state is in memory, images are stored
by a real docker-registry. An answer that the OpenAPI document doesn't allow is a mistake of the
double's: it is kept in ``mistakes``, and leaving the context with one raises it.

    with HarborDouble(registry="127.0.0.1:5000") as harbor:
        requests.get(f"{harbor.url}/api/v2.0/health")

Nothing that ships may need to know of this package.
"""

from __future__ import annotations

import json
import secrets
import tarfile
import zlib
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Self

from tests.harbor_double import (  # the handlers register themselves
    artifacts,
    jobs,
    projects,
    replication,
    retention,
    robots,
    scanning,
    system,
    users,
)
from tests.harbor_double.call import Answer
from tests.harbor_double.distribution import Distribution
from tests.harbor_double.server import Server, serve
from tests.harbor_double.specification import Specification
from tests.harbor_double.state import State

if TYPE_CHECKING:
    import ssl
    import threading

    from tests.harbor_double.call import Document
    from tests.harbor_double.state import Artifact

ROOMS = (artifacts, jobs, projects, replication, retention, robots, scanning, system, users)
MADE_UP: Document = {
    "id": "CVE-2099-0001",
    "package": "musl",
    "version": "1.2.3-r4",
    "fix_version": "1.2.4-r9",
    "severity": "High",
    "status": "fixed",
    "description": "made-up flaw for tests",
    "links": ["https://avd.aquasec.com/nvd/cve-2099-0001"],
}
"""The flaw that the recordings have."""


@dataclass
class HarborDouble:
    """``registry`` is ``HOST:PORT`` of a docker-registry, "" where nothing is pushed.

    ``context`` makes it speak https; ``flaws`` are what its scanner knows, by package and version.
    """

    registry: str = ""
    context: ssl.SSLContext | None = None
    address: str = "127.0.0.1"
    port: int = 0
    version: str = "2.14"
    state: State = field(default_factory=State)
    flaws: list[Document] = field(default_factory=lambda: [MADE_UP])
    wrong_password_seconds: float = 0.0
    """Harbor takes 1.5 s to refuse one."""
    gateway_down: bool = False
    loud: bool = False
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of every request, for tests that count."""
    mistakes: list[str] = field(default_factory=list)
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32))

    def __post_init__(self) -> None:
        self.specification = Specification(self.version)
        self.distribution = Distribution(self.state, self.registry)
        self.state.scanner = self._find_flaws
        self.state.sbom = self._make_sbom
        self.state.addition = self._addition

    @property
    def scheme(self) -> str:
        """``https`` with a context."""
        return "https" if self.context else "http"

    @property
    def host(self) -> str:
        """``ADDRESS:PORT``."""
        return f"{self.address}:{self.port}"

    @property
    def url(self) -> str:
        """Where it answers, without a slash at the end."""
        return f"{self.scheme}://{self.host}"

    @property
    def password(self) -> str:
        """Today's of admin."""
        return str(self.state.users[1]["password"])

    def __enter__(self) -> Self:
        self._server = Server(self, self.context)
        self.port = self._server.server_address[1]
        self._thread: threading.Thread = serve(self._server)
        return self

    def __exit__(self, kind: object, *_rest: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        if self.mistakes and kind is None:
            raise AssertionError("the double is wrong:\n" + "\n".join(self.mistakes))

    def blob(self, name: str, digest: str) -> bytes:
        """A blob out of the docker-registry."""
        return self.distribution.upstream("GET", f"/v2/{name}/blobs/{digest}", {}).body

    def _find_flaws(self, artifact: Artifact) -> list[Document]:
        """Look for the packages of ``flaws`` in what apk and dpkg say is installed."""
        installed = set()
        for layer in artifact.document.get("layers", ()):
            installed |= set(_installed(self.blob(artifact.name, layer["digest"])))
        return [one for one in self.flaws if (one["package"], one["version"]) in installed]

    def _make_sbom(self, artifact: Artifact) -> str:
        """An accessory as Harbor makes one; its own manifest is made up and stored here only."""
        subject = {"digest": artifact.digest, "size": len(artifact.manifest)}
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": {"mediaType": "application/vnd.goharbor.harbor.sbom.v1", "size": 2},
                "layers": [],
                "annotations": {"created-by": "Harbor"},
                "subject": subject,
            }
        ).encode()
        import hashlib  # noqa: PLC0415

        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        artifacts.add(
            self.state, artifact.name, digest, manifest, "", subject=artifact.digest,
            accessory="sbom.harbor",
        )  # fmt: skip
        return digest

    def _addition(self, artifact: Artifact, name: str) -> Answer:
        """A file of a chart, or the SBOM."""
        if name == "sbom":
            return Answer(200, {"SPDXID": "SPDXRef-DOCUMENT", "spdxVersion": "SPDX-2.3"})
        if name == "dependencies":
            return Answer(200, text="null", content_type="application/json; charset=utf-8")
        layer = artifact.document["layers"][0]["digest"]
        wanted = {"readme.md": "README.md"}.get(name, name)
        kind = "text/markdown" if wanted == "README.md" else "text/plain"
        with tarfile.open(fileobj=BytesIO(self.blob(artifact.name, layer))) as chart:
            for member in chart:
                if member.name.partition("/")[2] == wanted and (file := chart.extractfile(member)):
                    text = file.read().decode()
                    return Answer(200, text=text, content_type=f"{kind}; charset=utf-8")
        return Answer(404)


def _installed(layer: bytes) -> list[tuple[str, str]]:
    """Package and version of all that the databases of apk and dpkg in a layer name.

    Raises ValueError for a layer that can't be read.
    """
    found = []
    try:
        with tarfile.open(fileobj=BytesIO(layer)) as tar:
            for member in tar:
                path = member.name.removeprefix("./").removeprefix("/")
                marks = {
                    "lib/apk/db/installed": ("P:", "V:"),
                    "var/lib/dpkg/status": ("Package: ", "Version: "),
                }
                file = tar.extractfile(member) if path in marks else None
                if file is None:
                    continue
                named, versioned = marks[path]
                package = ""
                for line in file.read().decode().splitlines():
                    if line.startswith(named):
                        package = line.removeprefix(named)
                    elif line.startswith(versioned):
                        found.append((package, line.removeprefix(versioned)))
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise ValueError(str(error)) from None
    return found
