"""Compare all areas with site.yaml; or make each so, and read everything again.

The areas come in the order in which they build on each other: a project's robot needs the project,
a rule of replication its endpoint. When they are compared only, what is not there yet counts as
empty. When they are applied, each is read again when its turn comes, so that a run that was stopped
goes on where it was. Harbor answers 200 to much that it ignores: what still differs at the end is
an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from installer.errors import DeploymentFailed
from installer.harbor.settings import (
    audit,
    configuration,
    labels,
    projects,
    replication,
    robots,
    schedules,
    tags,
    vulnerabilities,
)
from installer.harbor.settings.change import Change, Remark
from installer.harbor.settings.target import SUPPORTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from installer.harbor.settings.target import Target

AREAS: tuple[Callable[[Target], Iterator[Change | Remark]], ...] = (
    configuration.configuration,
    audit.audit_log,
    vulnerabilities.scanners,
    vulnerabilities.cve_allowlist,
    schedules.schedules,
    labels.labels,
    replication.registries,
    projects.projects,
    projects.members,
    tags.retention,
    tags.immutable_tags,
    projects.labels,
    projects.webhooks,
    robots.system_robots,
    robots.project_robots,
    replication.replications,
)


@dataclass(frozen=True)
class Comparison:
    """What would be changed, and what is there besides."""

    changes: tuple[Change, ...]
    remarks: tuple[Remark, ...]


@dataclass(frozen=True)
class Applied:
    """What was changed, with its notes, and what is there besides."""

    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    remarks: tuple[Remark, ...]


def compare(target: Target, observe: Callable[[], None] = lambda: None) -> Comparison:
    """Read everything and change nothing; ``observe`` is told after each of ``len(AREAS)`` areas.

    Raises PreflightFailed for what this Harbor can't do, and what the client raises.
    """
    target.forget()
    found: list[Change | Remark] = [*_version(target)]
    for area in AREAS:
        found += area(target)
        observe()
    return Comparison(
        tuple(one for one in found if isinstance(one, Change)),
        tuple(one for one in found if isinstance(one, Remark)),
    )


def apply(target: Target, observe: Callable[[Change], None] = lambda _: None) -> Applied:
    """Make everything so; ``observe`` is told of each change before it is made.

    Everything is compared first, so that what this Harbor can't do is refused before anything is
    changed. Raises as ``compare``, and DeploymentFailed for what Harbor did not take.
    """
    if not (before := compare(target)).changes:
        return Applied((), (), before.remarks)
    done: list[Change] = []
    notes: list[str] = []
    for area in AREAS:
        target.forget()
        for change in [one for one in area(target) if isinstance(one, Change)]:
            observe(change)
            if note := change.apply():
                notes.append(note)
            done.append(change)
            target.forget()
    after = compare(target)
    if after.changes:
        left = [f"{one.what}: {line}" for one in after.changes for line in one.lines]
        raise DeploymentFailed(
            f"{target.client.url}: Harbor answered that it is done, and it is not:\n  "
            + "\n  ".join(left),
            hint="another person or program may be at it; `installer harbor diff` looks again",
        )
    return Applied(tuple(done), tuple(notes), after.remarks)


def _version(target: Target) -> Iterator[Remark]:
    first, beyond = SUPPORTED
    if not first <= target.version < beyond:
        yield Remark(
            f"Harbor {target.version}: settings are known for {first.major}.{first.minor} to "
            f"before {beyond.major}.{beyond.minor}"
        )
