"""How a site is: one line for each thing that people ask about, with what to do where it is bad.

Nothing is changed, and nothing raises for what is found: what can't be asked is a failed line. The
parts are asked side by side with one deadline for all of them, so that a cluster that swallows
packets costs half a minute and not an hour.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from installer.deploy.status.bundle import bundle_lines, journal_lines
from installer.deploy.status.cluster import cluster_lines
from installer.deploy.status.harbor import harbor_parts, trivy_lines
from installer.deploy.status.line import Part, Status, ask_all
from installer.deploy.status.seed import seed_lines

if TYPE_CHECKING:
    from datetime import datetime

    from installer.deploy.context import Context

DEADLINE = 45.0
"""Seconds for everything; with start and end of the program it stays below a minute."""


def look(context: Context, now: datetime, *, deadline: float = DEADLINE) -> Status:
    """Ask everything once, for at most ``deadline`` seconds."""
    parts = [
        Part("bundle", "content", partial(bundle_lines, context, now)),
        Part("seed registry", "answer", partial(seed_lines, context, now)),
        Part("cluster", "api", partial(cluster_lines, context, now)),
    ]
    for release in context.site.releases:
        parts += harbor_parts(context, release, now)
    parts += [
        Part("trivy", "database", partial(trivy_lines, context, now)),
        Part("journal", "last run", partial(journal_lines, context)),
    ]
    return Status(tuple(ask_all(parts, deadline)))
