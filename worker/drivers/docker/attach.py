"""A container's output, from the engine's attach stream into two readers.

Frames of eight bytes of head (stream, three zeros, length) and a payload: Docker Engine API, "Attach to a container".
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any, cast

HEAD = struct.Struct(">BxxxL")
HIGH_BYTES = 1 << 18  # waiting in a reader before the engine is made to wait
STDERR = 2


def attached(api: Any, container: str) -> socket.socket:
    """Blocking. The attach stream as a socket of our own; attach before the start, so that nothing is missed."""
    stream = api.attach_socket(container, params={"stdout": 1, "stderr": 1, "stream": 1})
    raw = getattr(stream, "_sock", stream)
    own: socket.socket = raw.dup()
    own.setblocking(False)
    stream.close()
    raw.close()  # the engine goes on writing to the duplicate
    return own


class Output(asyncio.Protocol):
    """Takes the frames apart."""

    def __init__(self, stdout: asyncio.StreamReader, stderr: asyncio.StreamReader) -> None:
        self._readers = {1: stdout, STDERR: stderr}
        self._pending = bytearray()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, raw: socket.socket, stdout: asyncio.StreamReader, stderr: asyncio.StreamReader) -> Output:
        loop = asyncio.get_running_loop()
        if raw.family == socket.AF_UNIX:
            _, protocol = await loop.create_unix_connection(lambda: cls(stdout, stderr), sock=raw)
        else:
            _, protocol = await loop.create_connection(lambda: cls(stdout, stderr), sock=raw)
        return protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        for reader in self._readers.values():
            reader.set_transport(self._transport)  # a reader that is full pauses it, one that is read resumes it

    def data_received(self, data: bytes) -> None:
        self._pending += data
        while len(self._pending) >= HEAD.size:
            stream, length = HEAD.unpack_from(self._pending)
            end = HEAD.size + length
            if len(self._pending) < end:
                return
            if reader := self._readers.get(stream):
                reader.feed_data(bytes(self._pending[HEAD.size : end]))
            del self._pending[:end]

    def connection_lost(self, exc: Exception | None) -> None:
        for reader in self._readers.values():
            reader.feed_eof()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
