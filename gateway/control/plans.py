"""Usage plans: how often and how much each API key of one may call; read, set, deleted, and what was used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from faas.auth import Permission
from faas.errors import Conflict, InvalidInput, NotFound
from faas.rules.throttle import BURST, BURST_MOST, RATE, RATE_LEAST, RATE_MOST, default_burst
from faas.spec import NAME_PATTERN
from faas.web import access, json_body
from gateway.control.operations import (
    TEXT,
    WHOLE,
    Operation,
    a_list,
    a_number,
    an_object,
    answer,
    function_name,
    known_keys,
    may,
    namespace_asked,
    stamp,
)
from gateway.gateway import GATEWAY
from gateway.quotas import Period
from gateway.router import function_label
from gateway.store.plans import Plan

QUOTA_MOST = 10**12
NAMES_MOST = 1000


def shown(plan: Plan) -> dict[str, Any]:
    return {
        "name": plan.name,
        "namespace": plan.namespace,
        "rate": plan.rate or None,
        "burst": plan.burst or None,
        "quota": plan.quota or None,
        "period": plan.period.value,
        "functions": list(plan.functions),
        "apis": list(plan.apis),
    }


@access(Permission.READ)
async def listed(request: web.Request) -> web.Response:
    plans, namespace = request.app[GATEWAY].edge.guards.plans, namespace_asked(request)
    found = [
        shown(plan)
        for plan in plans.every()
        if namespace in ("", plan.namespace) and may(request, Permission.READ, plan.namespace)
    ]
    return answer({"plans": found})


@access(Permission.READ)
async def read(request: web.Request) -> web.Response:
    where = function_name(request, Permission.READ)
    return answer(shown(request.app[GATEWAY].edge.guards.plans.get(where.namespace, where.name)))


@access(Permission.ADMIN)
async def put(request: web.Request) -> web.Response:
    where = function_name(request, Permission.ADMIN)
    plan = _plan(where.namespace, where.name, await json_body(request))
    is_new = await request.app[GATEWAY].edge.guards.plans.put(plan)
    return answer(shown(plan), 201 if is_new else 200)


def _plan(namespace: str, name: str, body: Mapping[str, Any]) -> Plan:
    """Raises InvalidInput."""
    known_keys(body, "rate", "burst", "quota", "period", "functions", "apis")
    rate, burst = 0.0, 0
    try:
        if body.get("rate") is not None:
            rate = RATE(body["rate"])
            burst = default_burst(rate) if body.get("burst") is None else BURST(body["burst"])
    except ValueError as error:
        raise InvalidInput(f"rate and burst: each must be {error}") from None
    if body.get("burst") is not None and not rate:
        raise InvalidInput("burst goes with a rate", hint="rate: requests a second")
    quota = 0 if body.get("quota") is None else a_number(body, "quota", 1, QUOTA_MOST)
    period = Period.MONTH.value if body.get("period") is None else body["period"]
    if not isinstance(period, str) or period not in set(Period):
        raise InvalidInput("period must be one of " + ", ".join(Period))
    if not rate and not quota:
        raise InvalidInput("a usage plan has a rate, a quota, or both")
    return Plan(namespace, name, rate, burst, quota, Period(period), _names(body, "functions"), _names(body, "apis"))


def _names(body: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = [] if body.get(key) is None else body[key]
    right = isinstance(value, list) and len(value) <= NAMES_MOST
    if not right or not all(isinstance(name, str) and NAME_PATTERN.fullmatch(name) for name in value):
        raise InvalidInput(f"{key} must be a list of at most {NAMES_MOST} names in the plan's namespace")
    return tuple(dict.fromkeys(value))


@access(Permission.ADMIN)
async def deleted(request: web.Request) -> web.Response:
    gateway, where = request.app[GATEWAY], function_name(request, Permission.ADMIN)
    plan = gateway.edge.guards.plans.get(where.namespace, where.name)
    place = (plan.namespace, plan.name)
    if keys := [key for key in gateway.edge.keys.every() if (key.principal.namespace, key.plan) == place]:
        shown_keys = ", ".join(key.principal.name for key in keys[:3])
        raise Conflict(
            f"this plan has {len(keys)} API keys: {shown_keys}", hint="give them another one first: faas key plan"
        )
    await gateway.edge.guards.plans.remove(where.namespace, where.name)
    return web.Response(status=204)


@access(Permission.READ)
async def usage(request: web.Request) -> web.Response:
    """Of every key of the plan, and of those that had it in this period; `key`: of one, by its name or its id."""
    where, asked = function_name(request, Permission.READ), request.query.get("key", "")
    edge = request.app[GATEWAY].edge
    plan = edge.guards.plans.get(where.namespace, where.name)
    span, used = edge.guards.plans.used(plan)
    ours = [key for key in edge.keys.every() if key.principal.namespace == plan.namespace]
    names = {key.id: key.principal.name for key in ours if key.plan == plan.name or key.id in used}
    used = {**dict.fromkeys(names, 0), **used}
    if asked:
        used = {one: count for one, count in used.items() if asked in (one, names.get(one))}
        if not used:
            raise NotFound(f"{asked[:128]!r} is no key of this plan", hint="see faas plan usage without --key")
    return answer(
        {
            "plan": function_label(plan.namespace, plan.name),
            "period": plan.period.value,
            "since": stamp(span.start),
            "resets_at": stamp(span.end),
            "quota": plan.quota or None,
            "usage": [
                {
                    "key": one,
                    "name": names.get(one, ""),
                    "used": count,
                    "left": max(0, plan.quota - count) if plan.quota else None,
                }
                for one, count in sorted(used.items(), key=lambda item: (names.get(item[0], ""), item[0]))
            ],
        }
    )


_RATE = {"type": ["number", "null"], "minimum": RATE_LEAST, "maximum": RATE_MOST}
_BURST = {"type": ["integer", "null"], "minimum": 1, "maximum": BURST_MOST}
_QUOTA = {"type": ["integer", "null"], "minimum": 1, "maximum": QUOTA_MOST}
_PERIOD = {"type": "string", "enum": [period.value for period in Period]}
_NAMES = {"type": ["array", "null"], "items": TEXT, "maxItems": NAMES_MOST}
_WISH = an_object(  # null is what is not said
    rate=_RATE, burst=_BURST, quota=_QUOTA, period={"enum": [*_PERIOD["enum"], None]}, functions=_NAMES, apis=_NAMES
)
PLAN = an_object(("name", "namespace", "period", "functions", "apis"), more=True, name=TEXT, namespace=TEXT)
USAGE = an_object(
    ("plan", "period", "since", "resets_at", "usage"), more=True, plan=TEXT, period=_PERIOD, since=TEXT,
    resets_at=TEXT, usage=a_list(an_object(("key", "name", "used"), more=True, key=TEXT, name=TEXT, used=WHOLE)),
)  # fmt: skip
OPERATIONS = (
    Operation(
        "GET", "/v1/plans", listed, "Usage plans of API keys",
        {200: an_object(("plans",), plans=a_list(PLAN))}, query={"namespace": TEXT},
    ),
    Operation("GET", "/v1/plans/{name}", read, "One usage plan", {200: PLAN}),
    Operation(
        "PUT", "/v1/plans/{name}", put, "Set one: `rate` and `burst` a second, `quota` in each `period`, or both",
        {200: PLAN, 201: PLAN}, body=_WISH,
    ),
    Operation("DELETE", "/v1/plans/{name}", deleted, "Delete one, with what was used of it", {204: None}),
    Operation(
        "GET", "/v1/plans/{name}/usage", usage, "What its keys have used in the period that runs", {200: USAGE},
        query={"key": TEXT},
    ),
)  # fmt: skip
