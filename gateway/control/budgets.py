"""Budgets: how much a namespace, or one function of it, may use in a month; read, set, deleted."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from aiohttp import web

from faas.auth import Permission
from faas.errors import InvalidInput
from faas.spec import NAME_PATTERN
from faas.web import access, json_body
from gateway.control.operations import (
    FLAG,
    TEXT,
    WHOLE,
    Operation,
    a_list,
    a_number,
    a_text,
    an_object,
    answer,
    function_name,
    known_keys,
    may,
    namespace_asked,
    stamp,
)
from gateway.gateway import GATEWAY, Gateway
from gateway.spending import Spending, Watched
from gateway.store.budgets import Budget, Unit

WARN = 80  # percent, where nothing is said
LEAST, MOST = 1e-6, 1e12


def shown(spending: Spending, watched: Watched) -> dict[str, Any]:
    budget, spent = watched.budget, spending.spent(watched)
    ratio = watched.limit.ratio(spent)
    return {
        "name": budget.name,
        "namespace": budget.namespace,
        "function": budget.function or None,
        budget.unit.value: float(budget.amount),
        "currency": spending.prices.currency if budget.unit is Unit.COST else None,
        "warn": budget.warn,
        "throttle": budget.throttle,
        "used": ratio * float(budget.amount),
        "used_percent": round(100 * ratio, 2),
        "state": watched.state.name.lower(),
        "resets_at": stamp(spending.month_end),
    }


@access(Permission.READ)
async def listed(request: web.Request) -> web.Response:
    spending, namespace = request.app[GATEWAY].spending, namespace_asked(request)
    found = [
        shown(spending, one)
        for one in spending.every()
        if namespace in ("", one.budget.namespace) and may(request, Permission.READ, one.budget.namespace)
    ]
    return answer({"budgets": found})


@access(Permission.READ)
async def read(request: web.Request) -> web.Response:
    where = function_name(request, Permission.READ)
    spending = request.app[GATEWAY].spending
    return answer(shown(spending, spending.get(where.namespace, where.name)))


@access(Permission.ADMIN)
async def put(request: web.Request) -> web.Response:
    gateway, where = request.app[GATEWAY], function_name(request, Permission.ADMIN)
    budget = _budget(gateway, where.namespace, where.name, await json_body(request))
    is_new = await gateway.spending.put(budget)
    watched = gateway.spending.get(where.namespace, where.name)
    return answer(shown(gateway.spending, watched), 201 if is_new else 200)


def _budget(gateway: Gateway, namespace: str, name: str, body: Mapping[str, Any]) -> Budget:
    """Raises InvalidInput; NotFound where the function is none."""
    known_keys(body, *Unit, "function", "warn", "throttle")
    units = [unit for unit in Unit if body.get(unit.value) is not None]
    if len(units) != 1:
        raise InvalidInput("a budget has one limit", hint="one of " + ", ".join(Unit))
    function = a_text(body, "function", "")
    if function:
        if not NAME_PATTERN.fullmatch(function):
            raise InvalidInput("function must be the name of a function in the budget's namespace")
        gateway.deployer.known(namespace, function)
    throttle = body.get("throttle", False)
    if not isinstance(throttle, bool):
        raise InvalidInput("throttle must be true or false")
    warn = a_number(body, "warn", 1, 100) if "warn" in body else WARN
    return Budget(namespace, name, function, units[0], _amount(body, units[0]), warn, throttle)


def _amount(body: Mapping[str, Any], unit: Unit) -> Decimal:
    value = body[unit.value]
    if not isinstance(value, int | float) or isinstance(value, bool) or not LEAST <= value <= MOST:  # nor NaN
        raise InvalidInput(f"{unit.value} must be a number from {LEAST:f} to {MOST:.0f}")
    amount = Decimal(str(value))
    if unit is Unit.REQUESTS and amount != amount.to_integral_value():
        raise InvalidInput("requests must be a whole number")
    return amount


@access(Permission.ADMIN)
async def deleted(request: web.Request) -> web.Response:
    where = function_name(request, Permission.ADMIN)
    await request.app[GATEWAY].spending.remove(where.namespace, where.name)
    return web.Response(status=204)


_NUMBER = {"type": "number"}
_LIMIT = {"type": "number", "minimum": LEAST, "maximum": MOST}
BUDGET = an_object(
    ("name", "namespace", "warn", "throttle", "used", "used_percent", "state", "resets_at"), more=True, name=TEXT,
    namespace=TEXT, cost=_LIMIT, gb_seconds=_LIMIT, requests=_LIMIT, warn=WHOLE, throttle=FLAG, used=_NUMBER,
    used_percent=_NUMBER, state={"type": "string", "enum": ["ok", "warning", "exceeded"]}, resets_at=TEXT,
)  # fmt: skip
_WISH = an_object(
    cost=_LIMIT, gb_seconds=_LIMIT, requests=_LIMIT, function=TEXT, throttle=FLAG,
    warn={"type": "integer", "minimum": 1, "maximum": 100},
)  # fmt: skip
OPERATIONS = (
    Operation(
        "GET", "/v1/budgets", listed, "Budgets and what is used of them this month",
        {200: an_object(("budgets",), budgets=a_list(BUDGET))}, query={"namespace": TEXT},
    ),
    Operation("GET", "/v1/budgets/{name}", read, "One budget", {200: BUDGET}),
    Operation(
        "PUT", "/v1/budgets/{name}", put, "Set one; `cost`, `gb_seconds` or `requests` a month",
        {200: BUDGET, 201: BUDGET}, body=_WISH,
    ),
    Operation("DELETE", "/v1/budgets/{name}", deleted, "Delete one", {204: None}),
)  # fmt: skip
