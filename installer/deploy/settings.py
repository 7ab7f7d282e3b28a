"""The step that sets inside of Harbor what site.yaml says, and what commands need for the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from installer.deploy.harbor_access import access_to
from installer.errors import AirgapError, InvalidInput
from installer.harbor.api import PAUSES
from installer.harbor.settings import engine
from installer.harbor.settings.target import Target
from installer.site.settings_memory import SettingsMemory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from installer.harbor.api import HarborClient
    from installer.site.harbor import Harbor
    from installer.site.model import Release, Site
    from installer.site.state import State


class ApplySettings:
    """Set what the section ``harbor.settings`` says inside of Harbor."""

    def __init__(self, site: Site, release: Release, harbor: Harbor, state: State) -> None:
        self._site = site
        self._release = release
        self._harbor = harbor
        self._state = state
        self.name = f"settings:{release.key}"
        self.sentence = f"Set Harbor {release.key} as harbor.settings says"

    def is_needed(self) -> bool:
        """Whether the section is there."""
        return self._harbor.settings is not None

    def check(self) -> bool:
        """Whether all is so; not, where Harbor can't be asked or can't do it."""
        try:
            return not self.compare().changes
        except AirgapError:
            return False

    def details(self) -> list[str]:
        """What would be changed, a line each."""
        return [f"{one.what}: {line}" for one in self.compare().changes for line in one.lines]

    def apply(self) -> str:
        """Make it so and read it again; raises as ``engine.apply``."""
        with self._client(PAUSES) as client:
            done = engine.apply(self._of(client), lambda change: self._note(change.what))
        return "\n".join([*done.notes, *(remark.text for remark in done.remarks)])

    def _note(self, what: str) -> None:
        self._state.journal.append("setting", step=self.name, text=what)

    def compare(self) -> engine.Comparison:
        """What would be changed, and what is there besides; raises as ``engine.compare``."""
        with self._client(()) as client:
            return engine.compare(self._of(client))

    def _client(self, pauses: Sequence[float]) -> HarborClient:
        return access_to(self._site, self._state, self._release.key).client(pauses=pauses)

    def _of(self, client: HarborClient) -> Target:
        return target_of(client, self._release, self._harbor, self._state)


def target_of(client: HarborClient, release: Release, harbor: Harbor, state: State) -> Target:
    """What the engine compares and sets; raises InvalidInput without the section."""
    if harbor.settings is None:
        raise InvalidInput(
            f"release {release.key}: there is no section harbor.settings",
            hint="docs/harbor-settings.md shows what it can have",
        )
    own = (harbor.host_bundle.project,) if harbor.host_bundle else ()
    return Target(client, harbor.settings, SettingsMemory(state, release.key), own)
