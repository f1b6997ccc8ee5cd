"""One set of functions behind two listeners, with the lane in front and without: the same bytes go to both."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest

from faas.spec import Interface
from faas.web import RUNNER_OPTIONS
from gateway.data_path import DataPath
from tests.support.data_path import application, data_path, put, revision
from tests.support.fake_worker import FakeWorker, OnInvoke, OnRequest, echo, ok
from tests.support.raw_http import serving, talk

VARIES = re.compile(
    rb"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}"
    rb"|Date: [^\r]*|\"time(Epoch)?\":[^,}]*|Root=1-[^\"]*"
)


@dataclass
class Way:
    """`hello` is Lambda-style, `web` is an http function; ten of each may run at once."""

    worker: FakeWorker
    path: DataPath
    port: int


@dataclass
class TwoWays:
    aiohttp: Way
    lane: Way

    async def ask(self, *pieces: bytes, seconds: float = 15.0) -> tuple[bytes, bytes]:
        """Both answers, without what differs from one request to the next; fields in the order of their names."""
        answers = await asyncio.gather(
            *(talk(way.port, *pieces, seconds=seconds, pause=0.02) for way in (self.aiohttp, self.lane))
        )
        return comparable(answers[0]), comparable(answers[1])

    @property
    def claimed(self) -> int:
        return self.lane.worker.claimed


def comparable(answer: bytes) -> bytes:
    answer = VARIES.sub(b"*", answer)

    def ordered(match: re.Match[bytes]) -> bytes:
        return match[1] + b"".join(sorted(match[2].lower().splitlines(keepends=True)))

    return re.sub(rb"(HTTP/1\.[01] \d{3} [^\r]*\r\n)((?:[^\r\n]+\r\n)*)(?=\r\n)", ordered, answer)


@asynccontextmanager
async def two_ways(
    monkeypatch: pytest.MonkeyPatch, on_invoke: OnInvoke = echo, on_request: OnRequest = ok, *, domain: str = ""
) -> AsyncIterator[TwoWays]:
    async with AsyncExitStack() as stack:
        ways = []
        for by_the_lane in (False, True):
            monkeypatch.setattr("tests.support.data_path.BY_THE_LANE", by_the_lane)
            worker = FakeWorker(on_invoke, on_request)
            path, _ = data_path(worker)
            put(path, revision(scale={"max": 10}))
            web = revision("web", interface=Interface.HTTP, concurrency=10, scale={"max": 1})
            put(path, web)
            for made, count in ((revision(), 10), (web, 1)):
                await worker.scale(made, count)
            port = await stack.enter_async_context(serving(application(path, domain=domain), **RUNNER_OPTIONS))
            ways.append(Way(worker, path, port))
        await asyncio.sleep(0)
        yield TwoWays(*ways)
        for way in ways:
            assert way.path.invoker.running == 0, "an invocation was not counted as ended"
            for name in ("hello", "web"):
                assert way.worker.stats(revision(name).key).executing == 0, "a slot was not given back"
