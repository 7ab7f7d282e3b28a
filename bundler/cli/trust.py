"""``bundler trust``: a trust root of several keys, its versions, and who has signed them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bundler.cli.attach_signature import read_signature_file
from bundler.cli.keygen import PASSPHRASE_VARIABLE
from bundler.trust_root import ROLES, Change, TrustFolder, resolve_key
from installer.bundle.manifest import format_time
from installer.bundle.signature import PublicKey, Signature, read_signature
from installer.bundle.trust_root import BUNDLE_ROLE, ROOT_ROLE
from installer.cli.console import output_option, passphrase, print_json, say
from installer.cli.open import read_key
from installer.cli.trust import describe, show_root
from installer.errors import InvalidInput
from installer.keys import load, write_new

if TYPE_CHECKING:
    from collections.abc import Callable

_PATH = click.Path(path_type=Path)
_YEAR = 365

_folder_option = click.option(
    "--folder", type=_PATH, default=Path("trust"), show_default=True, help="Where its versions are."
)
_role_option = click.option(
    "--role",
    type=click.Choice(list(ROLES)),
    default="both",
    show_default=True,
    help="Whether the key signs bundles, the next trust root, or both.",
)


def _terms(function: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option(
            "--expires",
            type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ"]),
            help="Until when sites believe it, UTC.  [default: in a year]",
        ),
        click.option("--root-threshold", type=int, help="Root keys needed for a trust root."),
        click.option("--threshold", type=int, help="Keys needed for a bundle."),
    ):
        function = option(function)
    return function


def _change(
    expires: datetime | None,
    threshold: int | None,
    root_threshold: int | None,
    add: tuple[tuple[PublicKey, str], ...] = (),
    remove: tuple[tuple[str, str], ...] = (),
) -> Change:
    now = datetime.now(UTC).replace(microsecond=0)
    until = expires.replace(tzinfo=UTC) if expires else now + timedelta(days=_YEAR)
    if until <= now:
        raise InvalidInput(f"--expires {format_time(until)}: that is in the past")
    wanted = {BUNDLE_ROLE: threshold, ROOT_ROLE: root_threshold}
    given = {role: count for role, count in wanted.items() if count is not None}
    if any(count < 1 for count in given.values()):
        raise InvalidInput("a threshold is at least 1")
    return Change(until, add, remove, given)


@click.group("trust")
def command() -> None:
    """Make and rotate a trust root: several keys, of which some number has to sign.

    \b
    bundler trust init --key a.pub --key b.pub --key c.pub --threshold 2
    bundler trust sign --key a.key        # and b.key, on its own machine
    bundler trust export --out trust-root.json
    installer trust import trust-root.json --site site.yaml
    """  # noqa: D301 (click's mark for lines that are kept)


@command.command("init")
@_folder_option
@click.option("--key", "keys", type=_PATH, multiple=True, required=True, help="Signs bundles.")
@click.option(
    "--root-key",
    "root_keys",
    type=_PATH,
    multiple=True,
    help="Signs the next trust root.  [default: the keys that sign bundles]",
)
@_terms
def init(
    folder: Path,
    keys: tuple[Path, ...],
    root_keys: tuple[Path, ...],
    threshold: int | None,
    root_threshold: int | None,
    expires: datetime | None,
) -> None:
    """Begin a trust root with these public keys; it waits for signatures of the root keys."""
    threshold = 1 if threshold is None else threshold
    if root_threshold is None:
        root_threshold = 1 if root_keys else threshold
    there = TrustFolder(folder)
    signers, owners = ([_public(path) for path in paths] for paths in (keys, root_keys or keys))
    there.create(signers, owners, _change(expires, threshold, root_threshold))
    _tell(there)


@command.command("add-key")
@click.argument("key", type=_PATH)
@_folder_option
@_role_option
@_terms
def add_key(
    key: Path,
    folder: Path,
    role: str,
    threshold: int | None,
    root_threshold: int | None,
    expires: datetime | None,
) -> None:
    """Trust the public key KEY as well, in the next version."""
    public = _public(key)
    add = tuple((public, name) for name in ROLES[role])
    _apply(folder, _change(expires, threshold, root_threshold, add))


@command.command("remove-key")
@click.argument("key")
@_folder_option
@_role_option
@_terms
def remove_key(
    key: str,
    folder: Path,
    role: str,
    threshold: int | None,
    root_threshold: int | None,
    expires: datetime | None,
) -> None:
    """Trust KEY no more, in the next version: its file, or the begin of its id.

    Bundles that need its signature are refused by sites from then on.
    """
    key_id = _key_id(folder, key)
    remove = tuple((key_id, name) for name in ROLES[role])
    _apply(folder, _change(expires, threshold, root_threshold, (), remove))


@command.command("rotate")
@click.option("--old", help="Key to go: its file, or the begin of its id.")
@click.option("--new", type=_PATH, help="Public key that takes its place.")
@_folder_option
@_terms
def rotate(
    old: str | None,
    new: Path | None,
    folder: Path,
    threshold: int | None,
    root_threshold: int | None,
    expires: datetime | None,
) -> None:
    """Begin the next version: with one key in another's place, other thresholds, a later expiry.

    Enough root keys of before and of after have to sign it; sites follow with
    `installer trust update`.
    """
    add: tuple[tuple[PublicKey, str], ...] = ()
    remove: tuple[tuple[str, str], ...] = ()
    if (old is None) != (new is None):
        raise InvalidInput("--old and --new are only of use together")
    if old is not None and new is not None:
        there = TrustFolder(folder)
        key_id, public = _key_id(folder, old), _public(new)
        root = there.draft
        if root is not None:
            had = [role for role in ROLES["both"] if key_id in root.roles[role].keyids]
        else:
            assert there.complete is not None  # noqa: S101 (the key was found in it)
            had = [role for role in ROLES["both"] if key_id in there.complete.keys(role)]
        add = tuple((public, role) for role in had)
        remove = tuple((key_id, role) for role in had)
    _apply(folder, _change(expires, threshold, root_threshold, add, remove))


@command.command("sign")
@_folder_option
@click.option("--key", "key_file", type=_PATH, help="Private key of a root key.")
@click.option("--passphrase-file", help=f"Else {PASSPHRASE_VARIABLE}, else asked.")
@click.option("--signature", type=_PATH, help="Instead: a signature made elsewhere …")
@click.option("--public", type=_PATH, help="… and the public key that it is of.")
def sign(
    folder: Path,
    key_file: Path | None,
    passphrase_file: str | None,
    signature: Path | None,
    public: Path | None,
) -> None:
    """Sign the version that waits, with a root key of before or of after."""
    there = TrustFolder(folder)
    payload = there.payload
    if key_file is not None and signature is None and public is None:
        key = load(key_file, passphrase(passphrase_file, PASSPHRASE_VARIABLE, confirm=False))
        there.sign(key.sign(payload), key.public)
    elif key_file is None and signature is not None and public is not None:
        its = _public(public)
        der = read_signature(read_signature_file(signature), str(signature))
        there.sign(Signature(its.key_id, der), its)
    else:
        raise InvalidInput("give either --key, or --signature with --public")
    _tell(there)


@command.command("payload")
@_folder_option
@click.option("--out", type=_PATH, required=True, help="The file to write.")
def payload(folder: Path, out: Path) -> None:
    """Write the bytes of the version that waits, to be signed in an HSM or by openssl."""
    write_new(out, TrustFolder(folder).payload, 0o644)
    say(
        f"{out}: sign it with ECDSA P-256 and SHA-256, then: "
        "bundler trust sign --signature SIGNATURE --public KEY.pub"
    )


@command.command("show")
@_folder_option
@output_option
def show(folder: Path, output: str) -> None:
    """Show the newest version that is complete, and whose signatures the next one needs."""
    there = TrustFolder(folder)
    if output == "json":
        waiting = [
            {"of": m.whose, "needed": m.needed, "keys": list(m.key_ids)} for m in there.missing
        ]
        print_json(
            {
                "complete": describe(there.complete) if there.complete else None,
                "draft": there.draft.version if there.draft else None,
                "missing": waiting,
            }
        )
        return
    if there.complete is None and there.draft is None:
        raise InvalidInput(f"{folder}: no trust root there", hint="bundler trust init makes one")
    if there.complete is not None:
        show_root(there.complete)
    _tell(there)


@command.command("export")
@_folder_option
@click.option("--out", type=_PATH, required=True, help="The file to write.")
def export(folder: Path, out: Path) -> None:
    """Write all complete versions into one file for the sites, new ones and those to update."""
    there = TrustFolder(folder)
    if there.complete is None:
        raise InvalidInput(
            f"{folder}: no version has all its signatures yet", hint="bundler trust sign --key …"
        )
    write_new(out, there.complete.data, 0o644)
    say(
        f"{out}: version {there.complete.version}, fingerprint {there.complete.fingerprint}\n"
        "it reaches the sites over another way than the bundles, or compare the fingerprint by "
        "telephone; new sites: installer trust import, others: installer trust update"
    )
    if there.draft is not None:
        say(f"not in it: version {there.draft.version}, which waits for signatures")


def _public(path: Path) -> PublicKey:
    return PublicKey.parse(read_key(path), str(path))


def _key_id(folder: Path, words: str) -> str:
    there = TrustFolder(folder)
    root = there.draft or there.complete
    if root is None:
        raise InvalidInput(f"{folder}: no trust root there", hint="bundler trust init makes one")
    path = Path(words)
    return resolve_key(root, _public(path).key_id if path.is_file() else words)


def _apply(folder: Path, change: Change) -> None:
    there = TrustFolder(folder)
    if there.change(change):
        say("signatures that the draft had are gone with the change")
    _tell(there)


def _tell(there: TrustFolder) -> None:
    """Say what is still to be done."""
    if there.draft is None:
        if there.complete is not None:
            say(
                f"version {there.complete.version} is complete; "
                "next: bundler trust export --out trust-root.json"
            )
        return
    say(
        f"version {there.draft.version} waits for signatures, until then it is a draft "
        f"(expires {format_time(there.draft.expires)})"
    )
    for missing in there.missing:
        keys = ", ".join(key_id[:16] for key_id in missing.key_ids)
        say(f"  {missing.needed} of the root keys of {missing.whose}: {keys}")
