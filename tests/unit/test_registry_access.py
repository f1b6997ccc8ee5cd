"""The registry's tokens: what they say, for how long, and that they never say more than their owner may."""

from __future__ import annotations

import base64
import json

import pytest

from faas.auth import ANONYMOUS, ROOT, Permission, Principal, Role, new_token
from faas.errors import InvalidInput
from registry.access import ACTIONS, CATALOG, STRANGER, TOKEN_SECONDS, Caller, Grant, Signer, parse_scope
from registry.catalog import reach
from registry.tokens import wanted

DEPLOYER = Caller(Principal("dora", Role.DEPLOYER, "team"))
VIEWER = Caller(Principal("vic", Role.VIEWER, "team"))
NARROWED = Principal("ned", Role.DEPLOYER, repositories=("team/app", "shared/*"))


def may(principal: Principal, repository: str) -> set[str]:
    return {action for action, permission in ACTIONS.items() if principal.may_use(permission, repository)}


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("repository:team/app:pull", [("team/app", "pull")]),
        ("repository:team/app:pull,push", [("team/app", "pull"), ("team/app", "push")]),
        ("repository:team/app:*", [("team/app", "pull"), ("team/app", "push"), ("team/app", "delete")]),
        ("repository:host:5000/app:pull", [("host:5000/app", "pull")]),
        ("repository:app:fly", []),
        ("registry:catalog:*", [CATALOG]),
        ("registry:catalog:pull", []),
        ("repository:registry:catalog:*", [("registry:catalog", action) for action in ("pull", "push", "delete")]),
        ("repository:app", []),
        ("", []),
    ],
)
def test_scopes_are_read_as_clients_write_them(text: str, pairs: list[tuple[str, str]]) -> None:
    assert parse_scope(text) == pairs


def test_images_are_for_the_role_within_its_namespace() -> None:
    assert may(DEPLOYER.principal, "team/app") == {"pull", "push", "delete"}
    assert may(VIEWER.principal, "team/app") == {"pull"}
    assert may(ANONYMOUS, "team/app") == set()
    assert may(DEPLOYER.principal, "other/app") == may(DEPLOYER.principal, "team") == set()
    assert may(ROOT, "other/app") == {"pull", "push", "delete"}


def test_patterns_narrow_what_the_role_may_and_never_widen_it() -> None:
    everything = {"pull", "push", "delete"}
    assert may(NARROWED, "team/app") == may(NARROWED, "shared/a/b") == everything
    assert may(NARROWED, "team/application") == may(NARROWED, "team") == may(NARROWED, "app") == set()
    viewer = Principal("vic", Role.VIEWER, "team", repositories=("*",))
    assert may(viewer, "team/app") == {"pull"}
    assert may(viewer, "other/app") == may(viewer, "app") == set()


@pytest.mark.parametrize(
    ("role", "namespace", "repositories"),
    [
        (Role.CALLER, "*", ("team/*",)),
        (Role.ADMIN, "*", ("team/*",)),
        (Role.VIEWER, "team", ("other/*",)),
        (Role.VIEWER, "team", ("app",)),
        (Role.VIEWER, "*", ("Team/*",)),
        (Role.VIEWER, "*", ("",)),
        (Role.VIEWER, "*", ("team/?",)),
        (Role.VIEWER, "*", ("a",) * 33),
        (Role.VIEWER, "*", ("a" * 255,) * 10),
    ],
)
def test_patterns_that_narrow_nothing_reach_nothing_or_are_too_many_are_refused(
    role: Role, namespace: str, repositories: tuple[str, ...]
) -> None:
    with pytest.raises(InvalidInput):
        Principal("x", role, namespace, repositories=repositories).check_patterns()


def test_the_bases_are_for_everybody_to_pull_and_for_the_administrator_to_change() -> None:
    for principal in (DEPLOYER.principal, NARROWED, Principal("alf", Role.ADMIN, "team")):
        assert may(principal, "runtime/python") == {"pull"}
    assert may(Principal("cal", Role.CALLER), "runtime/python") == may(ANONYMOUS, "runtime/python") == set()
    assert may(ROOT, "runtime/python") == {"pull", "push", "delete"}


def test_who_asks_to_pull_with_credentials_is_offered_every_action_and_a_stranger_what_was_asked() -> None:
    asked = ["repository:team/app:pull", "repository:other:push", "registry:catalog:*"]
    other = {("other", "push"), CATALOG}
    assert set(wanted(DEPLOYER, asked)) == {("team/app", action) for action in ACTIONS} | other
    assert set(wanted(STRANGER, asked)) == {("team/app", "pull")} | other


def test_the_catalog_is_looked_for_where_the_caller_may_pull() -> None:
    bases, public, copies = "runtime/*", ["free/*"], ["docker.io/*"]
    assert reach(ROOT, public, copies)[0] is None
    assert reach(VIEWER.principal, public, copies) == ("team", ["free/*", "docker.io/*", bases])
    assert reach(NARROWED, public, copies) == ("", ["free/*", "team/app", "shared/*", bases])
    for principal in (ANONYMOUS, Principal("cal", Role.CALLER)):
        assert reach(principal, public, copies) == ("", public)


def test_a_scoped_caller_may_what_both_the_scope_and_the_role_say() -> None:
    scoped = Caller(DEPLOYER.principal, frozenset({("team/app", "pull"), ("other/app", "pull")}))
    assert scoped.may(Permission.PULL, "team/app")
    assert not scoped.may(Permission.PUSH, "team/app")
    assert not scoped.may(Permission.PULL, "team/second")
    assert not scoped.may(Permission.PULL, "other/app")


def test_a_token_is_read_back_until_it_is_over() -> None:
    signer = Signer()
    token = signer.issue(DEPLOYER, frozenset({("team/app", "pull")}), now=1000)
    assert signer.read(token, now=1000 + TOKEN_SECONDS) == Grant("dora", frozenset({("team/app", "pull")}))
    assert signer.read(token, now=1001 + TOKEN_SECONDS) is None
    assert signer.read(signer.issue(STRANGER, frozenset({CATALOG}))) == Grant("", frozenset({CATALOG}))
    called_so = Caller(Principal(ANONYMOUS.name, Role.VIEWER))
    assert signer.read(signer.issue(called_so, frozenset())) == Grant(ANONYMOUS.name, frozenset())


@pytest.mark.parametrize("change", ["payload", "signature", "other key", "nothing", "words"])
def test_a_forged_token_is_none(change: str) -> None:
    signer = Signer()
    body, _, signature = signer.issue(VIEWER, frozenset({("team/app", "pull")})).partition(".")
    payload = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    forged = base64.urlsafe_b64encode(json.dumps({**payload, "owner": "admin"}).encode()).decode()
    token = {
        "payload": f"{forged.rstrip('=')}.{signature}",
        "signature": f"{body}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}",
        "other key": Signer().issue(VIEWER, frozenset()),
        "nothing": f"{body}.",
        "words": "faas_not-a-token-at-all",
    }[change]
    assert signer.read(token) is None
    assert signer.is_form_of(token) == (change not in ("nothing", "words"))


def test_nobodys_own_credentials_look_like_a_short_lived_token() -> None:
    assert not any(Signer().is_form_of(text) for text in (new_token(), "", "secret", "a.b", "x." + "é" * 43))
