"""API keys: made, used, rotated while both secrets open, expired, revoked; and what a wrong one tells."""

from __future__ import annotations

import ast
import hmac
import inspect
import json
import math
import random
import statistics
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from faas import auth
from faas.auth import Principal, Role
from faas.errors import Conflict, InvalidInput, NotFound
from faas.state.session import Database
from gateway.api_keys import KeyStore
from gateway.edge.caller import without
from tests.support.control import Answered, Control, control

DAY = 86_400.0


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'keys.db'}")
    yield database
    await database.close()


@pytest.fixture
async def keys(database: Database) -> AsyncIterator[KeyStore]:
    store = KeyStore(database, clock=Clock())
    await store.start()
    yield store
    await store.stop()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Control]:
    async with control(tmp_path) as running:
        yield running


def principal(name: str = "partner", *functions: str, namespace: str = "default") -> Principal:
    return Principal(name, Role.CALLER, namespace, functions)


async def public(server: Control, path: str, **headers: str) -> Answered:
    return await server.call("GET", path, public=True, headers={k.replace("_", "-"): v for k, v in headers.items()})


async def made(server: Control, name: str = "partner", **wish: Any) -> dict[str, Any]:
    answered = await server.call("POST", "/v1/keys", {"name": name, **wish})
    assert answered.status == 201, answered.body
    found: dict[str, Any] = answered.json()
    return found


async def test_a_key_opens_until_it_is_revoked_and_nothing_of_it_is_stored(database: Database, keys: KeyStore) -> None:
    secret = (await keys.create(principal())).secret
    found = keys.of_secret(secret, 0)
    assert found is not None
    assert (found.principal.name, found.id in secret) == ("partner", True)
    async with database.read() as tx:
        rows = [
            *await tx.exec_driver_sql("SELECT * FROM api_key_secrets"),
            *await tx.exec_driver_sql("SELECT * FROM api_keys"),
        ]
    assert secret.rpartition("_")[2] not in repr(rows)
    await keys.revoke("default", "partner")
    assert keys.of_secret(secret, 0) is None
    with pytest.raises(NotFound):
        await keys.revoke("default", "partner")


async def test_a_rotated_key_has_two_secrets_until_the_overlap_ends(keys: KeyStore) -> None:
    now = Clock.now
    first = (await keys.create(principal())).secret
    second = await keys.rotate("default", "partner", timedelta(days=1))
    assert second.key.id in first
    assert all(keys.of_secret(one, now + DAY - 1) for one in (first, second.secret))
    assert keys.of_secret(first, now + DAY) is None
    assert keys.of_secret(second.secret, now + DAY) is not None


async def test_there_are_never_more_than_two_and_without_an_overlap_one(keys: KeyStore) -> None:
    first = (await keys.create(principal())).secret
    second = (await keys.rotate("default", "partner")).secret
    third = (await keys.rotate("default", "partner")).secret
    assert [bool(keys.of_secret(one, Clock.now)) for one in (first, second, third)] == [False, True, True]
    fourth = (await keys.rotate("default", "partner", timedelta(0))).secret
    assert [bool(keys.of_secret(one, Clock.now)) for one in (second, third, fourth)] == [False, False, True]


async def test_an_expired_key_opens_nothing_and_cannot_be_rotated(database: Database) -> None:
    clock = Clock()
    keys = KeyStore(database, clock=clock)
    await keys.start()
    secret = (await keys.create(principal(), lifetime=timedelta(days=1))).secret
    assert keys.of_secret(secret, clock.now + DAY - 1)
    assert keys.of_secret(secret, clock.now + DAY) is None
    clock.now += DAY
    with pytest.raises(Conflict, match="expired"):
        await keys.rotate("default", "partner")
    await keys.stop()


async def test_keys_their_rotation_and_their_last_use_outlive_a_restart(database: Database, keys: KeyStore) -> None:
    old = (await keys.create(principal("partner", "hello"), plan="gold", lifetime=timedelta(days=9))).secret
    new = (await keys.rotate("default", "partner")).secret
    assert keys.of_secret(new, 1_234_567.0)
    await keys.stop()
    again = KeyStore(database)
    await again.start()
    assert list(again.every()) == list(keys.every())
    assert again.get("default", "partner").last_used_at == 1_234_567.0
    assert again.of_secret(old, Clock.now) is not None
    await again.stop()


WISHES: list[tuple[dict[str, Any], str]] = [
    ({"name": "Partner"}, "a key's name"),
    ({"name": "a.b"}, "a key's name"),
    ({"name": "a", "namespace": "*"}, "one namespace"),
    ({"name": "a", "functions": ["No"]}, "functions must be"),
    ({"name": "a", "functions": "hello"}, "functions must be"),
    ({"name": "a", "expires": "soon"}, "expires must be a duration"),
    ({"name": "a", "expires": "4000d"}, "a minute at least"),
    ({"name": "a", "plan": "none"}, "there is no usage plan none"),
    ({"name": "a", "role": "admin"}, "unknown key"),
]


async def test_a_wish_that_cannot_be_kept_is_refused(server: Control) -> None:
    for wish, words in WISHES:
        answered = await server.call("POST", "/v1/keys", wish)
        assert answered.status in (400, 404), wish
        assert words in answered.json()["error"]["message"]


async def test_a_name_is_taken_once_in_each_namespace(server: Control) -> None:
    await made(server)
    assert (await server.call("POST", "/v1/keys", {"name": "partner"})).status == 409
    await made(server, namespace="team")
    assert (await server.call("DELETE", "/v1/keys/partner.team")).status == 204
    assert [key["namespace"] for key in (await server.call("GET", "/v1/keys")).json()["keys"]] == ["default"]


async def test_the_api_tells_a_key_once_and_then_only_of_it(server: Control) -> None:
    key = await made(server, functions=["hello"], expires="90d")
    await server.deploy("hello", public=False)
    assert (await public(server, "/function/hello", X_Api_Key=key["key"])).status == 200
    listed = await server.call("GET", "/v1/keys")
    (shown,) = listed.json()["keys"]
    assert (shown["id"], shown["functions"], shown["state"], len(shown["secrets"])) == (
        key["id"],
        ["hello"],
        "active",
        1,
    )
    assert shown["last_used_at"] is not None
    assert key["key"].rpartition("_")[2].encode() not in listed.body
    rotated = (await server.call("POST", "/v1/keys/partner/rotate", {"overlap": "1h"})).json()
    assert rotated["previous_expires_at"] is not None
    for secret in (key["key"], rotated["key"]):
        assert (await public(server, "/function/hello", X_Api_Key=secret)).status == 200


async def test_a_private_function_takes_a_key_and_never_sees_it(server: Control) -> None:
    key = (await made(server))["key"]
    await server.deploy("hello", public=False)
    answered = await public(server, "/function/hello", X_Api_Key=key, X_Other="kept")
    event = answered.json()
    assert (event["headers"]["x-other"], event["requestContext"]["accountId"]) == ("kept", "partner")
    assert key not in answered.body.decode()


async def test_of_a_key_and_a_token_that_come_together_the_function_sees_neither(server: Control) -> None:
    key = (await made(server))["key"]
    await server.deploy("hello", public=False)
    answered = await public(server, "/function/hello", X_Api_Key=key, Authorization="Bearer of-another-server")
    assert answered.status == 200
    assert not {"x-api-key", "authorization"} & answered.json()["headers"].keys()


async def test_a_key_may_come_under_another_name_or_in_the_query_and_goes_from_there_too(server: Control) -> None:
    key = (await made(server))["key"]
    await server.deploy("hello", public=False, auth={"key": {"header": "X-Ours", "query": "key"}})
    for path, headers in (("/function/hello?a=1", {"X_Ours": key}), (f"/function/hello/x?a=1&k%65y={key}&b=%20", {})):
        answered = await public(server, path, **headers)
        assert answered.status == 200, answered.body
        assert key not in answered.body.decode()
        assert answered.json()["rawQueryString"].startswith("a=1")
    assert answered.json()["rawQueryString"] == "a=1&b=%20"
    assert (await public(server, "/function/hello", X_Api_Key=key)).status == 401
    twice = await public(server, f"/function/hello?key={key}", X_Ours=key)
    assert twice.status == 401, "which one would count?"


