"""Opening a bundle for a command: path and key become a VerifiedBundle."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from installer.bundle.archive import UnverifiedBundle
from installer.bundle.signature import PublicKey
from installer.bundle.trust import KeyTrust
from installer.cli.console import size_text
from installer.errors import Corrupt, InvalidInput, WrongChannel

if TYPE_CHECKING:
    from collections.abc import Callable

    from installer.bundle.archive import VerifiedBundle
    from installer.bundle.trust import Trust

Command = TypeVar("Command", bound="Callable[..., Any]")

MAX_KEY_BYTES = 64 * 1024

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


key_option = click.option(
    "--key",
    "key_file",
    required=True,
    type=click.Path(path_type=Path),
    help="Public key that you got over another way than the bundle.",
)


def read_key(key_file: Path) -> bytes:
    """Read the public key (PEM) that the person names; raises InvalidInput.

    Only once for a command: ``--key <(…)`` can't be read again.
    """
    try:
        with key_file.open("rb") as stream:
            return stream.read(MAX_KEY_BYTES)
    except OSError as error:
        raise InvalidInput(
            f"{key_file}: {error.strerror}", hint="--key takes the sender's release.pub"
        ) from error


def open_verified(
    path: Path, key_file: Path, pem: bytes | None = None, *, alone: bool = False
) -> VerifiedBundle:
    """Checks (1) to (5) of the archive module; raises a NotTrusted, Corrupt or InvalidInput.

    ``pem`` is what was read of the key file, if it was. The bundles that ``--base`` names are
    opened and closed with it, unless it is to be ``alone``; they are under the same key, but may
    have expired.
    """
    key = PublicKey.parse(read_key(key_file) if pem is None else pem, str(key_file))
    trust = KeyTrust(key, key_file.name)
    with ExitStack() as stack:
        bundle = stack.enter_context(_verified(path, trust, datetime.now(UTC)))
        for base in () if alone else _bases():
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
