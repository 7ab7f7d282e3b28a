"""The bundle, what this site has seen of bundles, and what the journal says of the last run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from installer.bundle.manifest import parse_time
from installer.deploy.status.line import RUN_AGAIN, SHORT, SOON, Line, days, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from installer.deploy.context import Context


def bundle_lines(context: Context, now: datetime) -> Iterator[Line]:
    """What it is, how long it can be used, and whether this site has seen a newer one."""
    manifest, state = context.bundle.manifest, context.state
    what = f"{manifest.name} serial {manifest.serial} of channel {manifest.channel}"
    yield Line("bundle", "content", "ok", f"{what}, created {manifest.created}")
    if manifest.expires:
        left = parse_time(manifest.expires) - now
        hint = "get a newer bundle before that: an expired one is refused" if left < SOON else ""
        text = f"can be used for {days(left)}, until {manifest.expires}"
        yield Line("bundle", "expiry", "warning" if hint else "ok", text, hint)
    seen, highest = state.serials, state.serials.highest.get(manifest.channel)
    follows = context.site.channel or seen.channel
    if follows and follows != manifest.channel:
        text, hint = f"this site follows channel {follows}", "is it a bundle for another site?"
        yield Line("bundle", "channel", "failed", text, hint)
    if highest is None:
        yield Line("bundle", "serial", "ok", "this site has seen no bundle of this channel yet")
    elif manifest.serial < highest:
        hint = "use the newest bundle that was brought here"
        yield Line("bundle", "serial", "warning", f"this site has seen serial {highest}", hint)
    else:
        yield Line("bundle", "serial", "ok", f"the highest that this site has seen is {highest}")
    installed = last_bundle(context)
    if installed == str(context.bundle.digest):
        yield Line("bundle", "installed", "ok", "it is the one that was used last")
    elif installed:
        text = f"another one was used last: {installed[:SHORT]}"
        yield Line("bundle", "installed", "warning", text, RUN_AGAIN)
    else:
        text = f"{context.state.folder} knows of no run"
        hint = "nothing was installed from here, or --state names another folder"
        yield Line("bundle", "installed", "warning", text, hint)


def last_bundle(context: Context) -> str:
    """Digest of the bundle of the last run; empty if there was none."""
    runs = [line.bundle for line in context.state.journal.lines() if line.event == "run"]
    return runs[-1] if runs else ""


def journal_lines(context: Context) -> Iterator[Line]:
    """How the last run ended, and the last failure."""
    lines = context.state.journal.lines()
    runs = [line for line in lines if line.event == "run"]
    unfinished = context.state.journal.unfinished()
    if not runs:
        yield Line("journal", "last run", "warning", "there was none with this state folder")
        return
    text = f"{runs[-1].time}: {runs[-1].text}"
    if unfinished is None:
        yield Line("journal", "last run", "ok", text)
    else:
        text += f"; {unfinished.event} {unfinished.time} in step {unfinished.step}"
        hint = "if it is not at it right now, run it again: it goes on where it stopped"
        yield Line("journal", "last run", "warning", text, hint)
    failures = [line for line in lines if line.event in ("failed", "interrupted")]
    if failures:
        last = failures[-1]
        text = f"{last.time}: {last.event} in step {last.step} {first_line(last.text)}".rstrip()
        yield Line("journal", "last failure", "ok", text)
    else:
        yield Line("journal", "last failure", "ok", "there was none")
