"""`Runner`: an application's connections, where what is no HTTP gets an answer in our form, and one line in the log.

aiohttp answers it before any of our code: with its own name, in plain text, some of what was sent in it, and a
traceback in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

from aiohttp import hdrs, web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import LineTooLong

from faas.errors import FaasError, InvalidInput
from faas.web import REQUEST_ID_HEADER, SERVER, error_response, new_request_id

log = logging.getLogger("faas.web")

SHOWN = 200  # characters of what was wrong, in the log
Answer = Callable[[FaasError, str], web.Response]  # (error, request id)
Factory = Callable[..., web.BaseRequest]
ANSWER: web.AppKey[Answer] = web.AppKey("answer")  # an application's own form of these errors


class Connection(web.RequestHandler):
    """One client's."""

    __slots__ = ()

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
