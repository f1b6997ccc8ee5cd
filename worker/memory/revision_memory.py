"""`RevisionMemory`: the launches of one revision at the memory ledger: which have their memory, which wait for it."""

from __future__ import annotations

from collections.abc import Callable

from faas.errors import Throttled
from faas.protocol import Kind
from worker.instance import Instance
from worker.memory.charge import Charge, Request
from worker.memory.eviction import Owner
from worker.memory.ledger import Ledger


class RevisionMemory:
    """Each instance is charged `size` bytes for `owner`. `lost` is called where memory that was on its way is not any
    more."""

    def __init__(self, ledger: Ledger, owner: Owner, size: int, lost: Callable[[], None]) -> None:
        self._ledger = ledger
        self._owner = owner
        self._size = size
        self._lost = lost
        self._asking: dict[Instance, Request] = {}  # the oldest first

    @property
    def asking(self) -> list[Instance]:
        """Launches that wait for memory, the newest first."""
        return list(reversed(self._asking))

    @property
    def stuck(self) -> int:
        """So many of them wait for memory that is not even on its way."""
        return sum(not request.promised for request in self._asking.values())

    def charge_now(self) -> Charge | None:
        """What is free takes nothing from anybody: for an instance that nobody waits for."""
        return self._ledger.try_charge(Kind.INVOKED, self._size, self._owner)

    async def charge(self, instance: Instance, wait_seconds: float | None) -> Charge:
        """Memory for `instance`, others' idle instances making room. Raises Throttled: at once where the whole budget
        has not so much, else after `wait_seconds` (None: it waits until it is cancelled)."""
        request = self._ledger.ask(Kind.INVOKED, self._size, self._owner, self._lost)
        self._asking[instance] = request
        self._lost()
        try:
            return await request.charge(wait_seconds)
        finally:
            del self._asking[instance]

    def may_be_evicted(self, instance: Instance, evict: Callable[[], None]) -> None:
        """`instance` is ready: whenever it is idle, `evict` may be called."""
        cold = instance.cold_start
        assert cold is not None
        assert instance.charge is not None
        instance.charge.may_be_evicted(evict, cold.prepare + cold.create + cold.start + cold.init)
        instance.charge.rest()

    def refusal(self, waited: float, stuck: int) -> Throttled:
        """What an invocation is told whose wait for an instance is over; so many were `stuck`: idle, and without the
        memory to go on."""
        if self.stuck or stuck:
            return self._ledger.refusal(self._size, waited)
        return Throttled(
            f"no instance was free within {waited:g} s",
            hint="try again, or raise queue_timeout, scale.max or scale.reserved",
        )
