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
