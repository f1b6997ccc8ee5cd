"""Names → revisions."""

from __future__ import annotations

import pytest

from faas.errors import NotFound
from faas.spec import Interface
from gateway.router import FunctionState, Route, Router, function_label, parse_name
from tests.support.data_path import revision


@pytest.fixture
def router() -> Router:
    router = Router()
    revisions = {n: revision(number=n) for n in (6, 7)}
    router.put(FunctionState("default", "hello", {"live": 7, "prod": 6}, revisions))
    router.put(FunctionState("team", "hello", {"live": 1}, {1: revision(namespace="team")}))
    return router


@pytest.mark.parametrize(
    ("text", "number", "qualifier", "label"),
    [
        ("hello", 7, "live", "hello"),
        ("hello.default", 7, "live", "hello"),
        ("hello:live", 7, "live", "hello"),
        ("hello:v6", 6, "v6", "hello"),
        ("hello:6", 6, "v6", "hello"),
        ("hello:prod", 6, "prod", "hello"),
        ("hello.team", 1, "live", "hello.team"),
        ("hello.team:v1", 1, "v1", "hello.team"),
    ],
)
def test_a_name_in_every_form_leads_to_its_revision(
    router: Router, text: str, number: int, qualifier: str, label: str
) -> None:
    route = router.resolve(*parse_name(text))
    assert (route.revision.key.number, route.qualifier, route.label) == (number, qualifier, label)


@pytest.mark.parametrize(
    "text", ["other", "hello.other", "hello:v8", "hello:nothing", "", ":", ".", "hello:V7", "hello:07", "hello.team.x"]
)
def test_what_does_not_exist_is_not_found_in_words_that_tell_no_names(router: Router, text: str) -> None:
    with pytest.raises(NotFound) as raised:
        router.resolve(*parse_name(text))
    assert "hello" not in raised.value.message + raised.value.hint


def test_a_removed_function_is_gone_and_removing_twice_is_no_error(router: Router) -> None:
    router.remove("default", "hello")
    router.remove("default", "hello")
    with pytest.raises(NotFound):
        router.resolve("default", "hello")
    assert router.resolve("team", "hello").revision.key.namespace == "team"


def test_a_function_without_a_live_alias_answers_by_its_versions_only() -> None:
    router = Router()
    router.put(FunctionState("default", "new", {}, {1: revision("new")}))
    assert router.resolve("default", "new", "v1").revision.key.number == 1
    with pytest.raises(NotFound):
        router.resolve("default", "new")


def test_a_version_is_never_hidden_by_an_alias_of_its_name() -> None:
    router = Router()
    router.put(FunctionState("default", "f", {"live": 2, "v1": 2}, {n: revision("f", n) for n in (1, 2)}))
    assert router.resolve("default", "f", "v1").revision.key.number == 1


def test_an_interface_that_was_found_out_reaches_every_route_of_the_revision() -> None:
    router = Router()
    unknown = revision(interface=Interface.AUTO)
    router.put(FunctionState("default", "hello", {"live": 1}, {1: unknown}))
    router.revise(revision(interface=Interface.HTTP))
    assert {router.resolve("default", "hello", q).revision.interface for q in ("", "v1", "live")} == {Interface.HTTP}


def test_revising_what_was_removed_meanwhile_brings_nothing_back(router: Router) -> None:
    router.remove("default", "hello")
    router.revise(revision(number=7))
    with pytest.raises(NotFound):
        router.resolve("default", "hello")


def test_close_names_are_of_the_same_namespace(router: Router) -> None:
    assert router.near("default", "helo") == ["hello"]
    assert router.near("nowhere", "helo") == []


def test_routes_are_the_same_object_until_the_next_put(router: Router) -> None:
    first: Route = router.resolve("default", "hello")
    assert router.resolve("default", "hello") is first
    assert function_label("default", "x") == "x"