async def test_a_canary_that_asks_who_calls_is_open_to_nobody_by_the_revision_that_asks_nothing(
    server: Control,
) -> None:
    await server.deploy("hello", public=True, route=[{"path": "/x"}])
    await server.deploy("hello", public=False, auth={"key": True})
    await server.deploy("hello", public=False)
    aliases = "/v1/functions/hello/aliases/"
    for name, number, weights in (("keyed", 1, {"v2": 99}), ("closed", 1, {"v3": 1}), ("both", 2, {"v1": 99})):
        assert (await server.call("PUT", aliases + name, {"revision": number})).status == 200
        answered = await server.call("PUT", aliases + name, {"revision": number, "weights": weights})
        assert answered.status == 200, answered.body
        assert (await public(server, f"/function/hello:{name}")).status == 401, name
    key = (await made(server))["key"]
    assert (await public(server, "/function/hello:keyed", X_Api_Key=key)).status == 200


async def test_a_queued_request_holds_no_key(server: Control) -> None:
    key = (await made(server))["key"]
    await server.deploy("hello", public=False, auth={"key": {"query": "key"}})
    accepted = await server.call("POST", f"/async-function/hello?key={key}", b"{}", public=True)
    assert accepted.status == 202, accepted.body
    async with server.gateway.database.read() as tx:
        rows = repr([*await tx.exec_driver_sql("SELECT * FROM invocations")])
    assert "hello" in rows
    assert key not in rows


async def test_a_key_is_good_for_the_functions_it_names_and_its_namespace(server: Control) -> None:
    key = (await made(server, functions=["hello"]))["key"]
    for name, namespace in (("hello", ""), ("other", ""), ("hello", "team")):
        await server.deploy(name, namespace=namespace, public=False)
    statuses = [
        (await public(server, f"/function/{name}", X_Api_Key=key)).status for name in ("hello", "other", "hello.team")
    ]
    assert statuses == [200, 403, 403]


async def test_whatever_is_wrong_with_a_key_the_answer_is_the_same(server: Control) -> None:
    right = (await made(server, "right"))["key"]
    revoked = (await made(server, "revoked"))["key"]
    await server.call("DELETE", "/v1/keys/revoked")
    old = (await made(server, "old"))["key"]
    await server.call("POST", "/v1/keys/old/rotate", {"overlap": "0s"})
    await server.deploy("hello", public=False, auth={"key": True})
    bodies = set()
    for wrong in (revoked, old, right[:-1] + ("A" if right[-1] != "A" else "B"), "faask_0123456789abcdef_x"):
        answered = await public(server, "/function/hello", X_Api_Key=wrong)
        assert (answered.status, answered.headers["WWW-Authenticate"]) == (401, 'ApiKey realm="faas"')
        error = answered.json()["error"]
        error.pop("request_id")
        bodies.add(json.dumps(error))
    assert len(bodies) == 1


NO_KEYS = ("", "x", "faask", "faask_", "faask__", "faask_\udcff_\udcfe", "é" * 200, "f" * 4000, "_" * 99)


async def test_what_is_no_key_at_all_is_refused_as_a_wrong_one(server: Control) -> None:
    await server.deploy("hello", public=False, auth={"key": True})
    for wrong in NO_KEYS:
        sent = wrong.encode("utf-8", "surrogateescape").decode("latin-1")
        answered = await public(server, "/function/hello", X_Api_Key=sent)
        assert answered.status in (401, 429), wrong


async def test_wrong_keys_are_slowed_down_and_right_ones_are_not(server: Control) -> None:
    key = (await made(server))["key"]
    await server.deploy("hello", public=False, auth={"key": True})
    tries = [await public(server, "/function/hello", X_Api_Key=f"faask_x_{n}") for n in range(9)]
    assert tries[0].status == 401
    slowed = next(tried for tried in tries if tried.status == 429)  # and in a moment 401 again, if the machine is slow
    assert int(slowed.headers["Retry-After"]) >= 1
    assert (await public(server, "/function/hello", X_Api_Key=key)).status == 200
    assert (await public(server, "/function/hello")).status == 401, "who shows nothing guesses nothing"


