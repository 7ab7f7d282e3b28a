"""Merging like Helm, and the keys that a chart doesn't know."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from installer.helm.values import UnknownKey, coalesce, commented_keys, merge, unknown_keys

VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=8,
)
MAPS = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)

DEFAULTS: dict[str, Any] = {
    "expose": {"type": "ingress", "tls": {"enabled": True, "secret": {"secretName": ""}}},
    "persistence": {"jobservice": {"jobLog": {"existingClaim": ""}}},
    "core": {"nodeSelector": {}, "tolerations": [], "podAnnotations": {"a": "b"}, "secret": ""},
    "resources": {"limits": {"cpu": 1}},
    "affinity": None,
}


def test_maps_merge_and_the_rest_is_replaced() -> None:
    assert merge({"a": {"b": 1, "c": [1]}}, {"a": {"c": [2], "d": None}}, {"a": {"b": 3}}) == {
        "a": {"b": 3, "c": [2], "d": None}
    }
    assert merge({"a": {"b": 1}}, {"a": 2}) == {"a": 2}
    assert merge() == {}


def test_null_deletes_a_default() -> None:
    assert coalesce({"a": 1, "b": {"c": 1, "d": 2}}, {"a": None, "b": {"c": None}}) == {
        "b": {"d": 2}
    }
    assert coalesce({}, {"a": {"b": None}}) == {"a": {}}


@given(MAPS, MAPS, MAPS)
def test_merging_in_steps_is_merging_at_once(a: Any, b: Any, c: Any) -> None:
    assert merge(merge(a, b), c) == merge(a, b, c)
    assert merge(a, {}) == merge({}, a) == a


@given(MAPS, MAPS)
def test_inputs_are_not_changed(a: Any, b: Any) -> None:
    before = repr((a, b))
    merge(a, b)["new"] = coalesce(a, b)
    assert repr((a, b)) == before


@pytest.mark.parametrize(
    ("values", "path", "suggestion"),
    [
        ({"expose": {"tsl": {}}}, "expose.tsl", "expose.tls"),
        ({"Expose": {}}, "Expose", "expose"),
        (
            {"persistence": {"jobservice": {"existingClaim": "x"}}},
            "persistence.jobservice.existingClaim",
            "persistence.jobservice.jobLog.existingClaim",
        ),
        ({"secretName": "x"}, "secretName", "expose.tls.secret.secretName"),
        ({"global": {"imageRegistry": "x"}}, "global", ""),
        ({"core": {"replica": 1}}, "core.replica", "core.replicas"),
        ({"core": {"nodeselector": None}}, "core.nodeselector", "core.nodeSelector"),
    ],
)
def test_an_unknown_key_is_told_with_what_was_meant(
    values: dict[str, Any], path: str, suggestion: str
) -> None:
    found = unknown_keys(values, DEFAULTS, commented=[("core", "replicas")])
    assert found == [UnknownKey(path, suggestion)]


@pytest.mark.parametrize(
    "values",
    [
        {"expose": {"tls": {"enabled": False}}},
        {"core": {"nodeSelector": {"any": "thing"}, "tolerations": [{"x": 1}]}},
        {"core": {"podAnnotations": {"other/key": "x"}, "secret": {"x": 1}}},
        {"resources": {"requests": {"cpu": 1}}},
        {"affinity": {"nodeAffinity": {}}},
        {"core": {"replicas": 3}},
        {"expose": None},
    ],
)
def test_what_the_chart_knows_or_invites_is_taken(values: dict[str, Any]) -> None:
    assert unknown_keys(values, DEFAULTS, commented=[("core", "replicas")]) == []


def test_options_in_comments_are_found_where_they_stand() -> None:
    text = """
# Note: prose is no key, nor is http://x
core:
  image:
    repository: a
  # replicas: 2
  # resources:
  #  requests:
  #    memory: 1Mi
  ## Doubled marks
  ## priority: x
  # Example:
  #
  # - name: wait
  #   command: [x]
#   margin: true
top: 1
# option: 1
"""
    assert commented_keys(text) == {
        ("core", "replicas"),
        ("core", "resources"),
        ("core", "priority"),
        ("core", "margin"),
        ("option",),
    }
