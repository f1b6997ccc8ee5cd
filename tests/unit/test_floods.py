"""Floods out of a function: the Runtime API and the log stay bounded, and the loop goes round for everybody else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from faas.protocol import LogQuery
from tests.support.fake_driver import NEXT, FakeRuntime, eventually
from worker.logs import LogStore
from worker.output import INVOCATION_BYTES, LINE_COST, Output
from worker.runtime_api import RuntimeApi

LAG_SECONDS = 0.25  # generous: a machine that is busy is late by itself
GREW_BYTES = 16 * 1_048_576
SECONDS = 1.5
ATTEMPTS = 8  # the best one counts: a machine may stall for a moment, a flood that costs anything does so each time


class Watch:
    """How late the loop was at most, and how much memory the process had at most beyond what it had before."""

    def __init__(self) -> None:
        self.lag = 0.0
        self.grew = 0

    async def run(self) -> None:
        before = resident_bytes()
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.005)
            self.lag = max(self.lag, time.monotonic() - began - 0.005)
            self.grew = max(self.grew, resident_bytes() - before)


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        resident, shared = map(int, file.read().split()[1:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")  # without pages of files, which come and go


@contextlib.asynccontextmanager
async def watched() -> AsyncIterator[Watch]:
    watch = Watch()
    task = asyncio.create_task(watch.run())
    yield watch
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def flooding(port: int, data: bytes, connections: int) -> AsyncIterator[Callable[[], int]]:
    """Threads that connect again and again, write `data` as long as they can and read nothing."""
    done, sent = threading.Event(), [0] * connections

    def flood(number: int) -> None:
        while not done.is_set():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as endpoint:
                endpoint.settimeout(0.1)
                while not done.is_set():
                    with contextlib.suppress(TimeoutError):
                        sent[number] += endpoint.send(data)

    threads = [threading.Thread(target=flood, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    try:
        yield lambda: sum(sent)
    finally:
        done.set()
        await asyncio.to_thread(lambda: [thread.join() for thread in threads])


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /x HTTP/1.1\r\nContent-Length: 1\r\n\r\nx",
        b"POST /@connections/x HTTP/1.1\r\nContent-Length: 1\r\n\r\nx",
        f"GET {NEXT} HTTP/1.1\r\n\r\n".encode(),
        b"POST /2018-06-01/runtime/init/error HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 20_000,
    ],
    ids=["get", "post", "push", "poll", "chunks"],
)
async def test_pipelined_requests_whose_answers_nobody_reads_cost_neither_time_nor_memory(request_: bytes) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    api = RuntimeApi("arn", 30)
    api.serve(listener)
    data = request_ * max(1, 262_144 // len(request_))
    try:
        for _ in range(ATTEMPTS):
            async with flooding(port, data, 4) as sent, watched() as watch:
                await asyncio.sleep(SECONDS)
            assert sent() > 0
            if watch.lag < LAG_SECONDS:
                break
        assert watch.lag < LAG_SECONDS
        assert watch.grew < GREW_BYTES
        await eventually(lambda: not api._connections)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)  # a runtime that behaves is served
        assert (await FakeRuntime(reader, writer).request("GET", "/"))[0] == 404
        writer.close()
    finally:
        api.close()
        await asyncio.sleep(0.05)


async def test_a_flood_of_short_lines_costs_neither_time_nor_memory_nor_disk(tmp_path: Path) -> None:
    store = LogStore(tmp_path)
    stdout, stderr = asyncio.StreamReader(), asyncio.StreamReader()
    output = Output(store.of("default", "hello"), 7, "i1")
    output.open(stdout, stderr)
    written = 0
    for _ in range(ATTEMPTS):
        async with watched() as watch:
            until = time.monotonic() + 2 * SECONDS
            while time.monotonic() < until:
                if len(stdout._buffer) < 131_072:  # type: ignore[attr-defined]
                    stdout.feed_data(b"\n" * 65_536)
                    written += 65_536
                await asyncio.sleep(0.001)
        if watch.lag < LAG_SECONDS:
            break
    began = time.thread_time()
    output.take_now()
    assert max(watch.lag, time.thread_time() - began) < LAG_SECONDS
    assert watch.grew < GREW_BYTES
    await eventually(lambda: not stdout._buffer, 20)  # type: ignore[attr-defined]
    stdout.feed_eof()
    stderr.feed_eof()
    await output.drained(20)
    await output.close()
    logged = [r async for r in store.query(LogQuery("default", "hello", limit=1_000_000))]
    assert 4096 < len([r for r in logged if r.stream == "stdout"]) <= INVOCATION_BYTES // LINE_COST
    if written > INVOCATION_BYTES // LINE_COST:
        assert any("bytes of output were cut" in r.message for r in logged)
    await store.close()
