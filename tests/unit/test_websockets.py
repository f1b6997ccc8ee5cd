"""WebSocket APIs on real sockets: events as AWS has them, refusals, pushes, limits, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, WSMsgType

from faas.bodies import BODIES
from faas.connections import Wanted
from faas.errors import Gone, PayloadTooLarge
from faas.leases import InvocationResult
from faas.protocol import Revision
from gateway.edge.websocket.pushes import Pushes
from tests.support.control import Control, control, until
from tests.support.data_path import sample
from tests.support.fake_worker import FakeWorker
from tests.support.management_api import gone, management_api
from tests.support.websocket_client import RawWebSocket, masked

Event = dict[str, Any]
Handler = Callable[[str, Event], Awaitable[Any] | Any]
ROUTES = {
    "$connect": "door",
    "$disconnect": "door",
    "$default": {"function": "chat", "response": True},
    "shout": {"function": "chat", "response": True},
    "quiet": {"function": "chat"},
}


class Function:
    """What every function of a test does: `handler(name, event)`, which may return plain data; events are kept."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.handler: Handler = lambda name, event: {"statusCode": 200, "body": event.get("body", "")}

    async def __call__(self, revision: Revision, event: bytes) -> InvocationResult:
        said = json.loads(event)
        self.events.append(said)
        answer = self.handler(revision.key.function, said)
        if asyncio.iscoroutine(answer):
            answer = await answer
        if isinstance(answer, InvocationResult):
            return answer
        return InvocationResult(json.dumps(answer).encode())

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event["requestContext"]["eventType"] == kind]


class Chat:
    """A gateway with the API `chat` of `door` and `chat`."""

    def __init__(self, running: Control, function: Function) -> None:
        self.control = running
        self.function = function
        self.port = int(running.public_url.rpartition(":")[2])

    async def put(self, name: str = "chat", **definition: Any) -> Any:
        wish = {"public": True, "routes": ROUTES, **definition}
        answered = await self.control.call("PUT", f"/v1/websockets/{name}", wish)
        assert answered.status in (200, 201), answered.body
        return answered.json()

    def client(self, path: str = "/ws/chat", **fields: Any) -> RawWebSocket:
        return RawWebSocket(self.port, path, **fields)

    @property
    def connections(self) -> Any:
        return self.control.gateway.edge.websockets.connections

    def the_id(self) -> str:
        """Of the connection that was opened last."""
        return str(self.function.of("CONNECT")[-1]["requestContext"]["connectionId"])

    async def at(self, method: str, connection: str, body: bytes | None = None, **options: Any) -> Any:
        return await self.control.call(method, f"/@connections/{connection}", body, **options)


@pytest.fixture
def function() -> Function:
    return Function()


@asynccontextmanager
async def chatting(folder: Path, function: Function, **definition: Any) -> AsyncIterator[Chat]:
    async with control(folder, FakeWorker(function)) as running:
        for name in ("door", "chat"):
            await running.deploy(name, timeout=5)
        chat = Chat(running, function)
        await chat.put(**definition)
        yield chat


@pytest.fixture
async def chat(tmp_path: Path, function: Function) -> AsyncIterator[Chat]:
    async with chatting(tmp_path, function) as running:
        yield running


# Events


