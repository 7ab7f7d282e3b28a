"""What a run is asked for: one bundle, one site, and whom to tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from installer.deploy.plan import unmeasured

if TYPE_CHECKING:
    from collections.abc import Callable

    from installer.bundle.archive import VerifiedBundle
    from installer.bundle.trust import TrustAnchor
    from installer.deploy.plan import Meter
    from installer.deploy.preflight.verdict import Check
    from installer.site.model import Site
    from installer.site.state import State


def _unheard(check: Check) -> None:
    del check


@dataclass(frozen=True)
class Request:
    """What a run is asked for.

    ``key`` is what the bundle was verified with, a public key or a trust root; ``command`` starts
    the installer itself, for the seed registry in the background. ``downgrade`` is the reason for
    which an older bundle may be used, or empty. ``meter`` shows the progress of long steps,
    ``warn`` is told before the first change of what will do, but not for long or for everybody.
    """

    bundle: VerifiedBundle
    site: Site
    state: State
    key: TrustAnchor
    command: tuple[str, ...]
    downgrade: str = ""
    meter: Meter = unmeasured
    warn: Callable[[Check], None] = _unheard
