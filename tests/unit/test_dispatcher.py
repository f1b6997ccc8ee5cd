"""Asynchronous invocations: durable before 202, at least once, retried by Lambda's table, never silently lost."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from faas.errors import InstanceExited, Throttled, Unavailable
from faas.leases import HttpRequest, HttpResponse, InvocationResult, Trigger
from faas.protocol import (
    Revision,
)
from faas.spec import AsyncSpec, Interface
from faas.state.session import Tx
from gateway import dispatcher
from gateway.retries import Failure, RetryRules, expired, retried
from gateway.shares import share_of, shares
from gateway.store import dead_letters, invocations
from gateway.store.invocations import Kind, QueuedEvent
from tests.support.control import Control, control, serving, until
from tests.support.data_path import sample
from tests.support.fake_worker import FakeWorker, stream

MINUTE = 60.0
FAULT, BUSY = Failure("ValueError", "no", True), Failure("Throttled", "no", False)


def event(**values: Any) -> QueuedEvent:
    return QueuedEvent("id", "default", "hello", Trigger.ASYNC, created_at=1000.0, **values)


# The table (pure)


def test_the_functions_fault_is_tried_again_after_one_and_two_minutes_and_then_no_more() -> None:
    once = retried(event(), FAULT, AsyncSpec(), 1000.0, RetryRules())
    assert once is not None
    assert (once.attempts, once.not_before - 1000.0) == (1, MINUTE)
    twice = retried(once, FAULT, AsyncSpec(), 2000.0, RetryRules())
    assert twice is not None
    assert (twice.attempts, twice.not_before - 2000.0) == (2, 2 * MINUTE)
    assert retried(twice, FAULT, AsyncSpec(), 3000.0, RetryRules()) is None
    assert retried(event(), FAULT, AsyncSpec(retries=0), 1000.0, RetryRules()) is None
    assert retried(event(), Failure("NotFound", "", True, final=True), AsyncSpec(), 1000.0, RetryRules()) is None


def test_want_of_capacity_backs_off_from_a_second_to_five_minutes_until_the_event_is_too_old() -> None:
    waits, now, current = [], 1000.0, event()
    while (again := retried(current, BUSY, AsyncSpec(max_age=timedelta(hours=1)), now, RetryRules())) is not None:
        waits.append(again.not_before - now)
        now, current = again.not_before, again
    assert waits[:10] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]
    assert set(waits[9:]) == {300}
    assert 3300 < now - 1000 <= 3600
    assert current.attempts == 0


def test_an_event_expires_by_its_age_and_not_before() -> None:
    assert not expired(event(), AsyncSpec(max_age=timedelta(minutes=1)), 1060.0)
    assert expired(event(), AsyncSpec(max_age=timedelta(minutes=1)), 1060.1)


# Shares (pure)


def test_slots_go_to_whoever_holds_the_fewest() -> None:
    assert shares({"a": 9, "b": 9, "c": 1}, {"a": 3}, 6) == {"b": 2, "c": 1}
    assert shares({"a": 9}, {}, 100) == {"a": 9}
    assert shares({"a": 0, "b": -2}, {}, 100) == {}


def test_nobody_takes_more_than_half_of_what_is_free_and_who_holds_none_gets_one() -> None:
    assert shares({"a": 1000}, {}, 256) == {"a": 128}
    assert shares({"a": 1000}, {"a": 100}, 156) == {"a": 28}
    assert shares({"a": 9, "b": 9}, {"a": 5}, 0) == {"b": 1}


def test_six_slow_functions_leave_slots_to_those_that_come_later() -> None:
    held: Counter[str] = Counter()
    for number in range(40):  # one after the other, each with an endless backlog of which nothing ends
        held.update(shares({f"f{number}": 50}, held, 256 - held.total()))
    assert [held[f"f{number}"] for number in range(10)] == [50, 50, 50, 50, 28, 14, 7, 3, 2, 1]
    assert all(held[f"f{number}"] >= 1 for number in range(40))


# The whole path


class Functions:
    """What the functions of a test do: answers by function name, and what ran."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.ran: list[tuple[str, Any]] = []
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.gate: asyncio.Event | None = None

    async def __call__(self, revision: Revision, payload: bytes) -> InvocationResult:
        name = revision.key.function
        self.running[name] += 1
        self.most[name] = max(self.most[name], self.running[name])
        try:
            if self.gate is not None:
                await self.gate.wait()
            self.ran.append((name, json.loads(payload)))
            answer = self.answers.get(name)
            found = answer.pop(0) if isinstance(answer, list) and answer else answer
            if isinstance(found, Exception):
                raise found
            if isinstance(found, str):
                error = json.dumps({"errorType": found, "errorMessage": "it failed"}).encode()
                return InvocationResult(error, error_type=found)
            return InvocationResult(b'{"statusCode":201,"body":"done"}')
        finally:
            self.running[name] -= 1

    def count(self, name: str) -> int:
        return sum(ran == name for ran, _ in self.ran)


