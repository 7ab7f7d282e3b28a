"""Opening a bundle for a command: path and what is trusted become a VerifiedBundle.

Trusted is what the person names (``--key``, ``--trust-root``), or the trust root that the site
imported. A site that imported one uses it and nothing else: a single key would be less.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from installer.bundle.archive import UnverifiedBundle
from installer.bundle.trust import TrustAnchor, check_expiry
from installer.cli.console import size_text
from installer.errors import Corrupt, InvalidInput, WrongChannel

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from installer.bundle.archive import VerifiedBundle
    from installer.bundle.trust import Trust
    from installer.site.state import State

Command = TypeVar("Command", bound="Callable[..., Any]")

MAX_KEY_BYTES = 64 * 1024
MAX_ROOT_BYTES = 1024 * 1024
_BEFORE_ANY_EXPIRY = datetime.min.replace(tzinfo=UTC)
IMPORTED = "trust-root.json"
"""The imported trust root's name in the state folder."""

_BASES = "harbor-airgap.bases"


def _keep_bases(ctx: click.Context, param: click.Parameter, value: tuple[Path, ...]) -> None:
    del param
    ctx.meta[_BASES] = value


base_option = click.option(
    "--base",
    "bases",
    multiple=True,
    type=click.Path(path_type=Path),
    callback=_keep_bases,
    expose_value=False,
    help="An earlier bundle with what BUNDLE, a delta, leaves out; any number of them.",
)


def bundle_argument(command: Command) -> Command:
    """BUNDLE, and with it ``--base``, which ``open_verified`` finds in the command's context."""
    return base_option(click.argument("bundle", type=click.Path(path_type=Path))(command))


@dataclass(frozen=True, slots=True)
class TrustOptions:
    """What a person named on the command line."""

    key_file: Path | None
    trust_root: Path | None

    def __bool__(self) -> bool:
        """Whether anything was named."""
        return self.key_file is not None or self.trust_root is not None

    def anchor(self) -> TrustAnchor:
        """Read it; only once for a command: ``--key <(…)`` can't be read again.

        Raises InvalidInput when neither or both were named.
        """
        if (self.key_file is None) == (self.trust_root is None):
            raise InvalidInput(
                "say whom to trust: either --key or --trust-root",
                hint="--key takes the sender's release.pub, --trust-root the file of "
                "`bundler trust export` or a state folder that imported one",
            )
        if self.key_file is not None:
            return TrustAnchor(read_key(self.key_file), str(self.key_file))
        assert self.trust_root is not None  # noqa: S101 (one of the two)
        return read_root(self.trust_root)

    def at(self, state: State) -> TrustAnchor:
        """What holds at a site: its own trust root if it imported one, else what was named.

        Raises InvalidInput when both are there.
        """
        imported = state.path(IMPORTED)
        if not imported.is_file():
            return self.anchor()
        if self:
            raise InvalidInput(
                f"this site has a trust root of its own: {imported}",
                hint="leave --key and --trust-root out; installer trust update brings a newer one",
            )
        return read_root(imported)


