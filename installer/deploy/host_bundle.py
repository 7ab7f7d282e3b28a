"""Harbor hosts what the bundle carries: images, charts and databases for teams and other clusters.

They go into a project of Harbor's, along the same path as a push into any registry. Harbor's own
nodes go on pulling from the seed registry: a Harbor that is down can't give out its own images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from installer.bundle.catalog import catalog
from installer.deploy.harbor_access import access_to
from installer.errors import AirgapError
from installer.oci.bundle_store import BundleStore
from installer.oci.copy import CopyItem, copy

if TYPE_CHECKING:
    from installer.bundle.archive import VerifiedBundle
    from installer.deploy.harbor_access import HarborAccess
    from installer.deploy.plan import Meter
    from installer.site.harbor import HostBundle
    from installer.site.model import Release, Site
    from installer.site.state import State

_THREADS = 4


class HostBundleInHarbor:
    """Copy everything of the bundle into a project of the Harbor that ``release`` is."""

    def __init__(
        self,
        site: Site,
        state: State,
        release: Release,
        wanted: HostBundle,
        bundle: VerifiedBundle,
        meter: Meter,
    ) -> None:
        self._site = site
        self._state = state
        self._key = release.key
        self._wanted = wanted
        self._bundle = bundle
        self._meter = meter
        self.name = f"host:{release.key}"
        self.sentence = f"Copy the bundle's content into project {wanted.project} of {release.key}"

    def _access(self) -> HarborAccess:
        return access_to(self._site, self._state, self._key)

    def _items(self) -> list[CopyItem]:
        return [
            CopyItem(
                named.repository,
                f"{self._wanted.project}/{named.repository}",
                named.content.root,
                (named.tag,) if named.tag else (),
            )
            for named in catalog(self._bundle.manifest)
        ]

    def check(self) -> bool:
        """Whether the project has every root under its tag; False also if it can't be asked."""
        try:
            with self._access().registry() as registry:
                for item in self._items():
                    versions = item.tags or (str(item.root.digest),)
                    for version in versions:
                        there = registry.resolve(item.target_repository, version)
                        if there.digest != item.root.digest:
                            return False
        except AirgapError:
            return False
        return True

    def apply(self) -> str:
        """Make the project if there is none, and copy what is missing; raises TransferFailed."""
        access, project = self._access(), self._wanted.project
        with access.client() as client:
            if not client.exists("/projects", {"project_name": project}):
                public = str(self._wanted.public).lower()
                document = {"project_name": project, "metadata": {"public": public}}
                client.post("/projects", document)
        total = self._bundle.content_size
        with access.registry() as registry, self._meter("copying", total) as advance:
            store = BundleStore(self._bundle)
            done = copy(store, registry, self._items(), threads=_THREADS, progress=advance)
        charts = f"{access.host}/{project}/charts/NAME"
        return (
            f"{done.blobs_moved} blobs and {done.manifests_moved} manifests copied; for others: "
            f"docker pull {access.host}/{project}/…, helm pull oci://{charts}"
        )
