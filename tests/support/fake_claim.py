"""The quick way of `FakeWorker`: a slot claimed at once, its function still the test's own coroutine."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from faas.errors import FunctionError
from faas.leases import Answering, HttpRequest, InvocationResult, Report, StreamedResult
from faas.protocol import Revision

if TYPE_CHECKING:
    from tests.support.fake_worker import FakeWorker


class FakeClaim:
    """`faas.leases.Claim`."""

    def __init__(self, worker: FakeWorker, revision: Revision) -> None:
        self._worker = worker
        self._revision = revision
        self._task: asyncio.Task[None] | None = None
        self._may_send = asyncio.Event()
        self._may_send.set()
        self._began = asyncio.get_running_loop().time()
        self._has_slot = True
        self.instance_id = "i0"
        self.interface = revision.interface
        self.report: Report | None = None

    def send(self, method: str, request: bytes, answering: Answering) -> None:
        parsed = parse(request)
        assert parsed.method == method
        self._task = asyncio.get_running_loop().create_task(self._answer(parsed, answering))

    def invoke(
        self,
        event: bytes,
        ended: Callable[[InvocationResult | None, BaseException | None], None],
        streams: Callable[[StreamedResult], None] | None = None,
        trace_id: str = "",
    ) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(event, ended, streams))

    def pause(self) -> None:
        self._may_send.clear()

    def resume(self) -> None:
        self._may_send.set()

    def abandon(self) -> None:
        task = self._task
        self._give_back(None)
        if task is None:
            return  # nothing was sent
        if asyncio.current_task() is not task:  # else it is called from within `head` or `data`, and ends by itself
            task.cancel()

    async def _answer(self, request: HttpRequest, answering: Answering) -> None:
        error: BaseException | None = None
        body: AsyncIterator[bytes] | None = None
        try:
            response = await self._worker.on_request(self._revision, request)
            body = response.body
            fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
            answering.head(response.status, fields)
            async for piece in response.body if self._has_slot and method_has_body(request.method) else _nothing():
                answering.data(piece)
                if not self._has_slot:
                    return
                await self._may_send.wait()
        except Exception as failure:
            error = failure
        finally:
            if (close := getattr(body, "aclose", None)) is not None:
                await close()
        if self._has_slot:
            self._give_back(error)
            answering.end(error)

    async def _run(
        self,
        event: bytes,
        ended: Callable[[InvocationResult | None, BaseException | None], None],
        streams: Callable[[StreamedResult], None] | None,
    ) -> None:
        result: InvocationResult | None = None
        error: BaseException | None = None
        try:
            if self._worker.on_stream is not None and streams is not None:
                result = await self._streamed(await self._worker.on_stream(self._revision, event), streams)
            else:
                result = await self._worker.on_invoke(self._revision, event)
        except Exception as failure:
            error = failure
        if self._has_slot:
            self._give_back(error)
            ended(result, error)

    async def _streamed(self, result: StreamedResult, streams: Callable[[StreamedResult], None]) -> InvocationResult:
        done: asyncio.Future[InvocationResult] = asyncio.get_running_loop().create_future()

        async def watched() -> AsyncIterator[bytes]:
            try:
                async for piece in result.body:
                    yield piece
            except Exception as error:
                done.set_exception(error)
                raise
            finally:
                if not done.done():
                    done.set_result(InvocationResult(b""))

        streams(dataclasses.replace(result, body=watched()))
        return await done

    def _give_back(self, error: BaseException | None) -> None:
        if not self._has_slot:
            return
        self._has_slot = False
        self._worker._give_back(self._revision)
        seconds, memory = asyncio.get_running_loop().time() - self._began, self._revision.spec.memory_bytes
        self.report = Report(seconds, seconds, memory, memory // 2, failed=isinstance(error, FunctionError))
        self._worker.ended(self._revision.key, (self.report,))


def parse(request: bytes) -> HttpRequest:
    """What a function's server would read; fails where it could read it in two ways."""
    head, _, body = request.partition(b"\r\n\r\n")
    line, *fields = head.decode("latin-1").split("\r\n")
    method, target, version = line.split(" ")
    assert version == "HTTP/1.1"
    pairs = [tuple(field.split(": ", 1)) for field in fields]
    headers = tuple((name, value) for name, value in pairs)
    lengths = [value for name, value in headers if name.lower() == "content-length"]
    assert len(lengths) <= 1
    assert (int(lengths[0]) if lengths else 0) == len(body)
    assert "transfer-encoding" not in {name.lower() for name, _ in headers}
    kept = tuple((name, value) for name, value in headers if name.lower() != "content-length")
    return HttpRequest(method, target, kept, body or None, len(body) if body else None)


def method_has_body(method: str) -> bool:
    return method != "HEAD"


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield
