"""`RouteTable`: host and path → the route that takes them. Pure; changed for one owner as a whole."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from faas.hosts import above
from faas.routes import RouteSpec
from gateway.edge.apis.api import DEFAULT_STAGE, Api, Stage
from gateway.edge.apis.claims import Front, Owner
from gateway.edge.apis.matcher import Matcher


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """A route at one method. `key`: `GET /users/{id}`; `function`: as `ApiRoute.function`, of `owner`'s namespace."""

    owner: Owner
    spec: RouteSpec
    key: str
    function: str


@dataclass(slots=True, eq=False)
class Place:
    """A host and a base path: where one API lies; `is_own`: by its own word, and not by functions' routes alone."""

    api: Api
    matcher: Matcher[Bound]
    is_own: bool = False


@dataclass(frozen=True, slots=True)
class Arrived:
    """Where a path led: `rest`, the segments from `begin` on, is the route's."""

    place: Place
    stage_name: str
    stage: Stage
    begin: int
    rest: Sequence[str]


class RouteTable:
    """Every place, and every owner's routes in them."""

    def __init__(self) -> None:
        self._sites: dict[str, dict[tuple[str, ...], Place]] = {}
        self._deepest: dict[str, int] = {}
        self._routes: dict[Owner, list[tuple[Place, str, RouteSpec]]] = {}
        self.changed: Callable[[], None] = lambda: None  # called after every change

    def has_host(self, host: str) -> bool:
        """Whether `host` (in lower case, without a port) is an API's."""
        return bool(host) and (host in self._sites or above(host) in self._sites)

    def put_api(self, api: Api) -> None:
        """The API lies at its places, and nowhere else but where functions' routes brought it."""
        for front in api.places:
            self._place(front, api)
        self._know(api, set(api.places))

    def forget_api(self, api: Api) -> None:
        """It lies nowhere any more; functions' routes that were in it stay, as in `api`."""
        self._know(api, set())

    def _know(self, api: Api, fronts: set[Front]) -> None:
        for host, site in self._sites.items():
            for base, place in site.items():
                if (place.api.namespace, place.api.name) == (api.namespace, api.name):
                    place.api, place.is_own = api, (host, base) in fronts
        self._tidy()

    def put_routes(self, owner: Owner, routes: Collection[tuple[Front, Api, RouteSpec, str]]) -> None:
        """What `owner` has is exactly `routes`: (place, its API, route, function)."""
        for place, method, spec in self._routes.pop(owner, ()):
            place.matcher.remove(method, spec.pattern)
        held = []
        for front, api, spec, function in routes:
            place = self._place(front, api)
            for verb in spec.verbs:
                place.matcher.add(verb, spec.pattern, Bound(owner, spec, spec.key(verb), function))
                held.append((place, verb, spec))
        if held:
            self._routes[owner] = held
        self._tidy()

    def arrive(self, host: str, segments: Sequence[str]) -> Arrived | None:
        """The host, then the longest base path, then the stage; None where there is no API."""
        name = host if host in self._sites else above(host)
        if name not in self._sites:
            name = ""
        site = self._sites.get(name)
        if site is None:
            return None
        for count in range(min(self._deepest[name], len(segments)), -1, -1):
            place = site.get(tuple(segments[:count]))
            if place is not None:
                return _staged(place, segments, count)
        return None

    def _place(self, front: Front, api: Api) -> Place:
        host, base = front
        site = self._sites.setdefault(host, {})
        if base not in site:
            site[base] = Place(api, Matcher())
            self._deepest[host] = max(self._deepest.get(host, 0), len(base))
        return site[base]

    def _tidy(self) -> None:
        """Forget places where nothing is."""
        for host, site in list(self._sites.items()):
            for base, place in list(site.items()):
                if not place.matcher.size and not place.is_own:
                    del site[base]
            if site:
                self._deepest[host] = max(map(len, site))
            else:
                del self._sites[host], self._deepest[host]
        self.changed()


def _staged(place: Place, segments: Sequence[str], base: int) -> Arrived | None:
    stages = place.api.stages
    if base < len(segments) and segments[base] in stages and segments[base] != DEFAULT_STAGE:
        name = segments[base]
        return Arrived(place, name, stages[name], base + 1, segments[base + 1 :])
    if DEFAULT_STAGE in stages:
        return Arrived(place, DEFAULT_STAGE, stages[DEFAULT_STAGE], base, segments[base:])
    return None
