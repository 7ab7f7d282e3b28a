"""Certificates for TLS between Harbor's components, by an authority that nobody else trusts.

Harbor's chart would make them itself (``certSource: auto``), but anew at each upgrade and for a
year only. So they are made here once and kept, as the certificate of ``externalURL`` is, and the
companion chart brings them into the cluster. The authority is another one than that of people: who
is given that one to trust shall not trust what runs in the cluster's pods, and the other way round.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from installer.harbor.values import INTERNAL, internal_hosts
from installer.site import authority
from installer.site.certificate import TlsFiles
from installer.site.private import read_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from installer.deploy.context import Context
    from installer.site.model import Release


class InternalCertificates:
    """Make, keep and renew a certificate for each component of ``release``, a Harbor."""

    def __init__(
        self,
        context: Context,
        release: Release,
        clock: Callable[[], datetime] = authority.utc_now,
    ) -> None:
        self._context = context
        self._release = release
        self._clock = clock
        self._hosts = internal_hosts(release.release_name)
        self._place = f"tls/{release.key}/internal"
        self._folder = context.state.path(self._place)
        self.name = f"internal-tls:{release.key}"
        self.sentence = f"Make certificates for TLS between the components of {release.key}"

    def is_needed(self) -> bool:
        """Whether site.yaml asks for them."""
        harbor = self._release.harbor
        return harbor is not None and harbor.internal_tls is not None

    def preflight(self) -> None:
        """Raise PreflightFailed for a clock that is wrong, InvalidInput for impossible names."""
        for component, hosts in self._hosts.items():
            authority.general_names(hosts)
            authority.check_clock(self._folder, self._clock(), component)

    def check(self) -> bool:
        """Whether all are there, are for the right names, and last."""
        now = self._clock()
        return all(
            authority.leaf_is_good(self._folder, hosts, now, component)
            for component, hosts in self._hosts.items()
        )

    def apply(self) -> str:
        """Make or renew those that need it; raises as ``preflight``."""
        folder = self._context.state.subfolder(self._place)
        subject = f"Components of Harbor {self._release.key} of {self._context.site.name}"
        for component, hosts in self._hosts.items():
            # Nobody notices that it ends but Harbor, which stops: as long as an authority lasts.
            # A component is a client of others too, and may be asked who it is.
            authority.ensure_certificates(
                folder, subject, hosts, self._clock(), name=component, mutual=True
            )
        return ""

    def files(self) -> dict[str, TlsFiles] | None:
        """What each component needs, None before it is made or after a run ended halfway."""
        ca = read_file(self._folder / "ca.crt") or b""
        found = {}
        for component in INTERNAL:
            if not authority.belong_together(self._folder, component):
                return None
            leaf, key = (
                read_file(self._folder / f"{component}.{end}") or b"" for end in ("crt", "key")
            )
            found[component] = TlsFiles(leaf, key, ca)
        return found

    def marks(self) -> dict[str, str]:
        """SHA-256 (hex) of what each component checks and is checked with; public parts only."""
        files = (self.files() if self.is_needed() else None) or {}
        return {
            component: hashlib.sha256(one.chain + one.ca).hexdigest()
            for component, one in files.items()
        }

    def ends(self) -> datetime | None:
        """When the first of them ends; None if one is missing."""
        return authority.ends(self._folder, INTERNAL)
