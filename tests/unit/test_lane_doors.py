"""The lane as the server has it: behind the doors, over TLS, behind proxies, on sockets that were handed over."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest

from faas import handover
from faas.handover import Handed
from faas.leases import HttpRequest, HttpResponse
from faas.listener import bound, listen
from faas.protocol import Revision
from faas.proxies import TrustedProxies
from faas.settings import Address
from tests.support.raw_http import talk
from tests.support.tls_doors import DOMAIN, Entrance, by_uvloop, entrances
from tests.unit.test_lane import REQUESTS, asking, told
from tests.unit.test_lane_connections import answer

LARGE = 4 * 1024 * 1024  # more than all buffers between a function and its client hold


def plain(target: bytes = b"/function/web", *fields: bytes, host: bytes = b"a") -> bytes:
    return b"\r\n".join((b"GET %b HTTP/1.1" % target, b"Host: " + host, *fields)) + b"\r\n\r\n"


@by_uvloop
async def test_over_tls_both_ways_answer_the_same_and_tell_functions_the_same(tmp_path: Path) -> None:
    async with entrances(tmp_path, on_request=told) as (aiohttp, lane):
        for name in (b"hello", b"web"):
            for what, request in REQUESTS.items():
                before = lane.worker.claimed
                request = request.replace(b"NAME", name)
                one, other = await asyncio.gather(aiohttp.ask(request), lane.ask(request))
                assert one == other, what
                if what in ("nothing special", "a body", "HTTP/1.0", "cookies", "values beyond ASCII"):
                    assert lane.worker.claimed == before + 1, f"{what}: not by the lane"
        said = dict(json.loads((await lane.ask(asking(b"/function/web"))).partition(b"\r\n\r\n")[2])[2])
        assert said["x-forwarded-proto"] == "https"


@by_uvloop
async def test_a_tls_connection_is_handed_over_with_what_was_read_of_it(tmp_path: Path) -> None:
    chunked = b"POST /function/hello/2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
    large = b"POST /function/hello/4 HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000
    paths = [b"/function/hello/%d" % number for number in range(6)]
    asked = [plain(path) for path in paths]
    asked[2], asked[4] = chunked, large
    async with entrances(tmp_path) as (_, lane):
        reader, writer = await lane.opened(b"".join(asked))
        for number in range(6):
            status, body = await answer(reader)
            assert (status, json.loads(body)["rawPath"]) == (200, f"/{number}")
        writer.close()
        assert lane.worker.claimed >= 2


@by_uvloop
async def test_a_large_answer_over_tls_waits_for_its_client_and_one_who_leaves_frees_the_function(
    tmp_path: Path,
) -> None:
    taken = 0

    async def much(revision: Revision, request: HttpRequest) -> HttpResponse:
        async def pieces() -> object:
            nonlocal taken
            for _ in range(LARGE // 65_536):
                taken += 1
                yield b"x" * 65_536

        return HttpResponse(200, (("Content-Length", str(LARGE)),), pieces())  # type: ignore[arg-type]

    async with entrances(tmp_path, on_request=much) as (_, lane):
        reader, writer = await lane.opened(plain(), plain())
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"200" in head
        assert len(await reader.readexactly(LARGE)) == LARGE
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()
        async with asyncio.timeout(5):
            while lane.path.invoker.running:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
        assert lane.worker.claimed == 2


@by_uvloop
async def test_each_name_has_its_certificate_and_its_function_by_the_lane(tmp_path: Path) -> None:
    async with entrances(tmp_path, on_request=told) as (aiohttp, lane):
        host = b"web." + DOMAIN.encode()
        for name in (host.decode(), "main.example"):  # SNI chooses the certificate, Host the function
            before = lane.worker.claimed
            request = plain(b"/x?y=1", b"Connection: close", host=host)
            one, other = await aiohttp.ask(request, name=name), await lane.ask(request, name=name)
            assert one == other
            assert json.loads(other.partition(b"\r\n\r\n")[2])[1] == "/x?y=1"
            assert lane.worker.claimed == before + 1
        _, writer = await lane.opened(name=host.decode())
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        assert DOMAIN.encode() in shown
        writer.close()


@by_uvloop
async def test_who_comes_in_the_clear_is_sent_to_https_or_is_not_answered(tmp_path: Path) -> None:
    async with entrances(tmp_path) as (_, lane):
        told = await talk(lane.ports["redirect"], asking(b"/function/web/x"))
        assert told.startswith(b"HTTP/1.1 308 ")
        assert b"Location: https://a:%d/function/web/x" % lane.ports["public"] in told
        assert await talk(lane.ports["public"], plain(), seconds=2) == b"", "plain HTTP at a TLS listener"
        assert lane.worker.claimed == 0


CLAIMS = {
    "nothing": (),
    "a chain": (b"X-Forwarded-For: 6.6.6.6, 203.0.113.9", b"X-Forwarded-Proto: https"),
    "a chain in two fields": (b"X-Forwarded-For: 6.6.6.6", b"X-Forwarded-For: 203.0.113.9, 127.0.0.1"),
    "the standard's form": (b'Forwarded: for="[2001:db8::1]:80";proto=https, for=127.0.0.1',),
    "both": (b"Forwarded: for=6.6.6.6", b"X-Forwarded-For: 203.0.113.9"),
    "IPv6": (b"X-Forwarded-For: 2001:db8::2",),
    "no addresses": (b"X-Forwarded-For: unknown, %$", b"X-Forwarded-Proto: gopher"),
}


@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.2"])
@by_uvloop
async def test_behind_proxies_both_ways_believe_the_trusted_one_and_nobody_else(source: str, tmp_path: Path) -> None:
    proxies = TrustedProxies.parse("127.0.0.1")
    async with entrances(tmp_path, on_request=told, proxies=proxies) as (aiohttp, lane):
        for what, fields in CLAIMS.items():
            for name in (b"web", b"hello"):
                before = lane.worker.claimed
                request = plain(b"/function/" + name, *fields, b"Connection: close")
                one, other = [await entrance.ask(request, source=source) for entrance in (aiohttp, lane)]
                assert one == other, what
                assert (b"203.0.113.9" in other) == (source == "127.0.0.1" and b"203.0.113.9" in b"".join(fields)), what
                assert b"6.6.6.6" not in other, what
                assert lane.worker.claimed == before + 1, f"{what}: not by the lane"


def handed_over(listener: socket.socket, port: int) -> socket.socket:
    """As the next server gets it from the keeper."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with here, there:
        handover.send(here, {"public": listener})
        with Handed(handover.receive(there)) as handed:
            taken = handed.take("public", Address("127.0.0.1", port))
    assert taken is not None
    return taken


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@by_uvloop
async def test_who_connected_before_the_server_was_there_is_served_by_the_lane(tls: bool, tmp_path: Path) -> None:
    listeners = {by_the_lane: listen(Address("127.0.0.1", 0)) for by_the_lane in (False, True)}
    ports = {key: bound(listener).port for key, listener in listeners.items()}
    early = socket.create_connection(("127.0.0.1", ports[True]))
    early.setblocking(False)
    if not tls:
        early.sendall(plain(b"/function/hello"))
    sockets = {key: handed_over(listener, ports[key]) for key, listener in listeners.items()}
    for listener in listeners.values():
        listener.close()  # the keeper's own
    async with entrances(tmp_path if tls else None, sockets=sockets) as (_, lane):
        reader, writer = await opened_on(early, lane)
        if tls:
            writer.write(plain(b"/function/hello"))
        assert (await answer(reader))[0] == 200
        writer.write(plain(b"/function/hello"))
        assert (await answer(reader))[0] == 200
        assert lane.worker.claimed == 2
        refusing = asyncio.create_task(lane.doors.refuse(hand_over=True))
        await asyncio.sleep(0)  # it has told all connections, and waits
        writer.write(plain(b"/function/hello"))
        async with asyncio.timeout(5):
            last = await reader.read()
        assert last.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nConnection: close\r\n" in last, "its server goes: the next request belongs to another connection"
        writer.close()
        await refusing


async def opened_on(early: socket.socket, entrance: Entrance) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    name = "main.example" if entrance.tls else None
    return await asyncio.open_connection(sock=early, ssl=entrance.context, server_hostname=name)
