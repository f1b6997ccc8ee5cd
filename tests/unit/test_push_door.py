"""From a function to WebSocket clients through its Runtime API: what reaches them, who is told of nobody, and that the
open event does not notice."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import pytest
from botocore.config import Config  # type: ignore[import-untyped]

from faas.connections import Wanted
from faas.errors import Gone, PayloadTooLarge, Throttled
from faas.leases import HttpRequest, Invocation, Trigger
from faas.metrics import Metrics
from faas.protocol import Revision, RevisionKey
from faas.spec import Interface, parse
from tests.support.fake_driver import NEXT, FakeDriver, FakeRuntime, FakeSandbox, eventually
from tests.support.management_api import gone
from worker.deadlines import Deadlines
from worker.exchange import Exchange
from worker.pool import Pool
from worker.push_door import PushDoor
from worker.runtime_api import CONNECTIONS, KEPT_OPEN, PUSHED_BYTES, RuntimeApi
from worker.runtime_listener import FRUITLESS

CONNECTION = "abc_DEF-1="  # Amazon's ids end so
SLOW = "slow"
MOST = 131_072


class FakeConnections:
    """Two connections of the namespace `team`, whose API has the stage `prod`; nobody reads at `SLOW`."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed: list[str] = []

    def limit(self, wanted: Wanted) -> int:
        known = wanted.connection_id in (CONNECTION, SLOW) and wanted.connection_id not in self.closed
        if not known or wanted.namespace != "team" or wanted.stage not in (None, "prod"):
            raise Gone
        return MOST

    def post(self, wanted: Wanted, body: bytes) -> None:
        if len(body) > self.limit(wanted):
            raise PayloadTooLarge
        if wanted.connection_id == SLOW:
            raise Throttled
        self.sent.append(body)

    def look(self, wanted: Wanted) -> dict[str, Any]:
        self.limit(wanted)
        return {"connectedAt": "2026-01-02T03:04:05.000Z", "identity": {"sourceIp": "192.0.2.1", "userAgent": "x"}}

    def close(self, wanted: Wanted) -> None:
        self.limit(wanted)
        self.closed.append(wanted.connection_id)


class Instance:
    """A Runtime API on a port of its own."""

    def __init__(self, namespace: str = "team") -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.connections = FakeConnections()
        self.api = RuntimeApi("arn", 30, PushDoor(self.connections, namespace))
        self.api.serve(listener)
        self._writers: list[asyncio.StreamWriter] = []

    async def client(self) -> FakeRuntime:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(self.url.rpartition(":")[2]))
        self._writers.append(writer)
        return FakeRuntime(reader, writer)

    def close(self) -> None:
        self.api.close()
        for writer in self._writers:
            writer.close()

    def exchange(self) -> Exchange:
        exchange = Exchange(Invocation("r1", Trigger.HTTP, 1), b"{}", Deadlines(5), lambda e: None, lambda e: None)
        self.api.offer(exchange)
        return exchange


@pytest.fixture
async def instance() -> AsyncIterator[Instance]:
    made = Instance()
    yield made
    made.close()


@pytest.mark.parametrize("path", ["/@connections/abc_DEF-1=", "/prod/%40connections/abc_DEF-1%3D?x=1"])
async def test_post_get_and_delete_reach_a_connection_of_the_namespace(instance: Instance, path: str) -> None:
    client = await instance.client()
    assert (await client.request("POST", path, b"\xff\x00"))[::2] == (200, b"")
    assert (await client.request("POST", path))[0] == 200
    assert instance.connections.sent == [b"\xff\x00", b""]
    status, fields, body = await client.request("GET", path)
    assert (status, fields["content-type"]) == (200, "application/json")
    assert json.loads(body)["identity"]["sourceIp"] == "192.0.2.1"
    assert (await client.request("DELETE", path))[0] == 204
    assert instance.connections.closed == [CONNECTION]
    assert (await client.request("POST", path, b"x"))[0] == 410  # all of it on one connection


