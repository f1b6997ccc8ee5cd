"""`Session`: one connection of a WebSocket API: its messages become invocations, in the order in which they came.

At most `in_flight` of them run at once; what comes beyond that waits in the client's own buffers.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from faas.background import Background
from faas.bodies import BODIES
from faas.errors import FaasError, FunctionError, ResponseTooLarge, Throttled
from faas.leases import InvocationResult, Trigger
from faas.web import new_request_id
from gateway.edge.call import reported
from gateway.edge.websocket import events
from gateway.edge.websocket.api import DISCONNECT, MessageRoute, WebSocketApi
from gateway.edge.websocket.events import Peer
from gateway.edge.websocket.frames import ABNORMAL, GOING_AWAY, INTERNAL, POLICY, Opcode, Piece
from gateway.edge.websocket.wire import Wire
from gateway.event import encode, http_answer
from gateway.invoke import Invoker
from gateway.router import Route, Router

logger = logging.getLogger("faas.websocket")

PING_SECONDS = 300.0  # of silence, before the client is asked whether it is there
PONG_SECONDS = 60.0  # that it has for an answer
INVOKE_SECONDS = 2700.0  # queue_timeout, init_timeout and timeout may be 900 s each


class Functions:
    """How sessions invoke."""

    def __init__(self, router: Router, invoker: Invoker) -> None:
        self._router = router
        self._invoker = invoker

    def route(self, api: WebSocketApi, route: MessageRoute) -> Route:
        """Raises NotFound."""
        return self._router.resolve(api.namespace, route.name, route.qualifier)

    async def invoke(self, route: Route, event: dict[str, Any], request_id: str) -> InvocationResult:
        """Raises FaasError; the function's own error among it."""
        result = await self._invoker.invoke_event(route, encode(event), trigger=Trigger.HTTP, request_id=request_id)
        if result.error_type is not None:
            raise reported(result)
        return result

    async def tell_end(self, api: WebSocketApi, peer: Peer, code: int, reason: str) -> None:
        """Invoke `$disconnect`, once, where the API has it. Nobody is there to hear what comes of it."""
        if (route := api.routes.get(DISCONNECT)) is None:
            return
        request_id = new_request_id()
        event = events.disconnect(peer, code, reason, request_id, time.time())
        try:
            await self.invoke(self.route(api, route), event, request_id)
        except FaasError as error:
            logger.info("$disconnect of %s: %s", api.label, error.code, extra={"request_id": request_id})


