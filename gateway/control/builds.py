"""Builds: wheels of what has none, in a sandbox that is one build's alone.

The client and the builder inside talk to each other (`faas.build.messages`). What passes here is counted and bounded,
never looked into, and none of it is kept. A client that goes ends its build.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator

from aiohttp import WSMsgType, web

from faas.auth import Permission
from faas.build.messages import END, MESSAGE_BYTES
from faas.errors import FaasError, InvalidInput, OutOfMemory, PayloadTooLarge, RequestTimeout, Throttled, Unavailable
from faas.logins import while_allowed
from faas.protocol import Kind, Revision, RevisionKey, Running
from faas.spec import FunctionSpec
from faas.web import PRINCIPAL, REQUEST_ID, access, error_body
from gateway.control.operations import TEXT, Operation
from gateway.gateway import Gateway
from gateway.places import Places

AT_ONCE = 2
WAITING = 8  # builds beyond these
OF_ONE = 4  # that one caller has, running and waiting: each may take its whole time
TURN_SECONDS = 300.0
BUILD_SECONDS = 600.0
MEMORY_MB = 1024
DISK_MB = 4096  # of /tmp: sources, a build's own files, wheels
THROUGH_BYTES = 2 << 30  # each way
CONNECT_SECONDS = 30.0
STALL_SECONDS = 60.0  # a side that takes nothing for so long is given up
LAST_SECONDS = 2.0  # for the exit of a builder whose connection has ended
HEARTBEAT_SECONDS = 30.0
PORT = 8080  # where the builder listens
READY = '{"ready": true}'  # to the client: it may send
PYTHON = re.compile(r"python(3\.\d{1,2})?")


class Builds:
    """How many run at once and how many wait is bounded."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._turns = asyncio.Semaphore(AT_ONCE)
        self.places = Places("builds run or wait", AT_ONCE + WAITING, OF_ONE, reason="Builds", retry_after=30)

    async def run(self, runtime: str, client: web.WebSocketResponse) -> None:
        """One build, from its turn to its end. Raises FaasError with what ended it before the builder did."""
        async with self._turn():
            try:
                async with asyncio.timeout(BUILD_SECONDS):
                    await self._run(runtime, client)
            except TimeoutError:
                raise Unavailable(f"the build was ended after {BUILD_SECONDS:g} s") from None

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            raise Throttled(f"{AT_ONCE} builds run, and none of them ended within {TURN_SECONDS:g} s") from None
        try:
            yield
        finally:
            self._turns.release()

    async def _run(self, runtime: str, client: web.WebSocketResponse) -> None:
        image = await self._gateway.runtimes.builder(runtime)
        spec = FunctionSpec("build", memory=MEMORY_MB, ephemeral_storage=DISK_MB, port=PORT)
        # No function can have such a name: what its sandbox may write into a log is forgotten below.
        key = RevisionKey("default", f"_build-{secrets.token_hex(6)}", 1)
        worker = self._gateway.worker
        try:
            async with worker.run(Revision(key, spec, image), Kind.JOB, wait_seconds=TURN_SECONDS) as job:
                reader, writer = await job.connect(PORT, CONNECT_SECONDS)
                try:
                    await _talk(job, client, reader, writer)
                finally:
                    writer.close()
        finally:
            worker.forget_logs(key.namespace, key.function)


async def _talk(
    job: Running, client: web.WebSocketResponse, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Pass messages on, each way, until the builder's last one. Raises FaasError."""
    await client.send_str(READY)
    inward = asyncio.create_task(_inward(client, writer), name="build: to the builder")
    outward = asyncio.create_task(_outward(reader, client), name="build: from the builder")
    try:
        await asyncio.wait((inward, outward), return_when=asyncio.FIRST_COMPLETED)
        if not outward.done():
            inward.result()  # the client sent what cannot be taken
            if client.closed:
                return
            await asyncio.wait((outward,), timeout=LAST_SECONDS)  # the builder takes nothing more: it has ended
        if not outward.done() or not outward.result():
            raise await _broke_off(job)
    finally:
        for task in (inward, outward):
            task.cancel()
        await asyncio.gather(inward, outward, return_exceptions=True)


async def _inward(client: web.WebSocketResponse, writer: asyncio.StreamWriter) -> None:
    passed = 0
    async for message in client:
        if message.type is not WSMsgType.BINARY or not message.data:
            raise InvalidInput("a build's messages are binary: a kind, and what it says")
        passed += len(message.data)
        if passed > THROUGH_BYTES:
            raise PayloadTooLarge(f"a build takes at most {THROUGH_BYTES >> 20} MB")
        writer.write(len(message.data).to_bytes(4, "big") + message.data)
        try:
            async with asyncio.timeout(STALL_SECONDS):
                await writer.drain()
        except TimeoutError:
            raise Unavailable(f"the builder took nothing for {STALL_SECONDS:g} s") from None
        except OSError:  # it has ended: the other direction knows why
            return


async def _outward(reader: asyncio.StreamReader, client: web.WebSocketResponse) -> bool:
    """Whether the builder came to its own end."""
    passed = 0
    while True:
        try:
            size = int.from_bytes(await reader.readexactly(4), "big")
            if not 0 < size <= MESSAGE_BYTES:
                raise Unavailable("the builder said something that is no message")
            message = await reader.readexactly(size)
        except (asyncio.IncompleteReadError, OSError):
            return False
        passed += size
        if passed > THROUGH_BYTES:
            raise PayloadTooLarge(f"a build gives back at most {THROUGH_BYTES >> 20} MB")
        try:
            async with asyncio.timeout(STALL_SECONDS):
                await client.send_bytes(message)
        except TimeoutError:
            raise RequestTimeout(f"the client took nothing for {STALL_SECONDS:g} s") from None
        if message[:1] == END:
            return True


async def _broke_off(job: Running) -> FaasError:
    """Why the builder's connection ended before its end."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_SECONDS):
            outcome = await job.outcome()
            if outcome.out_of_memory:
                return OutOfMemory(f"the build ran out of memory: it has {MEMORY_MB} MB")
            return Unavailable(f"the builder ended with {outcome.code}")
    return Unavailable("the builder broke off")


@access(Permission.CHANGE)
async def built(request: web.Request) -> web.StreamResponse:
    runtime = request.query.get("runtime", "python")
    if not PYTHON.fullmatch(runtime):
        raise InvalidInput("wheels are built for python or python3.x", hint="?runtime=python3.11")
    client = web.WebSocketResponse(max_msg_size=MESSAGE_BYTES, heartbeat=HEARTBEAT_SECONDS, compress=False)
    if not client.can_prepare(request).ok:
        raise InvalidInput("a build is a WebSocket: it takes files and gives wheels", hint="faas push opens it")
    builds = request.app[BUILDS]
    with builds.places.of(request[PRINCIPAL].name):
        await client.prepare(request)
        try:
            async with while_allowed(request, Permission.CHANGE, None):
                await builds.run(runtime, client)
        except FaasError as error:
            with contextlib.suppress(OSError):
                await client.send_json(error_body(error, request[REQUEST_ID]))
        finally:
            await client.close()
    return client


BUILDS = web.AppKey("builds", Builds)
OPERATIONS = (
    Operation("GET", "/v1/builds", built, "Build wheels in a sandbox: a WebSocket", {101: None},
              query={"runtime": TEXT}),
)  # fmt: skip
