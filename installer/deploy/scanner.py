"""What Harbor's scanner needs of the site: where the databases are, and the authority to trust."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from installer.deploy.charts import find_chart, profile_values
from installer.harbor.vulnerability_data import repositories, trivy_values
from installer.helm.values import merge

if TYPE_CHECKING:
    from collections.abc import Mapping

    from installer.deploy.context import Context
    from installer.site.model import Release


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
    if not has_trivy(context, release) or not repositories(context.bundle.manifest.databases, "x"):
        return ""
    serve, push = context.site.seed.serve, context.site.seed.push
    if serve is not None:
        return str(context.state.path("seed") / "ca.crt") if serve.tls else ""
    return push.ca if push is not None else ""


def has_trivy(context: Context, release: Release) -> bool:
    """Whether a release is a Harbor with its own scanner."""
    if release.harbor is None:
        return False
    chart = find_chart(context.bundle.manifest, release)
    trivy = merge(profile_values(chart, release), release.values).get("trivy")
    return not isinstance(trivy, dict) or trivy.get("enabled") is not False
