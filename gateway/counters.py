"""The metrics of invocations, bound to one route and trigger: looking labels up costs more than counting."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from faas.errors import FunctionError, InitFailed, Throttled
from faas.metrics import Metrics
from faas.protocol import Trigger
from gateway.router import LIVE, Route

SUCCESS, ERROR = "success", "error"
HANDLED = "handled"  # the function reported the error itself


class RouteCounters:
    """What one route's invocations by one trigger count on. All names are known ones: labels stay bounded."""

    def __init__(self, metrics: Metrics, route: Route, trigger: Trigger) -> None:
        function, spec = route.label, route.revision.spec
        self._metrics = metrics
        self._function = function
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
            self._metrics.throttles.labels(self._function, error.reason).inc()
        elif isinstance(error, InitFailed):
            self.failed.inc()
            self._metrics.errors.labels(self._function, error.kind).inc()

    def ended(self, error: BaseException | None, handled: bool, queue: float, duration: float, total: float) -> None:
        """An invocation that had a slot is over. All in seconds.

        A caller who went away is nobody's error. `handled`: the function answered with an error of its own.
        """
        if isinstance(error, FunctionError):
            self.failed.inc()
            self._metrics.errors.labels(self._function, error.kind).inc()
        elif handled:
            self.failed.inc()
            self._metrics.errors.labels(self._function, HANDLED).inc()
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
