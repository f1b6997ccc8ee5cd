"""`running`: an instance of its own, beside those that serve invocations: a job, or a service that is kept."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from faas.background import Background
from faas.errors import InvalidInput, Unavailable
from faas.protocol import Kind, Outcome, Revision, Terminal
from worker import sandbox_spec
from worker.drivers.base import Sandbox
from worker.launch import CREATE_SECONDS, PREPARE_SECONDS, START_SECONDS, within
from worker.output import Output
from worker.parts import Parts
from worker.terminal import PtyTerminal

KINDS = (Kind.JOB, Kind.SERVICE)
LOOK_SECONDS = 0.02  # between looks at a port that does not listen yet


class Run:
    """Implements `faas.protocol.Running`."""

    def __init__(self, sandbox: Sandbox, terminal: PtyTerminal | None) -> None:
        self.instance_id = sandbox.id
        self.terminal: Terminal | None = terminal
        self._sandbox = sandbox

    async def outcome(self) -> Outcome:
        ended = await asyncio.shield(self._sandbox.exited)
        return Outcome(ended.code, ended.signal, ended.out_of_memory)

    async def connect(self, port: int, seconds: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with within(seconds, f"nothing listens on port {port} inside within {seconds:g} s"):
            while not self._sandbox.exited.done():
                with contextlib.suppress(OSError):
                    return await asyncio.open_connection(sock=await self._sandbox.connect(port))
                await asyncio.sleep(LOOK_SECONDS)
        raise Unavailable(f"the job has ended: {self._sandbox.exited.result()}")


@asynccontextmanager
async def running(
    parts: Parts, background: Background, revision: Revision, kind: Kind, wait_seconds: float, terminal: bool = False
) -> AsyncIterator[Run]:
    """See `faas.protocol.Worker.run`. Its end goes on where the caller is cancelled."""
    if kind not in KINDS:
        raise InvalidInput(f"a run is a {' or a '.join(KINDS)}, not {kind}")
    driver, instance_id = parts.driver, secrets.token_hex(8)
    async with within(PREPARE_SECONDS, "the image could not be made ready in time"):
        image = await driver.prepare(revision.image)
    spec = replace(parts.launches.spec(revision, image, instance_id), terminal=terminal)
    log = parts.logs.of(revision.key.namespace, revision.key.function)
    charge = await parts.ledger.ask(kind, spec.memory_bytes).charge(wait_seconds)
    output = Output(log, revision.key.number, instance_id)
    parts.janitor.know(instance_id)
    sandbox: Sandbox | None = None
    seat: PtyTerminal | None = None

    async def end() -> None:
        with charge:
            await parts.janitor.discard(instance_id, sandbox, output)

    try:
        async with within(CREATE_SECONDS, "a sandbox could not be created in time"):
            sandbox = await driver.create(spec)
        output.open(sandbox.stdout, sandbox.stderr)
        async with within(START_SECONDS, "the sandbox did not start in time"):
            await driver.start(sandbox)
        with contextlib.suppress(OSError):  # it has ended already
            await driver.set_cpus(sandbox, sandbox_spec.cpus(revision))
        seat = PtyTerminal(sandbox.take_terminal()) if terminal else None
        yield Run(sandbox, seat)
    finally:
        if seat is not None:
            seat.close()
        await background.complete(end(), f"end of {instance_id}")
