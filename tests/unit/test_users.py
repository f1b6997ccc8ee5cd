"""Users and their tokens: what each opens, now; who may make which; and how they end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from faas.auth import ALL_NAMESPACES, ROOT, Permission, Principal, Role
from faas.errors import Conflict, InvalidInput, NotFound
from faas.protocol import LogQuery, LogRecord
from faas.state.session import Database
from gateway.control.tokens import reaches
from gateway.credentials import MOST_OF_USER, SHOWN_EXPIRED_SECONDS, TokenStore
from gateway.edge.throttle import Buckets, Rate
from tests.support.control import Control, control, until
from tests.support.fake_worker import FakeWorker


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Control]:
    async with control(tmp_path) as running:
        yield running


async def asked(server: Control, verb: str, path: str, body: Any = None, *, by: str = "", status: int = 200) -> Any:
    answered = await server.call(verb, path, body, token=by or None)
    assert answered.status == status, (verb, path, answered.status, answered.body)
    return answered.json() if answered.body else None


async def a_user(server: Control, name: str, **roles: str) -> str:
    """A new user with these roles (`everywhere` for all namespaces), and a token of its own."""
    given = {ALL_NAMESPACES if of == "everywhere" else of: role for of, role in roles.items()}
    await asked(server, "POST", "/v1/users", {"name": name, "roles": given}, status=201)
    made = await asked(server, "POST", "/v1/tokens", {"name": "first", "user": name}, status=201)
    assert made["name"] == f"first@{name}"
    return str(made["token"])


async def test_a_user_is_something_else_in_each_namespace(server: Control) -> None:
    for namespace in ("mobile", "web", "other"):
        await server.deploy("hello", namespace=namespace)
    ada = await a_user(server, "ada", mobile="deployer", web="viewer")
    listed = await asked(server, "GET", "/v1/functions", by=ada)
    assert {one["namespace"] for one in listed["functions"]} == {"mobile", "web"}
    scale = {"instances": 1}
    await asked(server, "POST", "/v1/functions/hello.mobile/scale", scale, by=ada)
    await asked(server, "POST", "/v1/functions/hello.web/scale", scale, by=ada, status=403)
    await asked(server, "GET", "/v1/functions/hello.web", by=ada)
    await asked(server, "GET", "/v1/functions/hello.other", by=ada, status=403)
    told = await asked(server, "GET", "/v1/whoami", by=ada)
    assert (told["name"], told["token"], told["is_user"]) == ("ada", "first@ada", True)
    assert told["roles"] == {"mobile": "deployer", "web": "viewer"}


async def test_what_a_user_loses_all_its_tokens_lose_at_once(server: Control) -> None:
    await server.deploy("hello", namespace="team")
    ada = await a_user(server, "ada", team="deployer")
    await asked(server, "DELETE", "/v1/functions/none.team", by=ada, status=404)
    await asked(server, "PATCH", "/v1/users/ada", {"roles": {"team": "viewer"}})
    await asked(server, "DELETE", "/v1/functions/none.team", by=ada, status=403)
    await asked(server, "GET", "/v1/functions/hello.team", by=ada)
    await asked(server, "PATCH", "/v1/users/ada", {"roles": {"team": None}})
    await asked(server, "GET", "/v1/functions", by=ada, status=403)
    assert (await asked(server, "GET", "/v1/whoami", by=ada))["roles"] == {}
    await asked(server, "DELETE", "/v1/users/ada", status=204)
    await asked(server, "GET", "/v1/whoami", by=ada, status=401)
    assert (await asked(server, "GET", "/v1/tokens"))["tokens"] == []


async def test_users_and_their_tokens_are_there_after_a_restart(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        ada = await a_user(server, "ada", team="viewer")
        gone = await a_user(server, "eve", team="viewer")
        await asked(server, "DELETE", "/v1/users/eve", status=204)
    async with control(tmp_path) as server:
        told = await asked(server, "GET", "/v1/whoami", by=ada)
        assert (told["name"], told["roles"]) == ("ada", {"team": "viewer"})
        await asked(server, "GET", "/v1/whoami", by=gone, status=401)
        row = (await asked(server, "GET", "/v1/tokens", by=ada))["tokens"][0]
        assert row["last_used_at"] is not None  # written at the stop, from memory


@pytest.mark.parametrize(
    ("narrowed", "path", "status"),
    [
        ({"role": "viewer"}, "/v1/functions/api-a.team", 403),
        ({"namespace": "web"}, "/v1/functions/api-a.team", 403),
        ({"functions": ["web-*"]}, "/v1/functions/api-a.team", 403),
        ({"functions": ["api-*"]}, "/v1/functions/api-a.team", 404),
        ({"functions": ["api-*"]}, "/v1/apis/shop.team", 403),  # of the namespace, and of no function
        ({}, "/v1/functions/api-a.team", 404),
    ],
)
async def test_a_token_narrows_what_its_user_may(server: Control, narrowed: Any, path: str, status: int) -> None:
    ada = await a_user(server, "ada", team="deployer", web="deployer")
    made = await asked(server, "POST", "/v1/tokens", {"name": "ci", "user": "ada", **narrowed}, by=ada, status=201)
    await asked(server, "DELETE", path, by=made["token"], status=status)


async def test_a_narrowed_token_lists_only_what_it_is_for(server: Control) -> None:
    for name in ("api-a", "api-b", "web"):
        await server.deploy(name, namespace="team")
    wish = {"name": "x", "role": "viewer", "namespace": "team", "functions": ["api-*"]}
    token = (await asked(server, "POST", "/v1/tokens", wish, status=201))["token"]
    for path in ("/v1/functions", "/v1/functions?namespace=team"):
        listed = await asked(server, "GET", path, by=token)
        assert [one["name"] for one in listed["functions"]] == ["api-a", "api-b"]
    await asked(server, "GET", "/v1/usage", by=token, status=400)
    await asked(server, "GET", "/v1/usage?function=api-a.team", by=token)
    await asked(server, "GET", "/v1/usage?function=web.team", by=token, status=403)


async def test_a_user_makes_tokens_for_itself_with_no_more_than_it_has(server: Control) -> None:
    ada = await a_user(server, "ada", team="deployer")
    bob = await a_user(server, "bob", team="deployer")
    narrow = {"name": "narrow", "user": "ada", "role": "viewer", "expires": "1h"}
    narrowed = (await asked(server, "POST", "/v1/tokens", narrow, by=ada, status=201))["token"]
    for by, wish, status in (
        (ada, {"name": "alone", "role": "viewer", "namespace": "team"}, 403),
        (ada, {"name": "other", "user": "bob"}, 403),
        (narrowed, {"name": "wider", "user": "ada"}, 403),
        (narrowed, {"name": "longer", "user": "ada", "role": "viewer"}, 403),
        (narrowed, {"name": "same", "user": "ada", "role": "viewer", "expires": "10m"}, 201),
        (bob, {"name": "narrow", "user": "bob"}, 201),  # each user has names of its own
        (bob, {"name": "narrow", "user": "bob"}, 409),
        ("", {"name": "lost", "user": "nobody"}, 404),
        ("", {"name": "x", "user": "bob", "role": "admin", "functions": ["a"]}, 400),
        ("", {"name": "x", "user": "bob", "functions": ["A!"]}, 400),
    ):
        await asked(server, "POST", "/v1/tokens", wish, by=by, status=status)
    # An administrator's role in the token gives a deployer nothing: it is a bound, and no grant.
    made = await asked(server, "POST", "/v1/tokens", {"name": "a", "user": "ada", "role": "admin"}, by=ada, status=201)
    await asked(server, "GET", "/v1/users", by=made["token"], status=403)
    seen = (await asked(server, "GET", "/v1/tokens", by=ada))["tokens"]
    assert {row["name"] for row in seen} == {"first@ada", "narrow@ada", "same@ada", "a@ada"}
    assert {row["user"] for row in (await asked(server, "GET", "/v1/tokens", by=bob))["tokens"]} == {"bob"}


async def test_one_sees_rotates_and_revokes_ones_own_and_hears_of_no_others(server: Control) -> None:
    ada, bob = await a_user(server, "ada", team="viewer"), await a_user(server, "bob", team="viewer")
    for verb, path in (("DELETE", "/v1/tokens/first@bob"), ("POST", "/v1/tokens/first@bob/rotate")):
        told = await server.call(verb, path, token=ada)
        missing = await server.call(verb, path.replace("first", "none"), token=ada)
        assert (told.status, missing.status) == (404, 404)
        assert told.json()["error"]["message"].replace("first", "none") == missing.json()["error"]["message"]
    narrow = {"name": "n", "user": "ada", "namespace": "elsewhere"}
    narrowed = (await asked(server, "POST", "/v1/tokens", narrow, by=ada, status=201))["token"]
    await asked(server, "POST", "/v1/tokens/first@ada/rotate", by=narrowed, status=403)  # it would get more than it has
    mine = await asked(server, "POST", "/v1/tokens/first@bob/rotate", {"grace": "0s"}, by=bob)
    await asked(server, "GET", "/v1/whoami", by=bob, status=401)
    await asked(server, "DELETE", "/v1/tokens/first@bob", by=mine["token"], status=204)
    await asked(server, "GET", "/v1/whoami", by=mine["token"], status=401)


async def test_an_administrator_of_a_namespace_manages_that_one_only(server: Control) -> None:
    boss = await a_user(server, "boss", team="admin")
    await a_user(server, "ada", team="viewer", other="viewer")
    await a_user(server, "eve", other="viewer")
    assert {user["name"]: user["roles"] for user in (await asked(server, "GET", "/v1/users", by=boss))["users"]} == {
        "ada": {"team": "viewer"}, "boss": {"team": "admin"},
    }  # fmt: skip
    for verb, path, body, status in (
        ("GET", "/v1/users/eve", None, 404),
        ("DELETE", "/v1/users/eve", None, 404),
        ("POST", "/v1/tokens", {"name": "x", "user": "eve"}, 404),
        ("PATCH", "/v1/users/ada", {"roles": {"other": "admin"}}, 403),
        ("PATCH", "/v1/users/ada", {"roles": {"*": "admin"}}, 403),
        ("POST", "/v1/users", {"name": "new", "roles": {"other": "viewer"}}, 403),
        ("POST", "/v1/users", {"name": "new"}, 403),
        ("POST", "/v1/users", {"name": "boss.2", "roles": {"team": "king"}}, 400),
        ("POST", "/v1/tokens", {"name": "x", "user": "ada"}, 403),  # she has more than the boss may give
        ("DELETE", "/v1/users/ada", None, 403),
        ("PATCH", "/v1/users/ada", {"roles": {"team": "deployer"}}, 200),
        ("POST", "/v1/users", {"name": "new", "roles": {"team": "viewer"}}, 201),
        ("POST", "/v1/tokens", {"name": "x", "user": "new"}, 403),  # it would open what others give the user later
        ("POST", "/v1/tokens", {"name": "x", "user": "new", "namespace": "team"}, 201),
        ("DELETE", "/v1/users/new", None, 204),
        ("DELETE", "/v1/tokens/first@eve", None, 404),
    ):
        await asked(server, verb, path, body, by=boss, status=status)
    assert (await asked(server, "GET", "/v1/users/ada"))["roles"] == {"team": "deployer", "other": "viewer"}


async def test_who_administers_one_namespace_holds_nobodys_rights_in_others(server: Control) -> None:
    boss = await a_user(server, "boss", team="admin")
    await a_user(server, "new", team="viewer")
    wish = {"name": "x", "user": "new", "namespace": "team"}
    held = (await asked(server, "POST", "/v1/tokens", wish, by=boss, status=201))["token"]
    await asked(server, "POST", "/v1/tokens/first@new/rotate", by=boss, status=403)  # that one is for everywhere
    await asked(server, "POST", "/v1/tokens/x@new/rotate", {"grace": "1h"}, by=boss)
    await asked(server, "PATCH", "/v1/users/new", {"roles": {"other": "admin"}})
    await asked(server, "GET", "/v1/audit?namespace=other", by=held, status=403)


async def test_a_token_that_ends_gets_none_that_lasts_by_rotating_another_one(server: Control) -> None:
    ada = await a_user(server, "ada", team="deployer")
    short = {"name": "short", "user": "ada", "expires": "1h"}
    by = (await asked(server, "POST", "/v1/tokens", short, by=ada, status=201))["token"]
    await asked(server, "POST", "/v1/tokens/first@ada/rotate", by=by, status=403)
    await asked(server, "POST", "/v1/tokens", {**short, "name": "shorter", "expires": "10m"}, by=by, status=201)
    await asked(server, "POST", "/v1/tokens/shorter@ada/rotate", by=by)
    await asked(server, "POST", "/v1/tokens/short@ada/rotate", by=by)


async def test_who_administers_nothing_does_not_fill_the_audit_log_with_its_tokens(server: Control) -> None:
    caller = await a_user(server, "ada", team="caller")
    server.gateway.tokens.pace = Buckets(Rate(0.001, 2))
    for status in (200, 200, 429):
        caller = (await asked(server, "POST", "/v1/tokens/first@ada/rotate", by=caller, status=status)).get("token")
    for _ in range(3):
        await asked(server, "POST", "/v1/tokens/first@ada/rotate")


async def test_names_of_users_and_of_tokens_that_stand_alone_are_never_the_same(server: Control) -> None:
    await a_user(server, "ada", team="viewer")
    await asked(server, "POST", "/v1/tokens", {"name": "ci", "role": "viewer"}, status=201)
    await asked(server, "POST", "/v1/tokens", {"name": "ada", "role": "viewer"}, status=409)
    for name, status in (("ci", 409), ("ada", 409), ("admin", 409), ("anonymous", 409), ("A", 400), ("a@b", 400)):
        await asked(server, "POST", "/v1/users", {"name": name, "roles": {"team": "viewer"}}, status=status)


async def test_a_log_that_is_followed_ends_with_the_right_to_read_it(tmp_path: Path) -> None:
    class Endless(FakeWorker):
        async def logs(self, query: LogQuery) -> AsyncIterator[LogRecord]:
            yield LogRecord(1.0, "hello")
            await asyncio.Event().wait()

    async with control(tmp_path, Endless()) as server:
        await server.deploy("hello", namespace="team")
        ada = await a_user(server, "ada", team="viewer")
        url = f"{server.api}/v1/functions/hello.team/logs?follow=1"
        async with server.session.get(url, headers={"Authorization": f"Bearer {ada}"}) as answer:
            assert json.loads(await answer.content.readline())["message"] == "hello"
            await asked(server, "PATCH", "/v1/users/ada", {"roles": {"team": "deployer"}})
            await asyncio.sleep(0)
            assert len(server.gateway.tokens.logins) == 1  # who may read it still goes on
            await asked(server, "PATCH", "/v1/users/ada", {"roles": {"team": "caller"}})
            async with asyncio.timeout(5):
                assert await answer.content.read() == b""
        await until(lambda: len(server.gateway.tokens.logins) == 0)


# The store alone, with a clock


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[TokenStore]:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'faas.db'}")
    opened = TokenStore(database, clock=clock)
    await opened.open()
    yield opened
    await database.close()


WISH = Principal("ci", Role.VIEWER, "team")


async def test_the_token_before_a_rotation_opens_for_the_grace_and_no_longer(store: TokenStore, clock: Clock) -> None:
    _, first = await store.create(WISH)
    _, second = await store.rotate("ci", timedelta(minutes=10))
    clock.now += 599
    assert await store.authenticate(first) == await store.authenticate(second) == WISH
    clock.now += 1
    assert (await store.authenticate(first), await store.authenticate(second)) == (None, WISH)
    _, third = await store.rotate("ci", timedelta(0))
    assert await store.authenticate(second) is None
    _, fourth = await store.rotate("ci")
    _, fifth = await store.rotate("ci")  # the one before the last has no grace any more
    assert [await store.authenticate(one) for one in (third, fourth, fifth)] == [None, WISH, WISH]
    with pytest.raises(InvalidInput):
        await store.rotate("ci", timedelta(days=31))


async def test_an_expired_token_opens_nothing_and_is_swept(store: TokenStore, clock: Clock) -> None:
    _, token = await store.create(WISH, lifetime=timedelta(hours=1))
    clock.now += 3599
    assert await store.authenticate(token) == await store.principal("ci") == WISH
    clock.now += 1
    assert (await store.authenticate(token), await store.principal("ci")) == (None, None)
    with pytest.raises(Conflict):
        await store.rotate("ci")
    await store.sweep()
    assert [row.name for row in await store.rows()] == ["ci"]  # somebody may wonder
    clock.now += SHOWN_EXPIRED_SECONDS
    await store.sweep()
    assert await store.rows() == []
    with pytest.raises(NotFound):
        await store.named("ci")


async def test_when_a_token_was_used_is_known_at_once_and_written_later(store: TokenStore, clock: Clock) -> None:
    _, token = await store.create(WISH)
    clock.now += 5
    await store.authenticate(token)
    assert (await store.rows())[0].last_used_at == clock.now
    again = TokenStore(store._database, clock=clock)
    assert (await again.rows())[0].last_used_at is None  # no request wrote it
    await store.stop()
    assert (await again.rows())[0].last_used_at == clock.now


async def test_basic_credentials_name_the_user_or_the_token(store: TokenStore) -> None:
    await store.users.create("ada", {"team": Role.VIEWER}, "admin")
    _, token = await store.create(Principal("laptop", Role.ADMIN), user="ada")
    for user, known in (("ada", True), ("laptop@ada", True), (None, True), ("laptop", False), ("", False)):
        assert (await store.authenticate(token, user) is not None) == known, user


async def test_a_user_has_so_many_tokens_and_no_more(store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.credentials.MOST_OF_USER", 2)
    assert MOST_OF_USER > 2
    await store.users.create("ada", {}, "admin")
    for number in range(2):
        await store.create(Principal(f"t{number}", Role.ADMIN), user="ada")
    with pytest.raises(Conflict, match="at most 2 tokens"):
        await store.create(Principal("t3", Role.ADMIN), user="ada")


async def test_what_is_open_ends_when_its_token_expires(store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = asyncio.Event()
    _, _ = await store.create(WISH, lifetime=timedelta(hours=1))
    monkeypatch.setattr("faas.logins.time.time", lambda: store._clock() + 3600)
    with store.logins.watch("ci", lambda now: now.may(Permission.READ, "team"), ended.set):
        store._clock.now += 3600  # type: ignore[attr-defined]
        async with asyncio.timeout(5):
            await ended.wait()
    assert len(store.logins) == 0


@pytest.mark.parametrize(
    ("maker", "wish", "may"),
    [
        (ROOT, Principal("x", Role.ADMIN), True),
        (Principal("m", Role.VIEWER), Principal("x", Role.DEPLOYER), False),
        (Principal("m", Role.DEPLOYER), Principal("x", Role.CALLER), True),
        (Principal("m", Role.VIEWER), Principal("x", Role.CALLER), False),  # a viewer invokes nothing
        (Principal("m", Role.ADMIN, "team"), Principal("x", Role.VIEWER), False),
        (Principal("m", Role.VIEWER, functions=("api-*",)), Principal("x", Role.VIEWER), False),
        (Principal("m", Role.VIEWER, functions=("api-*",)), Principal("x", Role.VIEWER, functions=("api-*",)), True),
        (Principal("m", Role.VIEWER, functions=("api-*",)), Principal("x", Role.VIEWER, functions=("api-a",)), True),
        (Principal("m", Role.VIEWER, functions=("api-*",)), Principal("x", Role.VIEWER, functions=("a*",)), False),
        (
            Principal("m", Role.VIEWER, repositories=("team/*",)),
            Principal("x", Role.VIEWER, repositories=("team/a", "web/a")),
            False,
        ),
    ],
)
def test_nobody_gives_more_than_the_token_at_hand_has(maker: Principal, wish: Principal, may: bool) -> None:
    assert (reaches(maker, wish) == "") == may


@pytest.mark.parametrize("permission", Permission)
def test_where_a_principal_may_is_what_it_may_in_each_namespace(permission: Permission) -> None:
    """`where` and `may` are two ways to ask the same."""
    grants = (("a", Role.ADMIN), ("b", Role.VIEWER), ("c", Role.CALLER))
    for principal in (
        ROOT,
        Principal("x", Role.DEPLOYER, "a"),
        Principal("x", Role.ADMIN, grants=grants),
        Principal("x", Role.VIEWER, "b", grants=grants),
        Principal("x", Role.ADMIN, "b", grants=(("*", Role.DEPLOYER),)),
        Principal("x", Role.ADMIN, grants=()),
    ):
        found = principal.where(permission)
        for namespace in "abcd":
            asked_there = principal.may(permission, namespace)
            if permission not in (Permission.NOTHING, Permission.SELF):  # which are of no namespace
                assert asked_there == (found is None or namespace in found), (principal, namespace)
