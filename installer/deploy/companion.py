"""The companion chart: what Harbor stands on and its own chart does not make.

A volume with its claim, folders in it that belong to the right users, Secrets with certificates and
with the authorities that Harbor trusts, or what asks cert-manager for a certificate. It ships
with the installer (``manifests/companion``) and is installed by the bundle's Helm as a release of
its own before Harbor's. Its only image, for the job that makes the folders, is one of Harbor's own
from the bundle.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from installer.deploy import cert_manager
from installer.deploy.installed import ChartIdentity, InstalledRelease
from installer.deploy.scanner import seed_ca_file
from installer.errors import DeploymentFailed, PreflightFailed
from installer.harbor import values as chart_values
from installer.site.private import private_folder, read_file, write_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from importlib.resources.abc import Traversable

    from installer.deploy.context import Context
    from installer.site.certificate import TlsFiles
    from installer.site.model import Release

_SHELLS = ("goharbor/harbor-db", "goharbor/registry-photon")
"""Images of Harbor's with a shell, mkdir and chown; the first that the bundle has is taken."""


class Companion:
    """Bring the release ``NAME-companion`` to what site.yaml says of ``release``, a Harbor."""

    def __init__(
        self,
        context: Context,
        release: Release,
        tls: Callable[[], TlsFiles | None],
        troubles: Callable[[], list[str]] = list,
        *,
        internal: Callable[[], Mapping[str, TlsFiles] | None] = lambda: None,
    ) -> None:
        """``tls`` gives the certificate, None before it is made.

        ``internal`` gives those between the components, by component, None before they are made.
        ``troubles`` says what keeps a certificate from being issued in the cluster.
        """
        if release.harbor is None:
            raise ValueError(f"{release.key} is no Harbor")
        self._context = context
        self._release = release
        self._harbor = release.harbor
        self._tls = tls
        self._troubles = troubles
        self._internal = internal
        self._installed = InstalledRelease(
            context, release.release_namespace, f"{release.release_name}-companion"
        )
        self.name = f"companion:{release.key}"

    @property
    def sentence(self) -> str:
        """What applying it does."""
        values = self.values()
        parts = {
            "volume": "the volume",
            "tls": "the certificate",
            "certificate": "the request for its certificate",
            "internalTLS": "its components' certificates",
            "caBundle": "the trusted authorities",
        }
        named = [text for key, text in parts.items() if key in values]
        return f"Give {self._release.key} " + " and ".join(filter(None, named))

    def is_needed(self) -> bool:
        """Whether site.yaml asks for anything that the chart makes."""
        return bool(self.values())

    def values(self) -> dict[str, Any]:
        """Values of the companion chart; certificates are missing before they are made."""
        values: dict[str, Any] = {}
        if volume := self._volume():
            values["volume"] = volume
            values["folders"] = [
                {"name": name, "owner": owner} for name, owner in chart_values.OWNERS.items()
            ]
            values["image"] = self._shell()
        certificate = self._harbor.certificate
        if certificate and certificate.cert_manager:
            values["certificate"] = cert_manager.chart_values(
                self._harbor, certificate.cert_manager, self._release.release_name
            )
        elif chart_values.speaks_tls(self._harbor) and certificate and not certificate.secret:
            files = self._tls()
            values["tls"] = _secret(chart_values.tls_name(self._release.release_name), files)
        if self._harbor.internal_tls is not None:
            values["internalTLS"] = self._internal_secrets()
        seed_ca = seed_ca_file(self._context, self._release)
        if trusted := chart_values.trusted_files(self._harbor, seed_ca):
            data = b"\n".join((read_file(Path(path)) or b"").strip() for path in trusted)
            values["caBundle"] = {
                "name": chart_values.ca_name(self._release.release_name),
                "certificates": data.decode(errors="replace") + "\n",
            }
        return values

    def _internal_secrets(self) -> list[dict[str, str]]:
        name, files = self._release.release_name, self._internal() or {}
        return [
            _secret(chart_values.internal_name(name, component), files.get(component))
            for component in chart_values.INTERNAL
        ]

    def _volume(self) -> dict[str, Any]:
        storage = self._harbor.storage
        if storage is None or not (storage.nfs or storage.host_path):
            return {}
        release = self._release
        volume: dict[str, Any] = {
            # Volumes have no namespace: the name has to tell sites of one cluster apart.
            "name": f"{self._context.site.name}-{release.key.replace('/', '-')}",
            "claim": chart_values.volume_name(release.release_name),
        }
        if nfs := storage.nfs:
            return volume | {
                "size": nfs.size,
                "mountOptions": list(nfs.mount_options),
                "source": {"nfs": {"server": nfs.server, "path": nfs.path}},
            }
        if folder := storage.host_path:
            volume |= {
                "size": folder.size,
                "source": {"hostPath": {"path": folder.path, "type": "DirectoryOrCreate"}},
            }
        return volume

    def _shell(self) -> str:
        for name in _SHELLS:
            if found := self._context.images.named(name):
                return str(found)
        raise PreflightFailed(
            f"release {self._release.key}: the bundle has none of {', '.join(_SHELLS)}",
            hint="one of them makes the folders in the volume: build the bundle with Harbor's "
            "default profile",
        )

    @cached_property
    def _files(self) -> dict[str, bytes]:
        return dict(_files(resources.files("manifests").joinpath("companion")))

    @cached_property
    def _chart(self) -> ChartIdentity:
        described = yaml.safe_load(self._files["Chart.yaml"])
        digest = hashlib.sha256()
        for name, data in sorted(self._files.items()):
            digest.update(f"{name}\0{len(data)}\0".encode() + data)
        return ChartIdentity(described["name"], described["version"], digest.hexdigest())

    def _unpacked(self) -> Path:
        folder = private_folder(self._context.workspace / "companion")
        private_folder(folder / "templates")
        for name, data in self._files.items():
            write_file(folder / name, data)
        return folder

    def rendered(self) -> str:
        """Give its objects, for review; raises InvalidInput."""
        return self._context.helm.template(
            self._unpacked(), self._installed.name, self._installed.namespace, self.values()
        )

    def preflight(self) -> None:
        """Refuse what can be refused before anything is changed; raises PreflightFailed."""
        self.values()

    def check(self) -> bool:
        """Whether it is deployed with these values."""
        values = self.values()
        if not all("key" in secret for secret in _tls_secrets(values)):
            return False
        return self._installed.is_at(self._chart, values)

    def apply(self) -> str:
        """Install or upgrade it; raises DeploymentFailed, also when the volume can't be used."""
        values = self.values()
        secrets = [secret["key"] for secret in _tls_secrets(values)]
        secrets += cert_manager.secrets_of(values.get("certificate", {}))
        try:
            self._installed.bring_to(
                self._unpacked(),
                self._chart,
                values,
                timeout=self._release.timeout,
                secrets=secrets,
            )
        except DeploymentFailed as error:
            # Helm waits for the certificate as well, and says nothing of why it does not come.
            error.hint = "; ".join([*self._troubles(), error.hint])
            raise
        return ""


def _secret(name: str, files: TlsFiles | None) -> dict[str, str]:
    """Values of a Secret with a certificate, only its name before that is made."""
    if files is None:
        return {"name": name}
    return {
        "name": name,
        "certificate": files.chain.decode(),
        "key": files.key.decode(),
        "ca": files.ca.decode(),
    }


def _tls_secrets(values: Mapping[str, Any]) -> list[dict[str, str]]:
    return [*([values["tls"]] if "tls" in values else []), *values.get("internalTLS", [])]


def _files(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry, f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}", entry.read_bytes()
