"""Reservations through a whole gateway: deploys, refusals, restarts, and what calls meet."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from faas.errors import SpecError, Throttled
from faas.leases import InvocationResult, Trigger
from faas.metrics import Metrics
from faas.protocol import (
    Revision,
)
from gateway.breaker import Breakers
from gateway.ceiling import Ceiling
from gateway.data_path import DataPath
from gateway.reservations import Reservations
from gateway.router import Route
from tests.support.control import DIGEST, control
from tests.support.data_path import put, revision, sample
from tests.support.fake_worker import MB, FakeWorker

WHERE = ("default", "hello")


def parts(limit: int = 100) -> tuple[FakeWorker, Ceiling, Breakers, Reservations]:
    worker, ceiling, breakers = FakeWorker(), Ceiling(limit), Breakers()
    return worker, ceiling, breakers, Reservations(worker, ceiling, breakers)


def test_a_deploy_holds_the_wider_of_both_until_it_has_ended() -> None:
    worker, ceiling, _, reservations = parts()
    reservations.settle(*WHERE, revision(memory=256, scale={"reserved": 4}).spec)
    reservations.widen(*WHERE, revision(memory=128, scale={"reserved": 6}).spec)
    assert (worker.reserved[WHERE], ceiling.open_to_all) == (4 * 256 * MB, 94)
    reservations.settle(*WHERE, revision(memory=128, scale={"reserved": 6}).spec)
    assert (worker.reserved[WHERE], ceiling.open_to_all) == (6 * 128 * MB, 94)
    reservations.settle(*WHERE, None)
    assert (worker.reserved, ceiling.open_to_all) == ({}, 100)


def test_what_one_part_refuses_the_other_does_not_keep() -> None:
    worker, ceiling, _, reservations = parts()
    worker.reservable = 500 * MB
    with pytest.raises(SpecError):
        reservations.widen(*WHERE, revision(memory=256, scale={"reserved": 2}).spec)
    assert (worker.reserved, ceiling.open_to_all) == ({}, 100)
    with pytest.raises(SpecError, match="max_concurrency"):
        reservations.widen(*WHERE, revision(scale={"reserved": 91, "max": 91}).spec)
    assert worker.reserved == {}


def test_what_does_not_fit_any_more_at_a_start_is_logged_and_still_bounds_the_function(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker, _, breakers, reservations = parts()
    worker.reservable = 100 * MB
    hello = revision(scale={"reserved": 3})
    reservations.settle(*WHERE, hello.spec)
    assert "hello has no reservation" in caplog.text
    assert (breakers.of(hello).limit, breakers.of(hello).exempt) == (3, False)


async def test_all_revisions_of_a_function_share_its_reservation_and_the_refusal_says_so() -> None:
    release = asyncio.Event()

    async def wait(of: Revision, event: bytes) -> InvocationResult:
        await release.wait()
        return InvocationResult(event)

    metrics = Metrics("test")
    path = DataPath.create(FakeWorker(wait), metrics, max_concurrency=10)
    old, live = (revision(number=n, queue_timeout=0, scale={"reserved": 2}) for n in (1, 2))
    put(path, old, live)
    path.reservations.settle(*WHERE, live.spec)
    routes = [Route(old, "v1"), Route(live, "live")]
    running = [asyncio.create_task(path.invoker.invoke_event(r, b"1", trigger=Trigger.API)) for r in routes]
    for _ in range(5):
        await asyncio.sleep(0)
    for route in routes:
        with pytest.raises(Throttled) as refused:
            await path.invoker.invoke_event(route, b"1", trigger=Trigger.API)
        assert refused.value.reason == "ReservedFunctionConcurrentInvocationLimitExceeded"
    reason = {"function": "hello", "reason": "ReservedFunctionConcurrentInvocationLimitExceeded"}
    assert sample(metrics, "faas_throttles_total", **reason) == 2
    assert sample(metrics, "faas_concurrency_limit", function="hello") == 2
    release.set()
    await asyncio.gather(*running)


async def test_under_a_full_ceiling_a_function_with_a_reservation_runs_and_others_wait() -> None:
    release = asyncio.Event()

    async def wait(of: Revision, event: bytes) -> InvocationResult:
        await release.wait()
        return InvocationResult(event)

    path = DataPath.create(FakeWorker(wait), Metrics("test"), max_concurrency=3)
    kept, other = revision("kept", scale={"reserved": 1}), revision("other", queue_timeout=0)
    put(path, kept)
    put(path, other)
    path.reservations.settle("default", "kept", kept.spec)

    def call(of: Revision) -> asyncio.Task[InvocationResult]:
        return asyncio.create_task(path.invoker.invoke_event(Route(of, "live"), b"1", trigger=Trigger.API))

    calls = [call(other), call(other)]
    await asyncio.sleep(0.01)
    with pytest.raises(Throttled) as refused:
        await call(other)
    assert "of all functions" in refused.value.message
    calls.append(call(kept))
    await asyncio.sleep(0.01)
    assert path.invoker.running == 3
    release.set()
    await asyncio.gather(*calls)


class Watching(FakeWorker):
    """Remembers what came in which order."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []

    def reserve(self, namespace: str, function: str, memory_bytes: int) -> None:
        super().reserve(namespace, function, memory_bytes)
        self.order.append(f"reserve {memory_bytes // MB} MB for {function}")

    async def scale(self, revision: Revision, desired: int) -> None:
        await super().scale(revision, desired)
        self.order.append(f"scale {revision.key.function}")


