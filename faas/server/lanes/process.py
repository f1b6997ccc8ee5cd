"""`python -m faas.server.lanes.process LISTENER CHANNEL OPTIONS`: a lane process, started by `faas.server.lanes.fleet`.

It has a copy of the public listening socket and one end of a nameless socket pair; no database, no secret, no way to
start anything. It ends when the main process has gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from faas import log
from faas.acceptor import Acceptor
from faas.bodies import BODIES
from faas.crowd import Crowd
from faas.doors import LAST_CALL_SECONDS, SETTLE_SECONDS, most_connections, raise_file_limit
from faas.errors import FaasError, Unavailable
from faas.proxies import TrustedProxies
from faas.server.lanes.options import Options
from gateway.lanes.outpost import Outpost, Table, Wanted, told_function
from worker.borrowed import Borrower, error_of
from worker.http_connection import BrokenConnection
from worker.launcher.peer import Answer, Peer
from worker.launcher.wire import Message

logger = logging.getLogger("faas.server.lanes")

TELL_SECONDS = 0.05
REST_SECONDS = 1.0
FAREWELL_SECONDS = 0.05  # for clients to be told of the end
BODY_BYTES = 16_777_216  # of requests that are read here; what has no room here goes to the main process
WHY_SECONDS = 5.0


class Station:
    """The parts of a lane process, wired."""

    def __init__(self, listener: socket.socket, end: socket.socket, options: Options) -> None:
        self._borrower = Borrower(self)
        self._table = Table(self._borrower, self.tell_soon)
        proxies = TrustedProxies.parse(options.proxies)
        self._lane = Outpost(self._table, self._borrower, self, options.domain, proxies)
        self._crowd = Crowd(options.per_address, proxies)
        self._most = most_connections()
        self._version = 0
        self._timer: asyncio.TimerHandle | None = None
        verbs: dict[str, Callable[[Message, list[int]], Awaitable[Answer]]] = {
            "forget": self._forget,
            "recall": self._recall,
            "refuse": self._refuse,
        }
        self._peer = Peer(end, verbs, self._ended)
        self._lane.begin()
        self._acceptor = Acceptor(listener, self._accept)
        self._resting = asyncio.get_running_loop().call_later(REST_SECONDS, self._rest)
        self._peer.tell("hello")

    def _accept(self) -> asyncio.Protocol:
        taken = len(self._lane.connections) + len(self._lane.parked)
        return Newcomer(self._crowd, self._lane, is_full=taken >= self._most)

    # Main, as lane and borrower see it

    async def ask(self, wanted: Wanted) -> float:
        version = self._version
        told = await self._peer.ask("ask", host=wanted.host, name=wanted.name)
        if told["function"] is None:
            return float(told["wait"])
        function = told_function(told["function"])
        revision = function.revision()
        if (loan := told["loan"]) is not None:
            self._borrower.take(loan["id"], revision, loan["slots"])
        if version != self._version:
            raise Unavailable("what was asked has changed")
        self._table.learn(wanted, function)
        return 0.0 if self._borrower.has_room(revision.key) else float(told["wait"])

    def take(self, descriptor: int, data: bytes) -> None:
        taken = self._peer.begin("take", [descriptor], data=data.decode("latin-1"))
        taken.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def connect(self, loan: int) -> socket.socket:
        try:
            _, descriptors = await self._peer.call("connect", loan=loan)
        except FaasError as error:
            raise ConnectionRefusedError(str(error)) from None
        if len(descriptors) != 1:
            raise ConnectionRefusedError("no connection")
        return socket.socket(fileno=descriptors[0])

    async def why(self, loan: int, request_id: str, seconds: float, broken: BrokenConnection) -> BaseException:
        try:
            async with asyncio.timeout(WHY_SECONDS):
                told = await self._peer.ask(
                    "why",
                    loan=loan,
                    request=request_id,
                    seconds=seconds,
                    reason=broken.reason,
                    no_listener=broken.no_listener,
                )
        except TimeoutError:
            raise Unavailable("the main process does not answer") from None
        return error_of(told)

    async def late(self, loan: int, request_id: str, seconds: float) -> None:
        with contextlib.suppress(TimeoutError, FaasError):
            async with asyncio.timeout(WHY_SECONDS):
                await self._peer.ask("late", loan=loan, request=request_id, seconds=seconds)

    def tell_soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TELL_SECONDS, self.tell_now)

    def tell_now(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loans, routes = self._borrower.told(), self._table.counters.told()
        if loans or routes:
            self._peer.tell("told", loans=loans, routes=routes)
        if self._borrower.taken:
            self.tell_soon()  # what begins is told of before it ends

    # What the main process says

    async def _forget(self, message: Message, descriptors: list[int]) -> Answer:
        self._version += 1
        self._lane.forget()
        self.tell_now()
        return Answer()

    async def _recall(self, message: Message, descriptors: list[int]) -> Answer:
        self._borrower.recall(int(message["loan"]))
        return Answer()

    async def _refuse(self, message: Message, descriptors: list[int]) -> Answer:
        """No new connection from here on; returns when no request begins any more."""
        self._acceptor.close()
        if message.get("hand_over"):
            self._lane.last_call()
            await asyncio.sleep(LAST_CALL_SECONDS)
        else:
            await asyncio.sleep(SETTLE_SECONDS)
        self._lane.refuse()
        asyncio.get_running_loop().create_task(self._finish(), name="the last requests")
        return Answer()

    async def _finish(self) -> None:
        """Until the last answer has gone out; the main process has a deadline for it."""
        while self._lane.connections or self._lane.parked:  # noqa: ASYNC110 - an end costs nothing so
            await asyncio.sleep(TELL_SECONDS)
        self.tell_now()
        await asyncio.sleep(TELL_SECONDS)
        self._ended("")

    def _ended(self, why: str) -> None:
        self._acceptor.close()
        self._lane.close()
        asyncio.get_running_loop().call_later(FAREWELL_SECONDS, os._exit, 0)  # the kernel closes all that is left

    def _rest(self) -> None:
        self._borrower.rest()
        self._resting = asyncio.get_running_loop().call_later(REST_SECONDS, self._rest)


class Newcomer(asyncio.Protocol):
    """A new connection, until it is known whether it may stay; else it is the main process's."""

    def __init__(self, crowd: Crowd, lane: Outpost, *, is_full: bool) -> None:
        self._crowd = crowd
        self._lane = lane
        self._is_full = is_full

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        given: Any = transport  # uvloop's are no asyncio.Transport by inheritance
        if self._is_full or not self._crowd.admits(transport):
            self._lane.pass_on(given, b"")
            return
        protocol = self._lane.accept()
        given.set_protocol(protocol)
        protocol.connection_made(transport)


async def run(listener: int, channel: int, options: Options) -> None:
    BODIES.limit = BODY_BYTES
    sockets = [socket.socket(fileno=number) for number in (listener, channel)]
    for one in sockets:
        one.setblocking(False)
        os.set_inheritable(one.fileno(), False)
    Station(sockets[0], sockets[1], options)
    gc.collect()
    gc.freeze()  # as the main process: full rounds of the collector would hold up requests
    await asyncio.Event().wait()


def main() -> None:
    listener, channel, options = int(sys.argv[1]), int(sys.argv[2]), Options.parse(sys.argv[3])
    log.configure(options.log_format)
    raise_file_limit()
    # The main process says when: what is sent to all of them at once must not take this one away first.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    uvloop.run(run(listener, channel, options))


if __name__ == "__main__":
    main()