async def test_a_connection_is_told_of_in_events_of_amazons_shape(chat: Chat) -> None:
    url = f"ws://127.0.0.1:{chat.port}/ws/chat?room=a&room=b"
    async with ClientSession() as session, session.ws_connect(url, headers={"X-A": "1"}) as client:
        await client.send_str('{"action": "shout", "n": 1}')
        assert (await client.receive()).data == '{"action": "shout", "n": 1}'
        await client.send_bytes(b"\xff\x00")
        await client.receive()
        await client.close(code=3001, message=b"enough")
    await until(lambda: chat.function.of("DISCONNECT"))
    (connect,), (said, binary), (gone,) = (chat.function.of(kind) for kind in ("CONNECT", "MESSAGE", "DISCONNECT"))
    context = connect["requestContext"]
    wanted = {
        "routeKey": "$connect", "eventType": "CONNECT", "messageDirection": "IN", "stage": "$default", "apiId": "chat",
        "domainName": f"127.0.0.1:{chat.port}",
    }  # fmt: skip
    assert {key: context[key] for key in wanted} == wanted
    assert context["identity"]["sourceIp"] == "127.0.0.1"
    assert 0 <= context["requestTimeEpoch"] - context["connectedAt"] < 1000
    assert connect["headers"]["x-a"] == "1"
    assert connect["multiValueQueryStringParameters"] == {"room": ["a", "b"]}
    assert connect["queryStringParameters"] == {"room": "b"}
    assert (said["body"], said["isBase64Encoded"], said["requestContext"]["routeKey"]) == (
        '{"action": "shout", "n": 1}', False, "shout",
    )  # fmt: skip
    assert (binary["body"], binary["isBase64Encoded"]) == ("/wA=", True)
    assert binary["requestContext"]["routeKey"] == "$default"
    assert said["requestContext"]["messageId"] != binary["requestContext"]["messageId"]
    assert {e["requestContext"]["connectionId"] for e in chat.function.events} == {context["connectionId"]}
    assert {e["requestContext"]["connectedAt"] for e in chat.function.events} == {context["connectedAt"]}
    last = gone["requestContext"]
    assert (last["routeKey"], last["disconnectStatusCode"], last["disconnectReason"]) == ("$disconnect", 3001, "enough")


async def test_a_message_goes_by_what_the_expression_finds_in_it(chat: Chat) -> None:
    await chat.put("deep", selection="$request.body.to.do", routes={"a": "chat", "7": "chat", "$connect": "door"})
    async with chat.client("/ws/deep") as client:
        client.say({"to": {"do": "a"}})
        client.say({"to": {"do": 7}})
        for said in (
            {"to": {"do": "$connect"}},
            {"to": {"do": True}},
            {"to": ["a"]},
            ["a"],
            "no JSON",
            {"to": {"do": "b"}},
        ):
            client.say(said)
            refused = await client.told()
            assert refused["message"] == "Forbidden"
            assert set(refused) == {"message", "connectionId", "requestId"}
    assert [e["requestContext"]["routeKey"] for e in chat.function.of("MESSAGE")] == ["a", "7"]


async def test_a_route_without_a_response_answers_nothing(chat: Chat) -> None:
    async with chat.client() as client:
        client.say({"action": "quiet"})
        client.say({"action": "shout"})
        assert await client.told() == {"action": "shout"}


async def test_a_function_that_fails_is_told_as_amazon_does_and_the_connection_stays(chat: Chat) -> None:
    chat.function.handler = lambda name, event: (
        InvocationResult(b'{"errorMessage": "secret"}', error_type="Oops") if name == "chat" else {"statusCode": 200}
    )
    async with chat.client() as client:
        client.say({"action": "quiet"})
        told = await client.told()
        assert (told["message"], told["connectionId"]) == ("Internal server error", chat.the_id())
        assert "secret" not in str(told)
        chat.function.handler = lambda name, event: "x" * 200_000
        client.say({})
        assert (await client.told())["message"] == "Internal server error"  # an answer that is no message
        chat.function.handler = lambda name, event: {"statusCode": 200, "body": "fine"}
        client.say({})
        assert await client.frame() == ("text", b"fine")


async def test_messages_are_answered_in_their_order_unless_more_may_run_at_once(chat: Chat) -> None:
    running = most = 0

    async def slower_first(name: str, event: Event) -> Any:
        nonlocal running, most
        if name == "chat":
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.05 if event["body"] == "1" else 0)
            running -= 1
        return {"statusCode": 200, "body": event.get("body", "")}

    chat.function.handler = slower_first
    async with chat.client() as client:
        for number in range(1, 6):
            client.say(str(number))
        assert [(await client.frame())[1] for _ in range(5)] == [b"1", b"2", b"3", b"4", b"5"]
    assert most == 1
    await chat.put(in_flight=3)
    async with chat.client() as client:
        for number in range(1, 6):
            client.say(str(number))
        assert {(await client.frame())[1] for _ in range(5)} == {b"1", b"2", b"3", b"4", b"5"}
    assert 1 < most <= 3


# Who comes in


