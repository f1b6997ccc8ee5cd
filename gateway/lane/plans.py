"""`Plans`: the plans of heads that were seen lately, for clients of one kind.

Clients send the same heads again and again: what follows from the bytes of a head (its fields, its function, what the
function is sent) is worked out once and kept, until a name may lead elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from faas.errors import NotFound
from faas.leases import Trigger
from faas.proxies import Client, TrustedProxies
from faas.spec import Interface
from gateway.edge.apis.arrivals import host_name
from gateway.edge.entry import PREFIX, Entry, Target, host_target
from gateway.edge.witness import Witness
from gateway.invoke import Invoker
from gateway.lane import head
from gateway.lane.plan import ADDRESS_V4, ADDRESS_V6, Destination, Plan, Told
from gateway.place import Gate

MOST_KEPT = 1_024  # of each kind
MOST_PLAN_BYTES = 2_048  # of a head whose plan is kept


def nobody(host: str) -> bool:
    """No host is anybody else's."""
    return False


class Way(Protocol):
    """What the lane asks of a `gateway.edge.passage.Passage`."""

    @property
    def invoker(self) -> Invoker: ...

    @property
    def witness(self) -> Witness: ...

    def function(self, target: Target) -> Entry:
        """Raises NotFound."""
        ...

    def plain(self, entry: Entry) -> bool: ...


@dataclass(frozen=True, slots=True)
class Place:
    """The listener that the requests come to. `taken`: whether a host (as `arrivals.host_name` has it) is an API's."""

    passage: Way
    domain: str = ""
    taken: Callable[[str], bool] = nobody


class Plans:
    """`peer`: the one client for whom they are, whose word about others counts; "" for everybody else, by IPv6 where
    `v6`. `scheme` is what they use."""

    def __init__(
        self,
        place: Place,
        scheme: str,
        *,
        peer: str = "",
        v6: bool = False,
        proxies: TrustedProxies = TrustedProxies(),  # noqa: B008 - a frozen value
    ) -> None:
        self._place = place
        self._scheme = scheme
        self._peer = peer
        self._address = ADDRESS_V6 if v6 else ADDRESS_V4
        self._proxies = proxies
        self._told: dict[str, Told] = {}  # by Host
        self._functions: dict[str, Destination] = {}
        self.kept: dict[bytes, Plan] = {}

    def forget(self) -> None:
        """A name may lead elsewhere."""
        self._functions.clear()
        self.kept.clear()

    def of(self, data: bytes) -> Plan | None:
        """What to do with a request with this head; None where it is not plain."""
        plan = self.kept.get(data)
        if plan is None and (plan := self._made(data)) is not None:
            plan.head = data
            if len(data) <= MOST_PLAN_BYTES:
                self.kept[data] = plan
                _bound(self.kept)
        return plan

    def _made(self, data: bytes) -> Plan | None:
        found = head.read(data)
        if found is None or self._place.taken(host_name(found.host)):
            return None
        target = target_of(found, self._place.domain)
        destination = self._function(target.name) if target is not None else None
        if target is None or destination is None:
            return None
        if self._peer:
            return Plan(found, target, destination, Told.of(self._asks(found), found.host))
        told = self._told.get(found.host)
        if told is None:
            told = self._told[found.host] = Told.of(self._asks(found), found.host)
            _bound(self._told)
        return Plan(found, target, destination, told)

    def _function(self, name: str) -> Destination | None:
        """What `name` means; None where requests to it are not plain, or nothing has it."""
        known = self._functions.get(name)
        if known is None:
            passage = self._place.passage
            try:
                entry = passage.function(Target(name, "/", ""))
            except NotFound:
                return None
            if entry.route.revision.interface is Interface.AUTO or not passage.plain(entry):
                return None
            invoker, route = passage.invoker, entry.route
            gate = Gate(invoker.activator, route.revision)
            known = self._functions[name] = Destination(route, invoker.counters(route, Trigger.HTTP), gate)
            _bound(self._functions)
        return known

    def _asks(self, found: head.Head) -> Client:
        if not self._peer:
            return Client(self._address, self._scheme, (self._address,))
        return self._proxies.client(
            self._peer,
            self._scheme,
            forwarded_for=found.claimed("x-forwarded-for"),
            forwarded=found.claimed("forwarded"),
            forwarded_proto=found.claimed("x-forwarded-proto"),
        )


def _bound(kept: dict[Any, Any]) -> None:
    """All begin anew where there are too many: what is used comes back at once."""
    if len(kept) > MOST_KEPT:
        kept.clear()


def target_of(found: head.Head, domain: str) -> Target | None:
    """As `gateway.public` finds it; None where it takes a closer look."""
    if (by_host := host_target(found.host, found.target, domain)) is not None:
        return by_host
    path, _, query = found.target.partition("?")
    name, slash, rest = path.removeprefix(PREFIX).partition("/")
    if not path.startswith(PREFIX) or not name or "%" in name:
        return None
    return Target(name, slash + rest or "/", query)
