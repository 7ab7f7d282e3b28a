"""What belongs to one Harbor besides its release, as steps in the order in which they build on it.

Before the release: its certificate, its role and database, and the companion chart with volume and
Secrets; a certificate of cert-manager's comes only after that chart, which asks for it. After the
release: the load balancer, through which Harbor is then asked whether it is healthy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from installer.deploy.cert_manager import IssuedSecret, check_api
from installer.deploy.certificates import HarborCertificate
from installer.deploy.check import HarborIsHealthy
from installer.deploy.companion import Companion
from installer.deploy.database import PrepareDatabase
from installer.deploy.haproxy import InstallHAProxy
from installer.deploy.internal_tls import InternalCertificates
from installer.deploy.kept_secrets import KeepSecrets
from installer.deploy.nodes import TellNodes
from installer.deploy.proxy import ShowCertificate
from installer.deploy.release import HelmRelease
from installer.deploy.settings import ApplySettings
from installer.harbor.values import issued_name
from installer.site.authority import utc_now

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from installer.deploy.cluster import ClusterInfo
    from installer.deploy.context import Context
    from installer.deploy.plan import Step
    from installer.site.harbor import Harbor
    from installer.site.model import Release


class HarborParts:
    """The steps around the release of a Harbor."""

    def __init__(
        self,
        context: Context,
        release: Release,
        harbor: Harbor,
        installed: HelmRelease,
        cluster: ClusterInfo,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        key = release.key
        self._context = context
        self._cluster = cluster
        self._release = release
        self._issued = IssuedSecret(
            lambda: context.kubectl, release.release_namespace, issued_name(release.release_name)
        )
        self.certificate = HarborCertificate(
            harbor,
            key,
            context.state,
            context.site.name,
            clock,
            issued=self._issued,
            timeout=release.timeout,
        )
        troubles = self._issued.troubles if self.certificate.in_cluster else list
        self.internal = InternalCertificates(context, release, clock)
        self.companion = Companion(
            context, release, self.certificate.files, troubles, internal=self.internal.files
        )
        self.secrets = KeepSecrets(context, release, installed.secrets)
        self._database: PrepareDatabase | None = None
        self._haproxy: InstallHAProxy | None = None
        if harbor.database is not None:
            self._database = PrepareDatabase(
                harbor.database,
                key,
                installed.database_password,
                installed.make_database_password,
            )
        if harbor.load_balancer is not None:
            self._haproxy = InstallHAProxy(harbor, key, self._pem)
        self._proxy = ShowCertificate(context, release, harbor, self.certificate.files)
        self._health = HarborIsHealthy(
            release, harbor, lambda: harbor.ca or self.certificate.ca_file()
        )
        self._settings = ApplySettings(context.site, release, harbor, context.state)

    def _pem(self) -> bytes | None:
        files = self.certificate.files()
        return files.pem if files else None

    @property
    def trusted_host(self) -> tuple[str, Callable[[], bytes | None]] | None:
        """What nodes pull from it under, and the authority for that; None without a certificate.

        None as well for one of cert-manager's: nodes are told when it is there.
        """
        if not self.certificate.is_needed() or self.certificate.in_cluster:
            return None
        return self.certificate.host, self.certificate.ca

    def preflights(self) -> dict[str, Callable[[], None]]:
        """What each part refuses before anything is changed, by the part's name for people.

        Each raises PreflightFailed or InvalidInput, and none waits for another.
        """
        parts: dict[str, Callable[[], None]] = {
            "secrets": self.secrets.preflight,
            "companion": self.companion.preflight,
        }
        if self.certificate.is_needed():
            parts["certificate"] = self.certificate.preflight
        if self.internal.is_needed():
            parts["internal TLS"] = self.internal.preflight
        if self.certificate.in_cluster:
            parts["cert-manager"] = self._check_cert_manager
        if self._database is not None:
            parts["database"] = self._database.preflight
        if self._haproxy is not None:
            parts["load balancer"] = self._haproxy.preflight
        return parts

    def _check_cert_manager(self) -> None:
        releases = self._context.site.releases
        earlier = releases[: releases.index(self._release)]
        brought = (HelmRelease(self._context, self._cluster, one).rendered() for one in earlier)
        objects = (rendering.objects for rendering in brought)
        check_api(self._release.key, self._cluster.api_versions, objects)

    def rendered(self) -> str:
        """Objects that are applied before the release's (YAML), for review."""
        return self.companion.rendered() if self.companion.is_needed() else ""

    def before(self) -> list[Step]:
        """What has to be done before the release, when the certificate of another kind is there."""
        # First: what is made with them can't be used without them.
        steps: list[Step] = [self.secrets, *([self._database] if self._database else [])]
        if self.internal.is_needed():
            steps.append(self.internal)
        if self.companion.is_needed():
            steps.append(self.companion)
        if self.certificate.in_cluster:
            nodes = TellNodes(
                self._context.site,
                self._context.state,
                lambda: None,
                harbors=[(self.certificate.host, self.certificate.ca)],
                later=self._release.key,
            )
            steps += [self.certificate, nodes]
        return steps

    def after(self) -> list[Step]:
        """What comes when the release is there."""
        steps: list[Step] = [self._haproxy] if self._haproxy else []
        if self._proxy.is_needed():
            steps.append(self._proxy)
        steps.append(self._health)
        if self._settings.is_needed():
            steps.append(self._settings)
        return steps
