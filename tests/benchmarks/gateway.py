"""The gateway's own part of a warm invocation, alone: no socket, and a claim that answers at once. And its profile."""

from __future__ import annotations

import asyncio
import cProfile
import pstats
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from faas.auth import TokenFile
from faas.leases import Answering, Claim, InvocationResult, Report
from faas.protocol import Revision
from faas.spec import Interface
from gateway.lane.connection import Connection
from gateway.lane.lane import Lane
from gateway.lane.plans import Place
from tests.benchmarks import measure as figures
from tests.benchmarks.measure import Row, interleaved
from tests.support.data_path import TOKEN, data_path, passage_of, put, revision
from tests.support.fake_worker import FakeWorker

ROUNDS = 7
CALLS = 5_000
SHOWN = 12  # functions of the profile
METHOD = (
    f"The lane's protocol is given the bytes of requests, and a claim that answers at once: {CALLS} calls per round in"
    " this process, CPU time by calls. A head seen before, as clients send it again and again; and another target each"
    f" time. The last rows: the {SHOWN} functions with most time of their own, profiled, in µs per call."
)
FIELDS = b" HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n"
HEAD = ((b"Content-Type", b"text/plain"), (b"Content-Length", b"6"))


class _Claim:
    """Answers within the call."""

    def __init__(self, revision: Revision) -> None:
        self.instance_id = ""
        self.interface = revision.interface
        self.report: Report | None = None

    def send(self, method: str, request: bytes, answering: Answering) -> None:
        answering.head(200, HEAD)
        answering.data(b"hello\n")
        self.report = Report(0.001, 0.001, 128, 64)
        answering.end(None)

    def invoke(self, event: bytes, ended: Callable[..., None], streams: Any = None, trace_id: str = "") -> None:
        self.report = Report(0.001, 0.001, 128, 64)
        ended(InvocationResult(b'"hello"'), None)

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def abandon(self) -> None: ...


class _Worker(FakeWorker):
    def _claim(self, revision: Revision, request_id: str) -> Claim | None:
        return _Claim(revision)


class _Transport(asyncio.Transport):
    """Takes all, and sends nothing."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written = data


def measure(rounds: int | None) -> figures.Report:
    return uvloop.run(_measure(rounds or ROUNDS))


async def _measure(rounds: int) -> figures.Report:
    path, _ = data_path(_Worker())
    for made in (revision("event"), revision("web", interface=Interface.HTTP)):
        put(path, made)
    lane = Lane(path, Place(passage_of(path, TokenFile(TOKEN))))
    connection, transport = Connection(lane), _Transport()
    connection.connection_made(transport)

    def run(requests: list[bytes]) -> float:
        began = time.process_time()
        for request in requests:
            connection.data_received(request)
        assert bytes(transport.written[:15]) == b"HTTP/1.1 200 OK"
        return (time.process_time() - began) / len(requests) * 1e6

    numbers = iter(range(10**9))
    methods: dict[str, Callable[[], float]] = {}
    for kind, name in (("http function", b"web"), ("Lambda function", b"event")):
        methods[f"{kind}, a head seen before"] = partial(_made, run, _same(name))
        methods[f"{kind}, another target each time"] = partial(_made, run, _others(name, numbers))
    found = interleaved(methods, rounds)
    rows = [Row(name, values, "µs") for name, values in found.items()]
    return figures.Report("gateway", METHOD, [*rows, *_profiled(run, _same(b"web")())], [])


def _made(run: Callable[[list[bytes]], float], requests: Callable[[], list[bytes]]) -> float:
    return run(requests())


def _same(name: bytes) -> Callable[[], list[bytes]]:
    return lambda: [b"GET /function/" + name + FIELDS] * CALLS


def _others(name: bytes, numbers: Iterator[int]) -> Callable[[], list[bytes]]:
    return lambda: [b"GET /function/%b?n=%d" % (name, next(numbers)) + FIELDS for _ in range(CALLS)]


def _profiled(run: Callable[[list[bytes]], float], requests: list[bytes]) -> list[Row]:
    profile = cProfile.Profile()
    profile.runcall(run, requests)
    stats = pstats.Stats(profile).get_stats_profile()
    calls = sum(int(str(one.ncalls).partition("/")[0]) for one in stats.func_profiles.values()) / CALLS
    most = sorted(stats.func_profiles.items(), key=lambda one: -one[1].tottime)[:SHOWN]
    rows = [
        Row(f"  {name} ({Path(one.file_name).name}:{one.line_number})", [one.tottime / CALLS * 1e6], "µs")
        for name, one in most
    ]
    return [Row("calls per invocation", [calls], "calls"), *rows]
