"""What must hold before anything is changed: everything is looked at, then all of it is told.

Somebody who stands before the machine once wants all problems at once. So nothing here stops at
the first: what refuses becomes a failed check, what needs an answer that did not come becomes a
warning, and only what can't be looked at without the cluster is left out when the cluster is away.
Questions are asked side by side. Nothing is changed, with one exception that has to be asked for:
``pull`` makes pods, in a namespace of their own that goes again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from installer.deploy.cluster import ClusterInfo
from installer.deploy.preflight import machine
from installer.deploy.preflight.cluster import Api, ClusterQuestions, ask_cluster
from installer.deploy.preflight.gather import DEADLINE, gather
from installer.deploy.preflight.pods import not_asked, pulls
from installer.deploy.preflight.verdict import Check, refusal
from installer.errors import AirgapError, PreflightFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from installer.deploy.context import Context
    from installer.deploy.harbor import HarborParts
    from installer.deploy.push import PushBundle
    from installer.deploy.release import HelmRelease
    from installer.deploy.seed import ServeBundle
    from installer.site.model import Release

    MakeParts = Callable[[Release, ClusterInfo], tuple[HelmRelease, HarborParts | None]]

_ROUNDS = 4
"""How often the cluster is asked like this, one after the other."""


@dataclass(frozen=True)
class Examination:
    """All checks in the order in which people read them; ``cluster`` is None when it is away."""

    checks: tuple[Check, ...]
    cluster: ClusterInfo | None

    def required(self) -> ClusterInfo:
        """Go on with the cluster, or raise one error with all that failed."""
        error = refusal(self.checks)
        if error is not None or self.cluster is None:
            raise error or PreflightFailed("the cluster was not asked")
        return self.cluster


def examine(
    context: Context, make: MakeParts, seed: ServeBundle | PushBundle, *, pull: bool = False
) -> Examination:
    """Look at everything that a run of this bundle on this site needs.

    ``make`` gives a release's steps, ``seed`` is the registry's. With ``pull`` every node pulls an
    image, and a pod looks names up.
    """
    site = context.site
    found = [
        *machine.told("bundle", partial(machine.bundle, context)),
        *machine.told("site.yaml", partial(machine.paths, site)),
        *machine.told("state folder", partial(machine.state_folder, context)),
    ]
    api = Api(context)
    cluster, nodes, told = ask_cluster(context, api)
    found += told
    parts: list[tuple[Release, HelmRelease, HarborParts | None]] = []
    for release in site.releases:
        try:
            parts.append((release, *make(release, cluster or ClusterInfo("", ()))))
        except AirgapError as error:
            found.append(Check.refused(f"release {release.key}", error))
    questions: dict[str, Callable[[], list[Check]]] = {}
    for release, _, harbor in parts:
        if harbor is not None:
            questions |= machine.of_parts(release.key, harbor, there=cluster is not None)
    questions["seed registry"] = partial(machine.seed_registry, site, seed)
    for release in site.releases:
        if release.harbor is not None:
            questions |= machine.addresses(site, release.key, release.harbor)
    on_cluster: dict[str, Callable[[], list[Check]]] = {}
    if cluster is not None:
        look_there = ClusterQuestions(context, api, cluster, nodes, parts)
        on_cluster = {"cluster's answers": look_there.checks}
    answers = gather(on_cluster | questions, _ROUNDS * DEADLINE)
    for name, answer in answers.items():
        found += [Check.refused(name, answer)] if isinstance(answer, AirgapError) else answer
    found += machine.insecure_settings(site)
    if cluster is not None:
        found += pulls(context, api, nodes) if pull else [not_asked()]
    return Examination(tuple(found), cluster)
