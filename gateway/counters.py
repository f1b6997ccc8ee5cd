"""The metrics of invocations, bound to one route and trigger: looking labels up costs more than counting."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary, finalize

from faas.errors import CircuitOpen, FunctionError, InitFailed, OutOfMemory, Throttled, TimedOut
from faas.leases import Trigger
from faas.metrics import Metrics
from faas.protocol import NO_MEMORY
from gateway.breaker import CONCURRENCY, RESERVED
from gateway.router import LIVE, Route
from gateway.spending import REASON as BUDGET

AT_ONCE = 64  # endings, counted together: in a loop that is cheaper
SUCCESS, ERROR = "success", "error"
HANDLED = "handled"  # the function reported the error itself
KINDS = (HANDLED, FunctionError.kind, TimedOut.kind, OutOfMemory.kind, InitFailed.kind)


@dataclass(slots=True)
class Tally:
    """Plain numbers beside the metrics, which are dear to read: a thousand functions' take a quarter of a second."""

    invocations: int = 0
    errors: int = 0
    refused: int = 0


class RouteCounters:
    """What one route's invocations by one trigger count on. All names are known ones: labels stay bounded.

    Failures of every kind are there, as zeros, before the first of them: Prometheus's `rate` and `increase` see a
    counter grow, not begin.
    """

    def __init__(self, metrics: Metrics, route: Route, trigger: Trigger) -> None:
        function, spec = route.label, route.revision.spec
        self._tally = Tally()
        self._others = 0  # of those that have ended and are not counted: no successes
        self._at_once = AT_ONCE
        self.running = self._shown = 0  # now, and of these in the gauge
        self._ended: list[tuple[float, float, float]] = []  # not counted yet: queue, duration and total of each
        self._errors = {kind: metrics.errors.labels(function, kind) for kind in KINDS}
        self._throttles = partial(metrics.throttles.labels, function)
        for reason in (RESERVED if spec.scale.reserved else CONCURRENCY, BUDGET, NO_MEMORY):
            self._throttles(reason)
        metrics.dead_letters.labels(function)
        self.succeeded = metrics.invocations.labels(function, route.qualifier, trigger.value, SUCCESS)
        self.failed = metrics.invocations.labels(function, route.qualifier, trigger.value, ERROR)
        self.duration = metrics.duration.labels(function)
        self.queue_wait = metrics.queue_wait.labels(function)
        self.overhead = metrics.overhead.labels(function)
        self._concurrent = metrics.concurrent.labels(function)
        self.websockets = partial(metrics.websocket_connections.labels, function)
        if route.qualifier == LIVE:
            metrics.concurrency_limit.labels(function).set(spec.scale.limit * spec.concurrency)

    def not_started(self, error: BaseException) -> None:
        """No slot was had. Throttled calls are not invocations; an init that failed is one."""
        if isinstance(error, Throttled | CircuitOpen):
            self._throttles(error.reason).inc()
            self._tally.refused += 1
        elif isinstance(error, InitFailed):
            self._failed()
            self._errors[error.kind].inc()

    def ended(self, error: BaseException | None, handled: bool, queue: float, duration: float, total: float) -> None:
        """An invocation that had a slot, and was among those `running`, is over. All in seconds.

        A caller who went away is nobody's error. `handled`: the function answered with an error of its own.
        """
        if error is not None or handled:
            self._ended_otherwise(error, handled)
        self.ended_well(queue, duration, total)

    def ended_well(self, queue: float, duration: float, total: float) -> None:
        """`ended`, without an error: as nearly always."""
        self.running -= 1
        ended = self._ended
        ended.append((queue, duration, total))
        if len(ended) >= self._at_once:
            self.count()

    def _ended_otherwise(self, error: BaseException | None, handled: bool) -> None:
        if isinstance(error, FunctionError):
            self._errors[error.kind].inc()
        elif handled:
            self._errors[HANDLED].inc()
        elif not isinstance(error, Exception) or isinstance(error, ConnectionError):
            return  # the caller went away; else it is our fault, and the middleware logs it
        self._others += 1
        self._failed()

    def _failed(self) -> None:
        self.failed.inc()
        self._tally.invocations += 1
        self._tally.errors += 1

    @property
    def tally(self) -> Tally:
        self.count()
        return self._tally

    def unknown(self) -> None:
        """Nobody will ask for these any more; those of its calls that run yet are counted as they end."""
        self._at_once = 1
        self.count()

    def count(self) -> None:
        """What runs and what has ended. Called before anybody looks, and where there is much of it."""
        running, self._shown = self.running - self._shown, self.running
        self._concurrent.inc(running)
        ended, self._ended = self._ended, []
        if not ended:
            return
        succeeded, self._others = len(ended) - self._others, 0
        self.succeeded.inc(succeeded)
        self._tally.invocations += succeeded
        queues, durations, _ = zip(*ended, strict=True)
        self.queue_wait.observe_all(queues)
        self.duration.observe_all(durations)
        self.overhead.observe_all([max(0.0, total - queue - duration) for queue, duration, total in ended])


class Counters:
    """`RouteCounters` by route; they go with the route at the function's next `Router.put`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        metrics.before_reading(self._count)
        self._known: WeakKeyDictionary[Route, dict[Trigger, RouteCounters]] = WeakKeyDictionary()

    def of(self, route: Route, trigger: Trigger) -> RouteCounters:
        by_trigger = self._known.get(route)
        if by_trigger is None:
            by_trigger = self._known[route] = {}
        counters = by_trigger.get(trigger)
        if counters is None:
            counters = by_trigger[trigger] = RouteCounters(self._metrics, route, trigger)
            finalize(route, counters.unknown).atexit = False
        return counters

    def _count(self) -> None:
        for by_trigger in list(self._known.values()):
            for counters in by_trigger.values():
                counters.count()

    def tallies(self) -> dict[str, Tally]:
        """Of each function, by its label, since its last change."""
        found: dict[str, Tally] = {}
        for route, by_trigger in self._known.items():
            total = found.setdefault(route.label, Tally())
            for counters in by_trigger.values():
                tally = counters.tally
                total.invocations += tally.invocations
                total.errors += tally.errors
                total.refused += tally.refused
        return found
