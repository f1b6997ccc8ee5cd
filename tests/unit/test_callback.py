"""Which addresses a callback may go to, and how long it may take."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from faas.addresses import is_public
from faas.errors import Unavailable
from gateway import callback
from gateway.callback import Callbacks
from tests.support.control import serving


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_the_public_internet_is_allowed(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
     "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
     "::ffff:169.254.169.254", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "not an address"],
)  # fmt: skip
def test_this_machine_and_private_networks_are_not(address: str) -> None:
    assert not is_public(address)


async def test_a_receiver_has_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert callback.TOTAL_SECONDS == 10
    monkeypatch.setattr(callback, "TOTAL_SECONDS", 0.2)
    leave = asyncio.Event()

    async def tarpit(request: web.Request) -> web.Response:
        await leave.wait()
        return web.Response()

    app, callbacks = web.Application(), Callbacks(allow_private=True)
    app.router.add_post("/", tarpit)
    await callbacks.start()
    async with serving(app) as url:
        with pytest.raises(Unavailable, match="TimeoutError"):
            await callbacks.post(url, {}, b"x")
        leave.set()
    await callbacks.stop()