async def test_another_namespaces_connection_is_answered_as_an_id_that_never_was(instance: Instance) -> None:
    async def answers(where: Instance, path: str) -> list[Any]:
        client = await where.client()
        asked = (("POST", b"hello"), ("POST", b"x" * (MOST + 1)), ("GET", b""), ("DELETE", b""))
        return [await client.request(method, path, body) for method, body in asked]

    stranger = Instance("other")
    stranger.connections = instance.connections
    stranger.api._door = PushDoor(instance.connections, "other")
    try:
        never = await answers(stranger, "/@connections/never")
        assert [status for status, _, _ in never] == [410] * 4
        assert {fields["x-amzn-errortype"] for _, fields, _ in never} == {"goneexception"}
        assert await answers(stranger, f"/@connections/{CONNECTION}") == never
        assert await answers(instance, f"/test/@connections/{CONNECTION}") == never  # nor by another API's stage
        assert instance.connections.sent == instance.connections.closed == []
    finally:
        stranger.close()


async def test_a_message_does_not_disturb_the_open_event(instance: Instance) -> None:
    early = await instance.client()
    assert (await early.request("POST", f"/@connections/{CONNECTION}", b"init"))[0] == 200  # before the first poll
    assert not instance.api.first_poll.done()
    runtime, beside = await instance.client(), await instance.client()
    exchange = instance.exchange()
    assert await runtime.next() == ("r1", {})
    assert (await beside.request("POST", f"/@connections/{CONNECTION}", b"beside"))[0] == 200
    assert (await runtime.request("POST", f"/@connections/{CONNECTION}", b"the same"))[0] == 200
    beside.writer.close()
    assert await runtime.respond("r1", 1) == 202
    assert (await exchange.outcome()).payload == b"1"
    assert instance.connections.sent == [b"init", b"beside", b"the same"]


