"""What belongs to one Harbor besides its release, as steps in the order in which they build on it.

Before the release: its certificate, its role and database, and the companion chart with volume and
Secrets. After it: the load balancer, through which it is then asked whether it is healthy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from installer.deploy.certificates import HarborCertificate
from installer.deploy.check import HarborIsHealthy
from installer.deploy.companion import Companion
from installer.deploy.database import PrepareDatabase
from installer.deploy.haproxy import InstallHAProxy
from installer.site.authority import utc_now

if TYPE_CHECKING:
    from collections.abc import Callable

    from installer.deploy.context import Context
    from installer.deploy.plan import Step
    from installer.deploy.release import HelmRelease
    from installer.site.harbor import Harbor
    from installer.site.model import Release


class HarborParts:
    """The steps around the release of a Harbor."""

    def __init__(
        self, context: Context, release: Release, harbor: Harbor, installed: HelmRelease
    ) -> None:
        key = release.key
        self.certificate = HarborCertificate(harbor, key, context.state, context.site.name, utc_now)
        self._companion = Companion(context, release, self.certificate.files)
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
        self._health = HarborIsHealthy(
            release, harbor, lambda: harbor.ca or self.certificate.ca_file()
        )

    def _pem(self) -> bytes | None:
        files = self.certificate.files()
        return files.pem if files else None

    @property
    def trusted_host(self) -> tuple[str, Callable[[], bytes | None]] | None:
        """What nodes pull from it under, and the authority for that; None without a certificate."""
        if not self.certificate.is_needed():
            return None
        return self.certificate.host, self.certificate.ca

    def preflight(self) -> None:
        """Refuse what can be refused before anything is changed."""
        self.certificate.preflight()
        self._companion.preflight()
        for step in (self._database, self._haproxy):
            if step is not None:
                step.preflight()

    def rendered(self) -> str:
        """Objects that are applied before the release's (YAML), for review."""
        return self._companion.rendered() if self._companion.is_needed() else ""

    def before(self) -> list[Step]:
        """What has to be done before the release, when the certificate is there."""
        steps: list[Step] = [self._database] if self._database else []
        if self._companion.is_needed():
            steps.append(self._companion)
        return steps

    def after(self) -> list[Step]:
        """What comes when the release is there."""
        return [*([self._haproxy] if self._haproxy else []), self._health]
