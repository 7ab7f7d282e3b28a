"""One Helm release: its values, the proof that the bundle carries its images, and its upgrade.

Values, each over the one before: the chart's defaults, what an isolated Harbor needs (no downloads
by Trivy), the profile from the bundle, site.yaml, and what is generated: the place and digest of
each image and the secrets. The result is rendered before it is applied, and every image of the
rendered objects must be one of the bundle's at the seed registry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from installer.deploy.charts import find_chart, profile_values
from installer.deploy.installed import ChartIdentity, InstalledRelease
from installer.deploy.internal_tls import InternalCertificates
from installer.deploy.scanner import scanner_values, seed_ca_file
from installer.errors import DeploymentFailed, InvalidInput
from installer.harbor.values import harbor_values, overlapping
from installer.helm.chart import ChartArchive
from installer.helm.images import find_images
from installer.helm.overlay import image_overlay
from installer.helm.values import coalesce, merge, unknown_keys
from installer.redaction import secret_texts
from installer.site import credentials
from installer.site.private import private_folder, read_secret, write_file

if TYPE_CHECKING:
    from installer.deploy.cluster import ClusterInfo
    from installer.deploy.context import Context
    from installer.helm.client import Helm
    from installer.helm.images import FoundImage
    from installer.site.credentials import HarborSecrets
    from installer.site.harbor import Harbor
    from installer.site.model import Release

_WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet")


@dataclass(frozen=True)
class Rendering:
    """What an installation would apply (YAML), and the images of that and of an upgrade.

    An upgrade may have other hooks. ``secrets`` are texts in the objects that nobody shall see.
    """

    objects: str = field(repr=False)
    images: tuple[FoundImage, ...]
    secrets: tuple[str, ...] = field(repr=False)


class HelmRelease:
    """Bring one release of the site to the bundle's chart and images."""

    def __init__(self, context: Context, cluster: ClusterInfo, release: Release) -> None:
        self._context = context
        self._cluster = cluster
        self._release = release
        self._entry = find_chart(context.bundle.manifest, release)
        self._identity = ChartIdentity(self._entry.name, self._entry.version, self._entry.sha256)
        self._installed = InstalledRelease(context, release.release_namespace, release.release_name)
        self.namespace = release.release_namespace
        self.name = f"release:{release.key}"
        self.sentence = (
            f"Install or upgrade {release.key} to {self._entry.name} {self._entry.version}"
        )

    @cached_property
    def _chart(self) -> ChartArchive:
        name = f"{self._entry.name}-{self._entry.version}.tgz"
        return ChartArchive.read(self._context.chart_bytes(self._entry), name)

    @cached_property
    def _passing(self) -> HarborSecrets:
        """Secrets to look at a rendering with; never stored."""
        return credentials.generate()

    def values(self, secrets: HarborSecrets | None) -> dict[str, Any]:
        """Everything that is over the chart's defaults; raises InvalidInput."""
        release, chart = self._release, self._chart
        below = scanner_values(self._context, chart.values) if release.harbor else {}
        layers = merge(below, profile_values(self._entry, release), release.values)
        if release.harbor is not None and secrets is not None:
            filled = merge(secrets.values(), self._sections(release.harbor, secrets))
            self._check_choice(filled)
            layers = merge(layers, filled)
        overlay = image_overlay(
            chart.values, layers, self._context.images.target, chart.app_version
        )
        values = merge(layers, overlay)
        for unknown in unknown_keys(values, chart.values, commented=chart.commented):
            meant = f", did you mean {unknown.suggestion!r}?" if unknown.suggestion else ""
            raise InvalidInput(
                f"release {release.key}: values: {unknown.path}: "
                f"{chart.name} {chart.version} has no such value{meant}",
                hint="Helm would ignore it in silence; `helm show values` lists what there is",
            )
        if release.harbor is not None:
            credentials.check_defaults(coalesce(chart.values, values), release.key)
        return values

    def database_password(self) -> str | None:
        """Password of Harbor's role in an external database, None before it is made."""
        made = self._kept()
        return self._database_password(made) if made else self._written_password()

    def make_database_password(self) -> str:
        """The same, made and kept if there is none yet."""
        made = self.secrets()
        if made is None:
            raise ValueError(f"{self._release.key} is no Harbor")
        return self._database_password(made)

    def _database_password(self, made: HarborSecrets) -> str:
        return self._written_password() or made.database_password

    def _written_password(self) -> str | None:
        database = self._release.harbor.database if self._release.harbor else None
        if database is None or not database.password_file:
            return None
        return read_secret(Path(database.password_file))

    def _sections(self, harbor: Harbor, made: HarborSecrets) -> dict[str, Any]:
        redis_file = harbor.redis.password_file if harbor.redis else ""
        return harbor_values(
            harbor,
            self._release.release_name,
            database_password=self._database_password(made),
            redis_password=read_secret(Path(redis_file)) if redis_file else "",
            internal_marks=InternalCertificates(self._context, self._release).marks(),
            seed_ca=seed_ca_file(self._context, self._release),
        )

    def _check_choice(self, filled: dict[str, Any]) -> None:
        chosen = ", ".join(overlapping(filled, self._release.values))
        if chosen:
            raise InvalidInput(
                f"release {self._release.key}: values: {chosen}: the installer fills it",
                hint="the section harbor of the release is where you choose: externalURL, "
                "expose, storage, database, …; secrets are generated once and kept",
            )

    def preflight(self) -> None:
        """Everything that can be refused before anything is changed.

        Raises InvalidInput for values, PreflightFailed for an image that the bundle lacks.
        """
        if self._kept() is None:
            self._chosen_password()
        self.rendered()

    def rendered(self) -> Rendering:
        """Render with the site's secrets or, before its first run, passing ones.

        Raises InvalidInput for values, PreflightFailed for an image that the bundle lacks.
        """
        secrets = self._kept() or self._passing
        return self._render(self._context.helm, self.values(secrets), secrets)

    def has_workloads(self) -> bool:
        """Whether pods belong to it for as long as it is installed."""
        return any(image.origin.kind in _WORKLOADS for image in self.rendered().images)

    def check(self) -> bool:
        """Whether it is deployed with this chart and these values."""
        secrets = self._kept()
        if self._release.harbor is not None and secrets is None:
            return False
        return self._installed.is_at(self._identity, self.values(secrets))

    def apply(self) -> str:
        """Render, check the images, and let Helm do it; raises DeploymentFailed."""
        secrets = self.secrets()
        values = self.values(secrets)
        self._render(self._context.helm, values, secrets)
        self._installed.bring_to(
            self._context.chart_file(self._entry),
            self._identity,
            values,
            timeout=self._release.timeout,
            secrets=secret_texts(values, secrets.texts() if secrets else ()),
        )
        return ""

    def secrets(self) -> HarborSecrets | None:
        """Harbor's secrets, made and kept if there are none yet; None for other charts."""
        return self._kept() or self._make_secrets(self._context.helm)

    def _kept(self) -> HarborSecrets | None:
        if self._release.harbor is None:
            return None
        return credentials.kept(self._context.state, self._release.key)

    def _chosen_password(self) -> str:
        harbor = self._release.harbor
        if harbor is None or not harbor.admin_password_file:
            return ""
        return credentials.read_password(Path(harbor.admin_password_file))

    def _make_secrets(self, helm: Helm) -> HarborSecrets | None:
        if self._release.harbor is None:
            return None
        made = credentials.generate(admin_password=self._chosen_password())
        line = _htpasswd(helm, private_folder(self._context.workspace / "htpasswd"), made)
        made = msgspec.structs.replace(made, registry_htpasswd=line)
        credentials.keep(self._context.state, self._release.key, made)
        return made

    def _render(self, helm: Helm, values: dict[str, Any], made: HarborSecrets | None) -> Rendering:
        release = self._release
        secrets = secret_texts(values, made.texts() if made else ())
        install, upgrade = (
            helm.template(
                self._context.chart_file(self._entry),
                release.release_name,
                release.release_namespace,
                values,
                kube_version=self._cluster.version,
                api_versions=self._cluster.api_versions,
                is_upgrade=is_upgrade,
                profile=release.profile,
                secrets=secrets,
            )
            for is_upgrade in (False, True)
        )
        images = tuple(dict.fromkeys([*find_images(install), *find_images(upgrade)]))
        self._context.images.check(images, release.key)
        return Rendering(install, images, secrets)


def _htpasswd(helm: Helm, folder: Path, secrets: HarborSecrets) -> str:
    """Make the registry's htpasswd line, as the chart would, but once: with Helm's own bcrypt."""
    write_file(
        folder / "Chart.yaml", b"apiVersion: v2\nname: htpasswd\nversion: 1.0.0\nappVersion: '1'\n"
    )
    private_folder(folder / "templates")
    write_file(
        folder / "templates" / "line.yaml",
        b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: htpasswd}\n"
        b"data:\n  line: {{ htpasswd .Values.user .Values.password | quote }}\n",
    )
    rendered = helm.template(
        folder,
        "htpasswd",
        "default",
        {"user": secrets.registry_user, "password": secrets.registry_password},
        secrets=secrets.texts(),
    )
    found = re.search(r'^  line: "([^"\\]+:\$2[aby]\$[^"\\]+)"$', rendered, re.MULTILINE)
    if found is None:
        raise DeploymentFailed("Helm made no bcrypt line for the registry's password")
    return found[1]
