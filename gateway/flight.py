"""`Flight`: how one invocation went, for those who look at it from outside: on which revision, where its time went."""

from __future__ import annotations

from contextvars import ContextVar

from aiohttp import web

from faas.leases import ColdStart
from gateway.router import Route


class Flight:
    """Times are `time.perf_counter`'s, 0.0 where it did not come so far. `seconds`: in the function, as reported.

    `route`: the revision that was chosen.
    """

    __slots__ = ("admitted", "began", "cold", "ended", "route", "seconds")

    def __init__(self, route: Route) -> None:
        self.route = route
        self.began = 0.0
        self.admitted = 0.0  # it has a slot: queue and cold start are over
        self.ended = 0.0
        self.seconds: float | None = None
        self.cold: ColdStart | None = None


FLIGHT = web.RequestKey("flight", Flight)
# The flight of the invocation in whose context code runs: the activator fills it in.
CURRENT: ContextVar[Flight | None] = ContextVar("flight", default=None)