async def test_a_reservation_moves_with_live_survives_a_restart_and_goes_with_the_function(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await server.deploy(scale={"reserved": 3})
        assert server.worker.reserved == {WHERE: 3 * 128 * MB}
        await server.deploy(memory=256, scale={"reserved": 5})
        assert server.worker.reserved == {WHERE: 5 * 256 * MB}
        await server.call("PUT", "/v1/functions/hello/aliases/live", {"revision": 1})
        assert server.worker.reserved == {WHERE: 3 * 128 * MB}
        await server.deploy("a-first", scale={"min": 1})
    async with control(tmp_path, Watching()) as server:
        assert isinstance(server.worker, Watching)
        assert server.worker.order[0] == "reserve 384 MB for hello"
        assert "scale a-first" in server.worker.order
        await server.deploy()
        assert server.worker.reserved == {}
        await server.deploy(scale={"reserved": 1})
        await server.call("DELETE", "/v1/functions/hello")
        assert server.worker.reserved == {}


async def test_a_deploy_that_cannot_be_reserved_or_fails_leaves_the_reservation_as_it_was(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await server.deploy(scale={"reserved": 3})
        server.worker.reservable = 600 * MB
        body = {"spec": {"name": "hello", "scale": {"reserved": 7}}, "image": f"hello@{DIGEST}"}
        refused = await server.call("PUT", "/v1/functions/hello", body)
        assert (refused.status, refused.json()["error"]["code"]) == (400, "InvalidSpec")
        assert server.worker.checked == [revision().key], "it was refused before anything was started"
        server.worker.fails = "broken on purpose"
        body["spec"] = {"name": "hello", "scale": {"reserved": 4}}
        assert (await server.call("PUT", "/v1/functions/hello", body)).status == 502
        assert server.worker.reserved == {WHERE: 3 * 128 * MB}


async def test_who_waited_for_a_reservation_that_is_over_passes_under_the_ceiling() -> None:
    release = asyncio.Event()

    async def wait(of: Revision, event: bytes) -> InvocationResult:
        await release.wait()
        return InvocationResult(event)

    path = DataPath.create(FakeWorker(wait), Metrics("test"), max_concurrency=2)
    hello, ceiling = revision(scale={"reserved": 1}), path.invoker.activator.ceiling
    put(path, hello)
    path.reservations.settle(*WHERE, hello.spec)
    route = Route(hello, "live")
    calls = [asyncio.create_task(path.invoker.invoke_event(route, b"1", trigger=Trigger.API)) for _ in range(6)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert (ceiling.inside, ceiling.waiting) == (0, 0)
    path.reservations.settle(*WHERE, None)
    for _ in range(10):
        await asyncio.sleep(0)
    assert (ceiling.inside, ceiling.waiting) == (2, 3)
    release.set()
    await asyncio.gather(*calls)
    assert (ceiling.inside, ceiling.waiting) == (0, 0)
