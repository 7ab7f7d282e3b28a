"""``installer verify``: signature first, then every header, then every byte on all cores."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import click

from installer.bundle.delta import refuse_gaps
from installer.cli.console import output_option, print_json, progress, say, size_text
from installer.cli.open import (
    TrustOptions,
    bundle_argument,
    delta_words,
    open_verified,
    required_facts,
    trust_options,
)
from installer.errors import Corrupt

if TYPE_CHECKING:
    from pathlib import Path

_SHOWN = 20


@click.command("verify")
@bundle_argument
@trust_options
@output_option
def command(bundle: Path, trusted: TrustOptions, output: str) -> None:
    """Check that BUNDLE is what its sender signed, down to the last byte.

    Exit code 3: not trusted. Exit code 4: something in it differs from what was signed.
    """
    start = time.monotonic()
    anchor = trusted.anchor()
    with open_verified(bundle, anchor) as verified:
        manifest = verified.manifest
        if verified.bases:
            refuse_gaps(verified)
        total = verified.content_size
        threads = max(2, len(os.sched_getaffinity(0)))
        with progress("verifying", total) as advance:
            differing = verified.verify_members(threads=threads, progress=advance)
        if differing:
            more = f"\n  and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
            raise Corrupt(
                f"{len(differing)} of {len(manifest.members)} members differ:\n  "
                + "\n  ".join(
                    [
                        *(f"part {told}" for told in verified.file.differing_parts()),
                        *(error.message for error in differing[:_SHOWN]),
                    ]
                )
                + more,
                hint="copy the bundle again; if it stays so, the medium is damaged",
            )
        seconds = time.monotonic() - start
        if output == "json":
            print_json(
                {
                    "bundle": str(bundle),
                    "name": manifest.name,
                    "channel": manifest.channel,
                    "serial": manifest.serial,
                    "created": manifest.created,
                    "digest": str(verified.digest),
                    "signers": list(verified.signers),
                    "members": len(manifest.members),
                    "bytes": verified.layout.size,
                    "seconds": round(seconds, 3),
                    "verified": True,
                    "required": required_facts(verified),
                }
            )
            return
        say(
            f"verified: {manifest.name} serial {manifest.serial} of channel {manifest.channel}, "
            f"created {manifest.created}\n"
            f"  signed by key {', '.join(one[:16] for one in verified.signers)} ({anchor.name})\n"
            f"  {len(manifest.members)} members, {size_text(verified.layout.size)}, "
            f"{seconds:.1f} s, bundle.json {verified.digest}"
        )
        if words := delta_words(verified):
            say(words)
