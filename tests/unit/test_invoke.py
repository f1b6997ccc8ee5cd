"""Invocations around a worker without containers: what comes back, and what is counted."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from faas.errors import (
    FunctionError,
    InitFailed,
    InstanceExited,
    OutOfMemory,
    ResponseTooLarge,
    ShuttingDown,
    Throttled,
    TimedOut,
)
from faas.leases import HttpRequest, HttpResponse, InvocationResult, Trigger
from faas.metrics import Metrics
from faas.protocol import (
    NO_MEMORY,
    Revision,
)
from faas.spec import Interface
from gateway.data_path import DataPath
from gateway.invoke import SYNC_PAYLOAD_BYTES
from tests.support.data_path import data_path, put, revision, sample
from tests.support.fake_driver import eventually
from tests.support.fake_worker import FakeWorker, stream


async def call(path: DataPath, event: bytes = b"{}", name: str = "hello") -> InvocationResult:
    return await path.invoker.invoke_event(path.router.resolve("default", name), event, trigger=Trigger.API)


def ran(metrics: Metrics, status: str, trigger: str = "api", qualifier: str = "live") -> float:
    return sample(
        metrics, "faas_invocations_total", function="hello", qualifier=qualifier, trigger=trigger, status=status
    )


async def test_the_first_invocation_starts_an_instance_and_is_counted_once() -> None:
    worker = FakeWorker(start_seconds=0.5)
    path, metrics = data_path(worker)
    put(path, revision(scale={"max": 4}))
    result = await call(path, b'{"n":1}')
    assert result.payload == b'{"n":1}'
    assert ran(metrics, "success") == 1
    assert ran(metrics, "error") == 0
    for name in ("duration", "queue_wait", "overhead"):
        assert sample(metrics, f"faas_{name}_seconds_count", function="hello") == 1
    assert sample(metrics, "faas_queue_wait_seconds_sum", function="hello") >= 0.5
    assert sample(metrics, "faas_overhead_seconds_sum", function="hello") < 0.5
    assert sample(metrics, "faas_concurrent_executions", function="hello") == 0
    assert sample(metrics, "faas_concurrency_limit", function="hello") == 4
    assert path.invoker.running == 0


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimedOut(), "timeout"),
        (OutOfMemory(), "oom"),
        (InstanceExited(), "unhandled"),
    ],
)
async def test_what_the_worker_raises_is_counted_by_its_kind(error: FunctionError, kind: str) -> None:
    async def fails(revision: Revision, event: bytes) -> InvocationResult:
        raise error

    path, metrics = data_path(FakeWorker(fails))
    put(path, revision())
    with pytest.raises(type(error)):
        await call(path)
    assert (ran(metrics, "success"), ran(metrics, "error")) == (0, 1)
    assert sample(metrics, "faas_errors_total", function="hello", kind=kind) == 1


async def test_an_error_that_the_function_reports_is_handled() -> None:
    async def reports(revision: Revision, event: bytes) -> InvocationResult:
        return InvocationResult(b'{"errorType":"ValueError"}', error_type="ValueError")

    path, metrics = data_path(FakeWorker(reports))
    put(path, revision())
    assert (await call(path)).error_type == "ValueError"
    assert ran(metrics, "error") == 1
    assert sample(metrics, "faas_errors_total", function="hello", kind="handled") == 1


async def test_an_init_that_fails_is_an_invocation_and_an_error() -> None:
    path, metrics = data_path(FakeWorker(fails="no module named x", start_seconds=0.01))
    put(path, revision())
    with pytest.raises(InitFailed):
        await call(path)
    assert ran(metrics, "error") == 1
    assert sample(metrics, "faas_errors_total", function="hello", kind="init") == 1


async def test_a_revision_whose_check_finds_no_memory_is_throttled_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = FakeWorker()

    async def full(revision: Revision) -> None:
        raise Throttled("no memory was free", reason=NO_MEMORY)

    monkeypatch.setattr(worker, "check", full)
    path, metrics = data_path(worker)
    put(path, revision(interface=Interface.AUTO))
    with pytest.raises(Throttled):
        await call(path)
    assert sample(metrics, "faas_throttles_total", function="hello", reason=NO_MEMORY) == 1
    assert path.invoker.tallies()["hello"].refused == 1


async def test_throttled_calls_are_no_invocations() -> None:
    held = asyncio.Event()

    async def holds(revision: Revision, event: bytes) -> InvocationResult:
        await held.wait()
        return InvocationResult(event)

    path, metrics = data_path(FakeWorker(holds))
    put(path, revision(scale={"max": 1}, queue_timeout=0))
    first = asyncio.create_task(call(path))
    await eventually(lambda: sample(metrics, "faas_concurrent_executions", function="hello") == 1)
    with pytest.raises(Throttled) as raised:
        await call(path)
    assert raised.value.retry_after >= 1
    held.set()
    await first
    reason = raised.value.reason
    assert sample(metrics, "faas_throttles_total", function="hello", reason=reason) == 1
    assert (ran(metrics, "success"), ran(metrics, "error")) == (1, 0)


@pytest.mark.parametrize(("size", "fits"), [(SYNC_PAYLOAD_BYTES, True), (SYNC_PAYLOAD_BYTES + 1, False)])
async def test_an_answer_over_the_limit_is_the_functions_error(size: int, fits: bool) -> None:
    async def answers(revision: Revision, event: bytes) -> InvocationResult:
        return InvocationResult(b"1" * size)

    path, metrics = data_path(FakeWorker(answers))
    put(path, revision())
    if fits:
        assert len((await call(path)).payload) == size
    else:
        with pytest.raises(ResponseTooLarge, match=f"{size} bytes.*{SYNC_PAYLOAD_BYTES} bytes"):
            await call(path)
        assert ran(metrics, "error") == 1


async def test_at_most_max_run_at_once_and_all_that_wait_get_their_turn() -> None:
    most = now = 0

    async def counts(revision: Revision, event: bytes) -> InvocationResult:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.005)
        now -= 1
        return InvocationResult(event)

    worker = FakeWorker(counts)
    path, metrics = data_path(worker)
    put(path, revision(scale={"max": 3}))
    results = await asyncio.gather(*(call(path, str(n).encode()) for n in range(60)))
    assert [r.payload for r in results] == [str(n).encode() for n in range(60)]
    assert most == 3
    assert ran(metrics, "success") == 60
    assert worker.stats(revision().key).instances == 3


async def test_a_caller_who_goes_away_in_the_queue_leaves_it_and_one_who_goes_later_loses_only_the_answer() -> None:
    begun, finish, done = asyncio.Event(), asyncio.Event(), []

    async def holds(revision: Revision, event: bytes) -> InvocationResult:
        begun.set()
        await finish.wait()
        done.append(event)
        return InvocationResult(event)

    worker = FakeWorker(holds)
    path, metrics = data_path(worker)
    put(path, revision(scale={"max": 1}))
    running = asyncio.create_task(call(path, b"1"))
    await begun.wait()
    waiting = asyncio.create_task(call(path, b"2"))
    await asyncio.sleep(0.01)
    waiting.cancel()
    running.cancel()
    await asyncio.gather(running, waiting, return_exceptions=True)
    await asyncio.sleep(0)
    assert path.invoker.running == 1
    finish.set()
    await path.invoker.close(1)
    assert done == [b"1"]
    assert ran(metrics, "success") == 1
    assert worker.stats(revision().key).executing == 0


async def test_closing_takes_no_more_waits_for_what_runs_and_cancels_what_does_not_end() -> None:
    async def forever(revision: Revision, event: bytes) -> InvocationResult:
        await asyncio.sleep(60)
        return InvocationResult(event)

    path, _ = data_path(FakeWorker(forever))
    put(path, revision())
    running = asyncio.create_task(call(path))
    await asyncio.sleep(0.01)
    await path.invoker.close(0.02)
    with pytest.raises(ShuttingDown):  # who waited hears why
        await running
    with pytest.raises(ShuttingDown):
        await call(path)


async def test_an_http_function_gets_events_as_a_post_to_its_root() -> None:
    seen: list[HttpRequest] = []

    async def answers(revision: Revision, request: HttpRequest) -> HttpResponse:
        seen.append(request)
        return HttpResponse(int(bytes(request.body or b"200")), (("Content-Type", "text/x"),), stream(b"a", b"b"))  # type: ignore[arg-type]

    path, metrics = data_path(FakeWorker(on_request=answers))
    put(path, revision(interface=Interface.HTTP))
    result = await call(path, b"200")
    assert (result.payload, result.content_type, result.error_type) == (b"ab", "text/x", None)
    assert (seen[0].method, seen[0].target, seen[0].content_length) == ("POST", "/", 3)
    failed = await call(path, b"503")
    assert failed.error_type == "Http.503"
    assert (ran(metrics, "success"), ran(metrics, "error")) == (1, 1)


async def test_an_unknown_interface_is_found_out_once_for_all_who_ask_and_told() -> None:
    found: list[Revision] = []

    async def store(revision: Revision) -> None:
        found.append(revision)

    worker = FakeWorker(start_seconds=0.01)
    path = DataPath.create(worker, Metrics("test"), store)
    put(path, revision(interface=Interface.AUTO))
    results = await asyncio.gather(*(call(path, b"1") for _ in range(5)))
    assert [r.payload for r in results] == [b"1"] * 5
    assert len(worker.checked) == 1
    assert [r.interface for r in found] == [Interface.LAMBDA]
    await call(path)
    assert len(worker.checked) == 1


async def test_a_check_that_fails_is_tried_again_by_the_next_invocation() -> None:
    worker = FakeWorker(fails="broken")
    path, metrics = data_path(worker)
    put(path, revision(interface=Interface.AUTO))
    with pytest.raises(InitFailed):
        await call(path)
    assert ran(metrics, "error") == 1
    worker.fails = ""
    assert (await call(path, b"1")).payload == b"1"


@pytest.mark.parametrize(
    ("keys", "interface"),
    [
        ({"spec_interface": "http"}, Interface.HTTP),
        ({"runtime": "python", "app": "main:app"}, Interface.HTTP),
        ({"runtime": "node", "handler": "index.handler"}, Interface.LAMBDA),
    ],
)
async def test_a_declared_interface_needs_no_finding_out(keys: dict[str, Any], interface: Interface) -> None:
    worker = FakeWorker()
    path, _ = data_path(worker)
    put(path, revision(interface=Interface.AUTO, **keys))
    await call(path)
    assert worker.checked == []
    assert path.router.resolve("default", "hello").revision.interface is interface


@pytest.mark.parametrize(
    "keys",
    [
        {"image": "a"},
        {"runtime": "provided", "handler": "x"},
        {"runtime": "python", "handler": "app.handler", "command": ["/bin/own"]},
        {"runtime": "python", "app": "main:app", "entrypoint": ["/bin/own"]},
    ],
)
def test_what_a_program_of_the_functions_own_speaks_is_not_known(keys: dict[str, Any]) -> None:
    assert revision(**keys).spec.declared_interface is Interface.AUTO


async def test_deleted_and_made_again_a_function_counts_anew() -> None:
    path, metrics = data_path(FakeWorker())
    for _ in range(2):
        put(path, revision())
        await call(path)
        metrics.forget("hello")
        path.router.remove("default", "hello")
    put(path, revision())
    await call(path)
    assert sample(metrics, "faas_concurrency_limit", function="hello") == 50
    assert ran(metrics, "success") == 1


async def test_arrivals_at_the_very_moment_of_scaling_to_zero_are_all_answered() -> None:
    worker = FakeWorker()
    path, metrics = data_path(worker)
    hello = revision(scale={"idle": "0s", "max": 2})
    put(path, hello)
    await path.scaler.revision_live(hello)
    zeros = 0
    for n in range(300):
        calls = [asyncio.create_task(call(path, str(n).encode())) for _ in range(n % 4)]
        await path.scaler.tick(time.monotonic())
        await asyncio.sleep(0)
        await path.scaler.tick(time.monotonic())
        assert [r.payload for r in await asyncio.gather(*calls)] == [str(n).encode()] * (n % 4)
        await asyncio.sleep(0)
        await path.scaler.tick(time.monotonic())
        zeros += worker.stats(hello.key).instances == 0
    assert ran(metrics, "success") == sum(n % 4 for n in range(300))
    assert zeros > 100, "it did scale to zero between them"
