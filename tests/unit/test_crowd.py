"""Connections of one client address: so many and no more, whatever way they end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop
from aiohttp import web

from faas.crowd import Crowd
from faas.doors import Doors
from faas.listener import bound, listen
from faas.proxies import TrustedProxies
from faas.settings import Address
from tests.unit.test_doors import hello, status


class Transport(asyncio.BaseTransport):
    def __init__(self, address: str) -> None:
        super().__init__({"peername": (address, 1)})
        self.closed = False

    def is_closing(self) -> bool:
        return self.closed


@pytest.mark.parametrize(
    ("address", "is_counted"),
    [("203.0.113.7", True), ("2001:db8::1", True), ("127.0.0.1", False), ("::1", False), ("10.1.2.3", False),
     ("::ffff:127.0.0.1", False)],
)  # fmt: skip
async def test_strangers_are_counted_and_this_machine_and_trusted_proxies_are_not(
    address: str, is_counted: bool
) -> None:
    crowd = Crowd(2, TrustedProxies.parse("10.0.0.0/8"))
    assert [crowd.admits(Transport(address)) for _ in range(3)] == [True, True, not is_counted]
    crowd.close()


async def test_an_ipv6_client_is_its_64_and_others_are_none_of_it() -> None:
    crowd = Crowd(1, TrustedProxies())
    assert crowd.admits(Transport("2001:db8:0:1::1"))
    assert not crowd.admits(Transport("2001:db8:0:1:ffff::2"))
    assert crowd.admits(Transport("2001:db8:0:2::1"))
    crowd.close()


async def test_a_connection_that_has_ended_is_not_counted_nor_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faas.crowd.SWEEP_SECONDS", 0.02)
    crowd = Crowd(1, TrustedProxies())
    first = Transport("203.0.113.7")
    assert crowd.admits(first)
    assert not crowd.admits(Transport("203.0.113.7"))
    first.closed = True
    second = Transport("203.0.113.7")
    assert crowd.admits(second)
    second.closed = True
    await asyncio.sleep(0.1)
    assert crowd._open == {}
    assert crowd._timer is None


async def crowded() -> None:
    app = web.Application()
    app.router.add_get("/", hello)
    doors = Doors({"public": app}, None, per_address=2)
    with listen(Address("127.0.0.1", 0)) as listener:
        port = bound(listener).port
        await doors.open({"public": listener})
        try:
            first, one = await status(port)
            second, two = await status(port)
            third, three = await status(port)
            assert (first, second, third) == (b"200", b"200", b"503")
            one.transport.abort()
            await asyncio.sleep(0.1)
            fourth, four = await status(port)
            assert fourth == b"200"
            for writer in (one, two, three, four):
                writer.close()
        finally:
            await doors.refuse()
            await doors.close()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_listener_answers_one_too_many_with_503_and_the_next_one_again(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., None]
) -> None:
    monkeypatch.setattr(Crowd, "_is_exempt", lambda self, address: False)  # a test has no other address
    run(crowded())
