"""Harbor's secrets: made once per site and kept, because Harbor never forgets the first ones.

Left alone, the chart installs a secret key and passwords that everybody can read in its source,
and makes others anew at each rendering, which restarts pods at each upgrade. So all of them are
made here once, from the operating system's random numbers, and stay in the state folder (0600).
The database holds data that is encrypted with ``secretKey``: who loses it loses that data.
"""

from __future__ import annotations

import secrets
import string
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from installer.errors import InvalidInput
from installer.site.private import read_secret

if TYPE_CHECKING:
    from pathlib import Path

    from installer.site.state import State

FILE = "secrets.json"
REGISTRY_USER = "harbor_registry_user"
_LENGTHS = (8, 128)
_LETTERS = string.ascii_letters + string.digits
_TOKEN_YEARS = 20
"""The certificate only carries the token key; nobody checks its dates against a clock on a wall."""

KEPT = {
    "adminPassword": "of user admin, until somebody changes it in Harbor",
    "databasePassword": "of Harbor's role in the database, unless site.yaml names a file",
    "registryPassword": "between Harbor's core and its registry",
    "secretKey": "what Harbor encrypts with in its database",
    "tokenKey": "what core signs registry tokens with (PEM)",
    "coreSecret": "between Harbor's components",
    "jobserviceSecret": "between Harbor's components",
    "registrySecret": "of the registry's uploads",
    "xsrfKey": "of the portal's forms",
}
"""Secrets that people may ask for, by name, with what each is."""
_KEPT = {
    ("secretKey",): "secret_key",
    ("harborAdminPassword",): "admin_password",
    ("core", "secret"): "core_secret",
    ("core", "xsrfKey"): "xsrf_key",
    ("core", "tokenKey"): "token_key",
    ("core", "tokenCert"): "token_certificate",
    ("jobservice", "secret"): "jobservice_secret",
    ("registry", "secret"): "registry_secret",
    ("registry", "credentials", "username"): "registry_user",
    ("registry", "credentials", "password"): "registry_password",
    ("registry", "credentials", "htpasswdString"): "registry_htpasswd",
    ("database", "internal", "password"): "database_password",
}
"""Key paths of Harbor's chart (1.18 and 1.19 have all of them) and the field that fills each."""

_INSECURE: tuple[tuple[tuple[str, ...], str, tuple[str, ...] | None], ...] = (
    # key path, the chart's default, key path whose value makes it unused
    (("secretKey",), "not-a-secure-key", ("existingSecretSecretKey",)),
    (("harborAdminPassword",), "Harbor12345", ("existingSecretAdminPassword",)),
    (("database", "internal", "password"), "changeit", None),
    (
        ("registry", "credentials", "password"),
        "harbor_registry_password",
        ("registry", "credentials", "existingSecret"),
    ),
    (
        ("database", "external", "password"),
        "password",
        ("database", "external", "existingSecret"),
    ),
)


class HarborSecrets(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Everything secret in one Harbor's values. ``repr`` shows none of it."""

    secret_key: str
    admin_password: str
    database_password: str
    registry_password: str
    registry_htpasswd: str
    core_secret: str
    xsrf_key: str
    jobservice_secret: str
    registry_secret: str
    token_key: str
    token_certificate: str
    registry_user: str = REGISTRY_USER

    def __repr__(self) -> str:
        return "HarborSecrets(…)"

    def values(self) -> dict[str, Any]:
        """The chart's values that carry them."""
        tree: dict[str, Any] = {}
        for path, field in _KEPT.items():
            node = tree
            for key in path[:-1]:
                node = node.setdefault(key, {})
            node[path[-1]] = getattr(self, field)
        return tree

    def texts(self) -> tuple[str, ...]:
        """What must not appear in any text for people."""
        return tuple(
            getattr(self, field)
            for field in self.__struct_fields__
            if field not in ("registry_user", "token_certificate")
        )


class _Kept(msgspec.Struct, frozen=True):
    harbor: dict[str, HarborSecrets] = {}


def generate(*, admin_password: str = "") -> HarborSecrets:
    """Make new secrets, in the lengths that Harbor asks for; the htpasswd line comes later.

    ``admin_password`` is one that a person chose.
    """
    key, certificate = _token_pair()
    return HarborSecrets(
        secret_key=_word(16),
        admin_password=admin_password or _password(),
        database_password=_word(24),
        registry_password=_word(24),
        registry_htpasswd="",
        core_secret=_word(16),
        xsrf_key=_word(32),
        jobservice_secret=_word(16),
        registry_secret=_word(16),
        token_key=key,
        token_certificate=certificate,
    )


def read_password(path: Path) -> str:
    """Read an admin password that a person chose; raises InvalidInput if Harbor would refuse it."""
    word = read_secret(path)
    if not _LENGTHS[0] <= len(word) <= _LENGTHS[1] or not _is_mixed(word):
        raise InvalidInput(
            f"{path}: Harbor takes {_LENGTHS[0]} to {_LENGTHS[1]} characters, among them a "
            "lower-case and an upper-case letter and a digit"
        )
    return word


def kept(state: State, release: str) -> HarborSecrets | None:
    """The secrets of a release if they were made before; raises Corrupt for a damaged file."""
    return (state.read(FILE, _Kept) or _Kept()).harbor.get(release)


def keep(state: State, release: str, made: HarborSecrets) -> None:
    """Store the secrets of a release; those of the others stay."""
    all_kept = state.read(FILE, _Kept) or _Kept()
    state.write(FILE, _Kept({**all_kept.harbor, release: made}))


def check_defaults(values: dict[str, Any], release: str) -> None:
    """Refuse final values (chart defaults included) with a published secret; InvalidInput."""
    kind = _find(values, ("database", "type"))
    for path, default, instead in _INSECURE:
        if path[0] == "database" and path[1] != kind:
            continue
        if instead is not None and _find(values, instead):
            continue
        if _find(values, path) in (default, "", None):
            raise InvalidInput(
                f"release {release}: {'.'.join(path)} is the chart's published default, or empty",
                hint=f"set {'.'.join(instead or path)}: anybody can read the default",
            )


def _find(values: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        if not isinstance(values, dict):
            return None
        values = values.get(key)
    return values


def _word(length: int) -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


def _password() -> str:
    """Long enough not to be guessed, with what Harbor asks for: upper and lower case, a digit."""
    while not _is_mixed(word := _word(20)):
        pass
    return word


def _is_mixed(word: str) -> bool:
    return all(any(map(kind, word)) for kind in (str.islower, str.isupper, str.isdigit))


def _token_pair() -> tuple[str, str]:
    """The RSA key that core signs registry tokens with, and a certificate around it, as PEM."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=3072)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "harbor-token")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=365 * _TOKEN_YEARS))
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,  # what Helm's genCA writes for the chart
        serialization.NoEncryption(),
    )
    return pem.decode(), certificate.public_bytes(serialization.Encoding.PEM).decode()
