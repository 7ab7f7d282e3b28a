"""Who may sign, and for how long: the decision between an unverified and a verified bundle.

The public key reaches the site out of band; nothing inside the bundle vouches for the bundle.
Time comes in as a parameter, so that a test, or a site with a wrong clock, can say which it means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from installer.bundle.manifest import parse_time
from installer.bundle.signature import PublicKey
from installer.errors import Expired, Rollback, WrongChannel, WrongSignature

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from installer.bundle.manifest import Manifest
    from installer.bundle.signature import Signature


@dataclass(frozen=True, slots=True)
class TrustAnchor:
    """What reached the site out of band, as its bytes: a public key (PEM), or a trust root.

    ``name`` is the file's, for errors.
    """

    data: bytes
    name: str
    is_root: bool = False

    def trust(self, now: datetime) -> Trust:
        """Read it; raises InvalidInput for what it is not, Expired for a trust root of the past."""
        if not self.is_root:
            return KeyTrust(PublicKey.parse(self.data, self.name), self.name)
        # python-tuf takes 0.1 s to import: a single key goes without.
        from installer.bundle.trust_root import read_trust_root  # noqa: PLC0415

        root = read_trust_root(self.data, self.name)
        root.check_expiry(now)
        return root


class Trust(Protocol):
    """Decides whether signatures suffice for a payload."""

    def signers(self, payload: bytes, signatures: Sequence[Signature]) -> tuple[str, ...]:
        """Key ids whose signatures hold; raises a NotTrusted when they don't suffice."""
        ...


@dataclass(frozen=True, slots=True)
class KeyTrust:
    """One key with threshold 1: what ``--key release.pub`` means."""

    key: PublicKey
    name: str

    def signers(self, payload: bytes, signatures: Sequence[Signature]) -> tuple[str, ...]:
        """Accept one signature of the key over the payload; raises WrongSignature."""
        if any(self.key.holds(signature, payload) for signature in signatures):
            return (self.key.key_id,)
        others = ", ".join(signature.key_id[:16] for signature in signatures)
        raise WrongSignature(
            f"no signature of {self.name} (key id {self.key.key_id[:16]}) holds for this bundle; "
            f"it states signatures of {others}",
            hint="compare the key id with the sender over another way than the disk; "
            "don't use the bundle",
        )


def check_expiry(manifest: Manifest, now: datetime) -> None:
    """Refuse a bundle after its expiry; raises Expired."""
    if manifest.expires and now > parse_time(manifest.expires):
        raise Expired(
            f"bundle {manifest.name} serial {manifest.serial} expired at {manifest.expires}",
            hint="bring a newer bundle, or set this machine's clock if it is wrong",
        )


def check_together(manifests: Sequence[Manifest]) -> None:
    """Refuse bundles that are used as one but are of several channels; raises WrongChannel.

    That a base is the right one for its delta needs no more: the blobs that a delta leaves out are
    listed, by digest, in its signed bytes.
    """
    first, *others = manifests
    for manifest in others:
        if manifest.channel != first.channel:
            raise WrongChannel(
                f"{first.name} serial {first.serial} is of channel {first.channel!r}, "
                f"{manifest.name} serial {manifest.serial} of {manifest.channel!r}",
                hint="a base and its deltas are of one channel: serve others by themselves",
            )


def check_history(
    manifest: Manifest, *, channel: str | None, highest_serial: int | None, allow_downgrade: bool
) -> None:
    """Refuse another channel than the site's, and a lower serial than it has already seen.

    ``channel`` and ``highest_serial`` are None on a site that has seen nothing yet. Raises
    WrongChannel or Rollback.
    """
    if channel is not None and manifest.channel != channel:
        raise WrongChannel(
            f"the bundle is of channel {manifest.channel!r}, this site follows {channel!r}"
        )
    if highest_serial is not None and manifest.serial < highest_serial and not allow_downgrade:
        raise Rollback(
            f"the bundle has serial {manifest.serial}, this site has already seen {highest_serial}",
            hint="bring the newest bundle; --allow-downgrade goes back on purpose and is recorded",
        )
