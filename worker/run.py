"""`running`: an instance of its own, beside those that serve invocations: a job, or a service that is kept."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from faas.background import Background
from faas.errors import InvalidInput
from faas.protocol import Kind, Outcome, Revision
from worker import sandbox_spec
from worker.drivers.base import Sandbox
from worker.launch import CREATE_SECONDS, PREPARE_SECONDS, START_SECONDS, within
from worker.output import Output
from worker.parts import Parts

KINDS = (Kind.JOB, Kind.SERVICE)


class Run:
    """Implements `faas.protocol.Running`."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.instance_id = sandbox.id
        self._sandbox = sandbox

    async def outcome(self) -> Outcome:
        ended = await asyncio.shield(self._sandbox.exited)
        return Outcome(ended.code, ended.signal, ended.out_of_memory)


@asynccontextmanager
async def running(
    parts: Parts, background: Background, revision: Revision, kind: Kind, wait_seconds: float
) -> AsyncIterator[Run]:
    """See `faas.protocol.Worker.run`. Its end goes on where the caller is cancelled."""
    if kind not in KINDS:
        raise InvalidInput(f"a run is a {' or a '.join(KINDS)}, not {kind}")
    driver, instance_id = parts.driver, secrets.token_hex(8)
    async with within(PREPARE_SECONDS, "the image could not be made ready in time"):
        image = await driver.prepare(revision.image)
    spec = sandbox_spec.sandbox_spec(revision, image, instance_id, now=time.time())
    log = parts.logs.of(revision.key.namespace, revision.key.function)
    charge = await parts.ledger.ask(kind, spec.memory_bytes).charge(wait_seconds)
    output = Output(log, revision.key.number, instance_id)
    parts.janitor.know(instance_id)
    sandbox: Sandbox | None = None

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
        yield Run(sandbox)
    finally:
        await background.complete(end(), f"end of {instance_id}")
