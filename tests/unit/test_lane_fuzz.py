"""Mutated requests, the same to both ways. One in ten is left as it was, and must succeed."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from dataclasses import dataclass

import pytest

from gateway.lane import head
from tests.support.fake_driver import eventually
from tests.support.mutations import SEEDS, mark_of, mutated
from tests.support.two_ways import TwoWays, two_ways

AT_ONCE = 100
SHORT, LONG = 2_000, 100_000


@dataclass(frozen=True)
class Asked:
    mark: bytes
    request: bytes
    is_good: bool


def asked(chance: random.Random, number: int) -> Asked:
    mark, is_good = mark_of(number), number % 10 == 0
    request = chance.choice(SEEDS).replace(b"MARK", mark)
    return Asked(mark, request if is_good else mutated(chance, request), is_good)


async def told(port: int, one: Asked, seconds: float) -> bytes:
    """All that comes until the server closes, or for so long. Good ones must come to their end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        writer.write(one.request)
        async with asyncio.timeout(20 if one.is_good else seconds):
            while data := await reader.read(65_536):
                answer += data
    except (TimeoutError, ConnectionError):
        assert not one.is_good, one.request
    finally:
        writer.transport.abort()
    return answer


def statuses(answer: bytes) -> list[bytes]:
    return re.findall(rb"HTTP/1\.[01] (\d{3}) ", answer)


def begins_well(request: bytes) -> bool:
    """With a whole plain request, and more behind it: the lane has answered that when aiohttp finds fault with what
    comes after it, and refuses both. Or with half a head: aiohttp finds a fault in it before its end."""
    if b"\r\n\r\n" not in request:
        return True
    end = request.find(b"\r\n\r\n") + 4
    found = head.read(request[:end])
    return found is not None and len(request) > end + found.length


async def compare(ways: TwoWays, one: Asked) -> None:
    for seconds in (0.3, 5.0):  # the second time where one of them was only slow
        first, second = await asyncio.gather(*(told(way.port, one, seconds) for way in (ways.aiohttp, ways.lane)))
        if statuses(first) == statuses(second):
            break
    if statuses(first) != [b"400"] or not begins_well(one.request):
        assert statuses(first) == statuses(second), one.request
    for answer in (first, second):
        assert not any(status.startswith(b"5") for status in statuses(answer)), one.request
        assert set(re.findall(rb"mark\d+z", answer)) <= set(re.findall(rb"mark\d+z", one.request)), one.request
        if one.is_good:
            assert statuses(answer) == [b"200"], one.request
            assert one.mark in answer


async def run(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with two_ways(monkeypatch) as ways:
        for begin in range(0, count, AT_ONCE):
            await asyncio.gather(*(compare(ways, asked(chance, n)) for n in range(begin, begin + AT_ONCE)))
        assert ways.claimed > count / 20
        await eventually(lambda: not any(way.path.invoker.running for way in (ways.aiohttp, ways.lane)))


async def test_mutated_requests_are_answered_alike_and_harm_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    await run(monkeypatch, SHORT)


@pytest.mark.soak
async def test_many_mutated_requests_are_answered_alike_and_harm_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    await run(monkeypatch, LONG)
