"""CORS in front of a function or a route that has the rule: preflights are answered here, before anybody is asked for
credentials, and every answer says who may read it (Fetch standard, "CORS protocol"; API Gateway does the same).

An origin that is not listed gets no field at all, and nothing that a client sends is said back but an origin that the
rule lists. What the function itself says of CORS is replaced.
"""

from __future__ import annotations

from aiohttp import hdrs, web

from faas.rules.cors import ANY, METHODS, Cors
from gateway.headers import vary

_OURS = (
    hdrs.ACCESS_CONTROL_ALLOW_ORIGIN,
    hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS,
    hdrs.ACCESS_CONTROL_ALLOW_METHODS,
    hdrs.ACCESS_CONTROL_ALLOW_HEADERS,
    hdrs.ACCESS_CONTROL_EXPOSE_HEADERS,
    hdrs.ACCESS_CONTROL_MAX_AGE,
    "Access-Control-Allow-Private-Network",
)
_PREFLIGHT = (
    hdrs.ACCESS_CONTROL_ALLOW_METHODS,
    hdrs.ACCESS_CONTROL_ALLOW_HEADERS,
    hdrs.ACCESS_CONTROL_MAX_AGE,
)


def is_preflight(request: web.Request) -> bool:
    """Whether a browser asks before it sends."""
    return (
        request.method == "OPTIONS"
        and hdrs.ORIGIN in request.headers
        and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
    )


def preflight(rule: Cors, request: web.Request) -> web.Response | None:
    """The answer to a preflight, None for any other request. `admit` adds who may read it."""
    if not is_preflight(request):
        return None
    answer = web.Response(status=204)
    for name in (hdrs.ACCESS_CONTROL_REQUEST_METHOD, hdrs.ACCESS_CONTROL_REQUEST_HEADERS):
        vary(answer.headers, name)
    if _origin(rule, request):
        answer.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = ", ".join(METHODS if ANY in rule.methods else rule.methods)
        if rule.headers:
            answer.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = ", ".join(rule.headers)
        if rule.max_age:
            answer.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = str(int(rule.max_age.total_seconds()))
    return answer


def admit(rule: Cors, request: web.Request, answer: web.StreamResponse) -> None:
    """Say in an answer's head whether the page that asked may read it; the function's own word goes."""
    asked = is_preflight(request)
    for name in _OURS:
        if not (asked and name in _PREFLIGHT):
            answer.headers.popall(name, None)
    if ANY not in rule.origins:
        vary(answer.headers, hdrs.ORIGIN)
    origin = _origin(rule, request)
    if not origin:
        return
    answer.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
    if rule.credentials:
        answer.headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"
    if rule.expose and not asked:
        answer.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = ", ".join(rule.expose)


def _origin(rule: Cors, request: web.Request) -> str:
    """What the answer says of origins: `*`, or the request's where it is listed; "" for nothing."""
    if ANY in rule.origins:
        return ANY
    origins = request.headers.getall(hdrs.ORIGIN, ())
    return origins[0] if len(origins) == 1 and rule.allows(origins[0]) else ""
