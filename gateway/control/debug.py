"""A terminal in a throw-away instance of a function, over a WebSocket: `faas debug`.

The instance has the function's image, environment, limits, network and `/tmp`, and a shell instead of the function's
command. No invocation ever reaches it, and it goes with its client.

    client                                          server
    {"command": [], "columns": 80, "rows": 24, …}   once, first
                                                    {"instance": "…"}     it runs
    bytes                                           bytes                 typed; written
    {"resize": [100, 40]}
                                                    {"exit": 0, "signal": 0, "out_of_memory": false}
                                                    {"error": {…}}        instead; as the API's errors
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import WSMsgType, web

from faas.auth import Permission
from faas.errors import FaasError, ImageUnusable, InvalidInput, RequestTimeout
from faas.logins import while_allowed
from faas.protocol import Kind, Revision, Running, Terminal, Worker
from faas.web import PRINCIPAL, REQUEST_ID, REQUEST_ID_HEADER, access, error_body
from gateway.control.operations import Operation, a_number, an_object, function_name, known_keys
from gateway.edge.websocket.opening import UpgradeRequired
from gateway.gateway import GATEWAY
from gateway.places import Places

log = logging.getLogger("faas.debug")

SHELL = "/bin/sh"
# Between process 1 and the command: the kernel keeps Ctrl-C from a process 1 that does not ask for it.
WITH_SHELL = (SHELL, "-c", '"$@"; exit $?', "sh")
# Where a program is at the other end: the command waits for a line of ours, until the terminal is as that one wants it.
AFTER_A_LINE = (SHELL, "-c", 'read -r _; "$@"; exit $?', "sh")
MOST = 4  # sessions at once: each holds its function's memory
OF_ONE = MOST - 1  # that one caller has
IDLE_SECONDS = 900
LIFETIME_SECONDS = 3600
WAIT_SECONDS = 10.0  # for memory
WISH_SECONDS = 10.0  # until the first message
LAST_SECONDS = 2.0  # for what was written before the end
BEAT_SECONDS = 20.0  # a client that has gone is noticed within two of them
MESSAGE_BYTES = 65_536
WORDS, WORD_BYTES = 256, 4096  # of a command
SIDE_MOST = 4096  # columns, rows
TERM = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client asks for. `plain`: there is a program at its end, and no person."""

    command: tuple[str, ...] = ()
    columns: int = 80
    rows: int = 24
    term: str = "xterm"
    plain: bool = False
    idle: int = IDLE_SECONDS
    lifetime: int = LIFETIME_SECONDS

    @classmethod
    def parse(cls, text: str) -> Wish:
        """Raises InvalidInput that names the key."""
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):
            raise InvalidInput("the first message must be JSON") from None
        if not isinstance(body, dict):
            raise InvalidInput("the first message must be an object")
        known_keys(body, "command", "columns", "rows", "term", "plain", "idle", "lifetime")
        bounds = {"columns": SIDE_MOST, "rows": SIDE_MOST, "idle": IDLE_SECONDS, "lifetime": LIFETIME_SECONDS}
        numbers = {key: a_number(body, key, 1, most) for key, most in bounds.items() if key in body}
        command, term, plain = body.get("command", []), body.get("term", "xterm"), body.get("plain", False)
        if not isinstance(command, list) or len(command) > WORDS or not all(map(_is_word, command)):
            raise InvalidInput(f"command must be a list of at most {WORDS} texts")
        if command and not command[0]:
            raise InvalidInput("command must begin with a program")
        if not isinstance(term, str) or not TERM.fullmatch(term):
            raise InvalidInput("term must be a terminal's name, such as xterm-256color")
        if not isinstance(plain, bool):
            raise InvalidInput("plain must be true or false")
        return cls(tuple(command), term=term, plain=plain, **numbers)


