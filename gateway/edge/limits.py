"""`Limits`: how often requests may come in: the entry's own `throttle`, and the usage plan of the caller's key.

Buckets belong to a function (by its own path) or a route, and to the rule as it is written: a deploy that leaves it as
it is changes nothing.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from faas.attempts import network_of
from faas.auth import ALL_NAMESPACES
from faas.errors import FaasError, Throttled
from faas.rules.throttle import Per, Throttle
from gateway.edge.caller import Caller
from gateway.edge.entry import Entry
from gateway.edge.throttle import Buckets, Rate, retry_after
from gateway.plan_book import RATE_EXCEEDED, PlanBook
from gateway.quotas import Count
from gateway.router import DEFAULT_NAMESPACE

FUNCTION_RATE_EXCEEDED = "FunctionInvocationRateLimitExceeded"
MOST_RULES = 4096  # those that were used longest ago go first; there are as many as are deployed

Rule = tuple[str, str, str, Throttle]


class Limits:
    """`clock`: one that never jumps, in seconds."""

    def __init__(self, plans: PlanBook, clock: Callable[[], float] = time.monotonic) -> None:
        self._plans = plans
        self._clock = clock
        self._buckets: OrderedDict[Rule, Buckets] = OrderedDict()

    def admit(self, entry: Entry, caller: Caller, address: str) -> Count | None:
        """A request comes in; the unit of its plan's quota that it has taken. Raises Throttled, Forbidden."""
        rule, now = entry.rules.throttle, self._clock()
        if rule is not None:
            buckets, who = self._of(entry, rule), whose(rule.per, caller, address)
            if wait := buckets.wait(who, now):
                reason = FUNCTION_RATE_EXCEEDED if rule.per is Per.ALL else RATE_EXCEEDED
                raise Throttled("too many requests", reason=reason, retry_after=retry_after(wait))
        count = self._of_plan(entry, caller) if caller.plan else None
        if rule is not None:
            buckets.take(who, now)
        return count

    def _of_plan(self, entry: Entry, caller: Caller) -> Count:
        namespace, key = caller.principal.namespace, entry.route.revision.key
        if namespace == ALL_NAMESPACES:
            namespace = DEFAULT_NAMESPACE
        return self._plans.admit(namespace, caller.plan, caller.key, function=key.function, api=entry.api)

    def _of(self, entry: Entry, rule: Throttle) -> Buckets:
        # A route that has its function's own rule shares the function's buckets.
        own = rule == entry.route.revision.spec.rules.throttle
        where: Rule = ("", "", entry.route.label, rule) if own else (entry.api, entry.pattern, entry.route.label, rule)
        buckets = self._buckets.get(where)
        if buckets is None:
            buckets = self._buckets[where] = Buckets(Rate(rule.rate, rule.burst))
            if len(self._buckets) > MOST_RULES:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(where)
        return buckets


def whose(per: Per, caller: Caller, address: str) -> str:
    """Who has the bucket. Whoever shows no credentials is an address: an IPv6 client is its /64."""
    if per is Per.ALL:
        return ""
    if per is Per.KEY and not caller.is_stranger:
        return f"key {caller.key}" if caller.key else f"name {caller.principal.namespace}/{caller.principal.name}"
    return network_of(address)


def gives_back(error: BaseException) -> bool:
    """Whether the request was refused for want of capacity, by us: then it was none that a plan's quota counts."""
    return isinstance(error, FaasError) and error.status in (429, 503)
