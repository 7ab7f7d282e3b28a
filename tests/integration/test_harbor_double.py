"""Every recorded exchange with a real Harbor, replayed against the double."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.harbor_double import HarborDouble
from tests.harbor_double.recordings import NotShared, exchanges, topics
from tests.harbor_double.replay import Clock, Replay
from tests.harbor_double.state import State
from tests.harbor_double.worlds import BEFORE, BEGINS, CUT, NOT_REPLAYED, SHAPE_ONLY, World

if TYPE_CHECKING:
    from tests.integration.servers import DockerRegistry


def _topics() -> tuple[str, ...]:
    try:
        return topics()
    except NotShared:
        return ()


_PROGRESS = re.compile(r"state (Running|Success|Error) after (?!0\.0)|at the end|when done")


@pytest.mark.parametrize("topic", _topics())
def test_the_double_answers_as_harbor_did(topic: str, docker_registry: DockerRegistry) -> None:
    clock = Clock()
    state = State(clock=clock.seconds, now=clock.now)
    failures = []
    with HarborDouble(docker_registry.host, state=state) as harbor:
        replay = Replay(harbor, clock)
        world = World(replay)
        BEGINS.get(topic, World.rec_and_jar)(world)
        for exchange in exchanges(topic):
            if exchange.request is None:
                continue
            if before := BEFORE.get(exchange.name):
                before(world)
            if exchange.name in NOT_REPLAYED:
                continue
            clock.pass_by(0.01)
            if match := _PROGRESS.search(exchange.title):
                clock.pass_by(state.pace * (1 if match[1] == "Running" else 2))
            answer = replay.send(exchange)
            failures += [
                f"{exchange.name} {exchange.title}: {one}"
                for one in replay.differences(exchange, answer, shape=exchange.name in SHAPE_ONLY)
            ]
    assert not failures, "\n".join(failures)


def test_what_is_not_replayed_is_there_and_little() -> None:
    try:
        names = {one.name for topic in topics() for one in exchanges(topic) if one.request}
    except NotShared as missing:
        pytest.skip(str(missing))
    assert set(NOT_REPLAYED) | set(SHAPE_ONLY) | CUT <= names
    assert len(names) > 900
    assert len(NOT_REPLAYED) < 20
