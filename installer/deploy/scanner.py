"""What Harbor's scanner needs of the site: where the databases are, and the authority to trust.

Trivy sends the registry of its databases the login of the image that it scans, or none: both are
strangers there. So a registry of the site's has to let everybody read them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from installer.deploy.charts import find_chart, profile_values
from installer.errors import AcceptanceFailed, AirgapError
from installer.harbor.vulnerability_data import default_tag, repositories, trivy_values
from installer.helm.values import merge
from installer.oci.hosts import RegistryConfig, RegistryEntry, RegistryHosts
from installer.oci.reference import Reference
from installer.oci.registry import RegistryStore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from installer.bundle.manifest import Database
    from installer.deploy.context import Context
    from installer.site.model import Push, Release


def scanner_values(context: Context, chart: Mapping[str, Any]) -> dict[str, Any]:
    """Values for Trivy's adapter; ``chart`` are the defaults of Harbor's."""
    serve, push = context.site.seed.serve, context.site.seed.push
    plain_http = not serve.tls if serve else bool(push and push.plain_http)
    databases = context.bundle.manifest.databases
    return trivy_values(chart, databases, context.site.image_prefix, plain_http=plain_http)


def seed_ca_file(context: Context, release: Release) -> str:
    """Path of what the seed registry's certificate is checked with, "" if Harbor never asks it.

    The file may not be there before the seed registry is.
    """
    if not repositories(context.bundle.manifest.databases, "x") or not has_trivy(context, release):
        return ""
    serve, push = context.site.seed.serve, context.site.seed.push
    if serve is not None:
        return str(context.state.path("seed") / "ca.crt") if serve.tls else ""
    return push.ca if push is not None else ""


class DatabasesAreReadable:
    """Whoever asks the site's registry for a database gets it."""

    name = "databases"

    def __init__(self, push: Push, databases: Sequence[Database]) -> None:
        self._push = push
        self._repositories = repositories(databases, push.registry)
        self.sentence = f"Check that {push.registry} lets Trivy read its databases without a login"

    def check(self) -> bool:
        """Whether it is so at this moment."""
        try:
            self.apply()
        except AirgapError:
            return False
        return True

    def apply(self) -> str:
        """Ask for each; raises AcceptanceFailed that names one that is not given."""
        push = self._push
        host = push.registry.partition("/")[0]
        scheme = "http" if push.plain_http else "https"
        hosts = RegistryHosts(
            RegistryConfig({host: RegistryEntry((f"{scheme}://{host}",), push.ca)})
        )
        with RegistryStore(host, hosts, environment=False) as registry:
            for kind, repository in self._repositories.items():
                reference = Reference.parse(repository)
                try:
                    registry.resolve(reference.path, reference.tag or default_tag(kind))
                except AirgapError as error:
                    raise AcceptanceFailed(
                        f"Trivy can't read {repository}: {error.message}",
                        hint="let everybody pull this repository: Trivy sends no login for it",
                    ) from error
        return ""


def has_trivy(context: Context, release: Release) -> bool:
    """Whether a release is a Harbor with its own scanner."""
    if release.harbor is None:
        return False
    chart = find_chart(context.bundle.manifest, release)
    trivy = merge(profile_values(chart, release), release.values).get("trivy")
    return not isinstance(trivy, dict) or trivy.get("enabled") is not False
