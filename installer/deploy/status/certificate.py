"""The certificate that a server really shows."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from installer.deploy.shown import distrust, shown_leaf
from installer.deploy.status.line import RUN_AGAIN, SOON, WORDS, Line, days

if TYPE_CHECKING:
    from datetime import datetime


def certificate_line(
    group: str, host: str, port: int, ca_file: str, now: datetime, *, renewed: bool = False
) -> Line:
    """Judge the certificate at an address; ``renewed``: a run makes a new one before it ends."""
    try:
        leaf = shown_leaf(host, port)
        distrusted = distrust(host, port, ca_file)
    except (OSError, ValueError) as error:
        hint = "does it speak TLS at this port?"
        return Line(group, "certificate", "failed", f"{host}:{port}: {error}", hint)
    end = leaf.not_valid_after_utc
    left = end - now
    issuer = leaf.issuer.rfc4514_string() or "nobody"
    text = f"{days(left)} left, until {end:%Y-%m-%d}, issued by {issuer[:WORDS]}"
    renew = RUN_AGAIN if renewed else "bring a new one"
    if left < timedelta():
        text = f"it ended {days(-left)} ago, on {end:%Y-%m-%d}, issued by {issuer[:WORDS]}"
        return Line(group, "certificate", "failed", text, renew)
    if distrusted:
        text = f"{text}; not trusted: {distrusted}"
        hint = f"checked with {Path(ca_file).name if ca_file else 'the authorities known here'}"
        hint += ": is it the right authority, and the right server?"
        return Line(group, "certificate", "failed", text, hint)
    text += ", trusted"
    if left < SOON:
        return Line(group, "certificate", "warning", text, renew)
    return Line(group, "certificate", "ok", text)
