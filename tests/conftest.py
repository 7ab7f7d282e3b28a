"""Rules for every tier."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    import pytest

NO_SKIPS = "AIRGAP_NO_SKIPS"

# A busy machine is no failure: speed is measured by the benchmarks, never by a test.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# Where a change lands it is judged by the same examples each time; developers' runs look for new
# ones, and a soak (`--hypothesis-profile=soak`) for many.
settings.register_profile("same", settings.get_profile("patient"), derandomize=True, database=None)
settings.register_profile("soak", settings.get_profile("patient"), max_examples=3000)
settings.load_profile("same" if os.environ.get(NO_SKIPS) else "patient")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why a run without failures is not good enough."""
    if os.environ.get(NO_SKIPS) and terminalreporter.stats.get("skipped"):
        terminalreporter.write_line(f"tests were skipped, and {NO_SKIPS} is set", red=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where everything is installed nothing may skip: a skipped test is a failed one there."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get(NO_SKIPS) and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = 1