async def test_no_part_of_a_message_over_the_limit_is_sent(instance: Instance) -> None:
    client = await instance.client()
    path = f"/@connections/{CONNECTION}"
    for size in (MOST + 1, 7_000_000):
        status, fields, _ = await client.request("POST", path, b"x" * size)
        assert (status, fields["x-amzn-errortype"]) == (413, "payloadtoolargeexception")
    client.writer.write(f"POST {path} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    client.writer.write(b"20000\r\n" + b"x" * MOST + b"\r\n1\r\nx\r\n0\r\n\r\n")
    assert (await client.answer())[0] == 413
    assert (await client.request("POST", path, b"x" * MOST))[0] == 200
    assert instance.connections.sent == [b"x" * MOST]
    assert instance.api._pushed == instance.api._kept == 0


async def test_who_reads_nothing_and_what_is_no_request_of_it_is_said(instance: Instance) -> None:
    client = await instance.client()
    status, fields, body = await client.request("POST", f"/@connections/{SLOW}", b"x")
    assert (status, fields["x-amzn-errortype"]) == (429, "limitexceededexception")
    assert "message" in json.loads(body)
    for method, path, wanted in (
        ("PUT", f"/@connections/{CONNECTION}", 405),
        ("GET", "/@connections/", 404),
        ("GET", "/@connections", 404),
        ("GET", f"/a/b/@connections/{CONNECTION}", 404),
        ("GET", f"/@connections/{CONNECTION}/x", 404),
    ):
        assert (await client.request(method, path))[0] == wanted, path


async def test_messages_under_way_are_bounded_and_leave_room_for_the_answer(instance: Instance) -> None:
    runtime = await instance.client()
    exchange = instance.exchange()
    await runtime.next()
    head = f"POST /@connections/{CONNECTION} HTTP/1.1\r\nContent-Length: {MOST}\r\n\r\n".encode()
    instance.connections.limit = lambda wanted: 1_048_576  # type: ignore[method-assign]
    head = head.replace(str(MOST).encode(), b"1048576")
    senders = [await instance.client() for _ in range(3)]
    for sender in senders[:2]:
        sender.writer.write(head + b"x" * 1_048_575)
    await eventually(lambda: instance.api._pushed == 2 * 1_048_575)
    assert instance.api._pushed <= PUSHED_BYTES
    senders[2].writer.write(head + b"x" * 10_000)
    assert (await senders[2].answer())[0] == 429
    assert await runtime.respond("r1", b"y" * 6_000_000) == 202
    assert len((await exchange.outcome()).payload) == 6_000_000
    senders[0].writer.write(b"x")
    assert (await senders[0].answer())[0] == 200
    senders[1].writer.close()
    await eventually(lambda: not instance.api._pushed)


async def test_clients_that_keep_their_connections_leave_the_runtime_a_place(instance: Instance) -> None:
    kept = [await instance.client() for _ in range(CONNECTIONS)]
    for client in kept:
        assert (await client.request("POST", f"/@connections/{CONNECTION}", b"x"))[0] == 200
    await eventually(lambda: len(instance.api._connections) == KEPT_OPEN)
    runtime = await instance.client()
    instance.exchange()
    assert await runtime.next() == ("r1", {})


async def test_a_connection_for_each_message_is_none_that_came_for_nothing(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert instance.api._listener is not None
    pauses: list[None] = []
    monkeypatch.setattr(instance.api._listener, "_wait", lambda: pauses.append(None))
    for _ in range(2 * FRUITLESS):
        client = await instance.client()
        assert (await client.request("POST", f"/@connections/{CONNECTION}", b"x", {"Connection": "close"}))[0] == 200
        assert await client.reader.read() == b""
    await eventually(lambda: not instance.api._connections)
    assert not pauses


async def test_awss_client_with_a_signature_and_pythons_own_find_the_door(instance: Instance) -> None:
    amazon = boto3.session.Session().client(
        "apigatewaymanagementapi",
        endpoint_url=f"{instance.url}/prod",
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
        config=Config(retries={"max_attempts": 1}, proxies={}),
    )
    await asyncio.to_thread(amazon.post_to_connection, ConnectionId=CONNECTION, Data=b"signed")
    seen = await asyncio.to_thread(amazon.get_connection, ConnectionId=CONNECTION)
    assert seen["Identity"] == {"SourceIp": "192.0.2.1", "UserAgent": "x"}
    await asyncio.to_thread(_post, f"{instance.url}/@connections/{CONNECTION}", b"plain")
    with pytest.raises(amazon.exceptions.PayloadTooLargeException):
        await asyncio.to_thread(amazon.post_to_connection, ConnectionId=CONNECTION, Data=b"x" * (MOST + 1))
    await asyncio.to_thread(amazon.delete_connection, ConnectionId=CONNECTION)
    assert await asyncio.to_thread(gone, amazon, CONNECTION)
    assert instance.connections.sent == [b"signed", b"plain"]


def _post(url: str, body: bytes) -> None:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, body, timeout=10) as answer:
        assert answer.status == 200


async def test_an_http_function_has_the_door_of_its_own_namespace_too(tmp_path: Path) -> None:
    connections, said = FakeConnections(), []

    async def serve(sandbox: FakeSandbox) -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            pushing = await sandbox.runtime()
            said.append((await pushing.request("POST", f"/@connections/{CONNECTION}", b"from http"))[0])
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        await sandbox.serve(handle)
        await asyncio.Event().wait()

    pool = Pool(FakeDriver({"web": serve}), tmp_path / "logs", Metrics("test"))
    pool.push_to(connections)
    await pool.open()
    try:
        for namespace in ("team", "other"):
            key = RevisionKey(namespace, "web", 1)
            spec = parse({"name": "web", "entrypoint": ["web"]})
            revision = Revision(key, spec, "web@sha256:" + "0" * 64, Interface.HTTP)
            await pool.scale(revision, 1)
            async with pool.acquire(revision, Invocation("r1", Trigger.HTTP, 5)) as lease:
                assert (await lease.request(HttpRequest("GET", "/", (("Host", "web"),)))).status == 200
    finally:
        await pool.close(0)
    assert (said, connections.sent) == ([200, 410], [b"from http"])


def test_the_path_of_the_poll_is_not_the_doors() -> None:
    assert PushDoor(FakeConnections(), "team").wanted(NEXT.encode()) is None