def trust_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--key`` and ``--trust-root``; the command gets them as one ``trusted``."""

    @click.option(
        "--key",
        "key_file",
        type=click.Path(path_type=Path),
        help="Public key that you got over another way than the bundle.",
    )
    @click.option(
        "--trust-root",
        type=click.Path(path_type=Path),
        help="Instead: a trust root, which asks for several keys, or a state folder with one.",
    )
    @functools.wraps(command)
    def with_trust(
        *given: Any, key_file: Path | None, trust_root: Path | None, **others: Any
    ) -> Any:
        return command(*given, trusted=TrustOptions(key_file, trust_root), **others)

    return with_trust


def read_key(key_file: Path) -> bytes:
    """Read the public key (PEM) that the person names; raises InvalidInput."""
    return _read(key_file, MAX_KEY_BYTES, "--key takes the sender's release.pub")


def read_root(path: Path) -> TrustAnchor:
    """Read a trust root, of a file or of a state folder; raises InvalidInput."""
    file = path / IMPORTED if path.is_dir() else path
    data = _read(file, MAX_ROOT_BYTES + 1, "--trust-root takes the file of `bundler trust export`")
    return TrustAnchor(data, str(file), is_root=True)


def _read(path: Path, most: int, hint: str) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(most)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}", hint=hint) from error


def open_verified(
    path: Path, trusted: TrustAnchor | TrustOptions, now: datetime | None = None
) -> VerifiedBundle:
    """Checks (1) to (5) of the archive module; raises a NotTrusted, Corrupt or InvalidInput.

    ``now`` is what the site takes for the time, the clock if it is not given. The bundles that
    ``--base`` names are opened and closed with it; they are under the same trust, but may have
    expired.
    """
    anchor = trusted.anchor() if isinstance(trusted, TrustOptions) else trusted
    now = now or datetime.now(UTC)
    return _with_bases(path, anchor.trust(now), now, _bases())


def open_accepted(
    path: Path,
    anchor: TrustAnchor,
    accepted: Collection[str],
    now: datetime,
    *,
    alone: bool = False,
) -> VerifiedBundle:
    """``open_verified``, but a bundle that was accepted here before does not expire any more.

    ``accepted`` are digests of bundle.json (``sha256:…``). An expiry keeps old bundles from being
    brought in; what is in must still be served, looked at and taken away. ``alone`` is without the
    bundles that ``--base`` names.
    """
    trust = anchor.trust(_BEFORE_ANY_EXPIRY)
    verified = _with_bases(path, trust, None, () if alone else _bases())
    try:
        if str(verified.digest) not in accepted:
            anchor.trust(now)
            check_expiry(verified.manifest, now)
    except BaseException:
        verified.close()
        raise
    return verified


def open_at(path: Path, trusted: TrustAnchor | TrustOptions, state: State) -> VerifiedBundle:
    """``open_accepted`` with what a site trusts and has accepted, and at the time it knows of."""
    receipt = state.receipt
    accepted = {f"sha256:{bundle.sha256}" for bundle in receipt.bundles} if receipt else set()
    anchor = trusted.at(state) if isinstance(trusted, TrustOptions) else trusted
    return open_accepted(path, anchor, accepted, state.time(datetime.now(UTC)))


def _with_bases(
    path: Path, trust: Trust, now: datetime | None, bases: Sequence[Path]
) -> VerifiedBundle:
    with ExitStack() as stack:
        bundle = stack.enter_context(_verified(path, trust, now))
        for base in bases:
            bundle.stand_on([_verified(base, trust, None)])
            _check_base(bundle, bundle.bases[-1])
        stack.pop_all()
    return bundle


def _verified(path: Path, trust: Trust, now: datetime | None) -> VerifiedBundle:
    with UnverifiedBundle(path) as unverified:
        try:
            return unverified.verify(trust, now)
        except Corrupt as error:
            # Of a bundle in parts it can be said which ones to copy again.
            if parts := unverified.file.differing_parts():
                raise Corrupt(
                    f"{path}: {error.message}\n  part " + "\n  part ".join(parts),
                    hint="copy these parts again, each under its own name",
                ) from error
            raise


def _bases() -> tuple[Path, ...]:
    context = click.get_current_context(silent=True)
    return context.meta.get(_BASES, ()) if context else ()


def _check_base(bundle: VerifiedBundle, base: VerifiedBundle) -> None:
    """Refuse what no delta was made from: its names would stand beside the delta's own."""
    mine, earlier = bundle.manifest, base.manifest
    if mine.channel != earlier.channel:
        raise WrongChannel(
            f"{base.path} is of channel {earlier.channel!r}, {bundle.path} of {mine.channel!r}"
        )
    if earlier.serial > mine.serial:
        raise InvalidInput(
            f"{base.path} has serial {earlier.serial}, which is later than {mine.serial} of "
            f"{bundle.path}",
            hint="a base is an earlier bundle: are the two mixed up?",
        )


def required_facts(bundle: VerifiedBundle) -> dict[str, int]:
    """What a delta requires, for programs: blobs, their bytes, and how many are not here."""
    required = bundle.manifest.required
    return {
        "blobs": len(required),
        "bytes": sum(member.size for member in required),
        "missing": len(bundle.missing),
    }


def delta_words(bundle: VerifiedBundle) -> str:
    """What a delta requires, for people; empty for a bundle that has everything."""
    facts = required_facts(bundle)
    if not facts["blobs"]:
        return ""
    text = (
        f"a delta: requires {facts['blobs']} blobs, {size_text(facts['bytes'])}, of earlier bundles"
    )
    if not facts["missing"]:
        return f"{text}; {', '.join(str(base.path) for base in bundle.bases)} have them"
    return f"{text}; {facts['missing']} are not here: name those bundles with --base"
