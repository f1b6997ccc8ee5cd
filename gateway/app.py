"""The two listeners' applications. The public one has functions and nothing else."""

from __future__ import annotations

from typing import Any, cast

from aiohttp import web
from aiohttp.typedefs import Middleware

from faas.auth import Authenticator, Permission
from faas.web import access, authorization, errors
from gateway import (
    aliases,
    budgets,
    dead_letters,
    functions,
    info,
    instances,
    invocations,
    logs,
    not_offered,
    openapi,
    revisions,
    runtimes,
    schedules,
    tokens,
    top,
    triggers,
    usage,
)
from gateway.asynchronous import async_routes
from gateway.edge.doorman import Doorman
from gateway.edge.passage import answering
from gateway.gateway import GATEWAY, Gateway
from gateway.operations import Operation, an_object, answer
from gateway.public import function_routes, strict
from gateway.top import TOP, Top

NOUNS = (
    functions, revisions, aliases, instances, logs, invocations, schedules, triggers, dead_letters, tokens, runtimes,
    usage, budgets, top,
)  # fmt: skip


def operations(*, open_metrics: bool) -> tuple[Operation, ...]:
    """Every operation of the control API but its own description."""
    page = info.OPEN_METRICS if open_metrics else info.METRICS
    return (*info.OPERATIONS, page, *(operation for noun in NOUNS for operation in noun.OPERATIONS))


def public_app(gateway: Gateway, authenticator: Authenticator) -> web.Application:
    """8080: `/function`, `/async-function`, and functions by host."""
    app = web.Application(middlewares=[errors, strict])
    app[GATEWAY] = gateway
    _add_functions(app, gateway, Doorman(authenticator), gateway.info.domain)
    return app


def api_app(gateway: Gateway, authenticator: Authenticator, *, open_metrics: bool = False) -> web.Application:
    """8081: the control API, and functions with credentials always. `open_metrics`: it is bound to loopback."""
    app = web.Application(middlewares=[errors, strict, cast("Middleware", authorization(authenticator))])
    app[GATEWAY] = gateway
    app[TOP] = Top(gateway)
    table = operations(open_metrics=open_metrics)

    @access(Permission.READ)
    async def described(request: web.Request) -> web.Response:
        return answer(document)

    itself = Operation("GET", "/v1/openapi.json", described, "This description", {200: an_object(more=True)})
    document: dict[str, Any] = openapi.document((*table, itself), gateway.info.version)
    for operation in (*table, itself):
        app.router.add_route(operation.method, operation.path, operation.handler)
    app.add_routes(not_offered.routes())
    _add_functions(app, gateway, Doorman(authenticator, everybody_logs_in=True), "")
    return app


def _add_functions(app: web.Application, gateway: Gateway, doorman: Doorman, domain: str) -> None:
    passage = gateway.edge.passage(doorman)
    app.on_response_prepare.append(answering)
    # Functions by host take every path, and so come last.
    app.add_routes(async_routes(passage, gateway.dispatcher))
    app.add_routes(function_routes(passage, domain=domain))