async def ended(server: Control, call_id: str) -> dict[str, Any]:
    async def look() -> Any:
        found = (await server.call("GET", f"/v1/invocations/{call_id}")).json()
        return found if found.get("status") in ("success", "error") else None

    return await until(look)  # type: ignore[no-any-return]


async def send(server: Control, path: str = "hello", body: bytes = b"hi", **headers: str) -> str:
    sent = {"Content-Type": "text/plain"} | {k.replace("_", "-"): v for k, v in headers.items()}
    answered = await server.call("POST", f"/async-function/{path}", body, headers=sent, public=True)
    assert answered.status == 202, answered.body
    return answered.headers["X-Call-Id"]


async def letters(server: Control) -> list[dict[str, Any]]:
    return list((await server.call("GET", "/v1/dead-letters")).json()["dead_letters"])


async def test_a_request_answers_202_and_runs_as_it_was_sent(tmp_path: Path) -> None:
    functions = Functions()
    async with control(tmp_path, FakeWorker(functions)) as server:
        await server.deploy()
        call = await send(server, "hello/a%20b?x=1&x=2", X_Mine="yes")
        assert (await ended(server, call))["status"] == "success"
        ((_, got),) = functions.ran
        assert (got["rawPath"], got["rawQueryString"], got["body"]) == ("/a%20b", "x=1&x=2", "hi")
        assert (got["requestContext"]["requestId"], got["headers"]["x-mine"]) == (call, "yes")
        metrics = server.gateway.metrics
        labels = {"function": "hello", "qualifier": "live", "trigger": "async", "status": "success"}
        assert sample(metrics, "faas_invocations_total", **labels) == 1
        await until(lambda: sample(metrics, "faas_async_backlog", function="hello") == 0)
        assert sample(metrics, "faas_async_event_age_seconds_count") == 1


async def test_an_http_function_gets_the_request_itself(tmp_path: Path) -> None:
    seen: list[HttpRequest] = []

    async def http(revision: Revision, request: HttpRequest) -> HttpResponse:
        seen.append(request)
        return HttpResponse(200, (), stream(b"ok"))

    worker = FakeWorker(on_request=http)
    worker.found = Interface.HTTP
    async with control(tmp_path, worker) as server:
        await server.deploy()
        await ended(server, await send(server, "hello/p?q=1"))
        assert (seen[0].method, seen[0].target, seen[0].body) == ("POST", "/p?q=1", b"hi")


@pytest.mark.parametrize(("size", "status"), [(1_048_576, 202), (1_048_577, 413)])
async def test_a_body_may_have_exactly_the_limit(tmp_path: Path, size: int, status: int) -> None:
    async with control(tmp_path) as server:
        await server.deploy()
        answered = await server.call("POST", "/async-function/hello", b"x" * size, public=True)
        assert answered.status == status
        headers = {"X-Faas-Invocation-Type": "Event"}
        body = b'"' + b"x" * (size - 2) + b'"'
        assert (await server.call("POST", "/v1/functions/hello/invocations", body, headers=headers)).status == status


