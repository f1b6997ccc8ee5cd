"""The registry's tokens: what they say, for how long, and that they never say more than their owner may."""

from __future__ import annotations

import base64
import json

import pytest

from faas.auth import ANONYMOUS, ROOT, Permission, Principal, Role
from registry.access import STRANGER, TOKEN_SECONDS, Caller, Signer, parse_scope

DEPLOYER = Caller(Principal("dora", Role.DEPLOYER, "team"))
VIEWER = Caller(Principal("vic", Role.VIEWER, "team"))


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("repository:team/app:pull", [("team/app", "pull")]),
        ("repository:team/app:pull,push", [("team/app", "pull"), ("team/app", "push")]),
        ("repository:team/app:*", [("team/app", "pull"), ("team/app", "push"), ("team/app", "delete")]),
        ("repository:host:5000/app:pull", [("host:5000/app", "pull")]),
        ("repository:app:fly", []),
        ("registry:catalog:*", []),
        ("repository:app", []),
        ("", []),
    ],
)
def test_scopes_are_read_as_clients_write_them(text: str, pairs: list[tuple[str, str]]) -> None:
    assert parse_scope(text) == pairs


def test_a_token_is_given_what_its_owner_may_and_no_more() -> None:
    everything = parse_scope("repository:team/app:*") + parse_scope("repository:other/app:*")
    assert DEPLOYER.granted(everything) == {("team/app", action) for action in ("pull", "push", "delete")}
    assert VIEWER.granted(everything) == {("team/app", "pull")}
    assert STRANGER.granted(everything) == frozenset()
    assert Caller(ROOT).granted(everything) == set(everything)


def test_the_bases_are_for_everybody_to_pull_and_for_the_administrator_to_change() -> None:
    wanted = parse_scope("repository:runtime/python:*")
    assert DEPLOYER.granted(wanted) == {("runtime/python", "pull")}
    assert Caller(Principal("alf", Role.ADMIN, "team")).granted(wanted) == {("runtime/python", "pull")}
    assert Caller(ROOT).granted(wanted) == set(wanted)


def test_a_scoped_caller_may_what_both_the_scope_and_the_role_say() -> None:
    scoped = Caller(DEPLOYER.principal, frozenset({("team/app", "pull"), ("other/app", "pull")}))
    assert scoped.may(Permission.PULL, "team/app")
    assert not scoped.may(Permission.PUSH, "team/app")
    assert not scoped.may(Permission.PULL, "team/second")
    assert not scoped.may(Permission.PULL, "other/app")


def test_a_token_is_read_back_until_it_is_over() -> None:
    signer = Signer()
    token = signer.issue(DEPLOYER, frozenset({("team/app", "pull")}), now=1000)
    assert signer.read(token, now=1000 + TOKEN_SECONDS) == Caller(DEPLOYER.principal, frozenset({("team/app", "pull")}))
    assert signer.read(token, now=1001 + TOKEN_SECONDS) is None
    stranger = signer.read(signer.issue(STRANGER, frozenset(), now=1000), now=1000)
    assert stranger is not None
    assert stranger.principal is ANONYMOUS


@pytest.mark.parametrize("change", ["payload", "signature", "other key", "nothing", "words"])
def test_a_forged_token_is_none(change: str) -> None:
    signer = Signer()
    body, _, signature = signer.issue(VIEWER, frozenset({("team/app", "pull")})).partition(".")
    payload = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    forged = base64.urlsafe_b64encode(json.dumps({**payload, "role": "admin", "namespace": "*"}).encode()).decode()
    token = {
        "payload": f"{forged.rstrip('=')}.{signature}",
        "signature": f"{body}.{signature[:-2]}AA",
        "other key": Signer().issue(VIEWER, frozenset()),
        "nothing": f"{body}.",
        "words": "faas_not-a-token-at-all",
    }[change]
    assert signer.read(token) is None
