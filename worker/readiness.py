"""When is an instance ready: at its first `next`, or when its port accepts a connection, whichever its contract is."""

from __future__ import annotations

import asyncio

from faas.errors import InitFailed
from faas.leases import HttpRequest
from faas.spec import FunctionSpec, Interface
from worker import diagnosis
from worker.drivers.base import Sandbox
from worker.http import HttpClient, HttpExchange
from worker.http_connection import BrokenConnection
from worker.output import Output
from worker.runtime_api import RuntimeApi

FIRST_PAUSE_SECONDS = 0.001
PAUSE_SHARE = 0.04  # of how long it takes already: what looking too late may add to that
LONGEST_PAUSE_SECONDS = 0.02
DRAIN_SECONDS = 0.3  # for the last words of an instance that has ended
LOOK_SECONDS = 0.2
USUAL_PORTS = (80, 3000, 5000, 8000, 8080, 8081, 8888)  # where a server may listen that does not know $PORT


class Readiness:
    """Watches one instance's init."""

    def __init__(
        self,
        sandbox: Sandbox,
        api: RuntimeApi,
        http: HttpClient,
        output: Output,
        spec: FunctionSpec,
        interface: Interface,
        exposed_ports: tuple[int, ...] = (),
    ) -> None:
        self._sandbox = sandbox
        self._api = api
        self._http = http
        self._output = output
        self._spec = spec
        self._interface = interface
        self._exposed_ports = exposed_ports
        self._health = ""  # what the health path said last

    async def wait(self) -> Interface:
        """The contract that the instance speaks, once it is ready. Raises InitFailed with the diagnosis."""
        port = None
        if self._interface is not Interface.LAMBDA:
            port = asyncio.get_running_loop().create_task(self._port_answers(), name="readiness")
        try:
            async with asyncio.timeout(self._spec.init_timeout):
                return await self._first_sign(port)
        except TimeoutError:
            raise await self._not_ready() from None
        finally:
            if port is not None:
                port.cancel()
                await asyncio.wait((port,))
                if not port.cancelled():
                    port.exception()  # seen

    async def _first_sign(self, port: asyncio.Task[None] | None) -> Interface:
        exited, poll = self._sandbox.exited, self._api.first_poll
        signs: set[asyncio.Future[object]] = {exited}  # type: ignore[arg-type]
        if self._interface is not Interface.HTTP or not poll.done():
            signs.add(poll)  # type: ignore[arg-type]
        if port is not None:
            signs.add(port)  # type: ignore[arg-type]
        while True:
            await asyncio.wait(signs, return_when=asyncio.FIRST_COMPLETED)
            if poll.done() and not poll.cancelled() and (error := poll.exception()) is not None:
                raise await self._init_error(error)
            if exited.done():
                raise await self._ended()
            if poll.done() and not poll.cancelled() and self._interface is not Interface.HTTP:
                return Interface.LAMBDA
            if port is not None and port.done():
                port.result()
                return Interface.HTTP
            signs.discard(poll)

    async def _port_answers(self) -> None:
        """Returns when the port accepts a connection and the health path, where there is one, answers 2xx."""
        clock = asyncio.get_running_loop().time
        began = clock()
        while True:
            try:
                connection = await self._http.connect()
            except OSError:
                pause = (clock() - began) * PAUSE_SHARE
                await asyncio.sleep(min(max(pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS))
                continue
            self._http.rest(connection)  # the first request goes over it
            if not self._spec.health or await self._is_healthy():
                return
            await asyncio.sleep(LONGEST_PAUSE_SECONDS)

    async def _is_healthy(self) -> bool:
        exchange = HttpExchange(self._http, lambda: None)
        self._health = self._health or "did not answer"
        try:
            await self._http.request(HttpRequest("GET", self._spec.health, (("Host", "localhost"),)), exchange)
            assert exchange.reader is not None
            self._health = f"answered {exchange.reader.status}"
            return 200 <= exchange.reader.status < 300
        except BrokenConnection as broken:
            self._health = broken.reason
            return False
        finally:
            await exchange.end()

    async def _init_error(self, error: BaseException) -> BaseException:
        """The runtime itself said what is wrong."""
        if not isinstance(error, InitFailed):
            return error
        await self._output.drained(DRAIN_SECONDS)
        self._output.take_now()
        tail = self._output.tail()
        hint = diagnosis.hint_from(f"{error.error_type} {error.message}\n{tail}")
        return InitFailed(error.message, error_type=error.error_type, hint=hint, log_tail=tail)

    async def _ended(self) -> InitFailed:
        await self._output.drained(DRAIN_SECONDS)
        self._output.take_now()
        tail = self._output.tail()
        message, hint = diagnosis.ended(self._spec, self._sandbox.exited.result(), tail)
        return InitFailed(message, hint=hint, log_tail=tail)

    async def _not_ready(self) -> InitFailed:
        self._output.take_now()
        tail = self._output.tail()
        listening: list[int] = []
        if self._interface is not Interface.LAMBDA and not self._health:
            candidates = dict.fromkeys((*self._exposed_ports, *USUAL_PORTS))
            candidates.pop(self._spec.port, None)
            answers = await asyncio.gather(*(self._listens(port) for port in candidates))
            listening = [port for port, answer in zip(candidates, answers, strict=True) if answer]
        message, hint = diagnosis.not_ready(self._spec, self._interface, tail, listening, self._health)
        return InitFailed(message, hint=hint, log_tail=tail)

    async def _listens(self, port: int) -> bool:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                (await self._sandbox.connect(port)).close()
        except OSError:
            return False
        return True
