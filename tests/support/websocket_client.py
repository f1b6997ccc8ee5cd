"""A WebSocket client that may send what no client sends: the protocol by hand, over a plain socket."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from typing import Any

OPCODES = {0: "continuation", 1: "text", 2: "binary", 8: "close", 9: "ping", 10: "pong"}


def masked(opcode: int, payload: bytes, *, fin: bool = True, mask: bytes = b"\x12\x34\xab\xcd") -> bytes:
    """A client's frame."""
    size = len(payload)
    first = opcode | (0x80 if fin else 0)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 65_536:
        head = bytes((first, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 0x80 | 127)) + size.to_bytes(8, "big")
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def handshake(path: str, **fields: str) -> bytes:
    """A request's head; `fields` with _ for -, an empty one takes the field away."""
    head = {
        "Host": "ws.example",
        "Connection": "keep-alive, Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": base64.b64encode(secrets.token_bytes(16)).decode(),
        "Sec-WebSocket-Version": "13",
    }
    head |= {name.replace("_", "-"): value for name, value in fields.items()}
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items() if value)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


class RawWebSocket:
    """One connection. `async with RawWebSocket(port, path) as client:` sends the handshake; `status` is its answer."""

    def __init__(self, port: int, path: str, *, limit: int = 65_536, **fields: str) -> None:
        self._port = port
        self._head = handshake(path, **fields)
        self._limit = limit
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""

    async def __aenter__(self) -> RawWebSocket:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port, limit=self._limit)
        self.writer.write(self._head)
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            self.status = int(head[0].split()[1])
            self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head)}
            if self.status != 101:
                self.body = await self.reader.readexactly(int(self.headers.get("content-length", 0)))
        return self

    async def __aexit__(self, *error: object) -> None:
        self.writer.close()

    def send(self, *frames: bytes) -> None:
        self.writer.write(b"".join(frames))

    def say(self, value: Any) -> None:
        self.send(masked(1, value.encode() if isinstance(value, str) else json.dumps(value).encode()))

    async def frame(self, seconds: float = 10) -> tuple[str, bytes]:
        """(kind, payload) of the next frame; ("end", b"") where the connection has ended."""
        async with asyncio.timeout(seconds):
            try:
                first, second = await self.reader.readexactly(2)
                assert not second & 0x80, "a server's frames are not masked"
                size = second
                if size >= 126:
                    size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8), "big")
                return OPCODES[first & 0x0F], await self.reader.readexactly(size)
            except (asyncio.IncompleteReadError, ConnectionResetError):
                return "end", b""

    async def told(self) -> Any:
        """The next message, which is JSON."""
        kind, payload = await self.frame()
        assert kind == "text", (kind, payload)
        return json.loads(payload)

    async def closed(self, seconds: float = 10) -> int:
        """The code that the server closes with, once everything before it has been read; answers it. 0: it did not."""
        while True:
            kind, payload = await self.frame(seconds)
            if kind == "close":
                self.send(masked(8, payload))
                return int.from_bytes(payload[:2], "big")
            if kind == "end":
                return 0
