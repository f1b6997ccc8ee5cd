"""`Charge`: memory that somebody has of the ledger's budget; `Request`: somebody who waits for it.

What is in use is charged its limit. What rests and stands still has no more than was measured: its charge is shrunk to
that, and grows again, by a request like any other, before it goes on.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from faas.errors import FaasError
from faas.protocol import Kind
from worker.memory.admission import PATIENCE_SECONDS
from worker.memory.budget import MEGABYTE
from worker.memory.eviction import Owner

if TYPE_CHECKING:
    from worker.memory.ledger import Ledger

LOOK_SECONDS = PATIENCE_SECONDS + 0.01  # a loop's timer may be early by its clock's grain
STILL_SLACK = MEGABYTE  # beside what is measured: network namespace, mounts and sockets, and the counters' own grain
STILL_GRAIN = MEGABYTE // 4  # what a small change of the figure need not change


def still_size(memory_bytes: int, limit: int) -> int:
    """What is charged of a frozen instance of which so much was measured: quarters of a MB, never above its limit."""
    return min(limit, -(-(memory_bytes + STILL_SLACK) // STILL_GRAIN) * STILL_GRAIN)


class _State(enum.Enum):
    HELD = enum.auto()
    RESTING = enum.auto()
    LEAVING = enum.auto()
    RELEASED = enum.auto()


_HELD, _RESTING, _LEAVING, _RELEASED = _State  # looking one up in its enum costs 0.2 µs


class Charge:
    """Memory that somebody has. Give it back with `release`, or use it as a context manager.

    `size` is charged now, `full` while it is in use. `yields`: so much of it is about to be free, since what has it
    rests and will soon stand still.
    """

    __slots__ = ("_evict", "_ledger", "_state", "full", "kind", "owner", "rested_at", "size", "start_seconds", "yields")

    def __init__(self, ledger: Ledger, kind: Kind, size: int, owner: Owner | None) -> None:
        self.kind = kind
        self.size = self.full = size
        self.owner = owner
        self.yields = 0
        self.rested_at = 0.0
        self.start_seconds = 0.0
        self._ledger = ledger
        self._evict: Callable[[], None] | None = None
        self._state = _HELD

    def may_be_evicted(self, evict: Callable[[], None], start_seconds: float) -> None:
        """From here on whenever it rests. `evict` ends what has the memory, which then gives it back; it took
        `start_seconds` to start."""
        self._evict = evict
        self.start_seconds = start_seconds

    def rest(self, yields: int = 0) -> None:
        """What has it is idle. Costs two entries of a dict on each invocation's way out, and no look at who waits."""
        if self._state is _HELD and self._evict is not None:
            self._state = _RESTING
            self.rested_at = self._ledger.clock()
            self._ledger.resting[self] = None
            if yields > 0:
                self.yields = yields
                self._ledger.yielding += yields

    def use(self) -> None:
        """It is in use again, or will be."""
        if self._state is _RESTING:
            self._state = _HELD
            del self._ledger.resting[self]
            if self.yields:
                self.keep()

    def keep(self) -> None:
        """Nothing of it gets free, though that was in sight."""
        if self.yields:
            self._ledger.yielding -= self.yields
            self.yields = 0
            self._ledger.look_again()

    def shrink(self, size: int) -> None:
        """What has it rests, and has no more than so many bytes of it until `try_grow` or a grant of the ledger's
        `readmit`."""
        if self._state is _RESTING and size < self.size:
            self._ledger.yielding -= self.yields
            self.yields = 0
            self._ledger.resize(self, size)

    def try_grow(self, size: int | None = None) -> bool:
        """To `size`, None: to all that it has in use. Whether that is free and nobody waits for it."""
        wanted = self.full if size is None else size
        if self._state not in (_HELD, _RESTING):
            return False
        if wanted > self.size:
            if not self._ledger.can_have(wanted - self.size, self.owner):
                return False
            self._ledger.resize(self, wanted)
            self.full = max(self.full, wanted)
        return True

    def leave(self) -> None:
        """What has it is being ended."""
        if self._state in (_HELD, _RESTING):
            self.use()
            self._state = _LEAVING
            self._ledger.left(self)

    @property
    def leaving(self) -> bool:
        return self._state is _LEAVING

    @property
    def is_held(self) -> bool:
        return self._state is _HELD

    @property
    def is_shrunk(self) -> bool:
        return self.size < self.full

    @property
    def room(self) -> int:
        """What its eviction makes free that would not be free soon without it."""
        return self.size - self.yields

    @property
    def charged(self) -> int:
        """Bytes; 0 once it is given back."""
        return 0 if self._state is _RELEASED else self.size

    def evict(self) -> None:
        """Have what has it ended, for whoever waits."""
        assert self._evict is not None
        self.leave()
        self._evict()

    def release(self) -> None:
        """It is free again. Said twice, it counts once."""
        if self._state is not _RELEASED:
            self.leave()
            self._state = _RELEASED
            self._ledger.released(self)

    def __enter__(self) -> Charge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Request:
    """Somebody waits for memory. `promised`: it is being made free. `grows`: the charge that it is the rest of."""

    __slots__ = ("_future", "_ledger", "grows", "kind", "lost", "owner", "promised", "since", "size", "timer")

    def __init__(self, ledger: Ledger, kind: Kind, size: int, owner: Owner | None, lost: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self.kind = kind
        self.size = size
        self.owner = owner
        self.since = ledger.clock()
        self.promised = False
        self.lost = lost
        self.grows: Charge | None = None
        self.timer = loop.call_later(LOOK_SECONDS, self.look)
        self._ledger = ledger
        self._future: asyncio.Future[Charge] = loop.create_future()

    def look(self) -> None:
        """It has waited long: it is passed no more."""
        self._ledger.settle()

    async def charge(self, wait_seconds: float | None = None) -> Charge:
        """The memory, once it is there. Raises Throttled after `wait_seconds`; None: it waits until it is cancelled."""
        try:
            async with asyncio.timeout(wait_seconds):
                return await self._future
        except BaseException as error:
            self._withdraw()
            if isinstance(error, TimeoutError):
                raise self._ledger.refusal(self.size, wait_seconds) from None
            raise

    def _withdraw(self) -> None:
        future = self._future
        if future.done() and not future.cancelled() and future.exception() is None:
            future.result().release()  # it came together with the end of the wait
        self._ledger.forget(self)

    def grant(self, charge: Charge) -> bool:
        """Whether it was still wanted."""
        self.timer.cancel()
        if self._future.done():
            return False
        self.promised = True
        self._future.set_result(charge)
        return True

    def refuse(self, error: FaasError) -> None:
        self.timer.cancel()
        if not self._future.done():
            self._future.set_exception(error)
            self._future.exception()  # seen: whoever waited may have gone


class Readmission(Request):
    """What stands still waits for the rest of its charge. `granted` is called, on the loop, when it has it."""

    __slots__ = ("_granted",)

    def __init__(self, ledger: Ledger, charge: Charge, granted: Callable[[], None], lost: Callable[[], None]) -> None:
        super().__init__(ledger, charge.kind, charge.full - charge.size, charge.owner, lost)
        self.grows = charge
        self._granted = granted

    def look(self) -> None:
        """Look again each second: whether it is stuck is a question of time."""
        self._ledger.settle()
        if not self.timer.cancelled():  # neither granted nor withdrawn
            self.timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self.look)

    def grant(self, charge: Charge) -> bool:
        self.timer.cancel()
        self.promised = True
        asyncio.get_running_loop().call_soon(self._granted)
        return True

    def refuse(self, error: FaasError) -> None:
        self.timer.cancel()
