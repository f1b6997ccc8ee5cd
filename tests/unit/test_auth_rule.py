"""`[auth]` of `faas.toml`: what is taken, what is refused, and where it stands then."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from faas import spec
from faas.errors import SpecError
from faas.rules import rules
from faas.rules.auth import LOGIN, AuthorizerRule, AuthRule, JwtRule, KeyRule
from faas.rules.payload import Payload
from gateway.edge.doorman import asked_at
from gateway.edge.entry import Entry, Target
from gateway.router import Route
from tests.support.data_path import revision

JWT = {"issuer": "https://i.example", "audience": ["us"], "jwks": "https://i.example/keys"}
GATE = {"function": "gate"}


def auth(**written: Any) -> AuthRule | None:
    return spec.parse({"name": "x", "auth": written}).rules.auth


def test_every_way_in_is_taken_and_what_a_spec_says_of_itself_is_taken_back() -> None:
    written = {
        "token": True,
        "key": {"header": "X-Ours", "query": "key"},
        "jwt": {**JWT, "algorithms": ["ES256", "EdDSA"], "scopes": ["read"]},
        "authorizer": {**GATE, "format": "1.0", "identity": ["$context.routeKey"], "ttl": "1h", "timeout": 3},
    }
    found = spec.parse({"name": "x", "auth": written})
    assert found.rules.auth == AuthRule(
        token=True,
        key=KeyRule("X-Ours", "key"),
        jwt=JwtRule("https://i.example", ("us",), "https://i.example/keys", ("ES256", "EdDSA"), ("read",)),
        authorizer=AuthorizerRule("gate", Payload.V1, ("$context.routeKey",), timedelta(hours=1), 3),
    )
    assert spec.parse(found.to_dict()) == found
    assert not found.rules.none, "such requests go the whole way"


def test_the_defaults_are_the_documented_ones() -> None:
    assert auth(key=True) == AuthRule(key=KeyRule("X-Api-Key", ""))
    found = auth(jwt=JWT, authorizer=GATE)
    assert found is not None
    assert found.jwt is not None
    assert found.authorizer is not None
    assert (found.jwt.algorithms, found.jwt.scopes) == (("RS256", "ES256"), ())
    ttl, identity = timedelta(minutes=5), ("$request.header.Authorization",)
    assert found.authorizer == AuthorizerRule("gate", Payload.V2, identity, ttl, 10)


def test_a_route_has_the_same_keys_and_may_be_public() -> None:
    assert rules.parse("route[0]", {"auth": {"public": True}}).auth == AuthRule(public=True)
    with pytest.raises(SpecError) as caught:
        rules.parse("route[0]", {"auth": {"public": True, "key": True}})
    assert caught.value.key == "route[0].auth.public"


@pytest.mark.parametrize(
    ("written", "key", "words"),
    [
        ({"token": False}, "auth", "names no way in"),
        ({"key": False}, "auth", "names no way in"),
        ({"keys": True}, "auth.keys", "unknown key auth.keys"),
        ({"token": "yes"}, "auth.token", "true or false"),
        ({"public": True}, "auth.public", "auth.public is for routes"),
        ({"key": "X-Api-Key"}, "auth.key", "must be a table"),
        ({"key": {"header": "Authorization"}}, "auth.key.header", "a header field's name of its own"),
        ({"key": {"header": "cookie"}}, "auth.key.header", "a header field's name of its own"),
        ({"key": {"header": "X Y"}}, "auth.key.header", "a header field's name"),
        ({"key": {"query": "a&b"}}, "auth.key.query", "a query parameter's name"),
        ({"jwt": {}}, "auth.jwt", "auth.jwt needs issuer"),
        ({"jwt": {**JWT, "audience": []}}, "auth.jwt.audience", "a list of 1 to 32 texts"),
        ({"jwt": {**JWT, "audience": "us"}}, "auth.jwt.audience", "a list of 1 to 32 texts"),
        ({"jwt": {**JWT, "issuer": ""}}, "auth.jwt.issuer", "the issuer"),
        ({"jwt": {**JWT, "algorithms": []}}, "auth.jwt.algorithms", "a list of RS256"),
        ({"jwt": {**JWT, "algorithms": ["HS256"]}}, "auth.jwt.algorithms", "a list of RS256"),
        ({"jwt": {**JWT, "algorithms": ["none"]}}, "auth.jwt.algorithms", "a list of RS256"),
        ({"jwt": {**JWT, "algorithms": [["RS256"]]}}, "auth.jwt.algorithms", "a list of RS256"),
        ({"jwt": {**JWT, "leeway": 9}}, "auth.jwt.leeway", "unknown key"),
        *(
            ({"jwt": {**JWT, "jwks": wrong}}, "auth.jwt.jwks", "an https URL")
            for wrong in (
                "http://i.example/keys", "ftp://i.example/keys", "https://", "https://u:p@i.example/", "keys",
                "/etc/x.json",
                "../x.json", "file:///x.json", "https://i.example:0/", "https://[/", "https://i.example/\n", 7,
                "http://10.0.0.1/",
            )
        ),
        *(
            ({"jwt": {"issuer": wrong, "audience": ["us"]}}, "auth.jwt.jwks", "auth.jwt needs jwks")
            for wrong in ("us", "http://i.example", "https://i.example/?a=b", "https://i.example/#a", "i.example")
        ),
        ({"authorizer": {}}, "auth.authorizer", "auth.authorizer needs function"),
        ({"authorizer": {"function": "x"}}, "auth.authorizer", "must not be the function itself"),
        ({"authorizer": {"function": "x:v1"}}, "auth.authorizer", "must not be the function itself"),
        ({"authorizer": {"function": "gate.team"}}, "auth.authorizer.function", "a function of the same namespace"),
        ({"authorizer": {**GATE, "format": "3.0"}}, "auth.authorizer.format", "one of 2.0, 1.0"),
        ({"authorizer": {**GATE, "ttl": "2h"}}, "auth.authorizer.ttl", "a duration from 0s to 1h"),
        ({"authorizer": {**GATE, "timeout": 11}}, "auth.authorizer.timeout", "a whole number from 1 to 10"),
        ({"authorizer": {**GATE, "identity": []}}, "auth.authorizer.ttl", "needs an identity"),
        ({"authorizer": {**GATE, "identity": ["Authorization"]}}, "auth.authorizer.identity", "$request.header.NAME"),
        ({"authorizer": {**GATE, "identity": ["$context.accountId"]}}, "auth.authorizer.identity", "$context.routeKey"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_with_its_key_and_what_is_allowed(
    written: dict[str, Any], key: str, words: str
) -> None:
    with pytest.raises(SpecError) as caught:
        auth(**written)
    assert words in caught.value.message
    assert caught.value.key == key


def test_a_function_is_public_or_has_ways_in() -> None:
    with pytest.raises(SpecError) as caught:
        spec.parse({"name": "x", "public": True, "auth": {"key": True}})
    assert (caught.value.key, caught.value.hint) == ("public", "drop one of the two")
    for nothing in ({}, False, [], ""):
        with pytest.raises(SpecError) as caught:
            spec.parse({"name": "x", "public": True, "auth": nothing})
        assert caught.value.key == "auth", "what says nothing opens nothing"


def test_a_route_that_names_no_way_in_opens_no_function_that_does() -> None:
    def asked(by_route: bool, route: dict[str, Any], **function: Any) -> AuthRule | None:
        rules_ = rules.parse("route[0]", route)
        target = Target("hello", "/", "")
        return asked_at(Entry(Route(revision(**{"public": False, **function}), "live"), target, rules_, by_route))

    keyed = AuthRule(key=KeyRule())
    assert asked(True, {}, auth={"key": True}) == keyed
    assert asked(True, {"auth": {"token": True}}, auth={"key": True}) == AuthRule(token=True)
    assert asked(False, {"auth": {"public": True}}, auth={"key": True}) is None, "by its own word"
    assert asked(True, {}, public=True) is None
    assert asked(False, {}) == LOGIN
    assert asked(True, {"auth": {"key": True}}, public=True) == keyed


def test_keys_of_this_machine_may_be_named_for_a_server_that_allows_it() -> None:
    for url in ("http://localhost:8/k", "http://127.0.0.1/k", "http://[::1]/k", "https://10.0.0.1/k", "ours.json"):
        found = auth(jwt={**JWT, "jwks": url})
        assert found is not None
        assert found.jwt is not None
        assert found.jwt.jwks == url


@pytest.mark.parametrize(
    "issuer", ["https://i.example", "https://i.example:8443/tenants/one/", "http://127.0.0.1:9000"]
)
def test_an_issuer_that_is_a_url_needs_no_key_set(issuer: str) -> None:
    found = auth(jwt={"issuer": issuer, "audience": ["us"]})
    assert found is not None
    assert found.jwt is not None
    assert found.jwt.jwks == ""
