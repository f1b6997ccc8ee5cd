"""What a lane process counts, on its way to the counters, loads and numbers of the main process.

A lane tells of each route: [handle, running now, the most that ran since the last time, endings]; an ending is
[seconds in the function, seconds in all, outcome].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from faas.errors import (
    BadFunctionResponse,
    FaasError,
    FunctionError,
    InstanceExited,
    OutOfMemory,
    ResponseTooLarge,
    TimedOut,
)
from faas.leases import Trigger
from gateway.collector import Load
from gateway.counters import Counters, RouteCounters
from gateway.data_path import DataPath
from gateway.router import Route

WELL, HANDLED = "", "handled"
MOST_RUNNING = 100_000
LONGEST_SECONDS = 1e7
KEPT_SECONDS = 30.0
MOST_ROUTES = 4_096  # of a lane
_KINDS: dict[str, type[FaasError]] = {
    kind.__name__: kind
    for kind in (TimedOut, OutOfMemory, InstanceExited, BadFunctionResponse, ResponseTooLarge, FunctionError, FaasError)
}


def outcome(error: BaseException | None, handled: bool) -> str:
    if error is not None and isinstance(error, Exception) and not isinstance(error, ConnectionError):
        return next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _KINDS), FaasError.__name__)
    return HANDLED if handled else WELL


class LaneCounters(RouteCounters):
    """A route's in a lane process, kept until they are told."""

    def __init__(self, handle: int, soon: Callable[[], None]) -> None:
        self.handle = handle
        self.running = self._most = self._told = 0
        self._over: list[tuple[float, float, str]] = []
        self._soon = soon

    def not_started(self, error: BaseException) -> None:
        """It is not counted: it goes to the main process before that."""

    def ended(self, error: BaseException | None, handled: bool, queue: float, duration: float, total: float) -> None:
        self._count(duration, total, outcome(error, handled))

    def ended_well(self, queue: float, duration: float, total: float) -> None:
        self._count(duration, total, WELL)

    def _count(self, duration: float, total: float, how: str) -> None:
        self._most = max(self._most, self.running)
        self.running -= 1
        self._over.append((duration, total, how))
        self._soon()

    def unknown(self) -> None: ...

    def count(self) -> None: ...

    def told(self) -> list[Any] | None:
        """What is new since the last time."""
        if not self._over and self.running == self._told:
            return None
        told = [self.handle, self.running, max(self._most, self.running), self._over]
        self._over, self._most, self._told = [], 0, self.running
        return told

    @property
    def is_still(self) -> bool:
        return not self.running and not self._told and not self._over


class TellingCounters(Counters):
    """A lane process's. `handles`: what the main process calls each route."""

    def __init__(self, soon: Callable[[], None]) -> None:
        self.handles: WeakKeyDictionary[Route, int] = WeakKeyDictionary()
        self._by_handle: dict[int, LaneCounters] = {}
        self._soon = soon

    def of(self, route: Route, trigger: Trigger) -> RouteCounters:
        handle = self.handles[route]
        if (counters := self._by_handle.get(handle)) is None:
            counters = self._by_handle[handle] = LaneCounters(handle, self._soon)
        return counters

    def told(self) -> list[list[Any]]:
        found = [told for counters in self._by_handle.values() if (told := counters.told()) is not None]
        if len(self._by_handle) > MOST_ROUTES // 2:
            self._by_handle = {handle: one for handle, one in self._by_handle.items() if not one.is_still}
        return found


@dataclass(slots=True)
class Held:
    """A route that a lane knows, and how many invocations of it run there."""

    route: Route
    counters: RouteCounters
    load: Load
    running: int = 0
    idle_since: float = 0.0  # nothing leads there any more, and nothing runs there


class Accounts:
    """One lane's, in the main process."""

    def __init__(self, path: DataPath) -> None:
        self._path = path
        self._held: dict[int, Held] = {}
        self._handles: dict[Route, int] = {}
        self._last = 0
        self.requests = 0  # that have ended

    @property
    def is_full(self) -> bool:
        return len(self._held) >= MOST_ROUTES

    def open(self, route: Route) -> int:
        """A handle for a route, where it is not full."""
        if (handle := self._handles.get(route)) is None:
            self._last += 1
            handle = self._handles[route] = self._last
            activator = self._path.activator
            counters = self._path.invoker.counters(route, Trigger.HTTP)
            load = activator.collector.load(route.revision.key, activator.clock())
            self._held[handle] = Held(route, counters, load)
        self._held[handle].idle_since = 0.0
        return handle

    def forget(self) -> None:
        """Names may lead elsewhere: routes where nothing runs are not needed for long. A request whose body is still
        on its way may begin yet."""
        now = self._path.activator.clock()
        for handle, held in list(self._held.items()):
            if held.running:
                held.idle_since = 0.0
            elif not held.idle_since:
                held.idle_since = now
            elif now - held.idle_since > KEPT_SECONDS:
                del self._held[handle], self._handles[held.route]

    def hear(self, told: Any) -> None:
        """Raises ValueError for what no lane says."""
        handle, running, most, endings = _checked(told)
        held = self._held.get(handle)
        if held is None:
            if handle > self._last:
                raise ValueError("a lane tells of a route that it was not given")
            return  # a body took very long
        began = running + len(endings) - held.running
        if began < 0:
            raise ValueError("more has ended than began")
        activator, key = self._path.activator, held.route.revision.key
        now = activator.clock()
        if not held.running:
            held.load = activator.collector.load(key, now)
        level = max(most, running, held.running)
        self._level(held, level, now)
        held.counters.running += began
        for duration, total, how in endings:
            error = _KINDS[how]() if how in _KINDS else None
            held.counters.ended(error, how == HANDLED, 0.0, duration, total)
        self._level(held, running, now)
        self.requests += len(endings)
        if began:
            activator.scaler.used(held.route.revision)

    def _level(self, held: Held, running: int, now: float) -> None:
        for _ in range(running - held.running):
            held.load.enter(now)
        for _ in range(held.running - running):
            held.load.leave(now)
        self._path.invoker.http_calls += running - held.running
        held.running = running

    def lost(self) -> None:
        """The lane is gone, and what ran there has failed."""
        error = FaasError("the process that served this request has ended")
        for held in self._held.values():
            for _ in range(held.running):
                held.counters.ended(error, False, 0.0, 0.0, 0.0)
            self._level(held, 0, self._path.activator.clock())
        self._held.clear()
        self._handles.clear()


def _checked(told: Any) -> tuple[int, int, int, list[tuple[float, float, str]]]:
    if not isinstance(told, list) or len(told) != 4:
        raise ValueError("that tells of no route")
    handle, running, most, endings = told
    for number in (handle, running, most):
        if type(number) is not int or not 0 <= number <= MOST_RUNNING:
            raise ValueError("that is no number of invocations")
    if not isinstance(endings, list):
        raise ValueError("those are no endings")
    return handle, running, most, [_ending(ending) for ending in endings]


def _ending(told: Any) -> tuple[float, float, str]:
    if not isinstance(told, list) or len(told) != 3:
        raise ValueError("that is no ending")
    duration, total, how = told
    for seconds in (duration, total):
        if type(seconds) not in (int, float) or not 0 <= seconds < LONGEST_SECONDS:
            raise ValueError("that is no time")
    if how not in (WELL, HANDLED) and how not in _KINDS:
        raise ValueError("nothing ends like that")
    return float(duration), float(total), how
