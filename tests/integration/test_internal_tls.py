"""TLS between Harbor's components: what the published charts ask for is what is made and kept."""

from __future__ import annotations

import base64
import re
import subprocess
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509

from installer.deploy.companion import Companion
from installer.deploy.internal_tls import InternalCertificates
from installer.harbor.values import INTERNAL
from installer.helm.images import read_objects
from installer.site.harbor import Harbor, InternalTls

# `make_context` is a fixture: pytest finds it by its name here.
from tests.integration.test_run_parts import HARBOR, make_context, release_of  # noqa: F401

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from installer.deploy.context import Context

NOW = datetime.now(UTC)
SECTION = Harbor("http://10.0.0.5:30002", internal_tls=InternalTls())
METRICS = {"metrics": {"enabled": True}}


class Clock:
    now = NOW

    def __call__(self) -> datetime:
        return self.now


def internal(context: Context, clock: Clock | None = None) -> InternalCertificates:
    return InternalCertificates(context, context.site.releases[0], clock or Clock())


def rendered(context: Context) -> dict[str, dict[str, Any]]:
    """Objects of Harbor and of its companion by kind and name."""
    made = internal(context)
    companion = Companion(context, context.site.releases[0], lambda: None, internal=made.files)
    text = release_of(context).rendered().objects + companion.rendered()
    documents = [one for _, one in read_objects(text) if isinstance(one, dict)]
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in documents}


def pods(objects: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        one["metadata"]["labels"]["component"]: one["spec"]["template"]
        for one in objects.values()
        if one["kind"] in ("Deployment", "StatefulSet")
    }


def names_of(secret: dict[str, Any]) -> set[str]:
    leaf = x509.load_pem_x509_certificate(base64.b64decode(secret["data"]["tls.crt"]))
    found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(found.get_values_for_type(x509.DNSName))


@pytest.mark.parametrize("version", HARBOR)
@pytest.mark.parametrize("name", ["harbor", "hub"])
def test_every_pod_mounts_a_certificate_for_the_names_that_others_ask_for(
    make_context: Callable[..., Context],  # noqa: F811 (the fixture above)
    helm: Path,
    version: str,
    name: str,
) -> None:
    context = make_context(version, helm, name=name, harbor=SECTION, values=METRICS)
    made = internal(context)
    made.preflight()
    assert not made.check()
    made.apply()
    assert made.check()
    objects = rendered(context)
    mounted = {}
    for component, pod in pods(objects).items():
        for volume in pod["spec"].get("volumes", []):
            if volume["name"].endswith("-internal-certs"):
                secret = objects[f"Secret/{volume['secret']['secretName']}"]
                assert set(secret["data"]) == {"tls.crt", "tls.key", "ca.crt"}
                mounted[component] = secret
        mark = pod["metadata"].get("annotations", {}).get("checksum/internal-tls")
        assert bool(mark) == (component in mounted), component
    assert set(mounted) == {*INTERNAL, "exporter"}
    services = {
        one["metadata"]["name"]: one["spec"]["selector"]["component"]
        for one in objects.values()
        if one["kind"] == "Service"
    }
    texts = [str(one) for one in objects.values() if one["kind"] == "ConfigMap"]
    asked = {host for text in texts for host in re.findall(r"https://([\w.-]+)", text)}
    asked &= set(services)
    assert {services[host] for host in asked} >= set(INTERNAL)
    for host in asked:
        assert host in names_of(mounted[services[host]])


def test_each_is_good_for_a_server_and_a_client(
    make_context: Callable[..., Context],  # noqa: F811 (the fixture above)
    helm: Path,
) -> None:
    context = make_context("1.19.1", helm, harbor=SECTION, values={})
    made = internal(context)
    made.apply()
    folder = context.state.path("tls/harbor/harbor/internal")
    for component in INTERNAL:
        for purpose in ("sslserver", "sslclient"):
            argv = ["openssl", "verify", "-x509_strict", "-purpose", purpose]
            argv += ["-CAfile", f"{folder}/ca.crt", f"{folder}/{component}.crt"]
            subprocess.run(argv, check=True, capture_output=True)
        assert (folder / f"{component}.key").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_is_renewed_restarts_the_pods_that_have_it(
    make_context: Callable[..., Context],  # noqa: F811 (the fixture above)
    helm: Path,
) -> None:
    context = make_context("1.18.4", helm, harbor=SECTION, values=METRICS)
    clock = Clock()
    release_of(context).secrets()
    made = internal(context, clock)
    made.apply()
    before = pods(rendered(context))
    assert pods(rendered(context)) == before
    folder = context.state.path("tls/harbor/harbor/internal")
    (folder / "core.crt").unlink()
    assert made.files() is None
    assert made.marks() == {}
    made.apply()
    after = pods(rendered(context))
    assert {one for one in after if after[one] != before[one]} == {"core", "exporter"}
    root = (folder / "ca.crt").read_bytes()
    key = (folder / "ca.key").read_bytes()
    clock.now = NOW + timedelta(days=3300)
    assert not made.check()
    made.apply()
    assert made.check()
    assert (folder / "ca.key").read_bytes() == key
    assert (folder / "ca.crt").read_bytes() != root
    renewed = pods(rendered(context))
    assert {one for one in renewed if renewed[one] != after[one]} == {*INTERNAL, "exporter"}


def test_before_they_are_made_the_plan_is_rendered_all_the_same(
    make_context: Callable[..., Context],  # noqa: F811 (the fixture above)
    helm: Path,
) -> None:
    context = make_context("1.19.1", helm, harbor=SECTION, values={})
    made = internal(context)
    companion = Companion(context, context.site.releases[0], lambda: None, internal=made.files)
    assert companion.is_needed()
    assert "its components' certificates" in companion.sentence
    assert not companion.check()
    objects = rendered(context)
    assert {f"Secret/harbor-internal-{one}-tls" for one in INTERNAL} <= set(objects)
    assert not context.state.path("tls").exists()
    made.apply()
    (secret, *_) = companion.values()["internalTLS"]
    assert secret["key"].startswith("-----BEGIN PRIVATE KEY-----")
