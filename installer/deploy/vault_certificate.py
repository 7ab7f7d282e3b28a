"""A certificate that Vault issued, kept in the state folder and renewed in its last third.

While what is kept will do, a Vault that is sealed or gone harms no run: it is only told of.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from installer.deploy.trust import IssuersAuthority, judge
from installer.deploy.vault import VaultClient
from installer.errors import DeploymentFailed, PreflightFailed, TransferFailed
from installer.site import authority
from installer.site.certificate import TlsFiles, covers, load_certificates
from installer.site.private import read_file, write_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from installer.site.harbor import Vault
    from installer.site.state import State

_PUBLIC = 0o644
_RECORD = "issued-by.json"


class _IssuedBy(msgspec.Struct, frozen=True):
    """Which role issued what is kept; another one has to issue it anew."""

    address: str
    namespace: str
    mount: str
    role: str


class VaultCertificate:
    """What Vault issued for ``external_url``, kept in the state and renewed in its last third."""

    verb = "Have Vault issue a certificate"

    def __init__(
        self,
        section: Vault,
        external_url: str,
        hosts: Sequence[str],
        state: State,
        place: str,
        clock: Callable[[], datetime],
        given_ca: str,
    ) -> None:
        """``place`` is a folder of the state, ``given_ca`` a path of what clients check with."""
        self._section = section
        self._issuer = _IssuedBy(section.address, section.namespace, section.mount, section.role)
        self._url = external_url
        self._hosts = tuple(dict.fromkeys(hosts))
        self._state = state
        self._place = place
        self._folder = state.path(place)
        self._clock = clock
        self._authority = IssuersAuthority(state, place, given_ca)

    def preflight(self) -> None:
        """Refuse names that no certificate has, a clock that is wrong, a Vault that is sealed."""
        authority.general_names(self._hosts)
        authority.check_clock(self._folder, self._clock())
        if not self._is_usable():
            try:
                VaultClient(self._section).check_health()
            except (DeploymentFailed, TransferFailed) as error:
                raise PreflightFailed(error.message, hint=error.hint) from error

    def warnings(self) -> tuple[str, ...]:
        """What can be used, but will not do for everybody."""
        files = self.files()
        return judge(files, self._url, self._clock()).warnings if files else ()

    def check(self) -> bool:
        """Whether there is one of this role for these names, in its first two thirds."""
        if self._state.read(f"{self._place}/{_RECORD}", _IssuedBy) != self._issuer:
            return False
        return self._is_usable() and not self._is_due()

    def apply(self) -> str:
        """Have it issued; with a usable one, a Vault that fails is only told of."""
        try:
            with VaultClient(self._section) as vault:
                issued = vault.issue(self._hosts)
        except (DeploymentFailed, TransferFailed) as error:
            leaf = self._leaf()
            if leaf is None or not self._is_usable():
                raise
            end = f"{leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
            return f"the certificate was not renewed, and ends on {end}: {error.message}"
        files = replace(issued, ca=self._authority.of(issued.ca))
        if problems := judge(files, self._url, self._clock()).problems:
            raise DeploymentFailed(
                f"what Vault issued for {self._url} can't be used:\n  " + "\n  ".join(problems),
                hint="if its root is not in Vault, give that as harbor.ca",
            )
        self._keep(files)
        return ""

    def files(self) -> TlsFiles | None:
        """What is kept, None before it is there or when a run ended between two files."""
        chain, key = (read_file(self._folder / f"tls.{end}") or b"" for end in ("crt", "key"))
        ca = self.ca()
        return TlsFiles(chain, key, ca) if ca is not None and _fit(chain, key) else None

    def ca(self) -> bytes | None:
        """What clients check with; empty if they know it, None before it is there."""
        return self._authority.pem()

    def ca_file(self) -> str:
        """Path of the same; empty: what this program brings along."""
        return self._authority.path()

    def _keep(self, files: TlsFiles) -> None:
        folder = self._state.subfolder(self._place)
        write_file(folder / "tls.key", files.key)
        write_file(folder / "tls.crt", files.chain, mode=_PUBLIC)
        self._authority.keep(files.ca)
        self._state.write(f"{self._place}/{_RECORD}", self._issuer)

    def _leaf(self) -> x509.Certificate | None:
        files = self.files()
        return load_certificates(files.chain)[0] if files else None

    def _is_usable(self) -> bool:
        """Whether what is kept would do at this moment."""
        files, leaf = self.files(), self._leaf()
        if files is None or leaf is None or judge(files, self._url, self._clock()).problems:
            return False
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return all(covers(names, host) for host in self._hosts)

    def _is_due(self) -> bool:
        leaf = self._leaf()
        if leaf is None:
            return True
        end, start = leaf.not_valid_after_utc, leaf.not_valid_before_utc
        return (end - self._clock()) * 3 < end - start


def _fit(chain: bytes, key: bytes) -> bool:
    try:
        half = serialization.load_pem_private_key(key, password=None).public_key()
        return load_certificates(chain)[0].public_key() == half
    except (ValueError, TypeError, IndexError):
        return False
