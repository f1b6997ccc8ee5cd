"""Secrets by the control API: set, listed, used, removed; nothing of a value comes back."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text as sql

from faas import secret
from faas.errors import SpecError, Unavailable
from faas.secret import Secret
from gateway import secret_store
from gateway.vault import KEY_FILE
from tests.support.control import Control, control

CANARY = "canary-of-the-secrets-0815"
USED = {"secrets": {"DB_PASSWORD": "db-password"}}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Control]:
    async with control(tmp_path) as running:
        yield running


async def put(server: Control, name: str = "db-password", value: str = CANARY, **more: Any) -> Any:
    answered = await server.call("PUT", f"/v1/secrets/{name}", {"value": value, **more})
    assert answered.status in (200, 201), answered.body
    return answered.json()


async def refused(server: Control, name: str = "hello", /, **spec: Any) -> Any:
    body = {"spec": {"name": name, **spec}, "image": f"{name}@sha256:{'a' * 64}"}
    answered = await server.call("PUT", f"/v1/functions/{name}", body)
    assert answered.status == 400, answered.body
    return answered.json()["error"]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def key_of(folder: Path) -> Path:
    return next(folder.rglob(KEY_FILE))


def revealed(server: Control, name: str = "db-password", namespace: str = "default") -> str:
    assert server.worker.reveal is not None
    return server.worker.reveal(namespace, [name])[name].reveal()


async def test_a_secret_is_listed_by_name_version_and_use_and_never_by_its_value(
    server: Control, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    first = await put(server)
    assert (first["version"], first["set_by"], first["functions"], first["state"]) == (1, "admin", [], "ready")
    await server.deploy("hello", **USED)
    assert (await put(server, value=CANARY + "2"))["version"] == 2
    told = [
        await server.call("GET", path) for path in ("/v1/secrets", "/v1/secrets/db-password", "/v1/functions/hello")
    ]
    assert told[0].json()["secrets"] == [told[1].json()]
    assert told[1].json()["functions"] == ["hello"]
    assert told[2].json()["spec"]["secrets"] == USED["secrets"]
    assert revealed(server) == CANARY + "2"
    for answered in told:
        assert CANARY.encode() not in answered.body
    assert CANARY not in caplog.text


async def test_the_database_and_its_log_hold_no_value_and_the_key_no_more_than_opens_them(
    server: Control, tmp_path: Path
) -> None:
    await put(server)
    await server.deploy("hello", **USED)
    files = contents(tmp_path)
    assert {KEY_FILE, "faas.db-wal"} <= {path.name for path in files}, sorted(files)
    assert [path for path, content in files.items() if CANARY.encode() in content] == []


async def test_after_a_restart_the_same_values_are_there(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await put(server)
        await server.deploy("hello", **USED)
    async with control(tmp_path) as server:
        assert revealed(server) == CANARY
    key_of(tmp_path).unlink()
    async with control(tmp_path) as server:
        assert (await server.call("GET", "/v1/secrets/db-password")).json()["state"] == "unreadable"
        with pytest.raises(Unavailable):
            revealed(server)
        assert "cannot be read" in (await refused(server, "other", **USED))["message"]
        await put(server, value="anew")
        assert revealed(server) == "anew"


async def test_a_function_whose_secret_is_missing_is_refused_by_name(server: Control) -> None:
    error = await refused(server, **USED)
    assert error["message"] == "secrets.DB_PASSWORD: there is no secret db-password"
    assert error["hint"] == "faas secret set db-password"
    await put(server, "db-password.team")
    await refused(server, **USED)  # another namespace's
    await server.deploy("hello", namespace="team", **USED)
    assert server.worker.prepared[-1].namespace == "team"


async def test_a_secret_that_is_used_is_removed_by_force_alone(server: Control) -> None:
    await put(server)
    await server.deploy("hello", **USED)
    answered = await server.call("DELETE", "/v1/secrets/db-password")
    assert (answered.status, answered.json()["error"]["message"]) == (
        409,
        "the secret db-password is used by hello@v1",
    )
    await server.deploy("hello")
    assert (await server.call("DELETE", "/v1/secrets/db-password")).status == 204, "no alias leads to who used it"
    back = await server.call("POST", "/v1/functions/hello/rollback", {"to": 1})
    assert (back.status, "db-password" in back.json()["error"]["message"]) == (400, True)
    await put(server)
    assert (await server.call("POST", "/v1/functions/hello/rollback", {"to": 1})).status == 200
    assert (await server.call("DELETE", "/v1/secrets/db-password?force=1")).status == 204
    with pytest.raises(Unavailable) as caught:
        revealed(server)
    assert "db-password" not in caught.value.message, "whoever calls the function hears it"
    assert (await server.call("DELETE", "/v1/secrets/db-password")).status == 404
    assert (await server.call("DELETE", "/v1/secrets/db-password?force=yes")).status == 400


async def test_who_runs_keeps_the_old_value_unless_it_is_to_be_replaced_now(server: Control) -> None:
    await put(server)
    await server.deploy("hello", **USED)
    await server.deploy("other")
    key = server.worker.prepared[0]
    await put(server, value="2")
    assert server.worker.renewed == [(key, False)]
    told = await put(server, value="3", now=True)
    assert server.worker.renewed[1:] == [(key, True)]
    assert (told["replaced"], told["kept"]) == ([{"revision": "hello@v1", "instances": 1}], [])
    server.worker.fails = "it does not start with that"
    told = await put(server, value="4", now=True)
    assert (told["replaced"], told["kept"]) == ([], [{"revision": "hello@v1", "error": server.worker.fails}])


async def test_a_new_key_seals_everything_anew_and_the_old_one_is_gone(server: Control, tmp_path: Path) -> None:
    for number in range(5):
        await put(server, f"s{number}", f"{CANARY}{number}")
    file = key_of(tmp_path)
    before = file.read_text()
    answered = await server.call("POST", "/v1/secrets-key/rotate", {})
    assert answered.json() == {"secrets": 5}
    after = file.read_text()
    assert len(after.splitlines()) == len(before.splitlines())
    assert after != before
    assert [revealed(server, f"s{n}") for n in range(5)] == [f"{CANARY}{n}" for n in range(5)]


async def test_a_rotation_that_a_crash_ended_is_finished_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(Exception):
        pass

    async def crashed(tx: object, rows: object) -> None:
        raise Crash

    async with control(tmp_path) as server:
        await put(server)
        file = key_of(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr("gateway.secret_store.secrets.reseal", crashed)
            with pytest.raises(Crash):
                await server.gateway.secrets.rotate_key()
        assert revealed(server) == CANARY, "the old key opens until the end"
        assert (await put(server, "later", "x"))["state"] == "ready"
        assert len(file.read_text().splitlines()) == 3
    async with control(tmp_path) as server:
        assert len(file.read_text().splitlines()) == 2
        assert (revealed(server), revealed(server, "later")) == (CANARY, "x")


async def test_one_that_is_damaged_keeps_the_old_key_and_no_server_from_starting(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await put(server)
        await put(server, "damaged", "x")
        async with server.gateway.secrets._database.write() as tx:
            await tx.execute(sql("UPDATE secrets SET sealed = zeroblob(40) WHERE name = 'damaged'"))
    async with control(tmp_path) as server:
        answered = await server.call("POST", "/v1/secrets-key/rotate", {})
        assert (answered.status, "are damaged" in answered.json()["error"]["message"]) == (503, True)
        assert revealed(server) == CANARY
        file = key_of(tmp_path)
        assert len(file.read_text().splitlines()) == 3
    async with control(tmp_path) as server:
        assert revealed(server) == CANARY
        await put(server, "damaged", "y")
        assert (await server.call("POST", "/v1/secrets-key/rotate", {})).status == 200
        assert len(file.read_text().splitlines()) == 2


WRONG: tuple[tuple[dict[str, Any], str], ...] = (
    ({}, "value must be a text that is not empty"),
    ({"value": ""}, "value must be a text that is not empty"),
    ({"value": 7}, "value must be a text that is not empty"),
    ({"value": "a\0b"}, "without a null character"),
    ({"value": "ü" * 32_769}, "at most 65536 bytes"),
    ({"value": "\ud800"}, "surrogate"),
    ({"value": "x", "now": 1}, "now must be true or false"),
    ({"value": "x", "version": 1}, "unknown key"),
)


async def test_what_can_be_no_secret_or_no_name_is_refused_without_being_repeated(server: Control) -> None:
    for body, words in WRONG:
        answered = await server.call("PUT", "/v1/secrets/db-password", json.dumps(body).encode())
        assert (answered.status, words in answered.json()["error"]["message"]) == (400, True), answered.body
        assert len(answered.body) < 400
    for name in ("UPPER", "a_b", "-a", "a" * 64, "a.b.c", "a:v1", "..%2fx"):
        assert (await server.call("PUT", f"/v1/secrets/{name}", {"value": "x"})).status == 400, name


async def test_the_largest_value_goes_in_whole_and_a_function_has_no_more_than_fits_its_start(server: Control) -> None:
    largest = "\x01" * secret.VALUE_BYTES  # six characters each in JSON
    await put(server, "big", largest)
    assert revealed(server, "big") == largest
    for count, fits in ((8, True), (9, False)):
        spec = {"secrets": {f"V{n}": "big" for n in range(count)}}
        if fits:
            await server.deploy("hello", **spec)
        else:
            assert "fit its start" in (await refused(server, **spec))["message"]
    await put(server, "small", "x")
    await server.deploy("other", secrets={f"V{n}": "small" for n in range(secret.MOST)})
    answered = await server.call("PUT", "/v1/secrets/small", {"value": "x" * 20_000})
    assert (answered.status, "other" in answered.json()["error"]["message"]) == (400, True)
    assert revealed(server, "small") == "x"


async def test_a_namespace_has_a_bounded_number_of_them(server: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_store, "MOST", 2)
    for name in ("a", "b", "a", "c.team"):
        await put(server, name)
    assert (await server.call("PUT", "/v1/secrets/c", {"value": "x"})).status == 409


async def test_secrets_are_a_namespaces_own(server: Control) -> None:
    for name in ("mine.team", "theirs"):
        await put(server, name)
    deployer, viewer = await server.a_token("deployer", "team"), await server.a_token("viewer", "team")
    narrow = await server.a_token("deployer", "team", ("mine",))
    for token, verb, path, body, status in (
        (deployer, "PUT", "/v1/secrets/mine.team", {"value": "x"}, 200),
        (deployer, "PUT", "/v1/secrets/mine", {"value": "x"}, 403),
        (deployer, "GET", "/v1/secrets/theirs", None, 403),
        (deployer, "DELETE", "/v1/secrets/theirs", None, 403),
        (deployer, "POST", "/v1/secrets-key/rotate", {}, 403),
        (viewer, "PUT", "/v1/secrets/mine.team", {"value": "x"}, 403),
        (viewer, "GET", "/v1/secrets/mine.team", None, 200),
        (narrow, "PUT", "/v1/secrets/mine.team", {"value": "x"}, 403),
        (await server.a_token("admin", "team"), "POST", "/v1/secrets-key/rotate", {}, 403),
    ):
        answered = await server.call(verb, path, body, token=token)
        assert answered.status == status, (verb, path, answered.body)
    listed = (await server.call("GET", "/v1/secrets", token=viewer)).json()["secrets"]
    assert [(one["namespace"], one["name"]) for one in listed] == [("team", "mine")]


# The value itself, and names of faas.toml


def test_a_secret_shows_itself_nowhere() -> None:
    value = Secret(CANARY)
    for text in (repr(value), str(value), f"{value}", f"{[value]}", repr(secret.Given({"a": value}, {"A": "a"}))):
        assert CANARY not in text
    with pytest.raises(TypeError):
        pickle.dumps(value)
    with pytest.raises(TypeError):
        hash(value)
    assert value == Secret(CANARY)
    assert value != Secret("other")
    assert value != CANARY


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("db-password", "must be a table"),
        ({"DB-PASSWORD": "db"}, "is none"),
        ({"DB_PASSWORD": "Hunter2!"}, "must be the name of a stored secret"),
        ({"DB_PASSWORD": ["x"]}, "must be the name of a stored secret"),
        ({"AWS_LAMBDA_RUNTIME_API": "db"}, "the server's own"),
        ({"LD_PRELOAD": "db"}, "read before"),
        ({"PORT": "db"}, "the server's own"),
        ({f"V{n}": "db" for n in range(51)}, "at most 50"),
    ],
)
def test_what_is_no_table_of_names_is_refused_and_never_repeated(written: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        secret.names(written)
    assert "Hunter2" not in caught.value.message + caught.value.hint