async def test_unknown_functions_and_wrong_callbacks_are_refused_at_once(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await server.deploy()
        assert (await server.call("POST", "/async-function/nobody", public=True)).status == 404
        for url in ("ftp://x/", "not a url", "http://", "http://x:99999/", "http://x/" + "a" * 3000):
            headers = {"X-Callback-Url": url}
            assert (await server.call("POST", "/async-function/hello", headers=headers, public=True)).status == 400


async def test_a_function_that_fails_twice_and_then_works_has_run_three_times(tmp_path: Path) -> None:
    functions = Functions(hello=["ValueError", InstanceExited("gone"), None])
    async with control(tmp_path, FakeWorker(functions)) as server:
        await server.deploy()
        status = await ended(server, await send(server))
        assert (status["status"], status["attempts"]) == ("success", 2)
        assert functions.count("hello") == 3
        assert await letters(server) == []


async def test_an_event_that_never_works_becomes_a_dead_letter_that_can_be_read_and_retried(tmp_path: Path) -> None:
    functions = Functions(hello=["ValueError"] * 3)
    async with control(tmp_path, FakeWorker(functions)) as server:
        await server.deploy(**{"async": {"on_failure": "dlq"}})
        call = await send(server, authorization="Basic c2VjcmV0")
        assert (await ended(server, call))["error_type"] == "ValueError"
        (letter,) = await letters(server)
        assert (letter["id"], letter["attempts"], letter["size"]) == (call, 3, 2)
        assert (letter["error_type"], letter["error_message"]) == ("ValueError", "it failed")
        read = await server.call("GET", f"/v1/dead-letters/{call}")
        assert base64.b64decode(read.json()["payload"]) == b"hi"
        assert b"c2VjcmV0" not in read.body
        assert (await server.call("GET", "/v1/dead-letters?function=other")).json() == {"dead_letters": []}
        assert sample(server.gateway.metrics, "faas_dead_letters_total", function="hello") == 1
        functions.answers.clear()
        assert (await server.call("POST", f"/v1/dead-letters/{call}/retry")).status == 202
        assert (await ended(server, call))["status"] == "success"
        assert await letters(server) == []
        assert (await server.call("POST", f"/v1/dead-letters/{call}/retry")).status == 404


async def test_without_on_failure_the_event_is_a_dead_letter_too_and_deleted_letters_are_gone(tmp_path: Path) -> None:
    functions = Functions(hello="ValueError")
    async with control(tmp_path, FakeWorker(functions)) as server:
        await server.deploy(**{"async": {"retries": 0}})
        call = await send(server)
        assert (await ended(server, call))["status"] == "error"
        assert [letter["id"] for letter in await letters(server)] == [call]
        assert sample(server.gateway.metrics, "faas_dead_letters_total", function="hello") == 1
        assert functions.count("hello") == 1
        assert (await server.call("DELETE", f"/v1/dead-letters/{call}")).status == 204
        assert await letters(server) == []


async def test_dead_letters_that_the_bound_deletes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "KEPT_LETTERS", 2)
    async with control(tmp_path, FakeWorker(Functions(hello="ValueError"))) as server:
        await server.deploy(**{"async": {"retries": 0}})
        calls = [await send(server) for _ in range(5)]
        for call in calls:
            await ended(server, call)
        assert len(await letters(server)) == 2
        assert sample(server.gateway.metrics, "faas_dead_letters_total", function="hello") == 5
        assert sample(server.gateway.metrics, "faas_dead_letters_trimmed_total", function="hello") == 3


