"""A Helm chart of our own with the habits of Harbor's, and a static chart repository for it.

Every trap that a search for images has to pass is in it once, each with an image of its own, so
that a missed one is seen: quoted and unquoted images, defaults with and without a host, value keys
at several depths, an initContainer, a Job hook, a test pod, an image in an environment variable and
one in an argument, an aliased subchart, parts that only a profile renders. Things that look like
images and are none: a role named ``core:reader``, a database repository without a tag. One
``apiVersion`` is followed by a tab, and the secret is random unless it is given.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from tests.upstream.images import Content, Image, artefact, gzipped
from tests.upstream.server import Answer, LoopbackServer, Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

HELM_CONFIG = "application/vnd.cncf.helm.config.v1+json"
HELM_CHART = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
CHART_NAME = "anchorage"
_CREATED = "2026-01-01T00:00:00Z"


@dataclass(frozen=True)
class Component:
    """An image of the chart: where its values are, its default, and which profile renders it."""

    key: str
    repository: str
    profile: str = "default"

    @property
    def reference(self) -> str:
        """Host and path of the default, as Docker normalises it."""
        return (
            self.repository
            if "." in self.repository.split("/")[0]
            else f"docker.io/{self.repository}"
        )


COMPONENTS = (
    Component("core.image", "demo/core"),
    Component("core.sidecar.image", "ghcr.io/demo/sidecar"),
    Component("jobservice.image", "docker.io/demo/jobservice"),
    Component("jobservice.helper.image", "demo/helper"),
    Component("registry.registry.image", "demo/registry-photon"),
    Component("registry.controller.image", "demo/registryctl"),
    Component("trivy.image", "demo/trivy-adapter"),
    Component("database.internal.image", "demo/db"),
    Component("migration.image", "demo/migrate"),
    Component("smoke.image", "ghcr.io/demo/smoke"),
    Component("cache.image", "demo/valkey"),
    Component("nginx.image", "demo/nginx", "nodeport"),
    Component("exporter.image", "demo/exporter", "metrics"),
)
PROFILES: dict[str, dict[str, Any]] = {
    "default": {},
    "metrics": {"metrics": {"enabled": True}},
    "nodeport": {"expose": {"type": "nodePort"}},
}


def values(tag: str) -> dict[str, Any]:
    """Give the chart's default values, but for the subchart's."""
    document: dict[str, Any] = {
        "adminPassword": "change-me",
        "expose": {"type": "ingress", "host": "anchorage.example"},
        "metrics": {"enabled": False},
        "persistence": {"size": "1Gi"},
        "core": {"replicas": 1, "secret": ""},
        "trivy": {"dbRepository": "ghcr.io/aquasecurity/trivy-db"},
    }
    for component in COMPONENTS:
        *parents, last = component.key.split(".")
        where = document
        for parent in parents:
            where = where.setdefault(parent, {})
        where[last] = {"repository": component.repository, "tag": tag}
    return document


def _image(key: str) -> str:
    return f"{{{{ .Values.{key}.repository }}}}:{{{{ .Values.{key}.tag }}}}"


def _deployment(name: str, containers: str, kind: str = "Deployment", extra: str = "") -> str:
    service = f"\n  serviceName: {name}" if kind == "StatefulSet" else ""
    return f"""apiVersion: apps/v1
kind: {kind}
metadata:
  name: "{{{{ .Release.Name }}}}-{name}"
  labels: {{app: {name}}}
spec:{service}
  replicas: {{{{ .Values.core.replicas }}}}
  selector:
    matchLabels: {{app: {name}}}
  template:
    metadata:
      labels: {{app: {name}}}
      annotations:
        checksum/secret: {{{{ include (print $.Template.BasePath "/secret.yaml") . | sha256sum }}}}
    spec:
{containers}{extra}"""


def _templates() -> dict[str, str]:
    parts = {
        "core": _deployment(
            "core",
            f"""      containers:
      - name: core
        image: {_image("core.image")}
        env:
        - name: SIDECAR_IMAGE
          value: "{_image("core.sidecar.image")}"
