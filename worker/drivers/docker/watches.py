"""`Watches`: the ends of containers, heard from the kernel, and with Podman brought about through it.

Podman tells an end in its events when something next asks about that container, which may be minutes later; and its
answer to a kill waits for that, 20 s long. Docker's events are prompt, but its word on memory is not sure: it hears of
an end and of a group that went over its limit in two ways, and does not add what comes second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from faas.background import Background
from faas.errors import FaasError
from worker.drivers.base import Exit
from worker.drivers.docker.engine import Engine
from worker.drivers.docker.events import ENDED, exit_of
from worker.drivers.docker.sandbox import DockerSandbox

log = logging.getLogger("worker.drivers.docker")

ASK_SECONDS = 0.01  # between questions: the engine hears of an end a little later than we do
PATIENCE_SECONDS = 10.0


class Watches:
    """`ended` is called in the loop, once for each container that was added. `out_of_memory` asks the kernel, at the
    end of the first process: the engine is about to remove the group that knows."""

    def __init__(self, engine: Engine, ended: Callable[[str, Exit], None]) -> None:
        self._engine = engine
        self._ended = ended
        self._open: dict[str, int] = {}  # pidfds, by container
        self._work = Background()

    def add(self, container: str, process: int, out_of_memory: Callable[[], bool]) -> None:
        """`process`: the first one in it, 0 where it has ended."""

        def over() -> None:
            self._work.start(self._ask(container, proved=out_of_memory()), f"the end of {container}")

        self._watch(container, process, over)

    def prove(self, sandbox: DockerSandbox, process: int, out_of_memory: Callable[[], bool]) -> None:
        """Have it know at its end, which its engine tells, whether it went over its memory."""

        def over() -> None:
            sandbox.proved = out_of_memory()

        self._watch(sandbox.container, process, over)

    def _watch(self, container: str, process: int, over: Callable[[], None]) -> None:
        try:
            descriptor = os.pidfd_open(process) if process else -1
        except OSError:
            descriptor = -1
        if descriptor < 0:
            over()
            return
        self._open[container] = descriptor
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(descriptor)
            os.close(self._open.pop(container))
            over()

        loop.add_reader(descriptor, ended)

    def kill(self, container: str) -> None:
        """Its first process, and the others with it. No error where it has ended."""
        if (descriptor := self._open.get(container)) is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)

    async def _ask(self, container: str, *, proved: bool) -> None:
        """How it ended."""
        outcome = Exit(137, 9)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while (state := await self._state(container)) and state["Status"] not in ENDED:  # noqa: ASYNC110
                    await asyncio.sleep(ASK_SECONDS)
            if state:
                outcome = exit_of(int(state["ExitCode"]), state)
        except (FaasError, TimeoutError) as error:
            log.error("how %s ended is not known: %s", container[:12], error or "the engine does not know it")
        self._ended(container, replace(outcome, out_of_memory=outcome.out_of_memory or (proved and outcome.code != 0)))

    async def _state(self, container: str) -> dict[str, Any]:
        with self._engine.errors("tell of a container"):
            return await self._engine.call(lambda: self._engine.state(container))

    async def close(self) -> None:
        loop = asyncio.get_running_loop()
        for descriptor in self._open.values():
            loop.remove_reader(descriptor)
            os.close(descriptor)
        self._open.clear()
        await self._work.cancel()