async def test_a_connect_that_refuses_is_the_answer_and_nobody_is_connected(chat: Chat) -> None:
    for status in (401, 403, 500):
        chat.function.handler = lambda name, event, status=status: {  # type: ignore[misc]
            "statusCode": status, "body": "not you",
        }  # fmt: skip
        async with chat.client() as client:
            assert (client.status, client.body) == (status, b"not you")
    assert not chat.function.of("DISCONNECT")
    assert (await chat.at("GET", chat.the_id())).status == 410


async def test_a_connect_that_fails_is_a_502_without_its_words(chat: Chat) -> None:
    chat.function.handler = lambda name, event: InvocationResult(b'{"errorMessage": "secret"}', error_type="Oops")
    async with chat.client() as client:
        assert client.status == 502
        assert b"secret" not in client.body


async def test_a_connect_chooses_one_of_the_clients_protocols(chat: Chat) -> None:
    for chosen, told in (("b", "b"), ("c", None)):
        chat.function.handler = lambda name, event, chosen=chosen: {  # type: ignore[misc]
            "statusCode": 200, "headers": {"Sec-WebSocket-Protocol": chosen},
        }  # fmt: skip
        async with chat.client(Sec_WebSocket_Protocol="a, b") as client:
            assert (client.status, client.headers.get("sec-websocket-protocol")) == (101, told)


async def test_an_api_that_is_not_public_asks_for_credentials_that_may_invoke(chat: Chat) -> None:
    await chat.put(public=False)
    for role, status in (("", 401), ("viewer", 403), ("caller", 101)):
        token = await chat.control.a_token(role) if role else ""
        async with chat.client(Authorization=f"Bearer {token}" if role else "") as client:
            assert client.status == status, role
    assert "authorization" not in chat.function.of("CONNECT")[-1]["headers"]


async def test_a_connection_ends_with_the_token_that_let_it_in(chat: Chat) -> None:
    await chat.put(public=False)
    token = await chat.control.a_token("caller")
    other = await chat.control.a_token("deployer")
    names = list(chat.control.made)
    fields = {"Authorization": f"Bearer {token}"}
    async with chat.client(**fields) as client, chat.client(Authorization=f"Bearer {other}") as stays:
        assert (client.status, stays.status) == (101, 101)
        assert (await chat.control.call("DELETE", f"/v1/tokens/{names[0]}")).status == 204
        assert await client.closed() == 1008
        assert chat.connections.count(("default", "chat")) == 1
    async with chat.client(**fields) as client:
        assert client.status == 401


async def test_what_is_no_handshake_is_refused_before_any_function_hears_of_it(chat: Chat) -> None:
    for fields, status in (
        ({"Upgrade": ""}, 426),
        ({"Connection": "keep-alive"}, 426),
        ({"Upgrade": "h2c"}, 426),
        ({"Sec_WebSocket_Version": "8"}, 426),
        ({"Sec_WebSocket_Key": ""}, 400),
        ({"Sec_WebSocket_Key": "dG9vIHNob3J0"}, 400),
        ({"Content_Length": "0", "Transfer_Encoding": "chunked"}, 400),
    ):
        async with chat.client(**fields) as client:
            assert client.status == status, fields
            assert client.headers.get("upgrade") == ("websocket" if status == 426 else None)
    assert chat.function.events == []


async def test_a_page_of_another_origin_may_not_connect(chat: Chat) -> None:
    await chat.put(rules={"websocket": {"origins": ["https://mine.example"]}})
    for origin, status in (
        ("https://mine.example", 101), ("HTTPS://MINE.example", 101), ("", 101), ("https://mine.example.evil.org", 403),
        ("https://mine.example:8443", 403), ("http://mine.example", 403), ("null", 403),
        ("https://mine.example, https://evil.org", 403), ("https://evil.org\r\nOrigin: https://mine.example", 403),
        ("https://mine.example\r\nOrigin: https://evil.org", 403),
    ):  # fmt: skip
        async with chat.client(Origin=origin) as client:
            assert client.status == status, origin
            assert "evil" not in str(client.headers), "reflected"


