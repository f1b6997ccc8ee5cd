"""Routes: a request among 10,000 of them beside the same among one: the matcher alone, and the whole way."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from faas.path_pattern import segments_of
from faas.routes import RouteSpec
from gateway.edge.apis.api import Api, ApiRoute
from gateway.edge.apis.apis import Apis
from gateway.edge.apis.matcher import Matcher
from tests.benchmarks.measure import Figure, Report, Row, interleaved, ratio
from tests.support.control import Control, control

ROUNDS = 15
MANY = 10_000
LOOKS, REQUESTS = 20_000, 400  # of a round
TARGET = "/group-77/things/4711/parts"  # a literal, a parameter and a literal: of a route that both have
METHOD = (
    f"One process, one loop. matcher: {LOOKS:,} looks for the route of {TARGET}, its path read anew each time. request:"
    f" {REQUESTS} requests on one connection through the public listener's application, a function that is a coroutine"
    " behind it, so that what is not the gateway's costs next to nothing."
)


def specs(count: int) -> Iterator[RouteSpec]:
    """Three patterns of each group: `/group-N/things/{id}/parts`, `/group-N/things/{id}`, `/group-N/{rest+}`."""
    yield RouteSpec("/group-77/things/{id}/parts", ("GET",))
    for number in range(1, count):
        group, kind = divmod(number, 3)
        name = f"group-{group + 100}"
        yield RouteSpec((f"/{name}/things/{{id}}/parts", f"/{name}/things/{{id}}", f"/{name}/{{rest+}}")[kind])


def looked_up(count: int) -> Callable[[], float]:
    """ns for one look."""
    matcher: Matcher[int] = Matcher()
    for number, spec in enumerate(specs(count), 1):
        for verb in spec.verbs:
            matcher.add(verb, spec.pattern, number)

    def look() -> float:
        began = time.perf_counter()
        for _ in range(LOOKS):
            if matcher.find("GET", segments_of(TARGET)) != 1:
                raise AssertionError
        return (time.perf_counter() - began) / LOOKS * 1e9

    return look


@asynccontextmanager
async def gateway(count: int) -> AsyncIterator[Control]:
    with TemporaryDirectory() as folder:
        async with control(Path(folder)) as running:
            await running.deploy("hello")
            apis: Apis = running.gateway.edge.apis
            await apis.put(Api("default", "default", routes=tuple(ApiRoute(spec, "hello") for spec in specs(count))))
            yield running


@contextmanager
def gateways(counts: tuple[int, ...]) -> Iterator[dict[int, Callable[[], float]]]:
    """µs for one request, by the number of routes."""
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()

        async def opened() -> dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
            found = {}
            for count in counts:
                running = await stack.enter_async_context(gateway(count))
                host, _, port = running.public_url.removeprefix("http://").partition(":")
                found[count] = await asyncio.open_connection(host, int(port))
            return found

        streams = runner.run(opened())
        try:
            yield {count: partial(_run, runner, *pair) for count, pair in streams.items()}
        finally:
            for _, writer in streams.values():
                writer.close()
            runner.run(stack.aclose())


def _run(runner: asyncio.Runner, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    return runner.run(_asked(reader, writer))


async def _asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    head = f"GET {TARGET} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    began = time.perf_counter()
    for _ in range(REQUESTS):
        writer.write(head)
        answer = await reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200"):
            raise AssertionError(answer)
        lengths = [line for line in answer.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        await reader.readexactly(int(lengths[0].partition(b":")[2]))
    return (time.perf_counter() - began) / REQUESTS * 1e6


def measure(rounds: int | None) -> Report:
    with gateways((1, MANY)) as requests:
        methods = {f"matcher, {count:,}": looked_up(count) for count in (1, MANY)}
        methods |= {f"request, {count:,}": asked for count, asked in requests.items()}
        found = interleaved(methods, rounds or ROUNDS)
    rows = {name: Row(name, values, "ns" if name.startswith("matcher") else "µs") for name, values in found.items()}
    figures: list[Figure] = [
        ratio(f"{what}: {MANY:,} routes ÷ 1 route", rows[f"{what}, {MANY:,}"], rows[f"{what}, 1"], must, goal)
        for what, must, goal in (("matcher", 2.0, 1.5), ("request", 1.1, 1.05))
    ]
    return Report("routes", METHOD, list(rows.values()), figures)