@pytest.mark.parametrize("trigger", [Trigger.ASYNC, Trigger.SCHEDULE, Trigger.FOLDER])
async def test_an_event_that_grew_too_old_is_a_dead_letter_whatever_it_came_from(
    tmp_path: Path, trigger: Trigger
) -> None:
    functions = Functions()
    async with control(tmp_path, FakeWorker(functions)) as server:
        await server.deploy()
        kind = Kind.FILE if trigger is Trigger.FOLDER else Kind.EVENT
        old = QueuedEvent("old", "default", "hello", trigger, kind, created_at=time.time() - 6 * 3600 - 1)
        await server.gateway.dispatcher.accept(old)
        (letter,) = await until(lambda: letters(server))
        assert (letter["id"], letter["error_type"], letter["trigger"]) == ("old", "EventAgeExceeded", trigger.value)
        assert functions.ran == []


@pytest.mark.parametrize("on_failure", ["", "catcher"])
async def test_half_a_surrogate_pair_in_an_error_is_stored_as_a_question_mark(tmp_path: Path, on_failure: str) -> None:
    async def fails(revision: Revision, payload: bytes) -> InvocationResult:
        if revision.key.function == "catcher":
            records.append(json.loads(payload))
            return InvocationResult(b"1")
        error = b'{"errorType":"E","errorMessage":"half \\ud800"}'
        return InvocationResult(error, error_type="Odd\udce4\nError")

    records: list[Any] = []
    async with control(tmp_path, FakeWorker(fails)) as server:
        await server.deploy("catcher")
        await server.deploy(**{"async": {"retries": 1, "on_failure": on_failure}})
        status = await ended(server, await send(server))
        assert (status["status"], status["error_message"]) == ("error", "half ?")
        assert status["error_type"] == "Odd?\nError"
        if on_failure:
            await until(lambda: records)
            assert "half" in str(records[0]["responsePayload"])
        else:
            assert [letter["error_message"] for letter in await letters(server)] == ["half ?"]


@pytest.mark.parametrize("broken", ["retried", "_callback"])
async def test_whatever_is_raised_the_event_ends_in_a_stored_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    real, raised = getattr(dispatcher, broken), []

    def once(*given: Any) -> Any:
        if not raised:
            raised.append(broken)
            raise ZeroDivisionError
        return real(*given)

    monkeypatch.setattr(dispatcher, broken, once)
    async with control(tmp_path, FakeWorker(Functions(hello="ValueError"))) as server:
        await server.deploy(**{"async": {"retries": 0}})
        status = await ended(server, await send(server))
        assert (status["status"], status["error_type"]) == ("error", "ZeroDivisionError")
        assert [letter["id"] for letter in await letters(server)] == [status["id"]]
        await until(lambda: sample(server.gateway.metrics, "faas_async_backlog", function="hello") == 0)
    assert "ZeroDivisionError" in caplog.text


async def test_a_function_named_in_on_failure_gets_the_record(tmp_path: Path) -> None:
    functions = Functions(hello="ValueError")
    async with control(tmp_path, FakeWorker(functions)) as server:
        await server.deploy("catcher")
        await server.deploy(**{"async": {"retries": 1, "on_failure": "catcher"}})
        call = await send(server)
        await until(lambda: functions.count("catcher"))
        record = functions.ran[-1][1]
        assert record["requestContext"]["requestId"] == call
        assert record["requestContext"]["condition"] == "RetriesExhausted"
        assert record["requestContext"]["approximateInvokeCount"] == 2
        assert record["requestPayload"]["body"] == "hi"
        assert record["responseContext"]["functionError"] == "Unhandled"
        assert record["responsePayload"]["errorType"] == "ValueError"


async def test_two_functions_that_fail_for_each_other_end_in_a_dead_letter(tmp_path: Path) -> None:
    functions = Functions(a="ValueError", b="ValueError")
    async with control(tmp_path, FakeWorker(functions)) as server:
        await server.deploy("a", **{"async": {"retries": 0, "on_failure": "b"}})
        await server.deploy("b", **{"async": {"retries": 0, "on_failure": "a"}})
        await send(server, "a")
        await until(lambda: letters(server))
        assert functions.count("a") + functions.count("b") == 5


