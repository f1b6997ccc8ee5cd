"""`SandboxGroups`: what the driver does to a running sandbox through its control groups: set its share, freeze, thaw,
count."""

from __future__ import annotations

import asyncio
import contextlib

from faas.errors import Unavailable
from worker.drivers.base import Sandbox, SandboxState, SandboxStats
from worker.drivers.linux.cgroups import Cgroups
from worker.drivers.oci.sandbox import OciSandbox

FREEZE_GRACE_SECONDS = 0.01
# Until all stand still: one may be in the midst of a long system call, and each needs a moment of a CPU to get there,
# for which a busy machine takes seconds. None does anything else meanwhile, and who claims one does not wait for it.
STILL_SECONDS = 10.0
LOOK_SECONDS, LOOK_SECONDS_MOST = 0.001, 0.02
# Then all go on for a moment, and after twice as long again: under cgroup v1 a program with threads that is just being
# exchanged for another (execve) waits for its threads to die, which those that stand still never do.
STUCK_SECONDS = 0.25


class SandboxGroups:
    """Part of `OciDriver`. Each is a few writes of 50 µs: less than a thread would cost."""

    freeze_grace_seconds = FREEZE_GRACE_SECONDS

    def __init__(self, cgroups: Cgroups) -> None:
        self._cgroups = cgroups

    async def set_cpus(self, sandbox: Sandbox, cpus: float) -> None:
        """See `Driver`. Raises OSError."""
        assert isinstance(sandbox, OciSandbox)
        sandbox.shares = 0
        with contextlib.suppress(FileNotFoundError):  # it has ended
            self._cgroups.set_cpus(sandbox.name, cpus)

    async def freeze(self, sandbox: Sandbox) -> None:
        """See `Driver`. Raises Unavailable where it does not stand still, and lets it go on."""
        assert isinstance(sandbox, OciSandbox)
        clock = asyncio.get_running_loop().time
        began, pause, patience = clock(), LOOK_SECONDS, STUCK_SECONDS
        sandbox.is_frozen = True
        sandbox.freezes = turn = sandbox.freezes + 1
        sandbox.counters.release()  # of hundreds that stand still nobody needs the files
        try:
            while not self._cgroups.freeze(sandbox.name):
                if (waited := clock() - began) > STILL_SECONDS:  # and looked at since: we may not have run ourselves
                    raise Unavailable(f"the instance {sandbox.id} does not stand still")
                if waited > patience:
                    patience *= 2
                    self._cgroups.thaw(sandbox.name)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LOOK_SECONDS_MOST)
                if not sandbox.is_frozen or sandbox.freezes != turn:
                    return  # thawed again, or being killed; or frozen anew since, for which that call waits
        except BaseException as error:
            with contextlib.suppress(OSError):
                await self.thaw(sandbox)
            if isinstance(error, FileNotFoundError) and sandbox.exited.done():
                return
            if isinstance(error, OSError):
                raise Unavailable(f"the instance {sandbox.id} cannot be frozen: {error}") from None
            raise

    async def thaw(self, sandbox: Sandbox) -> None:
        """See `Driver`. Raises OSError."""
        assert isinstance(sandbox, OciSandbox)
        if sandbox.is_frozen:
            sandbox.is_frozen = False
            with contextlib.suppress(FileNotFoundError):  # it has ended
                self._cgroups.thaw(sandbox.name)

    def end_frozen(self, sandbox: OciSandbox) -> None:
        """Blocking. Before a kill: what is frozen would not die of it."""
        sandbox.is_frozen = False
        self._cgroups.end_frozen(sandbox.name)

    def group(self, sandbox: Sandbox) -> str:
        """Where its counters are: `worker.drivers.linux.cgroups.counters_at`."""
        assert isinstance(sandbox, OciSandbox)
        return self._cgroups.path(sandbox.name)

    def measured(self, sandbox: OciSandbox) -> int:
        """Bytes of memory, asked anew."""
        return self._cgroups.stats(sandbox.name).memory_bytes

    def state(self, sandbox: Sandbox) -> SandboxState:
        assert isinstance(sandbox, OciSandbox)
        return sandbox.state

    def stats(self, sandbox: Sandbox) -> SandboxStats:
        assert isinstance(sandbox, OciSandbox)
        if sandbox.is_frozen:
            return self._cgroups.stats(sandbox.name)
        return sandbox.counters.read()
