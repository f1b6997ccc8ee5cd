"""Retention rules: what of a repository goes, against what the rule says in plain words; and what is a rule."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.oci.reference import companion_of
from registry.errors import RegistryError
from registry.retention import parse
from registry.rules import DAY, Rule, Tag, Untagged, expired, orphans, overdue, unreached

NOW = 1_000 * DAY
HEX = "ab" * 32
NAMES = st.sampled_from(["latest", "v1", "v2", "v3", "dev-1", "dev-2", "main", f"sha256-{HEX}", f"sha256-{HEX}.sig"])
TAGS = st.lists(
    st.builds(Tag, NAMES, st.sampled_from(["sha256:a", "sha256:b"]), st.integers(0, 1_000).map(lambda day: day * DAY)),
    unique_by=lambda tag: tag.name,
)
RULES = st.builds(Rule, st.none() | st.integers(1, 10), st.none() | st.floats(0, 1_100), st.none() | st.floats(0, 40))


@given(RULES, TAGS)
def test_a_tag_goes_when_nothing_that_is_set_keeps_it(rule: Rule, tags: list[Tag]) -> None:
    ordinary = [tag for tag in tags if not tag.name.startswith("sha256-")]
    gone = expired(rule, tags, NOW)
    for tag in tags:
        newer = sum((-other.pushed_at, other.name) < (-tag.pushed_at, tag.name) for other in ordinary)
        kept_by_count = rule.keep_last is not None and newer < rule.keep_last
        kept_by_age = rule.keep_days is not None and NOW - tag.pushed_at < rule.keep_days * DAY
        nothing_said = rule.keep_last is None and rule.keep_days is None
        assert (tag in gone) == (tag in ordinary and not (nothing_said or kept_by_count or kept_by_age)), tag


@given(RULES, TAGS)
def test_what_a_rule_leaves_it_leaves_again(rule: Rule, tags: list[Tag]) -> None:
    left = [tag for tag in tags if tag not in expired(rule, tags, NOW)]
    assert expired(rule, left, NOW) == {}


@given(RULES, TAGS)
def test_time_saves_no_tag(rule: Rule, tags: list[Tag]) -> None:
    assert expired(rule, tags, NOW).keys() <= expired(rule, tags, NOW + DAY).keys()


def test_why_a_tag_goes_names_every_rule_that_does_not_keep_it() -> None:
    tags = [Tag(f"v{day}", "sha256:a", NOW - day * DAY) for day in range(5)]
    found = expired(Rule(keep_last=2, keep_days=3), tags, NOW)
    assert {tag.name: why for tag, why in found.items()} == {
        "v3": "3 newer tags, the last 2 are kept; pushed 3 days ago, 3 days are kept",
        "v4": "4 newer tags, the last 2 are kept; pushed 4 days ago, 3 days are kept",
    }


@pytest.mark.parametrize(
    ("tag", "image"),
    [
        (f"sha256-{HEX}", f"sha256:{HEX}"),
        (f"sha256-{HEX}.sig", f"sha256:{HEX}"),
        (f"sha256-{HEX}.att", f"sha256:{HEX}"),
        (f"sha512-{HEX}", f"sha512:{HEX}"),
        (f"sha256-{HEX[2:]}", ""),
        (f"sha256-{HEX}-arm64", ""),
        ("latest", ""),
    ],
)
def test_companions_are_told_by_their_names(tag: str, image: str) -> None:
    assert companion_of(tag) == image


def test_a_companion_goes_when_its_image_is_gone_and_only_where_tags_go_at_all() -> None:
    old = Tag(f"sha256-{HEX}.sig", "sha256:s", NOW - 31 * DAY)
    new = Tag(f"sha256-{HEX}.att", "sha256:t", NOW - 29 * DAY)
    assert orphans(Rule(keep_last=1), [old, new], [], NOW).keys() == {old}
    assert orphans(Rule(keep_last=1), [old, new], [f"sha256:{HEX}"], NOW) == {}
    assert orphans(Rule(untagged_days=1), [old, new], [], NOW) == {}
    assert orphans(Rule(keep_days=9, untagged_days=1), [old, new], [], NOW).keys() == {old, new}


def test_a_manifest_without_a_tag_has_its_time_and_a_lease_beside_it() -> None:
    rule = Rule(untagged_days=7)
    assert overdue(rule, Untagged(NOW - 7 * DAY, NOW), NOW)
    assert not overdue(rule, Untagged(NOW - 7 * DAY + 1, NOW), NOW)
    assert not overdue(rule, Untagged(NOW - 7 * DAY, NOW + 1), NOW)
    assert not overdue(Rule(), Untagged(NOW - 29 * DAY, 0), NOW)
    assert overdue(Rule(), Untagged(NOW - 30 * DAY, 0), NOW)


@given(
    st.dictionaries(st.integers(0, 12), st.sets(st.integers(0, 12), max_size=4), max_size=13),
    st.sets(st.integers(0, 12), max_size=3),
)
def test_what_no_way_leads_to_from_a_root_is_unreached(lives_by: dict[int, set[int]], roots: set[int]) -> None:
    """Cycles among them too: an index about one of its own entries keeps it, and is kept by it."""
    graph = {str(name): {str(other) for other in others} for name, others in lives_by.items()}

    def alive(name: str, seen: frozenset[str] = frozenset()) -> bool:
        if name in {str(root) for root in roots}:
            return True
        return any(alive(other, seen | {name}) for other in graph.get(name, ()) if other not in seen)

    names = sorted(graph)
    assert unreached(names, graph, {str(root) for root in roots}) == [name for name in names if not alive(name)]


@pytest.mark.parametrize(
    ("rule", "tag", "fixed"),
    [
        (Rule(immutable=True), "v1", True),
        (Rule(), "v1", False),
        (Rule(immutable=True, movable=("latest", "dev-*")), "latest", False),
        (Rule(immutable=True, movable=("latest", "dev-*")), "dev-7", False),
        (Rule(immutable=True, movable=("latest", "dev-*")), "latest2", True),
        (Rule(immutable=True, movable=("latest", "dev-*")), "Latest", True),
        (Rule(immutable=True), f"sha256-{HEX}.sig", False),  # a second signature is added to the first
    ],
)
def test_an_immutable_tag_is_one_that_no_pattern_excepts(rule: Rule, tag: str, fixed: bool) -> None:
    assert rule.fixes(tag) is fixed


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"keep_last": 0}, "keep_last must be a whole number from 1 to 1e+06, or null"),
        ({"keep_last": 1.5}, "keep_last must be a whole number"),
        ({"keep_last": True}, "keep_last must be a whole number"),
        ({"keep_last": "5"}, "keep_last must be a whole number"),
        ({"keep_last": 10**30}, "keep_last must be a whole number"),
        ({"keep_days": -1}, "keep_days must be a number from 0 to 36500, or null"),
        ({"keep_days": math.nan}, "keep_days must be a number"),
        ({"untagged_days": math.inf}, "untagged_days must be a number"),
        ({"untagged_days": [1]}, "untagged_days must be a number"),
        ({"immutable": 1}, "immutable must be true or false"),
        ({"immutable": True, "movable": "latest"}, "movable must be a list of patterns"),
        ({"immutable": True, "movable": ["a b"]}, "movable must be a list of patterns"),
        ({"immutable": True, "movable": ["[a-z]"]}, "movable must be a list of patterns"),
        ({"immutable": True, "movable": [1]}, "movable must be a list of patterns"),
        ({"immutable": True, "movable": ["a"] * 33}, "movable may hold 32 patterns"),
        ({"movable": ["latest"]}, "does nothing without"),
    ],
)
def test_what_is_no_rule_is_refused_with_what_would_be(body: dict[str, Any], words: str) -> None:
    with pytest.raises(RegistryError) as refused:
        parse(json.loads(json.dumps(body)))
    assert refused.value.status == 400
    assert words in refused.value.message


def test_what_is_not_written_is_as_it_is_by_default() -> None:
    assert parse({}) == Rule()
    assert parse({"keep_last": 3, "keep_days": None, "untagged_days": 0}) == Rule(keep_last=3, untagged_days=0)
    assert parse({"immutable": True, "movable": ["latest", "dev-*"]}) == Rule(
        immutable=True, movable=("latest", "dev-*")
    )