""",
        ),
        "jobservice": _deployment(
            "jobservice",
            f"""      containers:
      - name: jobservice
        image: "{_image("jobservice.image")}"
        args:
        - --workers=4
        - --helper-image={_image("jobservice.helper.image")}
""",
        ),
        "registry": _deployment(
            "registry",
            f"""      containers:
      - name: registry
        image: {_image("registry.registry.image")}
      - name: registryctl
        image: '{_image("registry.controller.image")}'
""",
        ),
        "trivy": _deployment(
            "trivy",
            f"""      containers:
      - name: trivy
        image: {_image("trivy.image")}
        env:
        - name: SCANNER_TRIVY_DB_REPOSITORY
          value: {{{{ .Values.trivy.dbRepository | quote }}}}
""",
        ),
        "database": _deployment(
            "database",
            f"""      initContainers:
      - name: permissions
        image: {_image("database.internal.image")}
        command: ["/bin/true"]
      containers:
      - name: database
        image: {_image("database.internal.image")}
        volumeMounts:
        - {{name: data, mountPath: /data}}
""",
            "StatefulSet",
            """  volumeClaimTemplates:
  - apiVersion: v1\t
    kind: PersistentVolumeClaim
    metadata:
      name: data
    spec:
      accessModes: [ReadWriteOnce]
      resources:
        requests:
          storage: {{ .Values.persistence.size | quote }}
""",
        ),
        "migration": f"""{{{{- if .Release.IsUpgrade }}}}
apiVersion: batch/v1
kind: Job
metadata:
  name: "{{{{ .Release.Name }}}}-migration"
  annotations:
    helm.sh/hook: pre-upgrade
    helm.sh/hook-delete-policy: before-hook-creation
spec:
  template:
    spec:
      restartPolicy: Never
      containers:
      - name: migration
        image: {_image("migration.image")}
{{{{- end }}}}
""",
        "tests/smoke": f"""apiVersion: v1
kind: Pod
metadata:
  name: "{{{{ .Release.Name }}}}-smoke"
  annotations:
    helm.sh/hook: test
spec:
  restartPolicy: Never
  containers:
  - name: smoke
    image: {_image("smoke.image")}
""",
        "secret": """apiVersion: v1
kind: Secret
metadata:
  name: "{{ .Release.Name }}-core"
type: Opaque
data:
  secret: {{ .Values.core.secret | default (randAlphaNum 16) | b64enc | quote }}
  adminPassword: {{ .Values.adminPassword | b64enc | quote }}
""",
        "role": """apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: "{{ .Release.Name }}-core"
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: core:reader
subjects:
- {kind: ServiceAccount, name: default, namespace: "{{ .Release.Namespace }}"}
""",
        "service": """apiVersion: v1
kind: Service
metadata:
  name: "{{ .Release.Name }}-core"
spec:
  selector: {app: core}
  ports:
  - {name: http, port: 80, targetPort: 8080}
""",
        "ingress": """{{- if eq .Values.expose.type "ingress" }}
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: "{{ .Release.Name }}-ingress"
spec:
  rules:
  - host: {{ .Values.expose.host }}
    http:
      paths:
      - path: /
        pathType: Prefix
        backend:
          service:
            name: "{{ .Release.Name }}-core"
            port: {number: 80}
{{- end }}
""",
    }
    nginx = _deployment(
        "nginx",
        f"""      containers:
      - name: nginx
        image: {_image("nginx.image")}
""",
    )
    exporter = _deployment(
        "exporter",
        f"""      containers:
      - name: exporter
        image: "{_image("exporter.image")}"
