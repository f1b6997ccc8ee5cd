"""The metrics of invocations, bound to one route and trigger: looking labels up costs more than counting."""

from __future__ import annotations

from functools import partial
from weakref import WeakKeyDictionary

from faas.errors import FunctionError, InitFailed, OutOfMemory, Throttled, TimedOut
from faas.metrics import Metrics
from faas.protocol import Trigger
from gateway.router import LIVE, Route

SUCCESS, ERROR = "success", "error"
HANDLED = "handled"  # the function reported the error itself
KINDS = (HANDLED, FunctionError.kind, TimedOut.kind, OutOfMemory.kind, InitFailed.kind)


class RouteCounters:
    """What one route's invocations by one trigger count on. All names are known ones: labels stay bounded.

    Failures of every kind are there, as zeros, before the first of them: Prometheus's `rate` and `increase` see a
    counter grow, not begin.
    """

    def __init__(self, metrics: Metrics, route: Route, trigger: Trigger) -> None:
        function, spec = route.label, route.revision.spec
        self._errors = {kind: metrics.errors.labels(function, kind) for kind in KINDS}
        self._throttles = partial(metrics.throttles.labels, function)
        self._throttles(Throttled().reason)
        metrics.dead_letters.labels(function)
        self.succeeded = metrics.invocations.labels(function, route.qualifier, trigger.value, SUCCESS)
        self.failed = metrics.invocations.labels(function, route.qualifier, trigger.value, ERROR)
        self.duration = metrics.duration.labels(function)
        self.queue_wait = metrics.queue_wait.labels(function)
        self.overhead = metrics.overhead.labels(function)
        self.concurrent = metrics.concurrent.labels(function)
        if route.qualifier == LIVE:
            metrics.concurrency_limit.labels(function).set(spec.scale.max * spec.concurrency)

    def not_started(self, error: BaseException) -> None:
        """No slot was had. Throttled calls are not invocations; an init that failed is one."""
        if isinstance(error, Throttled):
            self._throttles(error.reason).inc()
        elif isinstance(error, InitFailed):
            self.failed.inc()
            self._errors[error.kind].inc()

    def ended(self, error: BaseException | None, handled: bool, queue: float, duration: float, total: float) -> None:
        """An invocation that had a slot is over. All in seconds.

        A caller who went away is nobody's error. `handled`: the function answered with an error of its own.
        """
        if isinstance(error, FunctionError):
            self.failed.inc()
            self._errors[error.kind].inc()
        elif handled:
            self.failed.inc()
            self._errors[HANDLED].inc()
        elif error is not None and isinstance(error, Exception) and not isinstance(error, ConnectionError):
            self.failed.inc()  # our fault: the middleware logs it
        else:
            self.succeeded.inc()
        self.queue_wait.observe(queue)
        self.duration.observe(duration)
        self.overhead.observe(max(0.0, total - queue - duration))


class Counters:
    """`RouteCounters` by route; they go with the route at the function's next `Router.put`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._known: WeakKeyDictionary[Route, dict[Trigger, RouteCounters]] = WeakKeyDictionary()

    def of(self, route: Route, trigger: Trigger) -> RouteCounters:
        by_trigger = self._known.get(route)
        if by_trigger is None:
            by_trigger = self._known[route] = {}
        counters = by_trigger.get(trigger)
        if counters is None:
            counters = by_trigger[trigger] = RouteCounters(self._metrics, route, trigger)
        return counters
