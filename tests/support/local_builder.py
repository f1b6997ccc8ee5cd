"""The builder of wheels as a process of this machine, where a test needs its words and no sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from faas.build import messages
from faas.protocol import Kind, Outcome, Revision, Running, Terminal
from tests.support.fake_worker import FakeWorker
from tests.support.ports import free_port

PROGRAM = Path(__file__).resolve().parent.parent.parent / "faas" / "runtimes" / "builder" / "build.py"
_START = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("build", sys.argv[1])
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)
build.PORT, build.INDEX_PORT, build.PIP = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
build.INPUT, build.OUTPUT, build.HOME = (f"{sys.argv[5]}/{name}" for name in ("in", "out", "home"))
build.main()
"""


class Job:
    """Implements `faas.protocol.Running`; `out_of_memory` is what its outcome says."""

    terminal: Terminal | None = None

    def __init__(self, process: asyncio.subprocess.Process, port: int, *, out_of_memory: bool = False) -> None:
        self.instance_id = str(process.pid)
        self.process = process
        self._port = port
        self._out_of_memory = out_of_memory

    async def outcome(self) -> Outcome:
        return Outcome(await self.process.wait(), out_of_memory=self._out_of_memory)

    async def connect(self, port: int, seconds: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with asyncio.timeout(seconds):
            while True:
                with contextlib.suppress(OSError):
                    return await asyncio.open_connection("127.0.0.1", self._port)
                await asyncio.sleep(0.01)


class BuildingWorker(FakeWorker):
    """Runs the builder itself, or `program`: Python code that gets the port to listen on as its argument."""

    def __init__(self, work: Path, program: str = "", *, out_of_memory: bool = False) -> None:
        super().__init__()
        self.jobs: list[Job] = []
        self.revisions: list[Revision] = []
        self._work = work
        self._program = program
        self._out_of_memory = out_of_memory
        self._index_port = free_port()

    def meet(self, change: Callable[[object, str, object], None]) -> None:
        """Have the client know where this builder's index and files are; `change` is monkeypatch's `setattr`."""
        change(messages, "INDEX", f"http://127.0.0.1:{self._index_port}")
        change(messages, "INPUT", f"{self._work}/in")

    @asynccontextmanager
    async def run(
        self, revision: Revision, kind: Kind, *, wait_seconds: float, terminal: bool = False
    ) -> AsyncIterator[Running]:
        assert kind is Kind.JOB
        self.revisions.append(revision)
        port, found = free_port(), importlib.util.find_spec("pip")
        assert found is not None
        assert found.origin is not None
        words = [PROGRAM, port, self._index_port, Path(found.origin).parent, self._work]
        command = ["-c", self._program, port] if self._program else ["-c", _START, *words]
        process = await asyncio.create_subprocess_exec(sys.executable, *map(str, command))
        self.jobs.append(job := Job(process, port, out_of_memory=self._out_of_memory))
        try:
            yield job
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            await process.wait()
