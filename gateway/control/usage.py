"""What functions used, and what that would cost: the ledger's rows added up, with the month's bill."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Collection
from decimal import Decimal
from typing import Any

from aiohttp import web

from faas.auth import Permission
from faas.errors import InvalidInput
from faas.spec import NAME_PATTERN, is_namespace
from faas.web import PRINCIPAL, access
from gateway.control import budgets
from gateway.control.operations import (
    SECONDS,
    TEXT,
    TIME,
    WHOLE,
    Operation,
    a_list,
    allow,
    an_object,
    answer,
    may,
    moment_asked,
    namespace_asked,
    stamp,
)
from gateway.gateway import GATEWAY, Gateway
from gateway.ledger import MEGABYTE, hours_from
from gateway.month import Month
from gateway.prices import Prices, Share, gb_seconds
from gateway.router import parse_name
from gateway.store.usage import DAY, HOUR, By, Figures, UsageQuery, UsageRow


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for. `month`: a whole one, else any stretch of time; `whole`: of all namespaces."""

    query: UsageQuery
    month: Month | None
    whole: bool


def _asked(request: web.Request, now: float) -> Asked:
    """Raises InvalidInput, Forbidden."""
    namespace, function = namespace_asked(request), ""
    if written := request.query.get("function", ""):
        namespace, function, _ = parse_name(written)
        if not NAME_PATTERN.fullmatch(function) or not is_namespace(namespace):
            raise InvalidInput("function must be a function's name")
        allow(request, Permission.READ, namespace, function)
    if not namespace and (own := request[PRINCIPAL].where(Permission.READ)) is not None:
        namespace = _only(own)
    if not function and request[PRINCIPAL].functions:
        raise InvalidInput("your token is for some functions: say which", hint="faas usage NAME")
    try:
        by = By(request.query.get("by") or By.FUNCTION)
    except ValueError:
        raise InvalidInput("by must be function, namespace or day") from None
    since, written = moment_asked(request, "since"), request.query.get("month", "")
    if since is not None and written:
        raise InvalidInput("month and since exclude each other")
    if since is not None:
        return Asked(UsageQuery(_begin(since, now), int(now) + 1, namespace, function, by), None, False)
    month = Month.parse(written) if written else Month.at(now)
    if month > Month.at(now):
        raise InvalidInput(f"{month} is yet to come")
    return Asked(UsageQuery(month.start, month.end, namespace, function, by), month, not namespace)


def _only(namespaces: Collection[str]) -> str:
    """Raises InvalidInput where that is none, or several."""
    if len(namespaces) != 1:
        raise InvalidInput("your roles are in several namespaces: say which", hint="faas usage --namespace NAME")
    return next(iter(namespaces))


def _begin(since: float, now: float) -> int:
    """The start of the hour, or of the day where that is all the ledger knows. Raises InvalidInput."""
    if since > now:
        raise InvalidInput("since must not be to come")
    step = HOUR if since >= hours_from(now) else DAY
    return int(since) // step * step


@access(Permission.READ)
async def read(request: web.Request) -> web.Response:
    gateway, now = request.app[GATEWAY], time.time()
    asked = _asked(request, now)
    query, prices = asked.query, gateway.spending.prices
    rows = await gateway.ledger.find(query)
    if query.function and not rows:
        gateway.deployer.known(
            query.namespace, query.function
        )  # a name that never was is told, with those that are close
    total = Figures()
    for row in rows:
        total.merge(row.figures)
    current = asked.month == Month.at(now)
    return answer(
        {
            "month": str(asked.month) if asked.month else None,
            "from": stamp(query.start),
            "to": stamp(min(query.end, now)),
            "by": query.by.value,
            "currency": prices.currency,
            "usage": [_named(row, query) | _shown(row.figures, prices) for row in rows],
            "total": _shown(total, prices),
            "bill": _bill(total, prices) if asked.whole else None,
            "budgets": _budgets(request, gateway, query) if current else [],
        }
    )


def _named(row: UsageRow, query: UsageQuery) -> dict[str, Any]:
    if query.by is By.DAY:
        return {"day": (stamp(row.hour) or "")[:10]}
    if query.by is By.NAMESPACE:
        return {"namespace": row.namespace}
    return {"namespace": row.namespace, "function": row.function}


def _shown(figures: Figures, prices: Prices) -> dict[str, Any]:
    return {
        "requests": figures.requests,
        "errors": figures.errors,
        "cold_starts": figures.cold_starts,
        "duration_ms": figures.duration_us / 1000,
        "billed_ms": figures.billed_ms,
        "mb_ms": figures.mb_ms,
        "gb_seconds": float(gb_seconds(figures.mb_ms)),
        "max_memory_mb": math.ceil(figures.max_memory_bytes / MEGABYTE),
        "cost": _money(prices.cost(figures.requests, figures.mb_ms)),
    }


def _money(amount: Decimal) -> str:
    """As text: a decimal number is not to be rounded by whoever reads JSON."""
    return f"{amount.normalize():f}"


def _bill(total: Figures, prices: Prices) -> dict[str, Any]:
    bill = prices.bill(total.requests, total.mb_ms)

    def line(share: Share, allowance: int) -> dict[str, Any]:
        return {
            "used": float(share.used), "free": float(share.free), "allowance": allowance, "cost": _money(share.cost)
        }  # fmt: skip

    return {
        "currency": bill.currency,
        "requests": line(bill.requests, prices.free_requests),
        "gb_seconds": line(bill.gb_seconds, prices.free_gb_seconds),
        "cost": _money(bill.cost),
    }


def _budgets(request: web.Request, gateway: Gateway, query: UsageQuery) -> list[dict[str, Any]]:
    """Those that bear on what is shown."""
    return [
        budgets.shown(gateway.spending, one)
        for one in gateway.spending.every()
        if query.namespace in ("", one.budget.namespace)
        and (not query.function or one.budget.function in ("", query.function))
        and may(request, Permission.READ, one.budget.namespace)
    ]


_NUMBER = {"type": "number"}
_FIGURES = an_object(
    ("requests", "mb_ms", "cost"), requests=WHOLE, errors=WHOLE, cold_starts=WHOLE, duration_ms=_NUMBER,
    billed_ms=WHOLE, mb_ms=WHOLE, gb_seconds=_NUMBER, max_memory_mb=WHOLE, cost=TEXT,
)  # fmt: skip
_ROW = {**_FIGURES, "properties": {**_FIGURES["properties"], "namespace": TEXT, "function": TEXT, "day": TEXT}}
_LINE = an_object(("used", "free", "allowance", "cost"), used=_NUMBER, free=_NUMBER, allowance=WHOLE, cost=TEXT)
_BILL = {
    **an_object(
        ("currency", "requests", "gb_seconds", "cost"), currency=TEXT, requests=_LINE, gb_seconds=_LINE, cost=TEXT
    ),
    "type": ["object", "null"],
}
OPERATIONS = (
    Operation(
        "GET", "/v1/usage", read, "What functions used: this month, or another, or since a time, with the bill",
        {
            200: an_object(
                ("from", "to", "by", "usage", "total"), more=True, by=TEXT, currency=TEXT, to=TIME, bill=_BILL,
                month={"type": ["string", "null"]}, usage=a_list(_ROW), total=_FIGURES,
                budgets=a_list(budgets.BUDGET),
            )
        },
        query={
            "month": TEXT, "since": SECONDS, "namespace": TEXT, "function": TEXT,
            "by": {"type": "string", "enum": ["", *(by.value for by in By)]},
        },
    ),
)  # fmt: skip