async def test_no_namespace_has_all_connections_where_another_has_such_an_api_too(chat: Chat) -> None:
    chat.connections._most = 4
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(chat.client()) for _ in range(3)]
        assert [client.status for client in opened] == [101] * 3, "it is alone"
        await chat.control.deploy("hello", namespace="team")
        other = await chat.control.call(
            "PUT", "/v1/websockets/talk.team", {"public": True, "routes": {"$default": {"function": "hello"}}}
        )
        assert other.status == 201, other.body
        refused = await stack.enter_async_context(chat.client())
        assert refused.status == 429
        assert b"the namespace default has 2 of the server's 4 connections" in refused.body
        chat.connections._most = 8
        assert (await stack.enter_async_context(chat.client())).status == 101
        assert (await stack.enter_async_context(chat.client())).status == 429
        assert (await chat.control.call("DELETE", "/v1/websockets/talk.team")).status == 204
        assert (await stack.enter_async_context(chat.client())).status == 101, "it is alone again"


async def test_so_many_may_be_connected_at_once_and_no_more(chat: Chat) -> None:
    await chat.put(connections=2)
    async with chat.client() as one, chat.client() as two, chat.client() as three:
        assert (one.status, two.status, three.status) == (101, 101, 429)
        assert three.headers["reason"] == "TooManyConnections"
    await until(lambda: chat.connections.count(("default", "chat")) == 0)
    async with chat.client() as again:
        assert again.status == 101


# The other way round


async def test_a_connection_is_written_to_looked_at_and_closed_through_the_api(chat: Chat) -> None:
    async with chat.client(User_Agent="mine") as client:
        connection = chat.the_id()
        for prefix in ("", "/$default"):
            answered = await chat.control.call("POST", f"{prefix}/@connections/{connection}", "grü".encode())
            assert answered.status == 200
            assert await client.frame() == ("text", "grü".encode())
        assert (await chat.at("POST", connection, b"\xff")).status == 200
        assert await client.frame() == ("binary", b"\xff")
        looked = (await chat.at("GET", connection)).json()
        assert looked["identity"] == {"sourceIp": "127.0.0.1", "userAgent": "mine"}
        assert looked["connectedAt"] <= looked["lastActiveAt"]
        listed = (await chat.control.call("GET", "/v1/websockets/chat/connections")).json()
        assert [(one["id"], one["sent"]) for one in listed["connections"]] == [(connection, 3)]
        assert sample(chat.control.gateway.metrics, "faas_websocket_api_connections", api="chat") == 1
        too_much = await chat.at("POST", connection, b"a" * 131_073)
        assert (too_much.status, too_much.headers["x-amzn-ErrorType"]) == (413, "PayloadTooLargeException")
        assert (await chat.at("DELETE", connection)).status == 204
        assert await client.closed() == 1000
    await until(lambda: chat.function.of("DISCONNECT"))
    assert chat.function.of("DISCONNECT")[0]["requestContext"]["disconnectStatusCode"] == 1000
    for method in ("POST", "GET", "DELETE"):
        gone = await chat.at(method, connection, b"x")
        assert (gone.status, gone.headers["x-amzn-ErrorType"]) == (410, "GoneException")
    assert sample(chat.control.gateway.metrics, "faas_websocket_api_connections", api="chat") == 0


async def test_instances_have_the_connections_of_their_namespace_alone(chat: Chat) -> None:
    pushes = Pushes(chat.control.gateway.edge.websockets)
    async with chat.client() as client:
        connection = chat.the_id()
        for wanted in (Wanted("team", connection), Wanted("default", connection, "other"), Wanted("default", "never")):
            for asked in (pushes.limit, pushes.look, pushes.close, lambda whose: pushes.post(whose, b"x")):
                with pytest.raises(Gone):
                    asked(wanted)
        own = Wanted("default", connection, "$default")
        with pytest.raises(PayloadTooLarge):
            pushes.post(own, b"x" * (pushes.limit(own) + 1))
        pushes.post(own, b"mine")
        assert await client.frame() == ("text", b"mine")
        assert pushes.look(own) == (await chat.at("GET", connection)).json()
        pushes.close(own)
        with pytest.raises(Gone):
            pushes.post(own, b"late")
        assert await client.closed() == 1000


