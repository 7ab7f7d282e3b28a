"""Harbor's own nginx reads its certificate when it starts: a renewed one needs new pods.

Kubernetes puts the new files into the pod, and nothing tells nginx. Whether it matters is asked
where it shows, at ``externalURL``: if what is served there is not the leaf that Harbor has, nginx
is restarted, pod by pod. An ingress controller watches its Secret, and HAProxy has a step of its
own.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec
from cryptography.hazmat.primitives import hashes

from installer.deploy.shown import shown_leaf
from installer.harbor.values import speaks_tls
from installer.site.certificate import load_certificates
from installer.site.harbor import Expose

if TYPE_CHECKING:
    from collections.abc import Callable

    from installer.deploy.context import Context
    from installer.site.certificate import TlsFiles
    from installer.site.harbor import Harbor
    from installer.site.model import Release

_HTTPS = 443
_PATIENCE = 20.0
_PAUSE = 1.0


class _Shown(msgspec.Struct, frozen=True):
    """SHA-256 of the leaf that nginx was restarted for, in hex."""

    leaf: str


class ShowCertificate:
    """Restart Harbor's nginx when another certificate is served than Harbor has."""

    def __init__(
        self,
        context: Context,
        release: Release,
        harbor: Harbor,
        tls: Callable[[], TlsFiles | None],
    ) -> None:
        """``tls`` gives the certificate that Harbor has, None before it is there."""
        self._context = context
        self._release = release
        self._harbor = harbor
        self._tls = tls
        self._record = f"tls/{release.key}/shown.json"
        self.name = f"proxy:{release.key}"
        self.sentence = f"Have {harbor.external_url} show Harbor's certificate"

    def is_needed(self) -> bool:
        """Whether there is an nginx that ends TLS, with a certificate that is seen to here."""
        certificate = self._harbor.certificate
        exposed = (self._harbor.expose or Expose()).type
        return (
            speaks_tls(self._harbor)
            and exposed != "ingress"
            and not (certificate and certificate.secret)
        )

    def check(self) -> bool:
        """Whether it is served, or nginx was restarted for it: others may end TLS before it."""
        leaf = self._leaf()
        if leaf is None:
            return False
        kept = self._context.state.read(self._record, _Shown)
        return kept == _Shown(leaf) or self._served() == leaf

    def apply(self) -> str:
        """Restart it and wait; raises DeploymentFailed when new pods don't get ready."""
        leaf, served = self._leaf(), self._served()
        end = time.monotonic() + _PATIENCE
        while served is None and time.monotonic() < end:  # a node port answers a little later
            time.sleep(_PAUSE)
            served = self._served()
        if leaf is None or served in (None, leaf):
            return ""  # where nothing answers, the check of Harbor's health says so
        selector = f"--selector=release={self._release.release_name},component=nginx"
        where = f"--namespace={self._release.release_namespace}"
        kubectl, timeout = self._context.kubectl, self._release.timeout
        kubectl.run("rollout", "restart", "deployment", selector, where)
        waiting = ("rollout", "status", "deployment", selector, where, f"--timeout={timeout}s")
        kubectl.run(*waiting, timeout=timeout)
        self._context.state.subfolder(f"tls/{self._release.key}")
        self._context.state.write(self._record, _Shown(leaf))
        return ""

    def _leaf(self) -> str | None:
        files = self._tls()
        certificates = load_certificates(files.chain) if files else []
        return certificates[0].fingerprint(hashes.SHA256()).hex() if certificates else None

    def _served(self) -> str | None:
        parts = urlsplit(self._harbor.external_url)
        try:
            leaf = shown_leaf(parts.hostname or "", parts.port or _HTTPS)
        except (OSError, ValueError):
            return None
        return leaf.fingerprint(hashes.SHA256()).hex()
