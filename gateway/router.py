"""Names → revisions, in memory: no request ever waits for the database.

The control API puts a function's whole state here after it has stored it; the data path only reads. Forms:
`hello`, `hello.team` (another namespace), `hello:v7`, `hello:7`, `hello:prod` (an alias). No qualifier means `live`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from faas.errors import NotFound
from faas.protocol import Revision
from gateway.edge.canary.rule import Canary

DEFAULT_NAMESPACE = "default"
LIVE = "live"  # the alias that an unqualified name means
STABLE, CANARY = "stable", "canary"  # the sides of an alias with two revisions


@dataclass(slots=True)
class FunctionState:
    """A function as the data path needs it: its aliases and the revisions that can still be called.

    `canaries`, by alias: those that were taken back too.
    """

    namespace: str
    name: str
    aliases: dict[str, int]
    revisions: dict[int, Revision]
    canaries: dict[str, Canary] = field(default_factory=dict)

    @property
    def live(self) -> Revision | None:
        return self.revisions.get(self.aliases.get(LIVE, 0))


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Route:
    """Where a name led. `qualifier` is an alias or `v7`: what was asked for, never free text from outside.

    `weighted`: an alias with two revisions, between which `gateway.edge.canary` chooses (`split`); `revision` is the
    stable one. What was chosen is a route with a `side`, of the canary `of`.

    Compared by identity: a route stands until the function's next `put`, so that callers may keep things beside it.
    """

    revision: Revision
    qualifier: str
    split: Split | None = None
    side: str = ""
    of: Canary | None = None
    label: str = field(init=False)
    weighted: bool = field(init=False)

    def __post_init__(self) -> None:
        key = self.revision.key
        object.__setattr__(self, "label", function_label(key.namespace, key.function))
        object.__setattr__(self, "weighted", self.split is not None)


@dataclass(frozen=True, slots=True)
class Split:
    """The two routes of a weighted alias."""

    canary: Canary
    stable: Route
    other: Route

    def side(self, side: str) -> Route:
        return self.other if side == CANARY else self.stable


def function_label(namespace: str, name: str) -> str:
    """How a function is written in metrics, logs and URLs: `name`, or `name.namespace` outside `default`."""
    return name if namespace == DEFAULT_NAMESPACE else f"{name}.{namespace}"


def repository_of(namespace: str, name: str) -> str:
    """Where a function's own images are."""
    return name if namespace == DEFAULT_NAMESPACE else f"{namespace}/{name}"


def parse_name(text: str) -> tuple[str, str, str]:
    """`name[.namespace][:qualifier]` → (namespace, name, qualifier). Whether it exists is for `resolve` to say."""
    full, _, qualifier = text.partition(":")
    name, _, namespace = full.partition(".")
    return namespace or DEFAULT_NAMESPACE, name, qualifier


def _split(function: FunctionState, alias: str, stable: Revision) -> Split | None:
    canary = function.canaries.get(alias)
    if canary is None or not canary.runs or (other := function.revisions.get(canary.number)) is None:
        return None
    return Split(canary, Route(stable, alias, side=STABLE, of=canary), Route(other, alias, side=CANARY, of=canary))


class Router:
    """Every function that can be called."""

    def __init__(self) -> None:
        self._states: dict[tuple[str, str], FunctionState] = {}
        self._routes: dict[tuple[str, str], dict[str, Route]] = {}
        self._watchers: list[Callable[[], None]] = []

    def watch(self, changed: Callable[[], None]) -> None:
        """Have `changed` called whenever a name may lead elsewhere: for who keeps what follows from a name."""
        self._watchers.append(changed)

    def changed(self) -> None:
        """Something that requests to functions depend on is another now: what was kept of them is void."""
        for watcher in self._watchers:
            watcher()

    def put(self, function: FunctionState) -> None:
        """Make `function` callable, or replace what was known of it, at once and as a whole."""
        routes: dict[str, Route] = {}
        for alias, number in function.aliases.items():
            if (revision := function.revisions.get(number)) is not None:
                routes[alias] = Route(revision, alias, _split(function, alias, revision))
        for number, revision in function.revisions.items():
            routes[f"v{number}"] = routes[str(number)] = Route(revision, f"v{number}")
        if LIVE in routes:
            routes[""] = routes[LIVE]
        key = (function.namespace, function.name)
        self._states[key] = function
        self._routes[key] = routes
        self.changed()

    def remove(self, namespace: str, name: str) -> None:
        """Forget a function; no error where it is unknown."""
        self._states.pop((namespace, name), None)
        self._routes.pop((namespace, name), None)
        self.changed()

    def resolve(self, namespace: str, name: str, qualifier: str = "") -> Route:
        """The route of a name. Raises NotFound, in words that tell no other names."""
        routes = self._routes.get((namespace, name))
        if routes is None:
            raise NotFound("there is no such function")
        route = routes.get(qualifier)
        if route is None:
            raise NotFound("this function has no such version or alias" if qualifier else "there is no such function")
        return route

    def state(self, namespace: str, name: str) -> FunctionState | None:
        return self._states.get((namespace, name))

    def states(self) -> Iterator[FunctionState]:
        return iter(list(self._states.values()))

    def revise(self, revision: Revision) -> None:
        """Put a revision's new knowledge (its interface) in place of the old; nothing where it is gone meanwhile."""
        key = revision.key
        state = self._states.get((key.namespace, key.function))
        if state is not None and key.number in state.revisions:
            self.put(dataclasses.replace(state, revisions={**state.revisions, key.number: revision}))

    def near(self, namespace: str, name: str) -> list[str]:
        """Names of the namespace that are close to `name`: for the API's hints, never for the public listener."""
        names = [known for where, known in self._states if where == namespace]
        return difflib.get_close_matches(name, names, 3)
