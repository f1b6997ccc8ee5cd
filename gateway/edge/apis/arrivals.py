"""`Arrivals`: a request by an API's route → its `Entry`. In memory; nothing waits.

Which rules hold: each one as the route says, else its stage, else the function. Who may call: as the route says
(`auth`, `public`), else its stage, else the function: no route opens a function that is not public but by its own word.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from aiohttp import hdrs, web

from faas.errors import InvalidInput, NotFound
from faas.path_pattern import rewritten, segments_of
from faas.routes import ANY, METHODS, RESERVED, said, unusual
from faas.rules.rules import Rules
from gateway.edge.apis.api import Stage, qualifier_at
from gateway.edge.apis.table import Arrived, Bound, RouteTable
from gateway.edge.entry import API, DEFAULT, Entry, Target
from gateway.router import Route, Router, function_label

REMEMBERED = 20_000  # rules of routes as they are together with their stage's and function's

_ASKED = "Access-Control-Request-Method"


class Arrivals:
    """The data path's view of all APIs."""

    def __init__(self, table: RouteTable, router: Router) -> None:
        self._table = table
        self._router = router
        self._together: OrderedDict[tuple[Bound, int], tuple[Route, Stage, Rules]] = OrderedDict()

    def has_host(self, host: str) -> bool:
        """Whether `host` (see `host_of`) is an API's: then all its paths are."""
        return self._table.has_host(host)

    def entry(self, request: web.Request, host: str) -> Entry:
        """Where `request` goes. Raises InvalidInput for a path that could be read in two ways, NotFound,
        web.HTTPMethodNotAllowed."""
        path, _, query = request.raw_path.partition("?")
        try:
            segments = segments_of(path)
        except ValueError as error:
            raise InvalidInput(f"the path cannot be routed: {error}") from None
        arrived = self._table.arrive(host, segments)
        if arrived is None or (segments[:1] and segments[0] in RESERVED and not self.has_host(host)):
            raise NotFound("there is nothing here")
        request[API] = arrived.place.api.label
        if request.method == hdrs.METH_OPTIONS and (preflight := self._preflight(request, arrived, path, query)):
            return preflight
        bound = arrived.place.matcher.find(request.method, arrived.rest)
        if bound is None:
            raise _nothing(request.method, arrived)
        return self._at(bound, arrived, path, query)

    def _preflight(self, request: web.Request, arrived: Arrived, path: str, query: str) -> Entry | None:
        """A browser's question about a method is answered where that method's route is, if that says whose pages may
        call; else it goes the way of any request."""
        asked = request.headers.get(_ASKED, "")
        if not asked or hdrs.ORIGIN not in request.headers:
            return None
        bound = arrived.place.matcher.find(asked, arrived.rest)
        if bound is None:
            return None
        entry = self._at(bound, arrived, path, query)
        return entry if entry.rules.cors is not None else None

    def _at(self, bound: Bound, arrived: Arrived, path: str, query: str) -> Entry:
        spec, namespace = bound.spec, bound.owner.namespace
        name, qualifier = qualifier_at(bound.function, arrived.stage)
        route = self._router.resolve(namespace, name, qualifier)
        label = function_label(namespace, name)
        rules = self._rules(bound, arrived.stage, route)
        return Entry(
            route,
            Target(f"{label}:{qualifier}" if qualifier else label, _path(bound, arrived, path), query),
            rules,
            route.revision.spec.public if spec.public is None else spec.public,
            api=arrived.place.api.label,
            pattern=bound.key,
            stage=arrived.stage_name,
            stage_at=-1 if spec.rewrite or arrived.stage_name == DEFAULT else arrived.begin - 1,
            parameters=spec.pattern.parameters(arrived.rest),
            variables=arrived.stage.variables,
            payload=rules.payload,
            timeout=None if spec.timeout is None else spec.timeout.total_seconds(),
            body_limit=spec.body_limit,
            request_headers=spec.request_headers,
            response_headers=spec.response_headers,
        )

    def _rules(self, bound: Bound, stage: Stage, route: Route) -> Rules:
        """Remembered as long as route, stage and function are the same."""
        key = (bound, id(stage))
        known = self._together.get(key)
        if known is not None and known[0] is route and known[1] is stage:
            return known[2]
        rules = bound.spec.layered(said(stage.rules, stage.said), unusual(route.revision.spec.rules))
        self._together[key] = (route, stage, rules)
        self._together.move_to_end(key)
        if len(self._together) > REMEMBERED:
            self._together.popitem(last=False)
        return rules


def _path(bound: Bound, arrived: Arrived, path: str) -> str:
    spec = bound.spec
    if not spec.rewrite:
        return path
    return rewritten(spec.rewrite, spec.pattern, path.split("/")[1 + arrived.begin :])


def _nothing(method: str, arrived: Arrived) -> Exception:
    """405 where another method is taken; 404 where none is."""
    found = arrived.place.matcher.methods(arrived.rest)
    allowed: Sequence[str] = METHODS if ANY in found else [one for one in METHODS if one in found]
    return web.HTTPMethodNotAllowed(method, allowed) if allowed else NotFound("there is nothing here")


def host_of(request: web.Request) -> str:
    """The name in a request's Host: `host_name`."""
    return host_name(request.headers.get(hdrs.HOST, ""))


def host_name(host: str) -> str:
    """A Host field's value in lower case, without its port and a dot at its end."""
    host = host.lower()
    if not host.startswith("["):
        host = host.partition(":")[0]
    return host.removesuffix(".")
