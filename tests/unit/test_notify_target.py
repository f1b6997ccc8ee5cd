"""What a target may be: everything else is refused by its key."""

from __future__ import annotations

from typing import Any

import pytest

from faas.errors import InvalidInput
from gateway.notify.subjects import MACHINE, Kind, Subject
from gateway.notify.target import definition, parse, stored

HOOK = {"url": "https://hooks.example.com/x"}
MAIL = {"server": "smtp.example.com", "sender": "faas@example.com", "to": ["ops@example.com"]}


def of(body: dict[str, Any], *, allow_private: bool = False) -> Any:
    return parse("team", "ops", body, allow_private=allow_private)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "a webhook or mail, one of them"),
        ({"webhook": HOOK, "mail": MAIL}, "one of them"),
        ({"webhook": HOOK, "colour": 1}, "unknown key colour"),
        ({"webhook": "https://x"}, "webhook must be an object"),
        ({"webhook": {}}, "one of url and url_secret"),
        ({"webhook": {**HOOK, "url_secret": "x"}}, "one of url and url_secret"),
        ({"webhook": {"url": "http://hooks.example.com/"}}, "URL is https"),
        ({"webhook": {"url": "ftp://hooks.example.com/"}}, "URL is https"),
        ({"webhook": {"url": "https://me:secret@hooks.example.com/"}}, "without a user"),
        ({"webhook": {"url": "https://"}}, "URL is https"),
        ({"webhook": {"url": "https://x/" + "a" * 2048}}, "webhook.url must be"),
        ({"webhook": {**HOOK, "signing_secret": "A value!"}}, "webhook.signing_secret must be the name of a stored"),
        ({"webhook": {**HOOK, "ca": "no PEM"}}, "ca must be certificates as PEM"),
        ({"webhook": {**HOOK, "headers": {}}}, "unknown key webhook.headers"),
        ({"mail": {**MAIL, "to": []}}, "mail.to must be a list of 1 to 10"),
        ({"mail": {**MAIL, "to": ["a@b"] * 11}}, "mail.to must be a list"),
        ({"mail": {**MAIL, "to": ["ops@example.com\r\nBcc: x@y"]}}, "mail.to must be an address"),
        ({"mail": {**MAIL, "to": ["Ops <ops@example.com>"]}}, "mail.to must be an address"),
        ({"mail": {**MAIL, "sender": ""}}, "mail.sender must be an address"),
        ({"mail": {**MAIL, "server": "smtp.example.com:0"}}, "mail.server must be HOST"),
        ({"mail": {**MAIL, "server": "smtp example"}}, "mail.server must be HOST"),
        ({"mail": {**MAIL, "security": "ssl"}}, "starttls, tls, none"),
        ({"mail": {**MAIL, "security": "none"}}, "mail.security none"),
        ({"mail": {**MAIL, "user": "me"}}, "go together"),
        ({"webhook": HOOK, "on": []}, "on must be a list of function, schedule"),
        ({"webhook": HOOK, "on": ["functions"]}, "on must be a list"),
        ({"webhook": HOOK, "on": [["function"]]}, "on must be a list"),
        ({"webhook": HOOK, "on": ["disk"]}, "disk is the machine's"),
        ({"webhook": HOOK, "errors": 0}, "errors must be a whole number from 1 to 100"),
        ({"webhook": HOOK, "repeat": 10}, "repeat must be a whole number from 300"),
        ({"webhook": HOOK, "everywhere": 1}, "everywhere must be true or false"),
    ],
)
def test_what_is_no_target_is_refused_by_its_key(body: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        of(body)
    assert "A value!" not in caught.value.message
    assert "secret@" not in caught.value.message


def test_without_a_password_and_with_the_setting_a_server_nearby_needs_no_tls() -> None:
    assert of({"mail": {**MAIL, "security": "none"}}, allow_private=True).way.port == 25
    assert of({"webhook": {"url": "http://10.0.0.1/"}}, allow_private=True).way.url
    with pytest.raises(InvalidInput, match=r"mail\.security none"):
        of({"mail": {**MAIL, "security": "none", "user": "me", "password_secret": "p"}}, allow_private=True)


def test_a_target_hears_of_its_own_namespace_and_of_the_machine_only_where_it_is_everywheres() -> None:
    own, all_of_it = of({"webhook": HOOK}), of({"mail": MAIL, "everywhere": True})
    assert own.on == frozenset(Kind) - MACHINE
    assert own.hears_of(Subject(Kind.BUDGET, "team", "most.team"))
    assert not own.hears_of(Subject(Kind.BUDGET, "default", "most"))
    assert all(all_of_it.hears_of(Subject(kind, "", "x")) for kind in Kind)
    assert (all_of_it.way.host, all_of_it.way.port) == ("smtp.example.com", 587)


@pytest.mark.parametrize(
    "body",
    [
        {"webhook": {**HOOK, "signing_secret": "key"}, "on": ["function", "budget"], "errors": 5, "repeat": 600},
        {"webhook": {"url_secret": "hook"}, "everywhere": True},
        {"mail": {**MAIL, "server": "[::1]:2525", "security": "tls", "user": "me", "password_secret": "p"}},
    ],
)
def test_what_is_stored_is_read_back(body: dict[str, Any]) -> None:
    target = of(body)
    assert stored("team", "ops", definition(target)) == target
