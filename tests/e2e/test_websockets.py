"""A WebSocket API on a real server: a handler answers messages, AWS's own client writes to the connection, and a stop
tells both sides."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

from tests.support.management_api import gone, management_api
from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]

CODE = """
import json

def handler(event, context):
    about = event["requestContext"]
    if about["eventType"] != "MESSAGE":
        print(about["eventType"], about.get("disconnectStatusCode"))
        return {"statusCode": 403 if event.get("queryStringParameters") else 200}
    said = json.loads(event["body"])
    return {"statusCode": 200, "body": json.dumps({"heard": said["text"].upper(), "by": about["connectionId"]})}
"""

PUSHING = """
import http.client, json, os
from urllib.request import urlopen

def handler(event, context):
    about = event["requestContext"]
    if about.get("eventType") == "MESSAGE":
        url = os.environ["FAAS_CONNECTIONS_URL"] + "/@connections/" + about["connectionId"]
        with urlopen(url, event["body"].upper().encode()) as answer:
            return {"statusCode": answer.status}
    client = http.client.HTTPConnection("127.0.0.1", 9001)
    said = []
    for method, body in (("POST", "pushed"), ("GET", None), ("DELETE", None)):
        client.request(method, "/@connections/" + event["rawQueryString"], body)
        answer = client.getresponse()
        said.append([answer.status, answer.read().decode()])
    return said
"""


async def command(server: RunningServer, *args: str) -> str:
    return (await asyncio.to_thread(server.faas, *args)).stdout.strip()


async def prepared(server: RunningServer, folder: Path, name: str) -> str:
    """The address of a WebSocket API of that name."""
    await asyncio.to_thread(server.push_code, folder, name, CODE)
    routes = [f"--route=$connect={name}", f"--route=$disconnect={name}", f"--route=say={name},response"]
    return await command(server, "websocket", "put", name, "--public", *routes)


async def said(client: ClientWebSocketResponse) -> Any:
    message = await client.receive(30)
    assert message.type is WSMsgType.TEXT, message
    return json.loads(message.data)


async def test_a_handler_answers_and_awss_client_writes_to_the_connection(
    server: RunningServer, tmp_path: Path
) -> None:
    url = await prepared(server, tmp_path, "ws-chat")
    async with ClientSession() as session:
        refused = await session.get(url.replace("ws", "http", 1) + "?no=1", headers=UPGRADE)
        assert refused.status == 403
        async with session.ws_connect(url) as client:
            await client.send_json({"action": "say", "text": "grüezi"})
            answer = await said(client)
            assert answer["heard"] == "GRÜEZI"
            await client.send_json({"action": "nothing"})
            assert (await said(client))["message"] == "Forbidden"
            connection = answer["by"]
            amazon = management_api(server.api, server.token)
            await asyncio.to_thread(amazon.post_to_connection, ConnectionId=connection, Data=b'{"pushed": 1}')
            assert await said(client) == {"pushed": 1}
            seen = await asyncio.to_thread(amazon.get_connection, ConnectionId=connection)
            assert seen["Identity"]["SourceIp"] == "127.0.0.1"
            assert await command(server, "websocket", "connections", "ws-chat", "-o", "name") == connection
            await command(server, "websocket", "send", connection, '{"from": "the command line"}')
            assert await said(client) == {"from": "the command line"}
            await asyncio.to_thread(amazon.delete_connection, ConnectionId=connection)
            assert (await client.receive(30)).type is WSMsgType.CLOSE
            assert client.close_code == 1000
        assert await asyncio.to_thread(gone, amazon, connection)
    for _ in range(100):
        log = (await asyncio.to_thread(server.get, "/v1/functions/ws-chat/logs", api=True)).text
        if "DISCONNECT 1000" in log:
            break
        await asyncio.sleep(0.1)
    assert "DISCONNECT 1000" in log
    await command(server, "websocket", "rm", "ws-chat")


async def test_a_function_writes_to_its_own_namespaces_connections_and_to_no_others(
    server: RunningServer, tmp_path: Path
) -> None:
    own = await asyncio.to_thread(server.push_code, tmp_path, "ws-push", PUSHING)
    pushed = await command(server, "push", str(tmp_path / "ws-push"), "--namespace", "ws-elsewhere")
    elsewhere = pushed.splitlines()[-1]
    url = await command(server, "websocket", "put", "ws-push", "--public", "--route=say=ws-push")
    async with ClientSession() as session, session.ws_connect(url) as client:
        await client.send_str('{"action": "say"}')
        assert (await client.receive(30)).data == '{"ACTION": "SAY"}'  # sent while it was at work
        (connection,) = (await command(server, "websocket", "connections", "ws-push", "-o", "name")).split()

        async def at(function: str, connection: str) -> Any:
            return await (await session.get(f"{function}?{connection}")).json(content_type=None)

        refused = await at(elsewhere, connection)
        assert [status for status, _ in refused] == [410] * 3
        assert refused == await at(elsewhere, "never")
        (posted, _), (looked, seen), (deleted, _) = await at(own, connection)
        assert (posted, looked, deleted) == (200, 200, 204)
        assert json.loads(seen)["identity"]["sourceIp"] == "127.0.0.1"
        assert (await client.receive(30)).data == "pushed"
        assert (await client.receive(30)).type is WSMsgType.CLOSE
        assert client.close_code == 1000
        assert [status for status, _ in await at(own, connection)] == [410] * 3
    await command(server, "websocket", "rm", "ws-push")


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


async def test_a_stop_says_1001_and_tells_the_function_and_leaves_no_connection(tmp_path: Path) -> None:
    server = RunningServer(tmp_path / "data", "--driver", "oci")
    await asyncio.to_thread(server.start)
    try:
        url = await prepared(server, tmp_path, "ws-stop")
        async with ClientSession() as session, session.ws_connect(url) as client:
            await client.send_json({"action": "say", "text": "a"})
            connection = (await said(client))["by"]
            stopping = asyncio.create_task(asyncio.to_thread(server.stop))
            await client.receive(30)
            assert client.close_code == 1001
            assert await stopping == 0
        await asyncio.to_thread(server.start)
        log = (await asyncio.to_thread(server.get, "/v1/functions/ws-stop/logs", api=True)).text
        assert "DISCONNECT 1001" in log
        assert await asyncio.to_thread(gone, management_api(server.api, server.token), connection)
        assert await command(server, "websocket", "connections", "ws-stop", "-o", "name") == ""
    finally:
        await asyncio.to_thread(server.stop)
