"""A file as a response's body, by sendfile(2): its bytes never pass through this process.

uvloop has no `loop.sendfile`, so this works below the loop: threads send until the socket is full, and the loop says
when there is room again. Threads, since a file that is not in the page cache would stop everybody. Over TLS, whose
bytes this process must touch, the file is read in pieces.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from faas.background import to_its_end
from faas.pace import LOOK_SECONDS, Pace, cut, unacknowledged

PIECE = 4 << 20  # bytes of one call: a thread is soon there for others
READ = 256 << 10
THREADS = 4
T = TypeVar("T")


def _opened(path: Path, size: int) -> int | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if os.fstat(file).st_size == size:
        return file
    os.close(file)
    return None


def _closed(file: int | None) -> None:
    if file is not None:
        os.close(file)


class FileSender:
    """Its threads are shared by all who pull; `close` it when nobody does any more."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="sendfile")

    def close(self) -> None:
        self._threads.shutdown()

    async def send(
        self, request: web.Request, response: web.StreamResponse, path: Path, size: int, start: int, count: int
    ) -> bool:
        """`count` bytes from `start` of a file of `size` bytes, as the whole body of `response`.

        False, and nothing is sent, where the file is not there or has another size. Raises ConnectionError where the
        client goes away, and where the file fails after the head has promised all of it: the connection is cut then.
        """
        file = await self._run(lambda: _opened(path, size), undo=_closed)
        if file is None:
            return False
        try:
            response.content_length = count
            if count <= READ:
                whole = await self._run(lambda: os.pread(file, count, start))
                await response.prepare(request)
                await response.write_eof(whole)  # in one write with the head
            else:
                await self._send_large(request, response, file, start, start + count)
        finally:
            os.close(file)
        return True

    async def _send_large(
        self, request: web.Request, response: web.StreamResponse, file: int, start: int, end: int
    ) -> None:
        writer: Any = await response.prepare(request)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        try:
            if transport.get_extra_info("sslcontext") is not None:
                await self._copy(response, file, start, end)
            else:
                writer.send_headers()
                await _flushed(transport, writer)
                await self._sendfile(transport, file, start, end)
            if not transport.is_closing():
                await response.write_eof()
        except (OSError, TimeoutError) as error:
            cut(transport)
            raise ConnectionResetError(f"broken off: {error}") from None

    async def _sendfile(self, transport: asyncio.Transport, file: int, start: int, end: int) -> None:
        # A descriptor of our own: the loop lets nobody watch a transport's, and a number could be another socket's by
        # the time that a thread uses it.
        out = os.dup(transport.get_extra_info("socket").fileno())
        reached = start
        pace = Pace(asyncio.get_running_loop().time(), start)

        def went(offset: int) -> None:
            nonlocal reached
            reached = offset

        try:
            while reached < end:
                went(await self._run(lambda: _fill(out, file, reached, end), undo=went))
                if reached < end:
                    await _writable(out, pace, reached)
        except asyncio.CancelledError:
            # Who closes the connection with the last byte ends the request before the thread is back: it was served.
            task = asyncio.current_task()
            if reached < end or task is None or task.uncancel():
                raise
        finally:
            os.close(out)

    async def _copy(self, response: web.StreamResponse, file: int, start: int, end: int) -> None:
        while start < end:
            piece = await self._run(lambda at=start: os.pread(file, min(READ, end - at), at))  # type: ignore[misc]
            if not piece:
                raise OSError("the file has become shorter")
            start += len(piece)
            await response.write(piece)

    async def _run(self, work: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
        """In a thread, to its end: descriptors stay open until then."""
        return await to_its_end(asyncio.get_running_loop().run_in_executor(self._threads, work), undo)


def _fill(out: int, file: int, start: int, end: int) -> int:
    """Send until the socket takes no more; the offset reached."""
    last = min(end, start + PIECE)
    while start < last:
        try:
            sent = os.sendfile(out, file, start, last - start)
        except BlockingIOError:
            break
        if sent == 0:
            raise OSError("the file has become shorter")
        start += sent
    return start


async def _flushed(transport: asyncio.Transport, writer: Any) -> None:
    """Return when all that was written is in the kernel: what a thread sends must come behind it."""
    if transport.get_write_buffer_size() == 0:
        return
    low, high = transport.get_write_buffer_limits()
    transport.set_write_buffer_limits(high=0)
    try:
        await writer.drain()
    finally:
        transport.set_write_buffer_limits(high=high, low=low)


async def _writable(out: int, pace: Pace, reached: int) -> None:
    """Raises TimeoutError where the client takes too little for too long."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(out, ready.set)
    try:
        while not ready.is_set():
            if not pace.is_kept(loop.time(), reached - unacknowledged(out)):
                raise TimeoutError("the client does not read")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await ready.wait()
    finally:
        loop.remove_writer(out)
