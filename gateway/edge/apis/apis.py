"""`Apis`: every API and every function's own routes: checked, stored, and put where requests find them.

- claim: no two owners have one host, base path or route; what is on its way counts too
- store: the API's row; a function's routes are in its live revision
- publish: the table that requests read, in one step of the loop
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from faas.background import Background
from faas.errors import Conflict, FaasError, NotFound
from faas.hosts import overlap
from faas.routes import RouteSpec
from faas.state.session import Database
from faas.turns import Turns
from gateway.edge.apis.api import DEFAULT_API, DEFAULT_STAGE, Api, ApiRoute, check, hostless_base
from gateway.edge.apis.claims import NOTHING, Claims, Front, Owner, Wanted, wanted
from gateway.edge.apis.table import RouteTable
from gateway.router import DEFAULT_NAMESPACE, function_label
from gateway.shares import share_of
from gateway.store import apis as stored

log = logging.getLogger("faas.apis")

MOST = 1000  # APIs of a namespace
MOST_BYTES = 134_217_728  # of all APIs together, as they are stored: a namespace gets half of what others leave

Name = tuple[str, str]  # namespace, name
T = TypeVar("T")


class Apis:
    """`taken`: host names of the server itself, all of them where it is `named`; `domain`: functions have the names
    below it; `changed` is called when requests may lead elsewhere."""

    def __init__(
        self,
        database: Database,
        *,
        taken: Collection[str] = (),
        named: bool = True,
        domain: str = "",
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.table = RouteTable()
        self.gone: Callable[[str], None] = lambda label: None  # called with each API that is no more
        self._database = database
        self._taken = tuple(name.lower() for name in taken if name)
        self._named = named
        self._domain = domain.lower()
        self._changed = changed
        self._apis: dict[Name, Api] = {}
        self._functions: dict[Name, tuple[RouteSpec, ...]] = {}
        self._sizes: dict[Name, int] = {}  # bytes, as they are stored
        self._claims = Claims()
        self._turns: Turns[Name] = Turns()
        self._work = Background()
        root = Api(DEFAULT_NAMESPACE, DEFAULT_API)
        self._publish(root, self._wish(root))

    async def start(self) -> None:
        """Everything is where it was. Functions' routes come from their live revisions, which are loaded before."""
        for api, size in await self._database.ask(stored.every):
            self._sizes[api.namespace, api.name] = size
            wish = self._wish(api)
            try:
                self._claims.check(_owner(api), wish)
            except FaasError as error:  # a database that somebody changed by hand
                log.error("the API %s is out of use: %s", api.label, error.message)
                continue
            self._publish(api, wish)

    # APIs

    def every(self) -> list[Api]:
        """By namespace and name."""
        return [self._apis[name] for name in sorted(self._apis)]

    def known(self, namespace: str, name: str) -> Api:
        """The API; `default` is always there. Raises NotFound."""
        if (found := self._known(namespace, name)) is None:
            raise NotFound(f"there is no API {function_label(namespace, name)}", hint="see faas api ls")
        return found

    def _known(self, namespace: str, name: str) -> Api | None:
        found = self._apis.get((namespace, name))
        return Api(namespace, name) if found is None and name == DEFAULT_API else found

    async def put(self, api: Api) -> bool:
        """Make or replace it as a whole; whether it is new. Raises Conflict."""
        return await self._complete(api.namespace, api.name, lambda: self._put(api))

    async def _put(self, api: Api) -> bool:
        is_new = (api.namespace, api.name) not in self._apis
        if is_new and sum(namespace == api.namespace for namespace, _ in self._apis) >= MOST:
            raise Conflict(f"the namespace {api.namespace} has {MOST} APIs, and no more are taken")
        self._check_hosts(api.hosts)
        wish, text = await asyncio.to_thread(lambda: (self._wish(api), stored.text_of(api)))
        with self._claims.pending(_owner(api), wish), self._room(api, len(text)):
            await self._database.change(lambda tx: stored.put(tx, api, text))
            self._publish(api, wish)
        return is_new

    @contextmanager
    def _room(self, api: Api, size: int) -> Iterator[None]:
        """The API has so many bytes, unless the block raises. Raises Conflict where its namespace has no room for them;
        what makes an API smaller is always taken."""
        key = (api.namespace, api.name)
        before = self._sizes.pop(key, 0)
        held: Counter[str] = Counter()
        for (namespace, _), known in self._sizes.items():
            held[namespace] += known
        self._sizes[key] = before
        share = share_of(MOST_BYTES, held, api.namespace)
        if held[api.namespace] + size > share and size > before:
            raise Conflict(
                f"the namespace {api.namespace} would have {held[api.namespace] + size} bytes of APIs: it gets {share} "
                f"of the server's {MOST_BYTES}",
                hint="delete an API that is not needed: faas api rm",
            )
        self._sizes[key] = size
        try:
            yield
        except BaseException:
            self._sizes[key] = before
            raise

    async def add_route(self, namespace: str, name: str, route: ApiRoute) -> None:
        """Add one route to it. Raises NotFound, Conflict, also where it has one that takes the same."""

        async def add() -> None:
            api = self.known(namespace, name)
            for known in api.routes:
                if set(known.spec.keys) & set(route.spec.keys):
                    raise Conflict(f"the API {api.label} has {known.spec.text} already", hint=f"its id is {known.id}")
            changed = api.with_routes((*api.routes, route))
            check(changed)
            await self._put(changed)

        await self._complete(namespace, name, add)

    async def remove_route(self, namespace: str, name: str, route_id: str) -> None:
        """Raises NotFound."""

        async def remove() -> None:
            api = self.known(namespace, name)
            kept = tuple(route for route in api.routes if route.id != route_id)
            if len(kept) == len(api.routes):
                raise NotFound(f"the API {api.label} has no route {route_id} of its own", hint="see faas route ls")
            await self._put(api.with_routes(kept))

        await self._complete(namespace, name, remove)

    async def remove(self, namespace: str, name: str) -> None:
        """Its routes and hosts go with it; of `default`, what was put there. Raises NotFound."""
        await self._complete(namespace, name, lambda: self._remove(namespace, name))

    async def _remove(self, namespace: str, name: str) -> None:
        api = self.known(namespace, name)
        await self._database.change(lambda tx: stored.remove(tx, namespace, name))
        self._sizes.pop((namespace, name), None)
        bare = Api(namespace, name)
        if (namespace, name) == (DEFAULT_NAMESPACE, DEFAULT_API):
            self._publish(bare, self._wish(bare))
            return
        self._apis.pop((namespace, name), None)
        self._claims.settle(_owner(api), NOTHING)
        self.table.put_routes(_owner(api), ())
        self.table.forget_api(bare)
        self._changed()
        self.gone(api.label)

    async def _complete(self, namespace: str, name: str, change: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """One change of an API at a time, each to its end, also where its caller is cancelled."""

        async def turn() -> T:
            async with self._turns.of((namespace, name)):
                return await change()

        return await self._work.complete(turn(), "change of an API")

    async def close(self, grace_seconds: float) -> None:
        await self._work.finish(grace_seconds)

    def _publish(self, api: Api, wish: Wanted) -> None:
        """What has been stored is what requests see from here on."""
        owner = _owner(api)
        self._apis[api.namespace, api.name] = api
        self._claims.settle(owner, wish)
        self.table.put_routes(
            owner, [(place, api, route.spec, route.function) for place in api.places for route in api.routes]
        )
        self.table.put_api(api)
        self._changed()

    def _wish(self, api: Api) -> Wanted:
        stages = [name for name in api.stages if name != DEFAULT_STAGE]
        fronts: dict[Front, str] = {}
        for host, base in api.places:
            fronts |= {(host, base): api.label, **{(host, (*base, stage)): api.label for stage in stages}}
        return wanted(fronts, [(place, route.spec) for place in api.places for route in api.routes], stages)

    # Functions' own routes

    @contextmanager
    def reserving(self, namespace: str, name: str, routes: Sequence[RouteSpec]) -> Iterator[None]:
        """Nobody else takes `routes` meanwhile. Raises Conflict."""
        self._check_hosts({spec.host for spec in routes if spec.host})
        with self._claims.pending(Owner("function", namespace, name), self._wish_of(namespace, routes)):
            yield

    def settle(self, namespace: str, name: str, routes: Sequence[RouteSpec]) -> None:
        """The function's own routes are exactly `routes` from here on."""
        owner, where = Owner("function", namespace, name), (namespace, name)
        if self._functions.get(where, ()) == tuple(routes):
            return
        self._functions.pop(where, None)
        if routes:
            self._functions[where] = tuple(routes)
        self._claims.settle(owner, self._wish_of(namespace, routes))
        api = self.known(namespace, DEFAULT_API)
        self.table.put_routes(owner, [(_front(namespace, spec), api, spec, name) for spec in routes])
        self._changed()

    def _wish_of(self, namespace: str, routes: Sequence[RouteSpec]) -> Wanted:
        label = function_label(namespace, DEFAULT_API)
        placed = [(_front(namespace, spec), spec) for spec in routes]
        return wanted({front: label for front, _ in placed}, placed, ())

    def of_functions(self, namespace: str) -> list[tuple[str, RouteSpec]]:
        """(function, route) of each route of the namespace's API `default` that is a function's own."""
        return [
            (name, spec)
            for (where, name), routes in sorted(self._functions.items())
            if where == namespace
            for spec in routes
        ]

    def namespaces(self) -> set[str]:
        """Those that have an API or a function with routes."""
        return {namespace for namespace, _ in (*self._apis, *self._functions)}

    def _check_hosts(self, hosts: Collection[str]) -> None:
        """Raises Conflict where a host is the server's own, or may be: who had that would see what others are sent."""
        if hosts and not self._named:
            raise Conflict("no host can be taken: the server's own is not known", hint="set public_url")
        for host in hosts:
            if any(overlap(host, name) for name in self._taken):
                raise Conflict(f"the host {host} is the server's own", hint="APIs and routes without a host are there")
            bare = host.removeprefix("*.")
            if self._domain and (bare == self._domain or bare.endswith("." + self._domain)):
                raise Conflict(f"the host {host} is below {self._domain}, where functions are by name")


def _owner(api: Api) -> Owner:
    return Owner("API", api.namespace, api.name)


def _front(namespace: str, spec: RouteSpec) -> Front:
    return (spec.host, ()) if spec.host else ("", hostless_base(namespace))
