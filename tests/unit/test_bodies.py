"""Bodies that are held in memory: one budget for all, and a pace for each."""

from __future__ import annotations

import asyncio

import pytest

from faas.bodies import BODIES
from faas.leases import InvocationResult
from faas.protocol import (
    Revision,
)
from faas.web import RUNNER_OPTIONS
from tests.support.control import until
from tests.support.data_path import application
from tests.support.fake_worker import FakeWorker
from tests.support.raw_http import serving, talk
from tests.support.smuggling import POST
from tests.unit.test_public import get, hello


async def test_a_body_must_keep_its_pace_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faas.web.PROGRESS_SECONDS", 0.3)
    monkeypatch.setattr("faas.web.PACE_BYTES", 100)
    monkeypatch.setattr("faas.web.BODY_SECONDS", 0.8)
    head = POST + b"Content-Length: 9000\r\n\r\n"
    async with serving(application(hello()), lingering_time=20, **RUNNER_OPTIONS) as port:
        for pieces in ([b"a"] * 5, [b"a" * 100] * 10):  # a byte now and then; fast enough, but without an end
            answer = await talk(port, head, *pieces, pause=0.1, seconds=0.1)
            assert answer.startswith(b"HTTP/1.1 408"), pieces
        monkeypatch.setattr("faas.web.PROGRESS_SECONDS", 2.0)  # room for a machine that stands still
        monkeypatch.setattr("faas.web.BODY_SECONDS", 30.0)
        brisk = await talk(port, POST + b"Content-Length: 500\r\n\r\n", *[b"a" * 100] * 5, pause=0.5, seconds=0.3)
        assert brisk.startswith(b"HTTP/1.1 200")


async def test_all_bodies_together_have_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BODIES, "limit", 100_000)
    part, rest = b"a" * 60_000, b"a" * 10_000
    sized = POST + b"Connection: close\r\nContent-Length: 70000\r\n\r\n"
    chunked = POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + b"ea60\r\n" + part
    async with serving(application(hello()), lingering_time=0.1, **RUNNER_OPTIONS) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sized + part)
        await until(lambda: BODIES.held == 60_000)
        for refused in (sized, chunked):  # by the length that is announced, and by what has come
            answer = await talk(port, refused, seconds=0.3)
            assert answer.startswith(b"HTTP/1.1 503"), answer
            assert b"\r\nRetry-After: 1\r\n" in answer
        assert (await get(port, "/function/hello"))[0] == 200, "what has no body needs no room"
        writer.write(rest)
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        assert BODIES.held == 0
        assert (await talk(port, sized + part + rest)).startswith(b"HTTP/1.1 200")


async def test_a_body_counts_while_its_invocation_waits_and_not_after_its_client_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leave = asyncio.Event()

    async def slow(revision: Revision, event: bytes) -> InvocationResult:
        await leave.wait()
        return InvocationResult(b"1")

    monkeypatch.setattr(BODIES, "limit", 100_000)
    path = hello(FakeWorker(slow), scale={"max": 1})
    async with serving(application(path), **RUNNER_OPTIONS) as port:
        calls = [asyncio.create_task(get(port, "/function/hello", "POST", data=b"a" * 40_000)) for _ in range(2)]
        await until(lambda: path.invoker.running == 2)
        assert BODIES.held == 80_000
        status, headers, _ = await get(port, "/function/hello", "POST", data=b"a" * 40_000)
        assert (status, headers["Retry-After"]) == (503, "1")
        calls[1].cancel()
        await until(lambda: BODIES.held == 40_000)
        leave.set()
        assert (await calls[0])[0] == 200
        await until(lambda: BODIES.held == 0)
