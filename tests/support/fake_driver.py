"""A `Driver` without isolation, for tests: a sandbox is a coroutine of the test, or a plain subprocess.

Ports inside a sandbox are mapped to ports that the kernel chose on the loopback interface: `listen(9001)` and
`connect(8080)` work as in a real one, and a program learns the real numbers from its environment
(`AWS_LAMBDA_RUNTIME_API`, `PORT`), which is rewritten for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from faas.errors import Conflict, ImageUnusable
from faas.oci.manifest import ImageConfig
from faas.oci.platform import architecture
from tests.support import patience
from tests.support.ports import free_port
from worker.drivers.base import (
    Exit,
    Lend,
    PreparedImage,
    Sandbox,
    SandboxSpec,
    SandboxState,
    SandboxStats,
    freely,
)

Program = Callable[["FakeSandbox"], Awaitable[int | None]]
NEXT = "/2018-06-01/runtime/invocation/next"


async def eventually(condition: Callable[[], bool], seconds: float = 5) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(seconds * patience.FACTOR):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.002)


class OutOfMemoryKill(Exception):
    """Raised by a program that shall end as if the kernel had killed it."""


@dataclass(eq=False)
class FakeSandbox:
    """Implements `Sandbox`; to a program it is also its world: `env`, `print`, `runtime`, `serve`."""

    spec: SandboxSpec
    stdout: asyncio.StreamReader = field(default_factory=asyncio.StreamReader)
    stderr: asyncio.StreamReader = field(default_factory=asyncio.StreamReader)
    state: SandboxState = SandboxState.CREATED
    ports: dict[int, int] = field(default_factory=dict)  # inside → outside
    memory_bytes: int = 10 * 1_048_576
    oom_kills: int = 0
    is_frozen: bool = False
    freezes: int = 0
    cpus: float = 0.0
    task: asyncio.Task[None] | None = None
    process: asyncio.subprocess.Process | None = None
    servers: list[asyncio.Server] = field(default_factory=list)
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    path = "cold"

    def __post_init__(self) -> None:
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.cpus = self.spec.cpus

    @property
    def id(self) -> str:
        return self.spec.id

    async def listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        self.ports[port] = listener.getsockname()[1]
        return listener

    def take_terminal(self) -> int:
        raise Conflict("it has no terminal to give")

    async def connect(self, port: int) -> socket.socket:
        if port not in self.ports or self.state is SandboxState.STOPPED:
            raise ConnectionRefusedError(111, "Connection refused")
        connector = socket.socket()
        connector.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connector, ("127.0.0.1", self.ports[port]))
        except BaseException:
            connector.close()
            raise
        return connector

    # For programs

    @property
    def env(self) -> dict[str, str]:
        env = self.spec.environment()
        env["AWS_LAMBDA_RUNTIME_API"] = f"127.0.0.1:{self.ports[9001]}"
        if int(env["PORT"]) in self.ports:
            env["PORT"] = str(self.ports[int(env["PORT"])])
        return env

    def print(self, text: str, *, error: bool = False) -> None:
        (self.stderr if error else self.stdout).feed_data(text.encode() + b"\n")

    async def runtime(self) -> FakeRuntime:
        """A client of the Runtime API with one connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[9001])
        self.writers.add(writer)
        return FakeRuntime(reader, writer)

    async def serve(
        self, handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], port: int = 8080
    ) -> None:
        """Listen on `port` inside."""

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.writers.add(writer)
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await handle(reader, writer)
            writer.close()

        server = await asyncio.start_server(accepted, "127.0.0.1", 0)
        self.servers.append(server)
        self.ports[port] = server.sockets[0].getsockname()[1]

    # For the driver

    async def run(self, program: Program) -> None:
        outcome = Exit(137, 9)
        try:
            outcome = Exit(await program(self) or 0)
        except OutOfMemoryKill:
            self.oom_kills += 1
            outcome = Exit(137, 9, True)
        except asyncio.CancelledError:
            pass
        except Exception as error:
            self.print(repr(error), error=True)
            outcome = Exit(1)
        finally:
            self.ended(outcome)

    async def run_process(self, args: tuple[str, ...]) -> None:
        self.ports.setdefault(int(self.spec.env["PORT"]), free_port())
        try:
            self.process = process = await asyncio.create_subprocess_exec(
                *args,
                env=self.env,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise ImageUnusable(f"cannot execute {args[0]}: {error.strerror}") from None
        assert process.stdout is not None
        assert process.stderr is not None

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamReader) -> None:
            while data := await source.read(65_536):
                target.feed_data(data)

        async def wait() -> None:
            assert process.stdout is not None
            assert process.stderr is not None
            await asyncio.gather(copy(process.stdout, self.stdout), copy(process.stderr, self.stderr))
            code = await process.wait()
            self.ended(Exit(128 - code, -code) if code < 0 else Exit(code))

        self.task = asyncio.get_running_loop().create_task(wait())

    def ended(self, outcome: Exit) -> None:
        self.state = SandboxState.STOPPED
        for server in self.servers:
            server.close()
        for writer in self.writers:
            if (transport := writer.transport) is not None:
                transport.abort()
        for stream in (self.stdout, self.stderr):
            if not stream.at_eof():
                stream.feed_eof()
        if not self.exited.done():
            self.exited.set_result(outcome)


