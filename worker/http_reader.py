"""`HttpReader`: an http function's answer for a caller that waits for it: the head, then the body, read as it likes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from faas.leases import KnownHead
from worker.http_connection import HttpConnection

HIGH_BYTES = 262_144  # read ahead of the reader


class HttpReader:
    """Implements `worker.http_connection.Sink`: the answer to one request over `connection`."""

    def __init__(self, connection: HttpConnection) -> None:
        self.connection = connection
        self.status = 0
        self.headers: tuple[tuple[str, str], ...] = ()
        self.buffered = 0
        self._chunks: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._error: BaseException | None = None

    # The connection's side

    def whole(self, head: KnownHead, body: bytes) -> None:
        self.head(head.status, head.fields)
        if body:
            self.data(body)
        self.end(None)

    def head(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)
        self.status = status
        self._wake()

    def data(self, piece: bytes) -> None:
        self._chunks.append(piece)
        self.buffered += len(piece)
        if self.buffered > HIGH_BYTES:
            self.connection.pause()
        self._wake()

    def end(self, error: BaseException | None) -> None:
        self._ended = True
        self._error = error
        self._wake()

    # The reader's side

    async def wait_for_head(self) -> None:
        """Until `status` and `headers` are there. Raises BrokenConnection, or what `fail` was given."""
        while not self.status:
            if self._error is not None:
                raise self._error
            await self._wait()

    async def read(self) -> bytes:
        """Some of the body; empty at its end. Raises BrokenConnection, or what `fail` was given."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            await self._wait()
        data = self._chunks.popleft() if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self.buffered = 0
        if not self._ended:
            self.connection.resume()
        return data

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