async def test_a_token_of_the_server_opens_only_where_it_is_named(server: Control) -> None:
    await server.deploy("keyed", public=False, auth={"key": True})
    await server.deploy("both", public=False, auth={"key": True, "token": True})
    bearer = f"Bearer {server.token}"
    assert (await public(server, "/function/keyed", Authorization=bearer)).status == 401
    both = await public(server, "/function/both", Authorization=bearer)
    assert both.status == 200
    assert "authorization" not in both.json()["headers"]
    missing = await public(server, "/function/both")
    assert missing.headers["WWW-Authenticate"] == 'Bearer realm="faas", ApiKey realm="faas"'


async def test_on_the_api_listener_a_key_opens_nothing(server: Control) -> None:
    key = (await made(server))["key"]
    await server.deploy("hello", public=False, auth={"key": True})
    refused = await server.call("GET", "/function/hello", token="", headers={"X-Api-Key": key})
    assert refused.status == 401
    assert (await server.call("GET", "/function/hello")).status == 200, "an administrator still logs in"
    assert (await server.call("GET", "/v1/functions", token="", headers={"X-Api-Key": key})).status == 401


async def test_no_key_is_in_a_log(server: Control, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    key = (await made(server))["key"]
    await server.deploy("hello", public=False, auth={"key": {"query": "key"}})
    for path in (f"/function/hello?key={key}", f"/function/hello?key={key}x", f"/function/none?key={key}"):
        await public(server, path)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("faas")]
    assert ours
    assert key not in "".join(ours)


def test_secrets_are_compared_as_whole_digests_in_constant_time() -> None:
    compared = ast.unparse(ast.parse(inspect.getsource(auth.same_token)))
    assert "hmac.compare_digest(hash_token(token), stored_hash)" in compared
    assert len({len(auth.hash_token(text)) for text in ("", "x", "faask_" * 99)}) == 1
    source = ast.parse(
        inspect.getsource(KeyStore.of_secret).replace("    def of_secret", "def of_secret", 1).replace("\n    ", "\n")
    )
    checks = [ast.unparse(node) for node in ast.walk(source) if isinstance(node, ast.Compare)]
    assert not any("text" in check or "hash" in check for check in checks), "no secret meets == or <"
    assert hmac.compare_digest("a", "a")


@pytest.mark.soak
async def test_how_long_a_wrong_key_takes_says_nothing_of_how_much_of_it_was_right(keys: KeyStore) -> None:
    """A hundred thousand of them; in one of three goes there is no correlation (p > 0.01)."""
    right, draw = (await keys.create(principal())).secret, random.Random(1)
    known = len(right) - 43

    def correlation() -> float:
        shared, taken = [draw.randrange(43) for _ in range(100_000)], []
        guesses = [(right[: known + length] + "!" * 43)[: len(right)].encode() for length in shared]
        for guess in guesses:
            wrong = guess.decode()  # each made in the same way, just now: that, too, takes its time
            began = time.perf_counter_ns()
            keys.of_secret(wrong, 0)
            taken.append(time.perf_counter_ns() - began)
        longest = sorted(taken)[len(taken) * 9 // 10]  # what the machine did meanwhile
        kept = [(a, b) for a, b in zip(shared, taken, strict=True) if b <= longest]
        return abs(statistics.correlation(*zip(*kept, strict=True))) * math.sqrt(len(kept))

    assert any(correlation() < 2.58 for _ in range(3))


@pytest.mark.parametrize(
    ("query", "rest"),
    [("key=1", ""), ("a=1&key=2&b", "a=1&b"), ("%6Bey=1&a", "a"), ("Key=1&keys=2", "Key=1&keys=2"), ("key", ""),
     ("a=key", "a=key"), ("a=1&&key=2&", "a=1&&"), ("key=1&key=2", "")],
)  # fmt: skip
def test_a_parameter_goes_however_it_is_written_and_the_rest_stays(query: str, rest: str) -> None:
    assert without(query, "key") == rest


async def test_a_key_of_all_namespaces_is_none(keys: KeyStore) -> None:
    with pytest.raises(InvalidInput):
        await keys.create(principal(namespace="*"))
