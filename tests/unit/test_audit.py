"""The audit log: one record of each change whoever wrote the route, in a chain that shows what was done to it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from faas.audit import TEXT_LENGTH, Check, Ration, Record, clean, new_entry
from faas.audited import action_of, changes
from faas.auth import Permission
from faas.errors import Unavailable
from faas.state.session import Database
from faas.web import needed
from gateway.app import api_app
from gateway.audit_trail import AuditTrail
from gateway.store.audit import End, Query
from tests.support.control import Control, control
from tests.unit.test_roles import ANY_VERB, CONTRACT, INVOKERS, concrete

# What changes something although its verb is a reading one: WebSockets behind which somebody's own commands run.
CHANGING_GETS = {"/v1/functions/{name}/debug", "/v1/builds"}
BEATS = {"/v1/dev/{name}/beat"}  # every few seconds, and nothing is other than before


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Control]:
    async with control(tmp_path) as running:
        yield running


async def records(server: Control, query: str = "", **options: Any) -> list[dict[str, Any]]:
    answered = await server.call("GET", f"/v1/audit?{query}", **options)
    assert answered.status == 200, answered.body
    return list(answered.json()["records"])


async def test_every_changing_route_leaves_one_record_and_every_reading_one_none(server: Control) -> None:
    server.gateway.audit._ration.most = 10_000  # what fails is counted together past that
    await server.deploy("hello")
    seen = (await records(server))[-1]["seq"]
    wrong = []
    table = [(path, verb, who) for path, verbs in CONTRACT.items() for verb, who in verbs.items()]
    table += [(path, verb, who) for path, who in ANY_VERB.items() for verb in ("GET", "POST")]
    for path, verb, who in table:
        answered = await server.call(verb, concrete(path))
        found = await records(server, f"after={seen}")
        is_change = verb != "GET" and who != INVOKERS and path in CONTRACT and path not in BEATS
        is_change |= path in CHANGING_GETS
        if len(found) != is_change:
            wrong.append((verb, path, [one["action"] for one in found]))
        for one in found:
            seen = one["seq"]
            assert (one["by"], one["status"]) == ("admin", answered.status), (verb, path)
            assert one["request_id"] == answered.headers["X-Request-Id"]
    assert wrong == []


def test_a_route_is_recorded_by_what_it_needs_and_not_because_somebody_remembered() -> None:
    assert changes("PUT", Permission.CHANGE)
    assert changes("POST", Permission.ADMIN)
    assert changes("POST", Permission.SELF)
    assert changes("GET", Permission.CHANGE)
    assert not changes("GET", Permission.ADMIN)
    assert not changes("POST", Permission.INVOKE)
    assert changes("DELETE", needed(object()))  # what nobody marked is the administrator's


@pytest.mark.parametrize(
    ("method", "path", "action"),
    [
        ("PUT", "/v1/functions/{name}", "functions.put"),
        ("POST", "/v1/functions/{name}/rollback", "functions.rollback"),
        ("DELETE", "/v1/functions/{name}/aliases/{alias}", "functions.aliases.delete"),
        ("POST", "/v1/tokens", "tokens.create"),
        ("POST", "/v1/keys/{name}/rotate", "keys.rotate"),
        ("GET", "/v1/functions/{name}/debug", "functions.debug"),
    ],
)
def test_an_action_is_called_by_its_route(method: str, path: str, action: str) -> None:
    assert action_of(method, path) == action


async def test_a_record_says_who_did_what_from_where_and_how_it_ended(server: Control) -> None:
    await server.call("POST", "/v1/users", {"name": "ada", "roles": {"team": "deployer"}})
    made = await server.call("POST", "/v1/tokens", {"name": "ci", "user": "ada"})
    token = made.json()["token"]
    await server.call("DELETE", "/v1/functions/none.team", token=token)
    await server.call("DELETE", "/v1/functions/hello", token=token)
    created, tokens, failed, refused = await records(server)
    assert (created["action"], created["object"], created["namespace"]) == ("users.create", "users/ada", "team")
    assert (tokens["object"], tokens["outcome"], tokens["status"]) == ("tokens/ci@ada", "done", 201)
    assert (failed["by"], failed["token"], failed["address"]) == ("ada", "ci@ada", "127.0.0.1")
    assert (failed["object"], failed["namespace"], failed["outcome"], failed["reason"]) == (
        "functions/none.team", "team", "failed", "NotFound",
    )  # fmt: skip
    assert (refused["namespace"], refused["outcome"], refused["status"]) == ("default", "refused", 403)
    assert token not in json.dumps(await records(server))


async def test_no_record_holds_what_was_set_nor_a_token_that_was_taken_for_a_name(server: Control) -> None:
    await server.deploy("hello", env={"PASSWORD": "open-sesame"})
    await server.call("DELETE", f"/v1/tokens/{server.token}")
    written = json.dumps(await records(server))
    assert "open-sesame" not in written
    assert server.token not in written
    assert "tokens/…" in [one["object"] for one in await records(server)]


async def test_an_administrator_of_a_namespace_sees_what_was_done_there(server: Control) -> None:
    boss = await server.a_token("admin", "team")
    await server.deploy("hello", namespace="team")
    await server.deploy("hello", namespace="other")
    assert {one["object"] for one in await records(server, token=boss)} == {"functions/hello.team", "tokens/admin-0"}
    assert (await server.call("GET", "/v1/audit?namespace=other", token=boss)).status == 403
    assert (await server.call("GET", "/v1/audit/verify", token=boss)).status == 403
    viewer = await server.a_token("viewer")
    assert (await server.call("GET", "/v1/audit", token=viewer)).status == 403


async def test_records_are_found_by_time_name_action_and_object(server: Control) -> None:
    ci = await server.a_token("deployer", "team")
    for name in ("api-a", "api-b", "web"):
        await server.call("DELETE", f"/v1/functions/{name}.team", token=ci)
    first = (await records(server))[0]
    for query, count in (
        ("by=deployer-0", 3),
        ("object=functions/api-*", 2),
        ("object=functions/web.team", 1),
        ("object=functions/web", 0),
        ("action=functions.*", 3),
        ("action=tokens.create", 1),
        ("namespace=team&limit=2", 2),
        ("since=4000000000", 0),
        ("until=4000000000", 4),
        (f"after={first['seq']}", 3),
    ):
        assert len(await records(server, query)) == count, query
    assert [one["object"] for one in await records(server, "order=newest&limit=1")] == ["functions/web.team"]
    for query in ("limit=0", "limit=1001", "since=x", "since=nan", "order=up", "namespace=A", "after=-1"):
        assert (await server.call("GET", f"/v1/audit?{query}")).status == 400, query


async def test_refused_logins_are_recorded_without_what_was_tried(server: Control) -> None:
    await server.a_token("viewer")
    for name in ("viewer-0", "my-password"):
        sent = {"Authorization": "Basic " + _basic(name, "wrong")}
        assert (await server.call("GET", "/v1/info", token="", headers=sent)).status == 401
    await server.gateway.audit._write_waiting()
    found = await records(server, "action=login")
    assert [(one["by"], one["object"], one["outcome"]) for one in found] == [
        ("viewer-0", "api", "refused"), ("", "api", "refused"),
    ]  # fmt: skip


def _basic(user: str, password: str) -> str:
    import base64

    return base64.b64encode(f"{user}:{password}".encode()).decode()


async def test_a_change_whose_client_goes_is_recorded_all_the_same(server: Control) -> None:
    held = asyncio.Event()

    async def slow(*_: Any, **__: Any) -> Any:
        held.set()
        await asyncio.Event().wait()

    server.gateway.tokens.users.create = slow  # type: ignore[method-assign]
    body = {"name": "ada", "roles": {"team": "viewer"}}
    asking = asyncio.create_task(server.call("POST", "/v1/users", body))
    await held.wait()
    asking.cancel()
    while not (found := await records(server)):  # noqa: ASYNC110 - within a second or so
        await asyncio.sleep(0.05)
    assert [(one["action"], one["outcome"]) for one in found] == [("users.create", "unknown")]


async def test_nothing_is_changed_while_the_log_cannot_be_written_and_nothing_is_lost(
    server: Control, caplog: pytest.LogCaptureFixture
) -> None:
    trail = server.gateway.audit
    append = trail._append

    async def broken(entries: Any) -> None:
        raise Unavailable("the disk is full")

    trail._append = broken  # type: ignore[method-assign]
    first = await server.call("POST", "/v1/users", {"name": "ada", "roles": {"team": "viewer"}})
    assert first.status == 201  # it was done before anybody could know
    assert "not in the audit log yet" in caplog.text
    second = await server.call("POST", "/v1/users", {"name": "bob", "roles": {"team": "viewer"}})
    assert (second.status, "audit log" in second.json()["error"]["message"]) == (503, True)
    assert (await server.call("GET", "/v1/users/ada")).status == 200
    trail._append = append  # type: ignore[method-assign]
    await trail._write_waiting()
    assert [one["object"] for one in await records(server)] == ["users/ada"]
    assert (await server.call("GET", "/v1/users/bob")).status == 404


# The chain


def entry(number: int = 0, **values: Any) -> Any:
    given = {"by": "ada", "token": "", "address": "", "action": "x", "object_": str(number), "status": 200, **values}
    return new_entry(**given)


@pytest.fixture
async def trail(tmp_path: Path) -> AsyncIterator[AuditTrail]:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'faas.db'}")
    yield AuditTrail(database, lambda name: name == "ada", most=5)
    await database.close()


async def filled(trail: AuditTrail, count: int = 4) -> None:
    for number in range(count):
        await trail.record(entry(number))


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE audit SET by = 'eve' WHERE seq = 2", "2 is not what was written"),
        ("DELETE FROM audit WHERE seq = 2", "after 1 comes 3"),
        ("DELETE FROM audit WHERE seq = 1", "after 0 comes 2"),
        ("DELETE FROM audit WHERE seq = 4", "it ends at 3, and was written up to 4"),
        ("UPDATE audit SET previous = hash WHERE seq = 3", "3 does not follow from 2"),
    ],
)
async def test_a_change_and_a_cut_are_found(tmp_path: Path, trail: AuditTrail, statement: str, words: str) -> None:
    await filled(trail)
    assert (await trail.verify()).broken == ""
    with closing(sqlite3.connect(tmp_path / "faas.db")) as connection:
        with pytest.raises(sqlite3.IntegrityError, match="audit log"):
            connection.execute(statement)
        for name in ("audit_is_never_changed", "audit_goes_at_its_beginning"):
            connection.execute(f"DROP TRIGGER {name}")  # whoever has the file can do that, too
        connection.execute(statement)
        connection.commit()
    assert words in (await trail.verify()).broken


async def test_a_log_that_was_written_anew_is_found_by_a_head_that_was_noted(tmp_path: Path, trail: AuditTrail) -> None:
    await filled(trail, 3)
    head = (await trail.verify()).last
    assert (await trail.verify(head)).broken == ""
    with closing(sqlite3.connect(tmp_path / "faas.db")) as connection:
        connection.executescript("DROP TRIGGER audit_goes_at_its_beginning; DELETE FROM audit; DELETE FROM audit_ends;")
    await filled(trail, 4)
    assert (await trail.verify()).broken == ""
    assert "not the record that was noted" in (await trail.verify(head)).broken


async def test_the_bound_cuts_at_the_beginning_and_the_rest_is_still_a_chain(trail: AuditTrail) -> None:
    await filled(trail, 8)
    await trail.trim()
    verdict = await trail.verify()
    assert (verdict.broken, verdict.count, verdict.first.seq, verdict.last.seq) == ("", 5, 3, 8)
    assert (await trail.verify(End(3, verdict.first.hash, 0))).broken == ""
    trail._clock = lambda: 9_000_000_000.0
    await trail.trim()  # all of it is too old
    await filled(trail, 1)
    verdict = await trail.verify()
    assert (verdict.broken, verdict.count, verdict.last.seq) == ("", 1, 9)


async def test_many_records_at_once_are_one_chain(trail: AuditTrail) -> None:
    await asyncio.gather(*(trail.record(entry(number)) for number in range(40)))
    verdict = await trail.verify()
    assert (verdict.broken, verdict.count) == ("", 40)


async def test_an_export_is_checked_by_itself(trail: AuditTrail) -> None:
    await trail.record(entry(1, object_="ü/“x”", by="ada"))
    await trail.record(entry(2))
    lines = [json.loads(json.dumps(one)) for one in await trail.find(Query())]
    check = Check()
    assert all(check.add(Record.read(line), line["hash"]) for line in lines)
    lines[0]["by"] = "eve"
    assert not Check().add(Record.read(lines[0]), lines[0]["hash"])
    with pytest.raises(ValueError, match="no record"):
        Record.read({"seq": 1})


def test_who_may_do_nothing_does_not_fill_the_log() -> None:
    now = [0.0]
    ration = Ration(most=3, clock=lambda: now[0])
    refused = entry(status=403)
    assert [ration.pass_on(refused) is not None for _ in range(5)] == [True, True, True, False, False]
    assert ration.pass_on(entry(status=200)) is not None  # what was done is never left out
    assert ration.pass_on(entry(status=0)) is not None
    assert ration.pass_on(entry(status=403, by="bob")) is not None
    now[0] = 61.0
    passed = ration.pass_on(refused)
    assert passed is not None
    assert passed.count == 3  # itself, and the two that were left out
    ration = Ration(most=3, clock=lambda: now[0])
    near = [entry(status=403, address=f"2001:db8::{last:x}") for last in range(5)]  # all of them one client's
    assert [ration.pass_on(one) is not None for one in near] == [True, True, True, False, False]
    ration = Ration(most_unknown=2, clock=lambda: now[0])
    gone = [entry(status=0, address=f"192.0.2.{last}") for last in range(4)]  # who goes before each answer
    assert [ration.pass_on(one) is not None for one in gone] == [True, True, False, False]


def test_what_stands_in_a_record_is_bounded_and_plain() -> None:
    assert len(clean("x" * 9999)) == TEXT_LENGTH
    assert clean("a\nb\x1b[1m") == "a?b?[1m"
    assert clean("tokens/faas_abc/rotate") == "tokens/…/rotate"


async def test_the_descriptions_of_all_routes_agree_with_what_is_recorded(server: Control) -> None:
    """No route that changes something needs a permission that is taken for a reading one."""
    app = api_app(server.gateway, server.gateway.tokens)
    for route in app.router.routes():
        assert route.resource is not None
        if route.method in ("PUT", "PATCH", "DELETE") and "@connections" not in route.resource.canonical:
            assert changes(route.method, needed(route.handler)), route.resource.canonical
