"""How a command reaches a Harbor that runs: where it is, what its TLS is checked with, which login.

For a Harbor of the site all of that is known from site.yaml and the state folder. Whatever has the
registry's API can be reached the same way; Harbor's own is asked only where nothing else tells.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from installer.bundle.digest import Digest
from installer.deploy.certificates import HarborCertificate, registry_host
from installer.errors import InvalidInput
from installer.harbor.api import PAUSES, HarborClient, WrongPassword
from installer.harbor.scan import find_artifact
from installer.oci.auth import Credentials
from installer.oci.hosts import RegistryConfig, RegistryEntry, RegistryHosts
from installer.oci.http import PolicyRefused
from installer.oci.reference import DEFAULT_HOST, Reference
from installer.oci.registry import RegistryStore
from installer.site import credentials
from installer.site.authority import utc_now
from installer.site.private import read_secret

if TYPE_CHECKING:
    from collections.abc import Sequence

    from installer.site.harbor import Harbor
    from installer.site.model import Release, Site
    from installer.site.state import State


@dataclass(frozen=True)
class HarborAccess:
    """A Harbor at ``url``; ``ca`` is the path of what https is checked with ("": the system's).

    ``passwords`` are those that may be right, the likeliest first; without any it is asked as
    nobody.
    """

    url: str
    ca: str = ""
    username: str = "admin"
    passwords: tuple[str, ...] = field(default=(), repr=False)

    @property
    def host(self) -> str:
        """What stands before a repository's name: host or host:port."""
        return (
            registry_host(self.url) if self.url.startswith("https:") else urlsplit(self.url).netloc
        )

    def client(self, *, pauses: Sequence[float] = PAUSES) -> HarborClient:
        """A client of its API, which the caller closes; ``pauses`` (seconds) as it takes them."""
        words, name = self.passwords, self.username
        return HarborClient(self.url, self.ca, words, username=name, pauses=pauses)

    def registry(self) -> RegistryStore:
        """Its registry as a store; the caller closes it.

        Raises WrongPassword when several passwords are known and Harbor takes none.
        """
        word = self._password()
        hosts = RegistryHosts(RegistryConfig({self.host: RegistryEntry((self.url,), self.ca)}))
        login = Credentials(self.username, word) if word else None
        # A proxy of this machine is not the way to the site's Harbor.
        return RegistryStore(self.host, hosts, login, environment=False)

    def _password(self) -> str:
        if len(self.passwords) < 2:  # noqa: PLR2004 (nothing to choose from)
            return next(iter(self.passwords), "")
        for word in self.passwords:
            with replace(self, passwords=(word,)).client() as client:
                try:
                    client.login()
                except WrongPassword as error:
                    refused = error
                else:
                    return word
        raise refused

    def reference(self, text: str) -> Reference:
        """Read a name as people write it: with this Harbor's host or without any.

        Raises InvalidInput for another host, and for what names no project.
        """
        found = Reference.parse(text)
        if found.host not in (DEFAULT_HOST, self.host) or text.startswith(f"{DEFAULT_HOST}/"):
            raise InvalidInput(
                f"{text}: is at {found.host}, and Harbor at {self.host}",
                hint=f"write {self.host}/{found.path}, or leave the host out",
            )
        if "/" not in found.path:
            raise InvalidInput(
                f"{text}: names no project", hint=f"write it as PROJECT/{found.path}"
            )
        return replace(found, host=self.host)

    def digest(self, registry: RegistryStore, reference: Reference) -> Digest:
        """The digest behind a reference; Harbor's API is asked where a policy refuses a pull."""
        if reference.digest is not None:
            return reference.digest
        try:
            return registry.resolve(reference.path, reference.version).digest
        except PolicyRefused:
            with self.client() as client:
                return Digest.parse(find_artifact(client, reference.path, reference.version).digest)


def harbor_of(site: Site, wanted: str = "") -> tuple[Release, Harbor]:
    """The release of a Harbor; ``wanted`` is ``NAMESPACE/NAME`` where there are more.

    Raises InvalidInput when it isn't clear which.
    """
    harbors = [
        (release, release.harbor)
        for release in site.releases
        if release.harbor is not None and wanted in ("", release.key, release.release_name)
    ]
    if len(harbors) != 1:
        names = ", ".join(release.key for release in site.releases if release.harbor)
        raise InvalidInput(
            f"site.yaml: {len(harbors)} releases of Harbor {wanted or 'to choose from'}: {names}",
            hint="name one with --release NAMESPACE/NAME",
        )
    return harbors[0]


def access_to(
    site: Site, state: State, wanted: str = "", *, login: tuple[str, str] | None = None
) -> HarborAccess:
    """Reach a Harbor of the site; ``wanted`` is ``NAMESPACE/NAME`` where there are more.

    Without a ``login`` (name and password) it is asked as admin. Raises InvalidInput when it isn't
    clear which, or when no password of admin is known here.
    """
    release, harbor = harbor_of(site, wanted)
    username, *words = login or ("admin", *admin_passwords(state, release, harbor))
    if not words:
        raise InvalidInput(
            f"{state.folder}: no password of admin for {release.key}",
            hint="install it first; elsewhere give --state, or --username and --password-file",
        )
    certificate = HarborCertificate(harbor, release.key, state, site.name, utc_now)
    ca = harbor.ca or certificate.ca_file()
    return HarborAccess(harbor.external_url.rstrip("/"), ca, username, tuple(words))


def admin_passwords(state: State, release: Release, harbor: Harbor) -> tuple[str, ...]:
    """Passwords of admin that are known: of the file that site.yaml names, then the one made."""
    words = []
    written = harbor.admin_password_file
    if written.startswith("env:") or (written and Path(written).is_file()):
        words.append(read_secret(Path(written)))
    kept = credentials.kept(state, release.key)
    return tuple(dict.fromkeys([*words, *([kept.admin_password] if kept else [])]))