async def test_an_on_failure_function_that_is_gone_leaves_a_dead_letter(tmp_path: Path) -> None:
    async with control(tmp_path, FakeWorker(Functions(hello="ValueError"))) as server:
        await server.deploy(**{"async": {"retries": 0, "on_failure": "nobody"}})
        await send(server)
        assert (await until(lambda: letters(server)))[0]["function"] == "hello"


async def test_want_of_capacity_is_waited_out(tmp_path: Path) -> None:
    functions = Functions(hello=[Throttled(), Throttled(), Throttled(), None])
    async with control(tmp_path, FakeWorker(functions)) as server:
        await server.deploy(**{"async": {"retries": 0}})
        status = await ended(server, await send(server))
        assert (status["status"], status["attempts"]) == ("success", 0)


async def test_no_more_events_run_at_once_than_the_function_may_have_instances(tmp_path: Path) -> None:
    functions = Functions()
    functions.gate = asyncio.Event()
    async with control(tmp_path, FakeWorker(functions)) as server:
        await server.deploy("narrow", scale={"max": 2})
        await server.deploy("other")
        calls = [await send(server, "narrow") for _ in range(6)]
        await until(lambda: functions.running["narrow"] == 2)
        other = await send(server, "other")  # is not held up by the first's backlog
        await until(lambda: functions.running["other"] == 1)
        assert sample(server.gateway.metrics, "faas_async_backlog", function="narrow") == 6
        functions.gate.set()
        for call in (*calls, other):
            assert (await ended(server, call))["status"] == "success"
        assert functions.most["narrow"] == 2
        assert Counter(name for name, _ in functions.ran) == {"narrow": 6, "other": 1}


async def test_slow_functions_that_hold_every_slot_do_not_starve_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "IN_FLIGHT", 16)
    functions = Functions()
    functions.gate = asyncio.Event()
    async with control(tmp_path, FakeWorker(functions)) as server:
        slow = [f"slow{n}" for n in range(6)]
        for name in slow:
            await server.deploy(name, scale={"max": 8})
            for _ in range(8):
                await send(server, name)
        await until(lambda: all(functions.running[name] for name in slow))
        assert functions.running.total() <= 16 + len(slow)
        await server.deploy("late")
        await send(server, "late")
        await until(lambda: functions.running["late"] == 1)
        functions.gate.set()
        await until(lambda: functions.count("slow5") == 8)


async def test_a_client_that_leaves_during_the_commit_leaves_no_trace_in_the_backlog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    functions, adding, go_on = Functions(), threading.Event(), threading.Event()
    add = invocations.add

    def slow(tx: Tx, events: Collection[QueuedEvent]) -> None:
        if events:
            adding.set()
            go_on.wait(10)
        add(tx, events)

    monkeypatch.setattr(dispatcher, "POLL_SECONDS", 3600.0)  # only being woken makes it go on
    async with control(tmp_path, FakeWorker(functions)) as server:
        await server.deploy()
        monkeypatch.setattr(invocations, "add", slow)
        accept = asyncio.create_task(server.gateway.dispatcher.accept(event(payload=b'"left"')))
        await asyncio.to_thread(adding.wait, 10)
        accept.cancel()
        await asyncio.gather(accept, return_exceptions=True)
        go_on.set()
        monkeypatch.setattr(dispatcher, "expired", lambda *_: False)
        assert (await ended(server, "id"))["status"] == "success"
        await until(lambda: sample(server.gateway.metrics, "faas_async_backlog", function="hello") == 0)


async def test_a_name_is_resolved_when_it_runs(tmp_path: Path) -> None:
    ran: list[int] = []
    gate = asyncio.Event()

    async def which(revision: Revision, payload: bytes) -> InvocationResult:
        ran.append(revision.key.number)
        await gate.wait()
        return InvocationResult(b"1")

    async with control(tmp_path, FakeWorker(which)) as server:
        await server.deploy(scale={"max": 1})
        first, second = await send(server), await send(server)
        pinned = await send(server, "hello:v1")
        await until(lambda: ran == [1])
        await server.deploy(scale={"max": 1}, memory=256)
        gate.set()
        for call in (first, second, pinned):
            await ended(server, call)
        assert ran == [1, 2, 1]


