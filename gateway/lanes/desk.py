"""`Desk`: what lane processes ask the main process: which function a request is for, and whether they may serve it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from faas.errors import NotFound, Throttled
from faas.protocol import RevisionKey
from faas.spec import Interface
from gateway.data_path import DataPath
from gateway.edge.apis.arrivals import host_name
from gateway.edge.entry import Target
from gateway.lane.plans import Place
from gateway.router import Route

LENT_SHARE = 0.5  # of the ceiling over all functions that is free: others must find room beside what is lent
TEXT_CHARACTERS = 512


@dataclass(frozen=True, slots=True)
class Desk:
    """`place`: where plain requests come in."""

    path: DataPath
    place: Place

    def route(self, host: str, name: str) -> Route | None:
        """What a plain request with these leads to; None where a lane process may not serve it. Only functions that run
        several invocations at once: see `worker.lending`."""
        passage = self.place.passage
        if passage.witness.watching or self.place.taken(host_name(host)):
            return None
        try:
            entry = passage.function(Target(name, "/", ""))
        except NotFound:
            return None
        revision = entry.route.revision
        if revision.interface is not Interface.HTTP or revision.spec.concurrency < 2 or not passage.plain(entry):
            return None
        return entry.route if self.may_lend(revision.key) and not self._has_reserved(entry.route) else None

    def may_lend(self, key: RevisionKey) -> bool:
        """Not where a budget has to be asked about each call."""
        try:
            return self.path.activator.admit(key)
        except Throttled:
            return False

    def _has_reserved(self, route: Route) -> bool:
        """Its slots are those of all its revisions together: only its breaker knows them."""
        return self.path.activator.breakers.of(route.revision).reserved

    @property
    def room(self) -> int:
        """So many slots may be lent now."""
        ceiling = self.path.activator.ceiling
        return 0 if ceiling.waiters else int((ceiling.open_to_all - ceiling.inside) * LENT_SHARE)

    @property
    def is_waited_for(self) -> bool:
        return bool(self.path.activator.ceiling.waiters)

    def lent(self, slots: int) -> None:
        """They count under the ceiling, used or not."""
        self.path.activator.ceiling.inside += slots

    def returned(self, slots: int) -> None:
        for _ in range(slots):
            self.path.activator.ceiling.leave()


def told(route: Route, handle: int) -> dict[str, Any]:
    """`gateway.lanes.outpost.Function` of it."""
    key, spec = route.revision.key, route.revision.spec
    return {
        "handle": handle,
        "namespace": key.namespace,
        "name": key.function,
        "number": key.number,
        "qualifier": route.qualifier,
        "concurrency": spec.concurrency,
        "limit": spec.scale.limit,
        "timeout": spec.timeout,
        "queue_timeout": spec.queue_timeout,
    }


def text_of(told: object) -> str:
    """Raises ValueError for what is no text, or a long one."""
    if not isinstance(told, str) or len(told) > TEXT_CHARACTERS:
        raise ValueError("that is no text")
    return told
