"""`AnswerStream`: a Runtime API function's answer that comes piece by piece, between the runtime's connection, which is
not read while too much waits here, and whoever takes it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from faas.errors import BadFunctionResponse
from faas.leases import StreamedResult

HIGH_BYTES = 262_144  # read ahead of the taker
PRELUDE_BYTES = 131_072
PRELUDE_TYPE = "application/vnd.awslambda.http-integration-response"
PRELUDE_END = bytes(8)


class Source(Protocol):
    """Where the pieces come from."""

    def hold(self, held: bool) -> None:
        """Read no more; or go on."""
        ...


class AnswerStream:
    """`begun` is called once, when the answer's beginning is there; `result` is set then."""

    def __init__(self, source: Source, content_type: str, begun: Callable[[], None]) -> None:
        self._source = source
        self._content_type = content_type
        self._begun = begun
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._waiter: asyncio.Future[None] | None = None
        self._prelude: bytearray | None = bytearray() if content_type.lower() == PRELUDE_TYPE else None
        self._ended = self._dropped = False
        self._error: BaseException | None = None
        self.result: StreamedResult | None = None
        if self._prelude is None:
            self._begin(None)

    # The function's side

    def feed(self, piece: bytes) -> None:
        """Raises BadFunctionResponse where it has a prelude without an end."""
        if self._dropped or self._ended:
            return
        if self._prelude is not None:
            looked = max(0, len(self._prelude) - len(PRELUDE_END) + 1)
            self._prelude += piece
            end = self._prelude.find(PRELUDE_END, looked)
            if end < 0:
                if len(self._prelude) > PRELUDE_BYTES:
                    raise BadFunctionResponse(f"the response's prelude does not end within {PRELUDE_BYTES} bytes")
                return
            prelude, piece = bytes(self._prelude[:end]), bytes(self._prelude[end + len(PRELUDE_END) :])
            self._prelude = None
            self._begin(prelude)
        if piece:
            self._chunks.append(piece)
            self._buffered += len(piece)
            if self._buffered > HIGH_BYTES:
                self._source.hold(True)
            self._wake()

    def end(self, error: BaseException | None) -> None:
        """Whole, or what it failed with."""
        if not self._ended:
            self._ended = True
            self._error = error
            self._wake()

    def _begin(self, prelude: bytes | None) -> None:
        content_type = self._content_type if prelude is None else ""
        self.result = StreamedResult(_Body(self), prelude, content_type or "application/octet-stream")
        self._begun()

    # The taker's side

    def drop(self) -> None:
        """Nobody takes it any more: the function writes on, for nothing."""
        self._dropped = True
        self._chunks.clear()
        self._buffered = 0
        self._source.hold(False)
        self._wake()

    async def read(self) -> bytes:
        """Some bytes; empty at the end. Raises what it failed with, after what came before."""
        while not self._chunks:
            if self._dropped:
                return b""
            if self._ended:
                if self._error is not None:
                    raise self._error
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = self._chunks.popleft() if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        self._source.hold(False)
        return data

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Body:
    """Implements `StreamedResult.body`."""

    def __init__(self, stream: AnswerStream) -> None:
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if data := await self._stream.read():
            return data
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Done with it, read to the end or not."""
        self._stream.drop()