async def test_what_was_accepted_but_not_answered_runs_after_a_restart(tmp_path: Path) -> None:
    stuck = Functions()
    stuck.gate = asyncio.Event()
    async with control(tmp_path, FakeWorker(stuck)) as server:
        await server.deploy(scale={"max": 2})
        calls = [await send(server) for _ in range(5)]
        await until(lambda: stuck.running["hello"] == 2)
    assert stuck.ran == []  # stopped in the middle of two, with three waiting
    functions = Functions()
    async with control(tmp_path, FakeWorker(functions)) as server:
        for call in calls:
            assert (await ended(server, call))["status"] == "success"
        assert functions.count("hello") == 5
        await until(lambda: sample(server.gateway.metrics, "faas_async_backlog", function="hello") == 0)


async def test_many_accepts_at_once_share_transactions_and_lose_none(tmp_path: Path) -> None:
    functions = Functions()
    async with control(tmp_path, FakeWorker(functions)) as server:
        await server.deploy(scale={"max": 50})
        calls = await asyncio.gather(*(send(server, body=b"%d" % n) for n in range(150)))
        assert len(set(calls)) == 150
        await until(lambda: functions.count("hello") == 150)
        assert {got["body"] for _, got in functions.ran} == {str(n) for n in range(150)}


async def test_an_outcome_that_cannot_be_stored_is_tried_again_and_the_event_runs_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    functions, broken = Functions(), []
    end = invocations.end

    def full_disk(tx: Tx, event: QueuedEvent) -> bool:
        if len(broken) < 2:
            broken.append(event.id)
            raise Unavailable("the disk is full")
        return end(tx, event)

    monkeypatch.setattr(invocations, "end", full_disk)
    async with control(tmp_path, FakeWorker(functions)) as server:
        await server.deploy()
        call = await send(server)
        assert (await ended(server, call))["status"] == "success"
        assert broken == [call, call]
        assert functions.count("hello") == 1


async def test_a_deleted_functions_events_are_gone(tmp_path: Path) -> None:
    functions = Functions()
    functions.gate = asyncio.Event()
    async with control(tmp_path, FakeWorker(functions)) as server:
        await server.deploy(scale={"max": 1})
        calls = [await send(server) for _ in range(3)]
        await until(lambda: functions.running["hello"])
        await server.call("DELETE", "/v1/functions/hello")
        functions.gate.set()
        await until(lambda: functions.count("hello") == 1)
        await asyncio.sleep(0.05)
        assert functions.count("hello") == 1
        assert (await server.call("GET", f"/v1/invocations/{calls[-1]}")).status == 404
        assert b'faas_async_backlog{function="hello"}' not in (await server.call("GET", "/metrics")).body


async def test_an_event_that_fails_after_its_function_was_deleted_leaves_no_dead_letter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    functions = Functions(hello="ValueError")
    functions.gate = asyncio.Event()
    monkeypatch.setattr(dispatcher, "expired", lambda *_: False)
    async with control(tmp_path, FakeWorker(functions)) as server:
        await server.deploy()
        await server.gateway.dispatcher.accept(event(attempts=2))
        await until(lambda: functions.running["hello"])
        await server.call("DELETE", "/v1/functions/hello")
        functions.gate.set()
        await until(lambda: not server.gateway.dispatcher.running)
        assert await letters(server) == []


async def test_ended_invocations_are_swept_after_a_day(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await server.deploy()
        call = await send(server)
        row = await ended(server, call)
        assert row["status"] == "success"
        async with server.gateway.database.write() as tx:
            await tx.run_sync(invocations.remove_ended, 0.0)
            assert await tx.run_sync(invocations.get, call) is not None
            await tx.run_sync(invocations.remove_ended, 2e10)
            assert await tx.run_sync(invocations.get, call) is None


# Callbacks


@asynccontextmanager
async def receiver(*statuses: int) -> AsyncIterator[tuple[str, list[tuple[Mapping[str, str], bytes]]]]:
    """A callback's receiver on loopback: its URL, and what it was sent."""
    taken: list[tuple[Mapping[str, str], bytes]] = []
    answers = list(statuses)

    async def take(request: web.Request) -> web.Response:
        taken.append((request.headers.copy(), await request.read()))
        status = answers.pop(0) if answers else 200
        return web.Response(status=status, headers={"Location": "/elsewhere"} if status == 302 else {})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", take)
    async with serving(app) as url:
        yield url, taken


async def test_the_result_is_posted_to_the_callback_until_it_is_taken(tmp_path: Path) -> None:
    async with (
        receiver(500, 302) as (url, taken),
        control(tmp_path, FakeWorker(Functions()), allow_private_callbacks=True) as server,
    ):
        await server.deploy()
        call = await send(server, X_Callback_Url=f"{url}/done")
        await until(lambda: len(taken) == 3)
        headers, body = taken[-1]
        assert (headers["X-Call-Id"], headers["X-Function-Status"], body) == (call, "201", b"done")


async def test_a_failure_is_posted_too(tmp_path: Path) -> None:
    async with (
        receiver() as (url, taken),
        control(tmp_path, FakeWorker(Functions(hello="ValueError")), allow_private_callbacks=True) as server,
    ):
        await server.deploy(**{"async": {"retries": 0}})
        await send(server, X_Callback_Url=url)
        await until(lambda: taken)
        assert (taken[0][0]["X-Error-Type"], json.loads(taken[0][1])["errorMessage"]) == ("ValueError", "it failed")


async def test_no_callback_reaches_this_machine_or_its_networks(tmp_path: Path) -> None:
    async with receiver() as (url, taken), control(tmp_path, FakeWorker(Functions())) as server:
        await server.deploy()
        port = url.rpartition(":")[2]
        for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f000001", "127.1", "0"):
            await ended(server, await send(server, X_Callback_Url=f"http://{host}:{port}/"))
        await asyncio.sleep(0.3)  # several tries of each
        assert taken == []


async def test_receivers_that_never_answer_one_functions_callbacks_do_not_stop_anothers(tmp_path: Path) -> None:
    stuck, leave = Counter[str](), asyncio.Event()

    async def tarpit(request: web.Request) -> web.Response:
        stuck["now"] += 1
        await leave.wait()
        return web.Response()

    app = web.Application()
    app.router.add_post("/", tarpit)
    async with (
        serving(app) as tar,
        receiver() as (url, taken),
        control(tmp_path, FakeWorker(Functions()), allow_private_callbacks=True) as server,
    ):
        await server.deploy("tar")
        await server.deploy()
        calls = [await send(server, "tar", X_Callback_Url=tar) for _ in range(3 * dispatcher.LANE_CALLBACKS_IN_FLIGHT)]
        for call in calls:
            await ended(server, call)
        await until(lambda: stuck["now"] == dispatcher.LANE_CALLBACKS_IN_FLIGHT)
        await send(server, X_Callback_Url=url)
        await until(lambda: taken)
        assert stuck["now"] == dispatcher.LANE_CALLBACKS_IN_FLIGHT
        leave.set()
        await until(lambda: stuck["now"] == len(calls))


def test_half_of_what_others_leave_is_a_share_and_all_of_it_for_who_is_alone() -> None:
    assert share_of(100, {}, "a") == 50
    assert share_of(100, {"a": 50}, "b") == 25
    assert share_of(100, {"a": 50, "b": 25}, "a") == 38, "less than it has: it gets no more"
    assert share_of(1, {}, "a") == 1
    assert share_of(10, {"a": 20}, "b") == 0
    assert share_of(100, {"a": 7}, "a", alone=True) == 100