async def test_who_may_not_invoke_there_hears_of_no_connection(chat: Chat) -> None:
    callers = {
        "another namespace's": await chat.control.a_token("caller", "team"),
        "one function's": await chat.control.a_token("caller", "default", ("chat",)),
        "all its functions'": await chat.control.a_token("caller", "default", ("chat", "door")),
        "this namespace's": await chat.control.a_token("deployer", "default"),
    }
    async with chat.client():
        connection = chat.the_id()
        statuses = {whose: (await chat.at("GET", connection, token=token)).status for whose, token in callers.items()}
        nowhere = await chat.at("GET", "no-such-connection", token=callers["another namespace's"])
        seen = await chat.at("GET", connection, token=callers["another namespace's"])
        assert (await chat.control.call("GET", f"/other/@connections/{connection}")).status == 410
    assert list(statuses.values()) == [410, 410, 200, 200]
    assert nowhere.json()["message"] == seen.json()["message"]


async def test_awss_own_client_writes_looks_and_closes(chat: Chat) -> None:
    await chat.put(stage="live")
    amazon = management_api(chat.control.api, chat.control.token, "live")
    async with chat.client() as client:
        connection = chat.the_id()
        await asyncio.to_thread(amazon.post_to_connection, ConnectionId=connection, Data=b"hello")
        assert await client.frame() == ("text", b"hello")
        looked = await asyncio.to_thread(amazon.get_connection, ConnectionId=connection)
        assert looked["Identity"]["SourceIp"] == "127.0.0.1"
        assert looked["ConnectedAt"] <= looked["LastActiveAt"]
        with pytest.raises(amazon.exceptions.PayloadTooLargeException):
            await asyncio.to_thread(amazon.post_to_connection, ConnectionId=connection, Data=b"a" * 131_073)
        await asyncio.to_thread(amazon.delete_connection, ConnectionId=connection)
        assert await client.closed() == 1000
    assert await asyncio.to_thread(gone, amazon, connection)


async def test_connection_ids_have_128_bits_and_none_is_like_another(chat: Chat) -> None:
    ids = []
    for _ in range(20):
        async with chat.client():
            ids.append(chat.the_id())
    assert len(set(ids)) == 20
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)  # which no command line takes for an option
    assert all(len({one[place] for one in ids}) > 5 for place in range(32)), "a place that hardly changes"