def _is_word(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value and len(value.encode("utf-8", "replace")) <= WORD_BYTES


def debugged(revision: Revision, args: tuple[str, ...], term: str) -> Revision:
    """`revision` with another command line, and the kind of terminal in its environment. Pure."""
    spec = revision.spec
    return replace(revision, spec=replace(spec, entrypoint=args, command=(), env={**spec.env, "TERM": term}))


def places() -> Places:
    return Places("debug sessions are open", MOST, OF_ONE, reason="debug", hint="end one of them")


PLACES = web.AppKey("debug_places", Places)


@access(Permission.CHANGE)
async def debug(request: web.Request) -> web.StreamResponse:
    gateway, where = request.app[GATEWAY], function_name(request, Permission.CHANGE, qualified=True)
    revision = gateway.router.resolve(where.namespace, where.name, where.qualifier).revision
    socket = web.WebSocketResponse(heartbeat=BEAT_SECONDS, max_msg_size=MESSAGE_BYTES, compress=False)
    if not socket.can_prepare(request):
        raise UpgradeRequired(hint="faas debug NAME opens a terminal")
    socket.headers[REQUEST_ID_HEADER] = request[REQUEST_ID]
    await socket.prepare(request)
    began, by, words = time.monotonic(), request[PRINCIPAL].name, "it was called off"
    try:
        with request.app[PLACES].of(by):
            wish = await _wish(socket)
            _begun(request, revision, by, wish)
            async with while_allowed(request, Permission.CHANGE, where.namespace, where.name):
                words = await _session(socket, gateway.worker, revision, wish)
    except FaasError as error:
        words = f"{error.code}: {error.message}"
        if error.status == FaasError.status:
            log.exception("request failed", extra={"request_id": request[REQUEST_ID]})
        await _send(socket, error_body(error, request[REQUEST_ID]))
    except ConnectionError:
        words = "its client went away"
    finally:
        told = {"request_id": request[REQUEST_ID], "function": str(revision.key), "by": by}
        log.info("a debug session ended after %.0f s: %s", time.monotonic() - began, words, extra=told)
    await socket.close()
    return socket


def _begun(request: web.Request, revision: Revision, by: str, wish: Wish) -> None:
    """For the server's log; the audit log has the request itself. Of the command the program alone: arguments may be
    secrets."""
    program = wish.command[0] if wish.command else SHELL
    told = {"request_id": request[REQUEST_ID], "function": str(revision.key), "by": by, "program": program}
    log.info("a debug session begins", extra=told)


async def _wish(socket: web.WebSocketResponse) -> Wish:
    try:
        async with asyncio.timeout(WISH_SECONDS):
            first = await socket.receive()
    except TimeoutError:
        raise RequestTimeout("the first message did not come") from None
    if first.type is not WSMsgType.TEXT:
        raise InvalidInput("the first message must be a text")
    return Wish.parse(first.data)


async def _session(socket: web.WebSocketResponse, worker: Worker, revision: Revision, wish: Wish) -> str:
    """From the start of the instance to its end; how it ended, in words. Raises FaasError, ConnectionError."""
    async with _running(worker, revision, wish) as (running, waits):
        terminal = running.terminal
        assert terminal is not None
        terminal.resize(wish.columns, wish.rows)
        if wish.plain:
            terminal.plain()
            if waits:
                await terminal.write(b"\n")
        await _send(socket, {"instance": running.instance_id})
        clock = Idle(asyncio.get_running_loop().time)
        writing = asyncio.create_task(_to_client(socket, terminal, clock))
        typing = asyncio.create_task(_to_program(socket, terminal, clock))
        bound = asyncio.create_task(clock.over(wish.idle, wish.lifetime))
        ended = asyncio.create_task(running.outcome())
        tasks = (writing, typing, bound, ended)
        try:
            await asyncio.wait((typing, bound, ended), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                await asyncio.wait((writing,), timeout=LAST_SECONDS)
                how = ended.result()
                await _send(socket, {"exit": how.code, "signal": how.signal, "out_of_memory": how.out_of_memory})
                return f"exit status {how.code}"
            if bound.done():
                raise RequestTimeout(bound.result(), hint="faas debug --idle and --lifetime say how long it may take")
            return "its client went away"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _running(worker: Worker, revision: Revision, wish: Wish) -> AsyncIterator[tuple[Running, bool]]:
    """The command by way of the shell, and whether that waits for a line; where the image has no shell, the command
    itself."""
    shell = AFTER_A_LINE if wish.plain else WITH_SHELL
    waits = bool(wish.command) and wish.plain

    def run(*args: str) -> AbstractAsyncContextManager[Running]:
        wanted = debugged(revision, args, wish.term)
        return worker.run(wanted, Kind.JOB, wait_seconds=WAIT_SECONDS, terminal=True)

    async with AsyncExitStack() as stack:
        try:
            running = await stack.enter_async_context(run(*shell, *wish.command) if wish.command else run(SHELL))
        except ImageUnusable as error:
            if not wish.command:
                hint = "name a program that is in it: faas debug NAME -- PROGRAM …"
                raise ImageUnusable(f"the image has no shell: {error.message}", hint=hint) from None
            running, waits = await stack.enter_async_context(run(*wish.command)), False
        yield running, waits


class Idle:
    """When a byte last went either way."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = self.last = clock()

    def seen(self) -> None:
        self.last = self._clock()

    async def over(self, idle: float, lifetime: float) -> str:
        """Returns when one of the two has passed; with which."""
        while True:
            now = self._clock()
            if now >= self._began + lifetime:
                return f"the session's {lifetime:g} s are over"
            if now >= self.last + idle:
                return f"nothing happened for {idle:g} s"
            await asyncio.sleep(min(self._began + lifetime, self.last + idle) - now)


async def _to_client(socket: web.WebSocketResponse, terminal: Terminal, clock: Idle) -> None:
    """Each piece waits for the one before it, so that a client that does not read holds up the program."""
    while data := await terminal.read():
        clock.seen()
        await socket.send_bytes(data)


async def _to_program(socket: web.WebSocketResponse, terminal: Terminal, clock: Idle) -> None:
    """Until the client goes, or says what makes no sense."""
    async for message in socket:
        clock.seen()
        if message.type is WSMsgType.BINARY:
            await terminal.write(message.data)
        elif (size := _size(message.data)) is not None:
            terminal.resize(*size)
        else:
            return


def _size(text: Any) -> tuple[int, int] | None:
    try:
        columns, rows = json.loads(text)["resize"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    fits = all(type(side) is int and 0 < side <= SIDE_MOST for side in (columns, rows))
    return (columns, rows) if fits else None


async def _send(socket: web.WebSocketResponse, message: Any) -> None:
    if not socket.closed:
        await socket.send_str(json.dumps(message))


OPERATIONS = (
    Operation(
        "GET", "/v1/functions/{name}/debug", debug, "A terminal in a throw-away instance, over a WebSocket",
        {101: None, 426: an_object(("error",), error=an_object(more=True))},
    ),
)  # fmt: skip
