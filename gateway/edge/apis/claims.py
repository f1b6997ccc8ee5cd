"""`Claims`: who has which host, base path and route, so that no two owners have one. Pure.

What is on its way (a deploy that is being checked) counts as well as what is there: it is claimed first.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from faas.errors import Conflict
from faas.hosts import above, overlap
from faas.routes import RouteSpec
from gateway.router import function_label

Front = tuple[str, tuple[str, ...]]  # host, and the decoded segments of a path that begins there
RouteKey = tuple[str, tuple[str, ...], str, tuple[object, ...]]  # host, base, method, shape


@dataclass(frozen=True, slots=True)
class Owner:
    """A function with its own routes, or an API."""

    kind: str  # function | API
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"the {self.kind} {function_label(self.namespace, self.name)}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one owner needs. `fronts`: hosts and base paths, stages' too → the API's label; `routes` → as written;
    `lines`: the literal beginnings of routes, longer than their base → a route as written."""

    fronts: Mapping[Front, str] = field(default_factory=dict)
    routes: Mapping[RouteKey, str] = field(default_factory=dict)
    lines: Mapping[Front, str] = field(default_factory=dict)

    @property
    def hosts(self) -> set[str]:
        return {host for host, _ in self.fronts if host}


NOTHING = Wanted()


def wanted(fronts: Mapping[Front, str], routes: Collection[tuple[Front, RouteSpec]], stages: Collection[str]) -> Wanted:
    """`routes`: each with the host and base path where it lies; `stages`: named ones of its API."""
    keys: dict[RouteKey, str] = {}
    lines: dict[Front, str] = {}
    for (host, base), spec in routes:
        for verb in spec.verbs:
            keys[host, base, verb, spec.pattern.shape] = spec.text
        literals = spec.pattern.literals
        for before in ((), *((stage,) for stage in stages)):
            for count in range(1, len(literals) + 1):
                lines.setdefault((host, (*base, *before, *literals[:count])), spec.text)
    return Wanted(fronts, keys, lines)


class Claims:
    """Everybody's. What an owner has is counted as often as it says so: as held, and as pending."""

    def __init__(self) -> None:
        self._held: dict[Owner, Wanted] = {}
        self._routes: _Index[RouteKey] = _Index()
        self._fronts: _Index[Front] = _Index()
        self._lines: _Index[Front] = _Index()

    @contextmanager
    def pending(self, owner: Owner, wish: Wanted) -> Iterator[None]:
        """Hold `wish` beside what `owner` has. Raises Conflict: who has it, and what."""
        self.check(owner, wish)
        self._add(owner, wish)
        try:
            yield
        finally:
            self._drop(owner, wish)

    def settle(self, owner: Owner, wish: Wanted) -> None:
        """What `owner` has from here on is `wish`, and no more."""
        self._drop(owner, self._held.pop(owner, NOTHING))
        if wish != NOTHING:
            self._held[owner] = wish
            self._add(owner, wish)

    def check(self, owner: Owner, wish: Wanted) -> None:
        """Raises Conflict."""
        self._check_hosts(owner, wish.hosts)
        for front, api in wish.fronts.items():
            for holder, other in self._fronts.of(front):
                if other != api:
                    raise _conflict(f"{_place(front)} of the API {api}", owner, f"is the API {other}'s", holder)
            hidden = [(holder, text) for holder, text in self._lines.of(front) if holder != owner]
            hidden += [(owner, wish.lines[front])] if front in wish.lines else []
            for holder, text in hidden:
                what = f"{_place(front)} of the API {api}"
                raise _conflict(what, owner, f"would hide {text}", holder, plainly="would hide a route")
        for line, text in wish.lines.items():
            for holder, api in self._fronts.of(line):
                if holder != owner:
                    why = f"would be hidden by {_place(line)} of the API {api}"
                    raise _conflict(text, owner, why, holder, plainly="would be hidden")
        for key, text in wish.routes.items():
            for holder, _ in self._routes.of(key):
                if holder != owner:
                    raise _conflict(text, owner, "is taken", holder)

    def _check_hosts(self, owner: Owner, hosts: set[str]) -> None:
        """A host belongs to one namespace, and so does what a wildcard takes."""
        if not hosts:
            return
        near = hosts | {above(host) for host in hosts}  # a quick look: there may be thousands of others
        for other, base in self._fronts.every():
            if not other or (other not in near and above(other) not in hosts):
                continue
            host = next(host for host in hosts if overlap(host, other))
            for holder, _ in self._fronts.of((other, base)):
                if holder.namespace != owner.namespace:
                    why = f"is taken ({other})"
                    raise _conflict(f"the host {host}", owner, why, holder, plainly=why)

    def _add(self, owner: Owner, wish: Wanted) -> None:
        self._routes.add(owner, wish.routes)
        self._fronts.add(owner, wish.fronts)
        self._lines.add(owner, wish.lines)

    def _drop(self, owner: Owner, wish: Wanted) -> None:
        self._routes.drop(owner, wish.routes)
        self._fronts.drop(owner, wish.fronts)
        self._lines.drop(owner, wish.lines)


K = TypeVar("K", bound=Hashable)


class _Index(Generic[K]):
    """Key → who has it, with what text; each as often as it was added."""

    def __init__(self) -> None:
        self._rows: dict[K, list[tuple[Owner, str]]] = {}

    def of(self, key: K) -> Collection[tuple[Owner, str]]:
        return self._rows.get(key, ())

    def every(self) -> Collection[K]:
        return self._rows.keys()

    def add(self, owner: Owner, rows: Mapping[K, str]) -> None:
        for key, text in rows.items():
            self._rows.setdefault(key, []).append((owner, text))

    def drop(self, owner: Owner, rows: Mapping[K, str]) -> None:
        for key, text in rows.items():
            self._rows[key].remove((owner, text))
            if not self._rows[key]:
                del self._rows[key]


def _place(front: Front) -> str:
    host, base = front
    return f"{host}/{'/'.join(base)}"


def _conflict(what: str, owner: Owner, why: str, holder: Owner, *, plainly: str = "is taken") -> Conflict:
    """`plainly`: `why` without names; those of another namespace are not told."""
    if holder == owner:
        return Conflict(f"{owner}: {what} {why}")
    if holder.namespace != owner.namespace:
        return Conflict(f"{what}, which {owner} wants, {plainly}: another namespace has it", hint="choose another")
    return Conflict(f"{what}, which {owner} wants, {why}: {holder} has it", hint="see faas route ls and faas api ls")