class FakeRuntime:
    """A Runtime API client: `next` and `respond`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        lines = [f"{method} {path} HTTP/1.1", "Host: runtime", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
        return await self.answer()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        return int(head[0].split()[1]), fields, await self.reader.readexactly(int(fields.get("content-length", 0)))

    async def next(self) -> tuple[str, Any]:
        status, fields, body = await self.request("GET", NEXT)
        assert status == 200, body
        return fields["lambda-runtime-aws-request-id"], json.loads(body)

    async def respond(self, request_id: str, value: Any, verb: str = "response", **headers: str) -> int:
        path = f"/2018-06-01/runtime/invocation/{request_id}/{verb}"
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return (await self.request("POST", path, body, {k.replace("_", "-"): v for k, v in headers.items()}))[0]


def lambda_program(handler: Callable[[FakeSandbox, Any], Awaitable[Any]]) -> Program:
    """A runtime that calls `handler(sandbox, event)` for each event; an exception is reported as the function's."""

    async def program(sandbox: FakeSandbox) -> int:
        runtime = await sandbox.runtime()
        while True:
            request_id, event = await runtime.next()
            try:
                result = await handler(sandbox, event)
            except OutOfMemoryKill:
                raise
            except SystemExit as leaving:
                return int(leaving.code or 0)
            except Exception as error:
                problem = {"errorType": type(error).__name__, "errorMessage": str(error), "stackTrace": []}
                await runtime.respond(request_id, problem, "error")
            else:
                await runtime.respond(request_id, result)

    return program


async def echo(sandbox: FakeSandbox, event: Any) -> Any:
    return event


class FakeDriver:
    """Implements `Driver`. `programs` maps the first argument of a command line to a coroutine; an argument that is
    a path is run as a subprocess. `image` is what every reference means."""

    name = "fake"
    freeze_grace_seconds = 0.01

    def __init__(self, programs: Mapping[str, Program] | None = None, *, image: ImageConfig | None = None) -> None:
        self.programs = {"echo": lambda_program(echo), **(programs or {})}
        self.image = image or ImageConfig(architecture(), entrypoint=("echo",))
        self.sandboxes: dict[str, FakeSandbox] = {}
        self.created: list[FakeSandbox] = []
        self.lend: Lend = freely
        self.is_open = False
        self.collected: set[str] | None = None
        self.prepare_error: Exception | None = None
        self.create_seconds = 0.0
        self.freeze_seconds = 0.0  # and to thaw
        self.freeze_error: Exception | None = None
        self.thaw_error: Exception | None = None
        self.spares = 0  # bytes
        self.drops = 0

    async def open(self) -> None:
        self.is_open = True

    async def close(self) -> None:
        for sandbox_id in list(self.sandboxes):
            await self.delete(sandbox_id)
        self.is_open = False

    async def collect(self, held: Collection[str]) -> int:
        self.collected = set(held)
        return 0

    async def prepare(self, reference: str) -> PreparedImage:
        if self.prepare_error is not None:
            raise self.prepare_error
        return PreparedImage(reference, self.image, None)

    async def create(self, spec: SandboxSpec, *, ahead: bool = False, at_once: bool = False) -> Sandbox:
        if spec.id in self.sandboxes:
            made = self.sandboxes[spec.id]
            if ahead or made.path != "precreated" or made.spec != spec or made.state is not SandboxState.CREATED:
                raise Conflict(f"there is a sandbox {spec.id} already")
            return made
        await asyncio.sleep(self.create_seconds)
        sandbox = self.sandboxes[spec.id] = FakeSandbox(spec)
        sandbox.path = "precreated" if ahead else "cold"
        self.created.append(sandbox)
        return sandbox

    async def start(self, sandbox: Sandbox) -> None:
        assert isinstance(sandbox, FakeSandbox)
        program = self.programs.get(sandbox.spec.args[0])
        if program is None:
            await sandbox.run_process(sandbox.spec.args)
        else:
            sandbox.task = asyncio.get_running_loop().create_task(sandbox.run(program))
        sandbox.state = SandboxState.RUNNING

    async def kill(self, sandbox: Sandbox) -> None:
        assert isinstance(sandbox, FakeSandbox)
        if sandbox.process is not None and sandbox.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(sandbox.process.pid, signal.SIGKILL)
            await sandbox.process.wait()
        elif sandbox.task is not None:
            sandbox.task.cancel()
            await asyncio.wait([sandbox.task])
        sandbox.ended(Exit(137, 9))

    async def delete(self, sandbox_id: str) -> None:
        sandbox = self.sandboxes.get(sandbox_id)
        if sandbox is None:
            return
        await self.kill(sandbox)
        if sandbox.task is not None:
            await asyncio.wait([sandbox.task])
        for server in sandbox.servers:
            server.close()
        self.sandboxes.pop(sandbox_id, None)

    async def set_cpus(self, sandbox: Sandbox, cpus: float) -> None:
        assert isinstance(sandbox, FakeSandbox)
        sandbox.cpus = cpus

    async def freeze(self, sandbox: Sandbox) -> None:
        """In name only: what runs in it runs on."""
        assert isinstance(sandbox, FakeSandbox)
        if self.freeze_error is not None:
            raise self.freeze_error
        await asyncio.sleep(self.freeze_seconds)
        sandbox.is_frozen = True
        sandbox.freezes += 1

    async def thaw(self, sandbox: Sandbox) -> None:
        assert isinstance(sandbox, FakeSandbox)
        if self.thaw_error is not None:
            raise self.thaw_error
        await asyncio.sleep(self.freeze_seconds)
        sandbox.is_frozen = False

    def spare_bytes(self) -> int:
        return self.spares

    async def drop_spares(self) -> None:
        self.drops += 1
        await asyncio.sleep(0)
        self.spares = 0

    def state(self, sandbox: Sandbox) -> SandboxState:
        assert isinstance(sandbox, FakeSandbox)
        return sandbox.state

    async def ids(self) -> list[str]:
        return sorted(self.sandboxes)

    def stats(self, sandbox: Sandbox) -> SandboxStats:
        assert isinstance(sandbox, FakeSandbox)
        return SandboxStats(sandbox.memory_bytes, sandbox.oom_kills, 1, 0.0)
