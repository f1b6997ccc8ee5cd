"""`Runner`: an application's connections, where what is no HTTP gets an answer in our form, and one line in the log.

aiohttp answers it before any of our code: with its own name, in plain text, some of what was sent in it, and a
traceback in the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol, cast

from aiohttp import hdrs, web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from faas.boundary import Boundary
from faas.errors import FaasError, InvalidInput
from faas.pace import LOOK_SECONDS, Pace, cut, taken
from faas.web import REQUEST_ID_HEADER, SERVER, error_response, new_request_id

log = logging.getLogger("faas.web")

LOOKS, LOOK_EACH = 4, 16  # at a connection's first requests and then at each of so many its home looks closely
SHOWN = 200  # characters of what was wrong, in the log
Answer = Callable[[FaasError, str], web.Response]  # (error, request id)
Factory = Callable[..., web.BaseRequest]
ANSWER: web.AppKey[Answer] = web.AppKey("answer")  # an application's own form of these errors


class Home(Protocol):
    """Where a connection was handed over from, and to where it may go back."""

    def wants(self, transport: asyncio.Transport, data: bytes, *, closely: bool) -> bool:
        """Whether the request that begins with `data` is one for it; without `closely` only if that is seen at once."""
        ...

    def take_back(self, transport: asyncio.Transport, data: bytes) -> None:
        """The connection is its again, as if `data` had just come."""
        ...


class Connection(web.RequestHandler):
    """One client's. With a `home` it goes back there, between two requests, for one that is wanted there. A client that
    does not keep its `Pace` is cut."""

    __slots__ = ("_boundary", "_looking", "_pace", "_unwanted", "home")

    def __init__(self, manager: web.Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self.home: Home | None = None
        self._boundary = Boundary()
        self._unwanted = 0  # requests that were not for its home
        self._looking: asyncio.TimerHandle | None = None
        self._pace: Pace | None = None  # since the first look at a client that does not read

    def pause_writing(self) -> None:
        super().pause_writing()
        self._pace = None
        if self._looking is None:  # else it has read in between: answers that are long come here often
            self._looking = self._loop.call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._looking = None
        if not self._paused or self.transport is None:
            return
        now, at = self._loop.time(), taken(self.transport)
        if self._pace is None:
            self._pace = Pace(now, at)
        if self._pace.is_kept(now, at):
            self._looking = self._loop.call_later(LOOK_SECONDS, self._look)
        else:
            cut(self.transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        home = self.home
        if home is None:
            super().data_received(data)
            return
        if data and self._waits() and self._boundary.is_here:
            transport = self.transport
            assert transport is not None
            closely = self._unwanted < LOOKS or self._unwanted % LOOK_EACH == 0
            if home.wants(transport, data, closely=closely):
                self._leave(lambda: home.take_back(transport, data))
                return
            self._unwanted += 1
        before = self._request_count
        super().data_received(data)
        begun = self._request_count - before
        self._boundary.took(data, begun, _length(self._messages[-1][0]) if begun else None)

    def _waits(self) -> bool:
        """All requests were answered, and nothing holds up the next one."""
        return (
            self._request_count > 0
            and self._waiter is not None
            and not self._waiter.done()
            and not self._messages
            and not (self._close or self._force_close or self._upgraded or self._payload_parser is not None)
            and not (self._paused or self._reading_paused or self._buffer_paused)
            and self.transport is not None
            and not self.transport.is_closing()
        )

    def _leave(self, then: Callable[[], None]) -> None:
        """As if the connection had ended, which it has not. Where the parser is in the middle of a message after all,
        the connection ends indeed: what came of that is not to be lost between two readers."""
        assert self._parser is not None
        try:
            inside = self._parser.feed_eof() is not None
        except HttpProcessingError:
            inside = True
        if inside:
            log.error("a connection had brought more than whole requests, and is closed")
            self.force_close()
            return
        self.transport = None
        self.connection_lost(None)
        then()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what the parser refuses (400), or to what no handler has caught. The connection ends with it.

        Raises ConnectionError where the answer has begun already, or its client has gone.
        """
        if isinstance(exc, ConnectionError) or request.writer.output_size > 0:
            raise ConnectionError("there is nobody to answer, or half an answer") from exc
        request_id = new_request_id()
        extra = {"request_id": request_id}
        if status == 400:
            lines = str(message or exc).splitlines() or [""]
            log.info("no HTTP from %s: %s", request.remote, lines[0][:SHOWN], extra=extra)
            too_long = isinstance(exc, LineTooLong)
            error: FaasError = InvalidInput(
                "a line of the request's head is too long" if too_long else "this is no HTTP"
            )
        else:
            log.error("request failed", exc_info=exc, extra=extra)
            error = FaasError(f"our fault; it is logged with request id {request_id}")
        response = cast("_Server", self._manager).answer(error, request_id)
        response.headers[REQUEST_ID_HEADER] = request_id
        response.headers[hdrs.SERVER] = SERVER
        response.force_close()
        return response


def _length(message: Any) -> int | None:
    """Of the body of a request; None where its end shows itself."""
    if not isinstance(message, RawRequestMessage) or message.chunked or message.upgrade:
        return None
    return int(message.headers.get(hdrs.CONTENT_LENGTH, 0))


class _Server(web.Server):
    """Makes connections of ours."""

    answer: Answer = staticmethod(error_response)
    is_last_call = False

    def __call__(self) -> web.RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)

    def made_by(self, factory: Factory) -> None:
        """Have `factory` make requests; on the last call none that lets its connection stay."""

        def make(message: RawRequestMessage, *more: Any) -> web.BaseRequest:
            return factory(message._replace(should_close=True) if self.is_last_call else message, *more)

        self.request_factory = make


class Runner(web.AppRunner):
    """`Runner(app, **RUNNER_OPTIONS)`."""

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        ours = _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            **made._kwargs,
        )
        ours.answer = self.app.get(ANSWER, error_response)
        ours.made_by(made.request_factory)
        return ours

    def last_call(self) -> None:
        """The next answer on each connection says that it is the last one."""
        if self.server is not None:
            cast("_Server", self.server).is_last_call = True
