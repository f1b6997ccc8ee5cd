"""The pool over the fake driver: slots, waits, scaling, failures, limits, drain."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import re
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from faas.errors import (
    ImageUnusable,
    InitFailed,
    InstanceExited,
    NotFound,
    OutOfMemory,
    ResponseTooLarge,
    ShuttingDown,
    Throttled,
    TimedOut,
)
from faas.leases import Invocation, InvocationResult, Trigger
from faas.metrics import Metrics
from faas.protocol import (
    LogQuery,
    LogRecord,
    Revision,
    RevisionKey,
)
from faas.spec import Interface, parse
from tests.support.fake_driver import FakeDriver, FakeSandbox, OutOfMemoryKill, Program, eventually, lambda_program
from worker import janitor
from worker.drivers.base import Exit
from worker.pool import Pool

DIGEST = "sha256:" + "0" * 64


def revision(program: str = "echo", **keys: Any) -> Revision:
    spec = parse({"name": "hello", "command": [], "entrypoint": [program], **keys})
    return Revision(RevisionKey("default", "hello", 7), spec, f"hello@{DIGEST}", Interface.LAMBDA)


def invocation(request_id: str = "r1", wait: float = 5.0) -> Invocation:
    return Invocation(request_id, Trigger.HTTP, wait)


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., Pool]]:
    pools: list[tuple[Pool, FakeDriver]] = []

    def make_pool(**programs: Program) -> Pool:
        driver = FakeDriver(programs)
        pool = Pool(driver, tmp_path / "logs", Metrics("test"))
        pools.append((pool, driver))
        return pool

    yield make_pool
    for pool, driver in pools:
        await pool.close(0)
        assert driver.sandboxes == {}
        assert not driver.is_open


def driver_of(pool: Pool) -> FakeDriver:
    assert isinstance(pool._driver, FakeDriver)
    return pool._driver


async def invoke(pool: Pool, of: Revision, event: Any = None, request_id: str = "r1", wait: float = 5.0) -> Any:
    async with pool.acquire(of, invocation(request_id, wait)) as lease:
        result: InvocationResult = await lease.invoke(json.dumps(event).encode())
    assert lease.report is not None
    return json.loads(result.payload)


async def lines(pool: Pool, **query: Any) -> list[LogRecord]:
    return [record async for record in pool.logs(LogQuery("default", "hello", **query))]


# The path that works


async def test_an_event_goes_to_an_instance_and_its_answer_comes_back(make: Callable[..., Pool]) -> None:
    pool, hello = make(), revision()
    await pool.open()
    await pool.scale(hello, 1)
    async with pool.acquire(hello, invocation()) as lease:
        assert lease.interface is Interface.LAMBDA
        assert lease.cold_start is not None
        assert lease.cold_start.path == "cold"
        result = await lease.invoke(b'{"a": 1}')
    assert json.loads(result.payload) == {"a": 1}
    assert result.error_type is None
    assert lease.report is not None
    assert lease.report.init_seconds is not None
    assert lease.report.billed_seconds >= lease.report.init_seconds
    async with pool.acquire(hello, invocation("r2")) as warm:
        await warm.invoke(b"{}")
    assert warm.cold_start is None
    assert warm.report is not None
    assert warm.report.init_seconds is None
    assert pool.stats(hello.key).instances == 1


async def test_init_runs_at_a_full_core_and_the_rest_at_the_functions_share(make: Callable[..., Pool]) -> None:
    pool, hello = make(), revision(memory=442)
    await pool.open()
    await pool.scale(hello, 1)
    await invoke(pool, hello)
    sandbox = driver_of(pool).created[0]
    assert sandbox.spec.cpus == 1.0
    assert sandbox.cpus == pytest.approx(442 / 1769)


async def test_nothing_starts_unless_scale_says_so(make: Callable[..., Pool]) -> None:
    pool, hello = make(), revision()
    await pool.open()
    with pytest.raises(Throttled) as refused:
        await invoke(pool, hello, wait=0.05)
    assert refused.value.reason == "ConcurrentInvocationLimitExceeded"
    assert refused.value.retry_after >= 1
    assert driver_of(pool).created == []


async def test_the_most_recently_used_instance_is_taken_and_waiters_come_in_order(make: Callable[..., Pool]) -> None:
    gate = asyncio.Event()
    served: list[int] = []

    async def handler(sandbox: FakeSandbox, event: Any) -> Any:
        served.append(event)
        await gate.wait()
        return sandbox.id

    pool, hello = make(held=lambda s: lambda_program(handler)(s)), revision("held")
    await pool.open()
    await pool.scale(hello, 2)
    first = [asyncio.create_task(invoke(pool, hello, n, f"r{n}")) for n in range(2)]
    await eventually(lambda: len(served) == 2)
    later = []
    for n in range(2, 6):
        later.append(asyncio.create_task(invoke(pool, hello, n, f"r{n}")))
        await asyncio.sleep(0)
    await eventually(lambda: pool.stats(hello.key).waiting == 4)
    assert pool.stats(hello.key).executing == 2
    gate.set()
    await asyncio.gather(*first, *later)
    assert served[2:] == [2, 3, 4, 5]
    last = await invoke(pool, hello, 6)
    assert await invoke(pool, hello, 7) == last


async def test_scale_up_and_down_keeps_busy_ones_until_they_finish(make: Callable[..., Pool]) -> None:
    gate = asyncio.Event()

    async def handler(sandbox: FakeSandbox, event: Any) -> Any:
        await gate.wait()
        return "done"

    pool, hello = make(held=lambda_program(handler)), revision("held")
    await pool.open()
    await pool.scale(hello, 3)
    await pool.scale(hello, 3)
    await eventually(lambda: pool.stats(hello.key).idle == 3)
    call = asyncio.create_task(invoke(pool, hello))
    await eventually(lambda: pool.stats(hello.key).busy == 1)
    await pool.scale(hello, 0)
    await eventually(lambda: len(driver_of(pool).sandboxes) == 1)
    assert pool.stats(hello.key).busy == 1
    gate.set()
    assert await call == "done"
    await eventually(lambda: not driver_of(pool).sandboxes)


async def test_an_instance_of_an_http_function_has_as_many_slots_as_its_concurrency(make: Callable[..., Pool]) -> None:
    async def serve(sandbox: FakeSandbox) -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        await sandbox.serve(handle)
        await asyncio.Event().wait()

    pool = make(web=serve)
    web = Revision(
        RevisionKey("default", "web", 1),
        parse({"name": "web", "entrypoint": ["web"], "concurrency": 3}),
        f"web@{DIGEST}",
        Interface.HTTP,
    )
    await pool.open()
    await pool.scale(web, 1)
    async with contextlib.AsyncExitStack() as stack:
        for n in range(3):
            await stack.enter_async_context(pool.acquire(web, invocation(f"r{n}")))
        assert (pool.stats(web.key).busy, pool.stats(web.key).executing) == (1, 3)
        with pytest.raises(Throttled):
            await stack.enter_async_context(pool.acquire(web, invocation("r4", 0.02)))
    assert pool.stats(web.key).idle == 1


# Waiting


async def test_a_wait_that_is_over_goes_on_for_an_instance_that_is_starting_for_it(make: Callable[..., Pool]) -> None:
    pool, hello = make(), revision()
    await pool.open()
    driver_of(pool).create_seconds = 0.2
    await pool.scale(hello, 1)
    first = asyncio.create_task(invoke(pool, hello, "mine", wait=0.01))
    await asyncio.sleep(0)
    with pytest.raises(Throttled):  # second in the queue: the one instance is not for it
        await invoke(pool, hello, wait=0.01)
    assert await first == "mine"


async def test_a_caller_that_goes_while_it_waits_leaves_the_queue(make: Callable[..., Pool]) -> None:
    pool, hello = make(), revision()
    await pool.open()
    waiting = asyncio.create_task(invoke(pool, hello))
    await eventually(lambda: pool.stats(hello.key).waiting == 1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert pool.stats(hello.key).waiting == 0
    await pool.scale(hello, 1)
    assert await invoke(pool, hello, 1) == 1


async def test_a_slot_that_comes_together_with_a_cancellation_is_not_lost(make: Callable[..., Pool]) -> None:
    pool, hello = make(), revision()
    await pool.open()
    await pool.scale(hello, 1)
    await invoke(pool, hello)
    for _ in range(20):
        async with pool.acquire(hello, invocation("holder")):
            waiting = asyncio.create_task(invoke(pool, hello))
            await eventually(lambda: pool.stats(hello.key).waiting == 1)
        waiting.cancel()  # the slot was just given to it
        await asyncio.gather(waiting, return_exceptions=True)
        await eventually(lambda: pool.stats(hello.key).idle == 1)
    assert await invoke(pool, hello, 5) == 5


async def test_a_failed_start_is_told_to_the_oldest_waiter_and_the_others_wait_on(make: Callable[..., Pool]) -> None:
    starts = 0

    async def flaky(sandbox: FakeSandbox) -> int | None:
        nonlocal starts
        starts += 1
        if starts == 1:
            sandbox.print("ModuleNotFoundError: No module named 'requests'", error=True)
            return 1
        return await lambda_program(lambda s, e: asyncio.sleep(0, e))(sandbox)

    pool, hello = make(flaky=flaky), revision("flaky")
    await pool.open()
    await pool.scale(hello, 1)
    results = await asyncio.gather(*(invoke(pool, hello, n) for n in range(3)), return_exceptions=True)
    assert isinstance(results[0], InitFailed)
    assert results[0].message == "the instance ended during init: exit status 1"
    assert "requests" in results[0].hint
    assert "requirements.txt" in results[0].hint
    assert "No module named" in results[0].log_tail
    assert results[1:] == [1, 2]


async def test_what_fails_without_a_waiter_is_retried_slowly_and_with_one_at_once(make: Callable[..., Pool]) -> None:
    starts = 0

    async def broken(sandbox: FakeSandbox) -> int:
        nonlocal starts
        starts += 1
        return 1

    pool, hello = make(broken=broken), revision("broken")
    await pool.open()
    await pool.scale(hello, 1)
    await asyncio.sleep(0.2)
    assert starts == 1
    with pytest.raises(InitFailed):
        await invoke(pool, hello)
    assert starts == 2


async def test_an_image_that_cannot_be_had_is_told_to_everybody_at_once(make: Callable[..., Pool]) -> None:
    pool, hello = make(), revision()
    await pool.open()
    driver_of(pool).prepare_error = ImageUnusable("the image is gone")
    await pool.scale(hello, 1)
    results = await asyncio.gather(*(invoke(pool, hello) for _ in range(20)), return_exceptions=True)
    assert {type(result) for result in results} == {ImageUnusable}


# Failures of functions


async def test_a_functions_own_error_is_a_result_and_the_instance_stays(make: Callable[..., Pool]) -> None:
    async def handler(sandbox: FakeSandbox, event: Any) -> Any:
        raise ValueError("no such colour")

    pool, hello = make(bad=lambda_program(handler)), revision("bad")
    await pool.open()
    await pool.scale(hello, 1)
    async with pool.acquire(hello, invocation()) as lease:
        result = await lease.invoke(b"{}")
    assert result.error_type == "ValueError"
    assert json.loads(result.payload) == {
        "errorType": "ValueError",
        "errorMessage": "no such colour",
        "stackTrace": [],
    }
    assert pool.stats(hello.key).idle == 1


async def test_the_time_limit_kills_the_instance_and_the_next_invocation_works(make: Callable[..., Pool]) -> None:
    async def handler(sandbox: FakeSandbox, event: Any) -> Any:
        if event == "slow":
            await asyncio.sleep(60)
        return event

    pool, hello = make(slow=lambda_program(handler)), revision("slow", timeout=1)
    await pool.open()
    await pool.scale(hello, 1)
    with pytest.raises(TimedOut, match=r"^Task timed out after 1\.00 seconds$"):
        await invoke(pool, hello, "slow", "late")
    assert await invoke(pool, hello, "fine", "after") == "fine"
    assert len(driver_of(pool).created) == 2
    messages = [record.message for record in await lines(pool, request_id="late")]
    assert messages[0] == "START RequestId: late Version: 7"
    assert messages[1].endswith("Z late Task timed out after 1.00 seconds")
    assert messages[2] == "END RequestId: late"
    told = re.match(r"REPORT RequestId: late\tDuration: ([\d.]+) ms", messages[3])
    assert told
    assert 1000 <= float(told[1]) < 10_000
    assert messages[3].endswith("\tStatus: timeout")


@pytest.mark.parametrize(
    ("event", "error", "words"),
    [
        ("exit", InstanceExited, "Runtime exited with error: exit status 3"),
        ("memory", OutOfMemory, "its limit of 128 MB, 100 MB at the last look, and .* is not known: set memory = 256"),
    ],
)
async def test_an_instance_that_ends_in_an_invocation_is_said_so_and_replaced(
    make: Callable[..., Pool], event: str, error: type[Exception], words: str
) -> None:
    async def handler(sandbox: FakeSandbox, event: Any) -> Any:
        if event == "exit":
            raise SystemExit(3)
        if event == "memory":
            sandbox.memory_bytes = 100 * 1_048_576
            await asyncio.sleep(0.15)  # three samples
            raise OutOfMemoryKill
        return event

    pool, hello = make(bad=lambda_program(handler)), revision("bad")
    await pool.open()
    await pool.scale(hello, 1)
    with pytest.raises(error, match=words):
        await invoke(pool, hello, event, "bad")
    assert await invoke(pool, hello, "fine") == "fine"
    report = (await lines(pool, request_id="bad"))[-1].message
    assert ("Max Memory Used: 128 MB" in report) == (event == "memory")
    assert "Status: error" in report


async def test_a_child_killed_for_want_of_memory_makes_a_failed_invocation_out_of_memory(
    make: Callable[..., Pool],
) -> None:
    async def handler(sandbox: FakeSandbox, event: Any) -> Any:
        sandbox.oom_kills += 1
        if event == "fails":
            raise RuntimeError("the child died")
        return "went on without"

    pool, hello = make(bad=lambda_program(handler)), revision("bad")
    await pool.open()
    await pool.scale(hello, 1)
    with pytest.raises(OutOfMemory):
        await invoke(pool, hello, "fails")
    assert await invoke(pool, hello, "works", "r2") == "went on without"
    assert len(driver_of(pool).created) == 2  # the one that failed is replaced, as where its first process is killed
    assert any("a process was killed: out of memory" in r.message for r in await lines(pool))


async def test_an_answer_over_the_limit_fails_and_the_instance_lives_on(make: Callable[..., Pool]) -> None:
    statuses = []

    async def program(sandbox: FakeSandbox) -> int:
        runtime = await sandbox.runtime()
        while True:
            request_id, event = await runtime.next()
            statuses.append(await runtime.respond(request_id, b"x" * event))

    pool, hello = make(big=program), revision("big")
    await pool.open()
    await pool.scale(hello, 1)
    async with pool.acquire(hello, invocation()) as lease:
        assert len((await lease.invoke(b"6291556")).payload) == 6_291_556
    with pytest.raises(ResponseTooLarge, match=r"\(6291557 bytes\) exceeded maximum .* \(6291556 bytes\)"):
        await invoke(pool, hello, 6_291_557)
    async with pool.acquire(hello, invocation()) as lease:
        assert (await lease.invoke(b"2")).payload == b"xx"
    await eventually(lambda: statuses == [202, 413, 202])
    assert len(driver_of(pool).created) == 1


async def test_a_caller_that_goes_keeps_the_slot_until_the_function_has_answered(make: Callable[..., Pool]) -> None:
    gate, began = asyncio.Event(), asyncio.Event()

    async def handler(sandbox: FakeSandbox, event: Any) -> Any:
        if event == "held":
            began.set()
            await gate.wait()
        return event

    pool, hello = make(held=lambda_program(handler)), revision("held")
    reported: list[tuple[RevisionKey, bool]] = []
    pool.report_to(lambda key, reports: reported.extend((key, report.failed) for report in reports))
    await pool.open()
    await pool.scale(hello, 1)
    call = asyncio.create_task(invoke(pool, hello, "held", "gone"))
    await began.wait()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert pool.stats(hello.key).busy == 1
    gate.set()
    await eventually(lambda: pool.stats(hello.key).idle == 1)
    assert await invoke(pool, hello, "next") == "next"
    assert len(driver_of(pool).created) == 1
    assert (await lines(pool, request_id="gone"))[-1].message.startswith("REPORT")
    pool.settle()
    assert reported == [(hello.key, False)] * 2


async def test_an_event_that_an_ended_instance_never_took_goes_to_another(make: Callable[..., Pool]) -> None:
    async def once(sandbox: FakeSandbox) -> int:
        """Answers one event, then neither polls nor ends for a moment."""
        runtime = await sandbox.runtime()
        request_id, event = await runtime.next()
        await runtime.respond(request_id, event)
        await asyncio.sleep(0.05)
        return 0

    pool, hello = make(once=once), revision("once")
    await pool.open()
    await pool.scale(hello, 1)
    assert [await invoke(pool, hello, n) for n in range(3)] == [0, 1, 2]
    assert len(driver_of(pool).created) >= 3


async def test_an_idle_instance_that_ends_is_replaced_for_who_comes(make: Callable[..., Pool]) -> None:
    pool, hello = make(), revision()
    await pool.open()
    await pool.scale(hello, 1)
    await invoke(pool, hello)
    sandbox = driver_of(pool).created[0]
    await driver_of(pool).kill(sandbox)
    await eventually(lambda: pool.stats(hello.key).idle == 0)
    assert await invoke(pool, hello, 3) == 3


# Check, retire, close, figures


async def test_check_finds_the_contract_out_and_keeps_the_instance(make: Callable[..., Pool]) -> None:
    async def serve(sandbox: FakeSandbox) -> None:
        sandbox.print("listening")

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        await sandbox.serve(handle)
        await asyncio.Event().wait()

    pool = make(web=serve)
    await pool.open()
    for number, (program, found) in enumerate((("echo", Interface.LAMBDA), ("web", Interface.HTTP))):
        of = Revision(
            RevisionKey("default", "hello", number), parse({"name": "hello", "entrypoint": [program]}), f"x@{DIGEST}"
        )
        report = await pool.check(of)
        assert report.interface is found
        assert report.init_seconds > 0
        assert pool.stats(of.key).idle == 1
    assert report.log_tail == "listening"


async def test_a_check_that_fails_says_why_and_leaves_nothing(make: Callable[..., Pool]) -> None:
    async def stuck(sandbox: FakeSandbox) -> None:
        sandbox.print("still waiting", error=True)
        await asyncio.sleep(60)

    async def elsewhere(sandbox: FakeSandbox) -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        await sandbox.serve(handle, 3000)
        await asyncio.sleep(60)

    async def init_error(sandbox: FakeSandbox) -> int:
        runtime = await sandbox.runtime()
        body = json.dumps({"errorType": "Runtime.ImportModuleError", "errorMessage": "No module named 'x'"}).encode()
        assert (await runtime.request("POST", "/2018-06-01/runtime/init/error", body))[0] == 202
        return 1

    pool = make(stuck=stuck, elsewhere=elsewhere, init_error=init_error)
    await pool.open()

    async def failure(program: str, **keys: Any) -> InitFailed:
        spec = parse({"name": "hello", "entrypoint": [program], "init_timeout": 1, **keys})
        of = Revision(RevisionKey("default", "hello", 1), spec, f"x@{DIGEST}")
        with pytest.raises(InitFailed) as failed:
            await pool.check(of)
        return failed.value

    late = await failure("stuck", interface="lambda")
    assert late.message.startswith("init did not finish within 1 s")
    assert late.log_tail == "still waiting"
    port = await failure("elsewhere")
    assert "something does on 3000" in port.message
    assert "port = 3000" in port.hint
    reported = await failure("init_error")
    assert (reported.message, reported.error_type) == ("No module named 'x'", "Runtime.ImportModuleError")
    assert "requirements.txt" in reported.hint
    await eventually(lambda: not driver_of(pool).sandboxes)


async def test_a_retired_revision_finishes_what_runs_and_takes_nothing_new(make: Callable[..., Pool]) -> None:
    gate = asyncio.Event()

    async def handler(sandbox: FakeSandbox, event: Any) -> Any:
        await gate.wait()
        return "done"

    pool, hello = make(held=lambda_program(handler)), revision("held")
    await pool.open()
    await pool.scale(hello, 2)
    running = asyncio.create_task(invoke(pool, hello))
    await eventually(lambda: (pool.stats(hello.key).busy, pool.stats(hello.key).idle) == (1, 1))
    await pool.retire(hello.key)
    await eventually(lambda: len(driver_of(pool).sandboxes) == 1)
    with pytest.raises(NotFound):
        await invoke(pool, hello)
    gate.set()
    assert await running == "done"
    await eventually(lambda: not driver_of(pool).sandboxes)
    assert pool._pools == {}


async def test_close_lets_what_runs_finish_and_refuses_what_waits(make: Callable[..., Pool]) -> None:
    gate = asyncio.Event()

    async def handler(sandbox: FakeSandbox, event: Any) -> Any:
        await gate.wait()
        return "done"

    pool, hello = make(held=lambda_program(handler)), revision("held")
    await pool.open()
    await pool.scale(hello, 1)
    running = asyncio.create_task(invoke(pool, hello))
    await eventually(lambda: pool.stats(hello.key).busy == 1)
    waiting = asyncio.create_task(invoke(pool, hello))
    await eventually(lambda: pool.stats(hello.key).waiting == 1)
    asyncio.get_running_loop().call_later(0.2, gate.set)
    await pool.close(30)
    assert await running == "done"
    with pytest.raises(ShuttingDown):
        await waiting
    with pytest.raises(ShuttingDown):
        await invoke(pool, hello)


async def test_close_kills_what_is_not_done_in_time(make: Callable[..., Pool]) -> None:
    async def handler(sandbox: FakeSandbox, event: Any) -> Any:
        await asyncio.sleep(60)

    pool, hello = make(held=lambda_program(handler)), revision("held")
    await pool.open()
    await pool.scale(hello, 1)
    running = asyncio.create_task(invoke(pool, hello))
    await eventually(lambda: pool.stats(hello.key).busy == 1)
    await pool.close(0.05)
    with pytest.raises(InstanceExited):
        await running


async def test_metrics_count_instances_cold_starts_and_billed_time(make: Callable[..., Pool]) -> None:
    pool, hello = make(), revision()
    await pool.open()
    await pool.scale(hello, 2)
    for n in range(5):
        await invoke(pool, hello, n)
    await eventually(lambda: pool.stats(hello.key).idle == 2)
    text = pool._metrics.render().decode()
    assert 'faas_instances{function="hello",state="idle"} 2.0' in text
    assert 'faas_cold_starts_total{function="hello",path="cold"} 2.0' in text
    assert 'faas_cold_start_seconds_count{function="hello",phase="init"} 2.0' in text
    assert 'faas_init_duration_seconds_count{function="hello"} 2.0' in text
    assert f'faas_memory_max_bytes{{function="hello"}} {10 * 1_048_576:.6e}'[:45] in text
    billed = next(line for line in text.splitlines() if line.startswith("faas_billed_gb_seconds_total"))
    assert float(billed.split()[1]) > 0


async def test_what_a_function_writes_before_its_answer_stands_between_start_and_end(
    make: Callable[..., Pool],
) -> None:
    async def handler(sandbox: FakeSandbox, event: Any) -> Any:
        sandbox.print(f"out {event}")
        sandbox.print(f"err {event}", error=True)
        return event

    pool, hello = make(loud=lambda_program(handler)), revision("loud")
    await pool.open()
    await pool.scale(hello, 1)
    await asyncio.gather(*(invoke(pool, hello, n, f"r{n}") for n in range(30)))
    for n in range(30):
        records = await lines(pool, request_id=f"r{n}")
        messages = [record.message for record in records]
        assert messages[0] == f"START RequestId: r{n} Version: 7"
        assert sorted(messages[1:3]) == [f"err {n}", f"out {n}"]
        assert messages[3] == f"END RequestId: r{n}"
        assert messages[4].startswith(f"REPORT RequestId: r{n}\tDuration: ")
        assert len(records) == 5


async def test_stopping_and_arriving_at_the_same_moment_loses_no_invocation(make: Callable[..., Pool]) -> None:
    pool, hello = make(), revision()
    await pool.open()
    for round_ in range(60):
        calls = [asyncio.create_task(invoke(pool, hello, n)) for n in range(3)]
        await pool.scale(hello, 1 + round_ % 2)
        for _ in range(round_ % 7):
            await asyncio.sleep(0)
        await pool.scale(hello, 0)
        await asyncio.sleep(0)
        await pool.scale(hello, 1)
        assert await asyncio.gather(*calls) == [0, 1, 2]
        await pool.scale(hello, 0)


async def test_launches_that_wait_for_their_turn_are_called_off_when_nobody_needs_them(
    make: Callable[..., Pool],
) -> None:
    pool, hello = make(), revision()
    await pool.open()
    driver_of(pool).create_seconds = 0.05
    await pool.scale(hello, 40)
    await asyncio.sleep(0.02)
    await pool.scale(hello, 0)
    await eventually(lambda: pool.stats(hello.key).instances == 0 and not driver_of(pool).sandboxes)
    assert len(driver_of(pool).created) < 40
    assert pool._pools == {}


async def test_an_init_that_never_ends_keeps_nobody_elses_cold_start_waiting(make: Callable[..., Pool]) -> None:
    async def stuck(sandbox: FakeSandbox) -> None:
        await asyncio.sleep(60)

    pool, hello = make(stuck=stuck), revision()
    await pool.open()
    bad = dataclasses.replace(revision("stuck", init_timeout=60), key=RevisionKey("default", "stuck", 1))
    await pool.scale(bad, 100)
    most = pool._parts.at_once
    await eventually(lambda: len(driver_of(pool).created) == most)
    await pool.scale(hello, 1)
    async with asyncio.timeout(5):
        assert await invoke(pool, hello, 1) == 1
    assert len(driver_of(pool).created) == most + 1  # and no more inits of one revision at once than that
    await pool.scale(bad, 0)
    assert pool.stats(bad.key).starting == most


async def test_what_waits_for_its_turn_when_a_start_fails_is_called_off_but_for_waiters(
    make: Callable[..., Pool],
) -> None:
    gate = asyncio.Event()

    async def broken(sandbox: FakeSandbox) -> int:
        await gate.wait()
        return 1

    pool, hello = make(broken=broken), revision("broken")
    await pool.open()
    most = pool._parts.at_once
    await pool.scale(hello, most + 50)
    calls = [asyncio.create_task(invoke(pool, hello)) for _ in range(most + 3)]
    await eventually(lambda: len(driver_of(pool).created) == most and pool.stats(hello.key).waiting == most + 3)
    await pool.scale(hello, most + 20)
    await pool.scale(hello, most + 50)  # called off before their launch has seen it, and wanted again
    gate.set()
    failures = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(failure) for failure in failures} == {InitFailed}
    await eventually(lambda: pool.stats(hello.key).starting == 0)
    assert len(driver_of(pool).created) <= 2 * most + 3  # of the fifty, those that somebody waited for


async def test_an_instance_that_ends_between_its_launch_and_its_first_use_is_not_kept(
    make: Callable[..., Pool],
) -> None:
    pool, hello = make(), revision()
    await pool.open()
    launch, launches = pool._parts.launches.launch, 0

    async def unlucky(instance: Any, *more: Any) -> None:
        nonlocal launches
        launches += 1
        await launch(instance, *more)
        if launches == 1:
            instance.sandbox.ended(Exit(9))  # its callback runs between the task's last step and the task's callback

    pool._parts.launches.launch = unlucky  # type: ignore[assignment]
    await pool.scale(hello, 1)
    with pytest.raises(InitFailed, match="ended right after its init: exit status 9"):
        await invoke(pool, hello, 1)
    assert await invoke(pool, hello, 2) == 2
    assert (launches, pool.stats(hello.key).idle) == (2, 1)


async def test_an_instance_that_has_ended_is_neither_handed_out_nor_kept(make: Callable[..., Pool]) -> None:
    pool, hello = make(), revision()
    await pool.open()
    await pool.scale(hello, 1)
    for ended in ("idle", "busy"):
        async with pool.acquire(hello, invocation()) as lease:
            await lease.invoke(b"1")
            [instance] = pool._pools[hello.key]._ready
            if ended == "busy":
                instance.outcome = Exit(9)
        if ended == "idle":
            instance.outcome = Exit(9)
        assert await invoke(pool, hello, 2) == 2
        assert instance not in pool._pools[hello.key]._ready


async def test_a_check_that_ends_after_its_revision_was_retired_keeps_nothing(make: Callable[..., Pool]) -> None:
    pool, hello = make(), revision()
    await pool.open()
    driver_of(pool).create_seconds = 0.1
    checking = asyncio.create_task(pool.check(hello))
    await eventually(lambda: pool.stats(hello.key).starting == 1)
    await pool.retire(hello.key)
    assert (await checking).interface is Interface.LAMBDA
    await eventually(lambda: not driver_of(pool).sandboxes)
    assert pool._pools == {}


async def test_closing_tells_a_check_that_runs(make: Callable[..., Pool]) -> None:
    pool, hello = make(), revision()
    await pool.open()
    driver_of(pool).create_seconds = 5
    checking = asyncio.create_task(pool.check(hello))
    await eventually(lambda: pool.stats(hello.key).starting == 1)
    await pool.close(0)
    with pytest.raises(ShuttingDown):
        await checking
    with pytest.raises(ShuttingDown):
        await pool.check(hello)


async def test_the_sweep_removes_sandboxes_that_nobody_knows_and_no_other(make: Callable[..., Pool]) -> None:
    pool, hello = make(), revision()
    await pool.open()
    await pool.scale(hello, 1)
    await invoke(pool, hello)
    driver = driver_of(pool)
    known = driver.created[0]
    await driver.create(dataclasses.replace(known.spec, id="orphan"))
    await pool._janitor.sweep()
    assert "orphan" in driver.sandboxes  # it may be on its way in
    await pool._janitor.sweep()
    assert list(driver.sandboxes) == [known.id]


async def test_a_removal_that_fails_is_tried_again(make: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitor, "RETRY_SECONDS", 0.01)
    pool, hello = make(), revision()
    await pool.open()
    driver = driver_of(pool)
    await pool.scale(hello, 1)
    await invoke(pool, hello)
    delete, failures = driver.delete, 2

    async def flaky(sandbox_id: str) -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise OSError("busy")
        await delete(sandbox_id)

    monkeypatch.setattr(driver, "delete", flaky)
    await pool.scale(hello, 0)
    await eventually(lambda: not driver.sandboxes)
    assert failures == -1


async def test_a_program_runs_as_a_subprocess_too(make: Callable[..., Pool], tmp_path: Path) -> None:
    program = tmp_path / "exits.py"
    program.write_text(
        "import os, sys\nprint(os.environ['AWS_LAMBDA_RUNTIME_API'][:10], 'HOSTNAME' in os.environ)\nsys.exit(4)"
    )
    pool = make()
    await pool.open()
    of = revision(sys.executable, command=["-I", "-S", str(program)])
    with pytest.raises(InitFailed, match="exit status 4") as failed:
        await pool.check(of)
    assert failed.value.log_tail == "127.0.0.1: False"
    with pytest.raises(ImageUnusable):
        await pool.check(revision("/no/such/program"))