""",
    )
    parts["nginx"] = f'{{{{- if ne .Values.expose.type "ingress" }}}}\n{nginx}{{{{- end }}}}\n'
    parts["exporter"] = f"{{{{- if .Values.metrics.enabled }}}}\n{exporter}{{{{- end }}}}\n"
    return {f"templates/{name}.yaml": text for name, text in parts.items()}


_SUBCHART = f"""apiVersion: v1
kind: Pod
metadata:
  name: "{{{{ .Release.Name }}}}-cache"
spec:
  containers:
  - name: cache
    image: {_image("image")}
"""


def metadata(version: str, tag: str) -> dict[str, Any]:
    """Chart.yaml."""
    return {
        "apiVersion": "v2",
        "name": CHART_NAME,
        "description": "Stands in for a registry's chart in tests and demo",
        "type": "application",
        "version": version,
        "appVersion": tag.removeprefix("v"),
        "dependencies": [{"name": "valkey", "version": "0.1.0", "alias": "cache"}],
    }


def chart(version: str = "1.2.3", tag: str = "v1.2.3") -> bytes:
    """Make the chart's ``.tgz``; ``tag`` is that of all its images. Same arguments, same bytes."""
    own = values(tag)
    sub = {"apiVersion": "v2", "name": "valkey", "version": "0.1.0"}
    files = {
        "Chart.yaml": yaml.safe_dump(metadata(version, tag), sort_keys=False),
        "values.yaml": yaml.safe_dump(own, sort_keys=False),
        **_templates(),
        "charts/valkey/Chart.yaml": yaml.safe_dump(sub, sort_keys=False),
        "charts/valkey/values.yaml": yaml.safe_dump({"image": own["cache"]["image"]}),
        "charts/valkey/templates/cache.yaml": _SUBCHART,
    }
    return archive({f"{CHART_NAME}/{name}": text.encode() for name, text in files.items()})


def archive(files: Mapping[str, bytes], *, executable: bool = False, level: int = 6) -> bytes:
    """Make a ``.tar.gz`` of these files in their order, without times or owners."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755 if executable else 0o644
            tar.addfile(entry, io.BytesIO(data))
    return gzipped(buffer.getvalue(), level)


def images_of(tag: str, profiles: Iterable[str] = PROFILES) -> set[str]:
    """Normalised references of all images that these profiles render."""
    wanted = {"default", *profiles}
    return {f"{item.reference}:{tag}" for item in COMPONENTS if item.profile in wanted}


def chart_artefact(tgz: bytes, version: str, tag: str) -> Image:
    """Make what ``helm push`` would store in a registry."""
    config = Content(HELM_CONFIG, json.dumps(metadata(version, tag)).encode())
    return artefact(config, [Content(HELM_CHART, tgz)])


class StaticServer(LoopbackServer):
    """Serve files from memory; ``files`` maps a path without leading slash to its bytes."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.files: dict[str, bytes] = {}

    def answer(self, request: Request) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return Answer(405)
        data = self.files.get(request.path.lstrip("/"))
        if data is None:
            return Answer(404, {"Content-Type": "text/plain"}, b"404 page not found\n")
        return Answer(200, {"Content-Type": "application/octet-stream"}, data, ranged=True)


class ChartRepository(StaticServer):
    """A static Helm repository: ``index.yaml`` and charts with relative addresses."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self._entries: list[dict[str, Any]] = []

    def add(self, tgz: bytes, version: str, tag: str) -> None:
        """Publish a chart."""
        name = f"charts/{CHART_NAME}-{version}.tgz"
        self.files[name] = tgz
        published = {
            "created": _CREATED,
            "digest": hashlib.sha256(tgz).hexdigest(),
            "urls": [name],
        }
        self._entries.insert(0, metadata(version, tag) | published)
        index = {
            "apiVersion": "v1",
            "entries": {CHART_NAME: self._entries},
            "generated": _CREATED,
        }
        self.files["index.yaml"] = yaml.safe_dump(index, sort_keys=False).encode()
