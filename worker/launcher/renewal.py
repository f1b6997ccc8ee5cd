"""`Renewal`: a server that stands for years has its own CA's certificate issued anew in time, with nobody's help.

It runs where root is, for the CA's key is root's alone, and does its work in a process of its own: what signs is not
loaded into one that stays. The server sees the new file and shows it (`faas.tls`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from faas.background import Background

log = logging.getLogger("worker.launcher")

LOOK_SECONDS = 12 * 3600.0
RUN_SECONDS = 60.0


class Renewal:
    """`data` is the server's folder; `env` the process's environment, None: ours."""

    def __init__(self, data: Path, env: Mapping[str, str] | None = None, *, look_seconds: float = LOOK_SECONDS) -> None:
        self._data = data
        self._env = env
        self._look_seconds = look_seconds
        self._background = Background()

    def start(self) -> None:
        self._background.start(self._run(), "renewing the certificate")

    async def stop(self) -> None:
        await self._background.cancel()

    async def _run(self) -> None:
        while True:
            try:
                if (self._data / "tls" / "ca.pem").exists():
                    await self._renew()
            except OSError as error:  # the next look may have what this one lacked
                log.error("the certificate cannot be renewed: %s", error)
            await asyncio.sleep(self._look_seconds)

    async def _renew(self) -> None:
        command = [sys.executable, "-B", "-P", "-s", "-m", "faas.cli", "tls", "renew", "--data", str(self._data)]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._env,
            cwd="/",
        )
        try:
            async with asyncio.timeout(RUN_SECONDS):
                out, _ = await process.communicate()
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):  # it has ended just now
                process.kill()
            await process.wait()
            if not isinstance(error, TimeoutError):
                raise
            log.error("renewing the certificate took longer than %d s", RUN_SECONDS)
            return
        if process.returncode:
            log.error("the certificate cannot be renewed: %s", out.decode(errors="replace").strip()[-1000:])