class Session:
    """`answer` is the 101 that was sent on `transport`. `api` tells its API as it is now; `gone` and `wrote` are called
    with the session, by its wire.
    """

    def __init__(
        self,
        api: Callable[[], WebSocketApi],
        peer: Peer,
        functions: Functions,
        answer: web.StreamResponse,
        transport: asyncio.Transport,
        gone: Callable[[Session], None],
        wrote: Callable[[Session], None],
    ) -> None:
        self.peer = peer
        self.key = api().key
        self._api = api
        self._functions = functions
        self._on_gone = gone
        self._on_wrote = wrote
        self._wire = Wire(answer, transport, api().max_message, api().max_frame, BODIES, self._gone, self._wrote)
        self._end = (ABNORMAL, "")
        self._timer: asyncio.TimerHandle | None = None
        self._pinged = 0.0
        now = asyncio.get_running_loop().time()
        self._epoch = time.time() - now  # of the loop's clock: two looks at one moment are to be the same time
        self._last_moment = now + api().limits.lifetime.total_seconds()

    def begin(self, request: web.Request) -> None:
        """Read what comes on its connection from here on."""
        request.protocol.set_parser(self._wire)  # type: ignore[arg-type] # feed_data and feed_eof are all it uses
        self._watch()

    # What others ask

    @property
    def api(self) -> WebSocketApi:
        """As it is now."""
        return self._api()

    @property
    def is_open(self) -> bool:
        return self._wire.is_open

    @property
    def last_active_at(self) -> float:
        """Unix time."""
        return self._epoch + self._wire.active

    @property
    def messages(self) -> tuple[int, int]:
        """(received, sent)."""
        return self._wire.received, self._wire.sent

    @property
    def pending(self) -> int:
        """Bytes that its client has not taken."""
        return self._wire.pending

    @property
    def taken(self) -> int:
        """Bytes that it has."""
        return self._wire.written - self._wire.pending

    def send(self, payload: bytes) -> None:
        """Push a message: text where it is UTF-8. Raises Throttled."""
        self._wire.send(_opcode(payload), payload)

    def close(self, code: int, reason: str) -> None:
        self._wire.close(code, reason)

    def cut(self, reason: str) -> None:
        """Nobody reads there."""
        self._wire.cut(POLICY, reason)

    async def over(self) -> None:
        """Until the connection's bytes have ended; whatever ends the wait ends them."""
        try:
            await self._wire.over()
        finally:
            self._wire.lost()

    # What it does

    async def serve(self) -> None:
        """Invoke for each message, until there will be none."""
        in_flight = self._api().in_flight
        turns, running = asyncio.Semaphore(in_flight), Background()
        try:
            while (piece := await self._wire.next()) is not None:
                if in_flight == 1:
                    await self._handled(piece)
                    continue
                await turns.acquire()
                running.own(self._handled(piece), "websocket message").add_done_callback(lambda _: turns.release())
            await running.finish(INVOKE_SECONDS)
        finally:
            await running.cancel()

    async def tell_end(self) -> None:
        await self._functions.tell_end(self._api(), self.peer, *self._end)

    async def _handled(self, piece: Piece) -> None:
        try:
            answer = await self._answer(piece)
            if answer:
                await self._wire.reply(_opcode(answer), answer)
        except TimeoutError:
            self.cut("the client does not read")
        except ConnectionError:
            self._wire.lost()
        except Exception:
            logger.exception("a message failed")
            self.close(INTERNAL, "our fault")
        finally:
            self._wire.done(piece)

    async def _answer(self, piece: Piece) -> bytes:
        """What the client is told of its message; nothing where the route has no answer."""
        api, request_id = self._api(), new_request_id()
        body = piece.payload.decode() if piece.opcode is Opcode.TEXT else piece.payload
        key = api.route_key(body if isinstance(body, str) else None)
        if key is None:
            return events.refusal(events.FORBIDDEN, self.peer.connection_id, request_id)
        route = api.routes[key]
        event = events.message(self.peer, key, body, request_id, secrets.token_urlsafe(12), time.time())
        try:
            result = await self._functions.invoke(self._functions.route(api, route), event, request_id)
            return _body(result, api.max_message) if route.response else b""
        except Throttled:
            return events.refusal(events.THROTTLED, self.peer.connection_id, request_id)
        except FaasError as error:
            level = logging.DEBUG if isinstance(error, FunctionError) else logging.INFO
            logger.log(level, "%s %s: %s", api.label, key, error.code, extra={"request_id": request_id})
            return events.refusal(events.SERVER_ERROR, self.peer.connection_id, request_id)

    # Time

    def _watch(self) -> None:
        """Look after what time brings, and come back when the next of it is due: one timer, whatever happens."""
        loop = asyncio.get_running_loop()
        now, wire = loop.time(), self._wire
        idle = wire.active + self._api().limits.idle.total_seconds()
        if now >= self._last_moment:
            return wire.close(GOING_AWAY, "the connection's lifetime is over")
        if now >= idle:
            return wire.close(GOING_AWAY, "the connection was idle")
        asked = self._pinged > wire.heard
        answer_due = self._pinged + PONG_SECONDS if asked else wire.heard + PING_SECONDS
        if now >= answer_due:
            if asked:
                return wire.cut(ABNORMAL, "the client does not answer")
            wire.ping()
            self._pinged, answer_due = now, now + PONG_SECONDS
        self._timer = loop.call_at(min(self._last_moment, idle, answer_due), self._watch)
        return None

    def _wrote(self) -> None:
        self._on_wrote(self)

    def _gone(self, code: int, reason: str) -> None:
        self._end = (code, reason)
        if self._timer is not None:
            self._timer.cancel()
        self._on_gone(self)


def _opcode(payload: bytes) -> Opcode:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return Opcode.BINARY
    return Opcode.TEXT


def _body(result: InvocationResult, most: int) -> bytes:
    """A function's answer as a message: the body of what it returned. Raises BadFunctionResponse, ResponseTooLarge."""
    if result.payload in (b"", b"null"):
        return b""
    _, _, body = http_answer(result.payload, result.content_type)
    if len(body) > most:
        raise ResponseTooLarge(f"the answer has {len(body)} bytes; a message has {most} at most")
    return body