async def test_a_client_that_does_not_read_is_refused_pushes_and_then_cut(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.edge.websocket.connections.LOOK_SECONDS", 0.05)
    async with chat.client(limit=1000), chat.client() as other:
        slow_id = chat.function.of("CONNECT")[0]["requestContext"]["connectionId"]
        statuses: list[int] = []
        for _ in range(400):
            statuses.append((await chat.at("POST", slow_id, b"a" * 131_072)).status)
            if statuses[-1] != 200:
                break
        assert statuses[-1] == 429, "buffered without end"
        assert len(statuses) < 100
        monkeypatch.setattr("faas.pace.PROGRESS_SECONDS", 0.2)
        await until(lambda: chat.connections.get(slow_id) is None)
        assert (await chat.at("GET", slow_id)).status == 410
        other.say("still here")
        assert await other.frame() == ("text", b"still here")
    await until(lambda: len(chat.function.of("DISCONNECT")) == 2)
    codes = {e["requestContext"]["disconnectReason"]: e["requestContext"]["disconnectStatusCode"]
             for e in chat.function.of("DISCONNECT")}  # fmt: skip
    assert codes["the client does not read"] == 1008


async def test_a_slow_function_holds_its_client_back(chat: Chat) -> None:
    go = asyncio.Event()

    async def waits(name: str, event: Event) -> Any:
        if name == "chat":
            await go.wait()
        return {"statusCode": 200}

    chat.function.handler = waits
    async with chat.client() as client:
        sent, piece = 0, masked(2, b"a" * 32_768)
        try:
            while sent < 1000:
                client.send(piece)
                async with asyncio.timeout(0.5):
                    await client.writer.drain()
                sent += 1
        except TimeoutError:
            pass
        assert sent < 1000, "read without end"
        assert BODIES.held < 1_000_000
        client.writer.transport.abort()
        go.set()
        await until(lambda: chat.function.of("DISCONNECT"))
    await until(lambda: BODIES.held == 0)


# What clients do


BROKEN = (
    (b"\x81\x02hi", 1002),
    (masked(3, b""), 1002),
    (masked(9, b"a" * 126), 1002),
    (masked(0, b"a"), 1002),
    (masked(8, b"\x03\xed"), 1002),
    (masked(1, b"\xff\xfe"), 1007),
    (masked(2, b"a" * 32_769), 1009),
    (masked(2, b"a" * 32_768, fin=False) + masked(0, b"a" * 32_768, fin=False) * 4, 1009),
    (masked(9, b"?") * 101, 1008),
    (b"\xc1" + masked(1, b"x")[1:], 1002),
)


async def test_a_client_that_breaks_the_protocol_is_told_so_and_is_gone(chat: Chat) -> None:
    for data, code in BROKEN:
        async with chat.client() as client:
            client.send(data, masked(1, b"never read"))
            assert await client.closed() == code, data[:20]
    await until(lambda: len(chat.function.of("DISCONNECT")) == len(BROKEN))
    codes = [e["requestContext"]["disconnectStatusCode"] for e in chat.function.of("DISCONNECT")]
    assert sorted(codes) == sorted(code for _, code in BROKEN)
    assert chat.function.of("MESSAGE") == []


async def test_a_fragmented_message_is_one_and_pings_between_are_answered(chat: Chat) -> None:
    async with chat.client() as client:
        client.send(masked(1, b"one ", fin=False), masked(9, b"there?"), masked(0, b"", fin=False), masked(0, b"two"))
        assert await client.frame() == ("pong", b"there?")
        assert await client.frame() == ("text", b"one two")
        client.send(masked(8, b"\x03\xe8done"))
        assert await client.frame() == ("close", b"\x03\xe8")
        assert await client.frame() == ("end", b"")
    (said,) = chat.function.of("MESSAGE")
    assert said["body"] == "one two"


async def test_nothing_is_ever_compressed(chat: Chat) -> None:
    url = f"ws://127.0.0.1:{chat.port}/ws/chat"
    async with ClientSession() as session, session.ws_connect(url, compress=15) as client:
        assert not client.compress
        await client.send_str("a" * 1000)
        assert (await client.receive()).type is WSMsgType.TEXT


async def test_what_was_said_before_the_client_left_is_heard_and_then_its_end(chat: Chat) -> None:
    async with chat.client() as client:
        client.send(*(masked(1, b"%d" % n) for n in range(5)), masked(8, b""))
        assert await client.closed() == 0  # it gave no code, and hears none
    await until(lambda: chat.function.of("DISCONNECT"))
    kinds = [e["requestContext"]["eventType"] for e in chat.function.events]
    assert kinds == ["CONNECT", *["MESSAGE"] * 5, "DISCONNECT"]
    assert chat.function.events[-1]["requestContext"]["disconnectStatusCode"] == 1005


async def test_a_client_that_goes_while_it_is_let_in_is_told_of_as_gone(chat: Chat) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def slow(name: str, event: Event) -> Any:
        if event["requestContext"]["eventType"] == "CONNECT":
            asked.set()
            await go.wait()
        return {"statusCode": 200}

    chat.function.handler = slow
    client = chat.client()
    opening = asyncio.create_task(client.__aenter__())
    await asked.wait()
    client.writer.transport.abort()
    await asyncio.gather(opening, return_exceptions=True)
    await asyncio.sleep(0.05)
    go.set()
    await until(lambda: chat.function.of("DISCONNECT"))
    assert chat.connections.count(("default", "chat")) == 0


async def test_an_idle_connection_and_an_old_one_are_closed_with_1001(tmp_path: Path, function: Function) -> None:
    async with chatting(tmp_path, function, rules={"websocket": {"idle": "1s"}}) as chat:
        await chat.put("old", rules={"websocket": {"lifetime": "1s"}})
        await chat.put("busy")
        async with chat.client() as idle, chat.client("/ws/old") as old, chat.client("/ws/busy") as busy:
            session = chat.connections.get(chat.the_id())
            before = session.last_active_at
            busy.send(masked(9, b""))
            assert await busy.frame() == ("pong", b"")
            assert session.last_active_at > before, "a ping is activity"
            assert await idle.closed() == await old.closed() == 1001
            assert chat.connections.count(("default", "busy")) == 1
            await until(lambda: len(function.of("DISCONNECT")) == 2)
            ends = [event["requestContext"] for event in function.of("DISCONNECT")]
    assert {end["apiId"]: end["disconnectReason"] for end in ends} == {
        "chat": "the connection was idle",
        "old": "the connection's lifetime is over",
    }


async def test_a_silent_client_is_pinged_and_cut_where_it_does_not_answer(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.edge.websocket.session.PING_SECONDS", 0.1)
    monkeypatch.setattr("gateway.edge.websocket.session.PONG_SECONDS", 3.0)
    async with chat.client() as client:
        for _ in range(3):
            assert await client.frame() == ("ping", b"")
            client.send(masked(10, b""))
        assert await client.frame() == ("ping", b"")
        assert (await client.frame())[0] == "end"
    await until(lambda: chat.function.of("DISCONNECT"))
    assert chat.function.of("DISCONNECT")[0]["requestContext"]["disconnectStatusCode"] == 1006


async def test_a_thousand_connections_leave_nothing(chat: Chat) -> None:
    tasks = len(asyncio.all_tasks())
    for _ in range(20):
        clients = [chat.client() for _ in range(50)]
        await asyncio.gather(*(client.__aenter__() for client in clients))
        for number, client in enumerate(clients):
            if number % 2:
                client.writer.transport.abort()
            else:
                client.send(masked(8, b"\x03\xe8"))
        for client in clients:
            client.writer.close()
    await until(lambda: len(chat.function.of("DISCONNECT")) == 1000, 30)
    inside = chat.connections
    await until(lambda: not len(inside._work) and len(asyncio.all_tasks()) <= tasks + 2)
    assert (inside._sessions, inside._halls, +inside._taken, inside._stalled, len(inside._work)) == ({}, {}, {}, {}, 0)
    assert BODIES.held == 0
    assert chat.control.gateway.path.invoker.running == 0


# Its life


async def test_a_stop_closes_with_1001_and_tells_the_functions(tmp_path: Path, function: Function) -> None:
    async with chatting(tmp_path, function) as chat, chat.client() as client:
        connection = chat.the_id()
        stopping = asyncio.create_task(chat.control.gateway.stop(5))
        assert await client.closed() == 1001
        await stopping
        assert [e["requestContext"]["disconnectStatusCode"] for e in function.of("DISCONNECT")] == [1001]
    async with control(
        tmp_path, FakeWorker(function)
    ) as again:  # started anew it is there, and its connections are not
        listed = (await again.call("GET", "/v1/websockets")).json()["websockets"]
        assert [(one["name"], one["path"], one["open"]) for one in listed] == [("chat", "/ws/chat", 0)]
        assert (await again.call("GET", f"/@connections/{connection}")).status == 410


async def test_what_changes_counts_for_the_next_message_and_a_delete_closes(chat: Chat) -> None:
    async with chat.client() as client:
        client.say({"action": "new"})
        assert await client.told() == {"action": "new"}
        await chat.put(routes={"new": {"function": "chat"}, "$disconnect": "door"})
        client.say({"action": "shout"})
        assert (await client.told())["message"] == "Forbidden"
        assert (await chat.control.call("DELETE", "/v1/websockets/chat")).status == 204
        assert await client.closed() == 1001
    await until(lambda: chat.function.of("DISCONNECT"))
    async with chat.client() as client:
        assert client.status == 404


async def test_who_is_let_in_while_the_api_is_deleted_is_closed_as_the_others_are(chat: Chat) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def slow(name: str, event: Event) -> Any:
        asked.set()
        await go.wait()
        return {"statusCode": 200}

    chat.function.handler = slow
    client = chat.client()
    opening = asyncio.create_task(client.__aenter__())
    await asked.wait()
    assert (await chat.control.call("DELETE", "/v1/websockets/chat")).status == 204
    go.set()
    await opening
    assert await client.closed() == 1001
    await client.__aexit__(None, None, None)
    await until(lambda: chat.function.of("DISCONNECT"))


WRONG: tuple[tuple[dict[str, Any], str], ...] = (
    ({"routes": {}}, "routes must be a table of 1 to 100"),
    ({"routes": {"$other": "chat"}}, "no route key"),
    ({"routes": {"a": {"response": True}}}, "routes.a needs function"),
    ({"routes": {"a": "Chat"}}, "routes.a.function must be the name of a function"),
    ({"routes": {"a": "other.team"}}, "routes.a.function must be"),
    ({"routes": {"$connect": {"function": "chat", "response": True}}}, "there is nobody to answer"),
    ({"routes": {"a": {"function": "chat", "respond": True}}}, "unknown key routes.a.respond"),
    ({"path": "/chat"}, "path must be a path below /ws/"),
    ({"path": "/ws/a/../b?"}, "path must be"),
    ({"selection": "$request.header.x"}, "selection must be a place in a message"),
    ({"connections": 0}, "connections must be a whole number from 1 to 10000"),
    ({"in_flight": 101}, "in_flight must be"),
    ({"rules": {"websocket": {"max_message": 1_048_577}}}, "rules.websocket.max_message must be"),
    ({"rules": {"websocket": {"max_message": 1000}}}, "a frame (32768 bytes) may not be larger than"),
    ({"rules": {"websocket": {"origins": ["mine.example"]}}}, "rules.websocket.origins must be a list of origins"),
    ({"rules": {"web_socket": {}}}, "unknown key rules.web_socket"),
    ({"nothing": 1}, "unknown key nothing"),
)


async def test_a_wrong_definition_is_refused_by_its_key(chat: Chat) -> None:
    for wish, words in WRONG:
        answered = await chat.control.call("PUT", "/v1/websockets/wrong", {"routes": {"$default": "chat"}, **wish})
        assert answered.status == 400, wish
        assert words in answered.json()["error"]["message"]


async def test_no_path_is_one_that_another_namespaces_api_has_or_may_have(chat: Chat) -> None:
    await chat.control.deploy("chat", namespace="team")
    for name, path, status in (
        ("mine.team", "/ws/lobby", 400), ("mine.team", "/ws/chat.other", 400), ("mine.team", "/ws/x.team.y", 400),
        ("mine", "/ws/chat.team", 400), ("mine", "/ws/v1.team/x", 400),
        ("mine.team", "/ws/lobby.team/v1", 201), ("mine", "/ws/lobby/v1.team", 201),
    ):  # fmt: skip
        wish = {"path": path, "routes": {"$default": "chat"}}
        answered = await chat.control.call("PUT", f"/v1/websockets/{name}", wish)
        assert answered.status == status, (name, path, answered.body)


async def test_an_api_that_is_not_taken_any_more_is_out_of_use_and_the_server_starts(
    tmp_path: Path, function: Function
) -> None:
    async with chatting(tmp_path, function) as chat:
        await chat.put("fine")
        async with chat.control.gateway.database.write() as tx:
            await tx.exec_driver_sql("UPDATE websocket_apis SET definition = '{}' WHERE name = 'chat'")
    async with control(tmp_path, FakeWorker(function)) as running:
        assert [api.name for api in running.gateway.edge.websockets.every()] == ["fine"]


async def test_a_path_is_one_apis_and_functions_are_there(chat: Chat) -> None:
    body = {"path": "/ws/chat", "routes": {"$default": "chat"}}
    taken = await chat.control.call("PUT", "/v1/websockets/other", body)
    assert (taken.status, taken.json()["error"]["hint"]) == (409, "give it another path")
    unknown = await chat.control.call("PUT", "/v1/websockets/other", {"routes": {"$default": "nobody"}})
    assert unknown.status == 404
    for name, path in (("two", "/ws/two/v1"), ("chat.team", "/ws/chat.team")):
        if "." in name:
            await chat.control.deploy("chat", namespace="team")
        wish = {"routes": {"$default": "chat"}} | ({} if "." in name else {"path": path})
        made = await chat.control.call("PUT", f"/v1/websockets/{name}", wish)
        assert (made.status, made.json()["path"]) == (201, path)
