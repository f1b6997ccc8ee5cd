"""The two listeners' applications. The public one has functions and nothing else."""

from __future__ import annotations

from typing import Any, cast

from aiohttp import web
from aiohttp.typedefs import Middleware

from faas.audited import before_a_stream
from faas.auth import Authenticator, Permission
from faas.logins import LOGINS
from faas.proxies import NO_PROXIES, TrustedProxies
from faas.web import access, authorization, errors
from gateway.asynchronous import async_routes
from gateway.control import (
    aliases,
    api_documents,
    apis,
    audit,
    backups,
    budgets,
    builds,
    dead_letters,
    debug,
    dev,
    doctor,
    functions,
    info,
    instances,
    invocations,
    keys,
    logs,
    maintenance,
    not_offered,
    notifications,
    openapi,
    plans,
    rebase,
    revisions,
    routes,
    runtimes,
    schedules,
    secrets,
    tokens,
    top,
    triggers,
    usage,
    users,
    websockets,
)
from gateway.control.builds import BUILDS, Builds
from gateway.control.operations import Operation, an_object, answer
from gateway.control.top import TOP, Top
from gateway.edge.apis.arrivals import Arrivals
from gateway.edge.doorman import Doorman
from gateway.edge.observing import observing
from gateway.edge.passage import answering
from gateway.edge.websocket import routes as websocket_routes
from gateway.gateway import GATEWAY, Gateway
from gateway.lane.lane import Lane
from gateway.lane.plans import Place
from gateway.public import by_api_host, function_routes, strict

NOUNS = (
    builds, functions, revisions, aliases, instances, logs, invocations, schedules, triggers, dead_letters, tokens,
    runtimes, usage, budgets, top, keys, apis, routes, api_documents,
    websockets, websocket_routes, plans, maintenance, backups, rebase, debug, doctor,
    users, audit,
    dev, secrets, notifications,
)  # fmt: skip


def operations(*, open_metrics: bool) -> tuple[Operation, ...]:
    """Every operation of the control API but its own description."""
    page = info.OPEN_METRICS if open_metrics else info.METRICS
    return (*info.OPERATIONS, page, *(operation for noun in NOUNS for operation in noun.OPERATIONS))


def public_app(gateway: Gateway, authenticator: Authenticator) -> web.Application:
    """8080: `/function`, `/async-function`, functions by host, and APIs."""
    app = web.Application(middlewares=[_observing(gateway, "public"), errors, strict])
    app[GATEWAY] = gateway
    app[LOGINS] = gateway.tokens.logins
    doorman, arrivals = gateway.edge.doorman(authenticator), gateway.edge.arrivals()
    doorman.attempts.told = gateway.audit.login_refused("public")
    passage = gateway.edge.passage(doorman)
    app.middlewares.append(by_api_host(passage, arrivals))
    app.add_routes(websocket_routes.public_routes(passage, gateway.edge.websockets, gateway.info.domain))
    _add_functions(app, gateway, doorman, gateway.info.domain, arrivals)
    return app


def public_lane(
    gateway: Gateway, authenticator: Authenticator, *, scheme: str, proxies: TrustedProxies = NO_PROXIES
) -> Lane:
    """The short way of plain requests, in front of `public_app`."""
    return Lane(gateway.path, public_place(gateway, authenticator), scheme=scheme, proxies=proxies)


def public_place(gateway: Gateway, authenticator: Authenticator) -> Place:
    """Where plain requests come in."""
    doorman = gateway.edge.doorman(authenticator)
    doorman.attempts.told = gateway.audit.login_refused("public")
    return Place(gateway.edge.passage(doorman), gateway.info.domain, gateway.edge.arrivals().has_host)


def api_app(gateway: Gateway, authenticator: Authenticator, *, open_metrics: bool = False) -> web.Application:
    """8081: the control API, and functions with credentials always. `open_metrics`: it is bound to loopback."""
    app = web.Application(
        middlewares=[
            _observing(gateway, "api"),
            errors,
            strict,
            cast("Middleware", authorization(authenticator, gateway.audit, gateway.audit.login_refused("api"))),
        ]
    )
    app.on_response_prepare.append(before_a_stream)
    app[GATEWAY] = gateway
    app[LOGINS] = gateway.tokens.logins
    app[TOP] = Top(gateway)
    app[BUILDS] = Builds(gateway)
    app[debug.PLACES] = debug.places()
    app[doctor.DOCTOR] = doctor.Doctor()
    table = operations(open_metrics=open_metrics)

    @access(Permission.READ)
    async def described(request: web.Request) -> web.Response:
        return answer(document)

    itself = Operation("GET", "/v1/openapi.json", described, "This description", {200: an_object(more=True)})
    document: dict[str, Any] = openapi.document((*table, itself), gateway.info.version)
    for operation in (*table, itself):
        app.router.add_route(operation.method, operation.path, operation.handler)
    app.add_routes(not_offered.routes())
    _add_functions(app, gateway, gateway.edge.doorman(authenticator, everybody_logs_in=True))
    return app


def _observing(gateway: Gateway, listener: str) -> Middleware:
    return observing(gateway.edge.witness, gateway.edge.spans, listener)


def _add_functions(
    app: web.Application, gateway: Gateway, doorman: Doorman, domain: str = "", arrivals: Arrivals | None = None
) -> None:
    passage = gateway.edge.passage(doorman)
    app.on_response_prepare.append(answering)
    # Functions by host and APIs take every path, and so come last.
    app.add_routes(async_routes(passage, gateway.dispatcher))
    app.add_routes(function_routes(passage, domain=domain, arrivals=arrivals))
