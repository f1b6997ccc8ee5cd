"""What every function uses now: instances, queue, memory, CPU, and counts to make rates of."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from faas.auth import ALL_NAMESPACES, Permission
from faas.protocol import RevisionUsage, WorkerUsage
from faas.web import access
from gateway.control.functions import INSTANCES
from gateway.control.operations import TEXT, WHOLE, Operation, a_list, an_object, answer, may, namespace_asked
from gateway.counters import Tally
from gateway.gateway import Gateway
from gateway.lanes import living
from gateway.router import function_label

FRESH_SECONDS = 0.5  # whoever asks again within this gets the same answer


@dataclass(frozen=True, slots=True)
class Look:
    """Everything at one moment; functions by (namespace, name)."""

    usage: WorkerUsage
    functions: Mapping[tuple[str, str], dict[str, Any]]


class Top:
    """Looks twice a second at most, however many watch. `clock` gives seconds, monotonic."""

    def __init__(self, gateway: Gateway, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._gateway = gateway
        self._clock = clock
        self._last: Look | None = None
        self._at = 0.0

    async def look(self) -> Look:
        if self._last is None or self._clock() - self._at >= FRESH_SECONDS:
            usage = await self._gateway.worker.usage()
            self._at = self._clock()
            self._last = Look(usage, self._functions(usage))
        return self._last

    def _functions(self, usage: WorkerUsage) -> dict[tuple[str, str], dict[str, Any]]:
        """Those that have instances, or were called since their last change."""
        gateway = self._gateway
        tallies, waiting = gateway.path.invoker.tallies(), self._waiting(usage)
        by_name: dict[tuple[str, str], list[RevisionUsage]] = {}
        for revision in usage.revisions:
            by_name.setdefault((revision.key.namespace, revision.key.function), []).append(revision)
        found = {}
        for state in gateway.router.states():
            where = (state.namespace, state.name)
            tally = tallies.get(function_label(*where), Tally())
            counted = {"invocations": tally.invocations, "errors": tally.errors, "refused": tally.refused}
            revisions = by_name.get(where, [])
            if revisions or waiting.get(where) or any(counted.values()):
                found[where] = {
                    "name": state.name,
                    "namespace": state.namespace,
                    "queue": waiting.get(where, 0),
                    **_used(revisions),
                    **counted,
                }
        return found

    def _waiting(self, usage: WorkerUsage) -> dict[tuple[str, str], int]:
        """Invocations that are in and do not run: in front of the function's limit, and for an instance."""
        executing = {revision.key: revision.stats.executing for revision in usage.revisions}
        found: dict[tuple[str, str], int] = {}
        for key, in_flight in self._gateway.scaler.in_flight().items():
            where = (key.namespace, key.function)
            found[where] = found.get(where, 0) + max(0, in_flight - executing.get(key, 0))
        return found


def _used(revisions: list[RevisionUsage]) -> dict[str, Any]:
    cpus = [revision.cpus for revision in revisions if revision.cpus is not None]
    return {
        "instances": {
            state: sum(getattr(revision.stats, state) for revision in revisions)
            for state in ("starting", "idle", "busy")
        },
        "memory_bytes": sum(revision.memory_bytes for revision in revisions),
        "charged_bytes": sum(revision.charged_bytes for revision in revisions),
        "cpus": round(sum(cpus), 3) if cpus else None,
    }


def _machine(usage: WorkerUsage) -> dict[str, Any]:
    return {
        "budget_bytes": usage.budget_bytes,
        "charged_bytes": {kind.value: size for kind, size in usage.charged_bytes.items()},
        "waiting": usage.waiting,
        "evictions": usage.evictions,
    }


TOP: web.AppKey[Top] = web.AppKey("top", Top)


@access(Permission.READ)
async def shown(request: web.Request) -> web.Response:
    """The machine's own figures tell of every namespace, and are for those who may read all of them."""
    namespace = namespace_asked(request)
    look = await request.app[TOP].look()
    functions = [
        row
        for (of, name), row in look.functions.items()
        if namespace in ("", of) and may(request, Permission.READ, of, name)
    ]
    everything = may(request, Permission.READ, ALL_NAMESPACES)
    machine = _machine(look.usage) if everything else None
    lanes = living.words(request.app) if everything else ""
    return answer({"at": look.usage.at, "memory": machine, "functions": functions, "lanes": lanes})


_MACHINE = an_object(
    ("budget_bytes", "charged_bytes", "waiting", "evictions"), budget_bytes=WHOLE, waiting=WHOLE, evictions=WHOLE,
    charged_bytes={"type": "object", "additionalProperties": WHOLE},
)  # fmt: skip
_ROW = an_object(
    ("name", "namespace", "queue", "instances", "memory_bytes", "charged_bytes", "cpus", "invocations", "errors",
     "refused"),
    name=TEXT, namespace=TEXT, queue=WHOLE, instances=INSTANCES, memory_bytes=WHOLE, charged_bytes=WHOLE,
    cpus={"type": ["number", "null"]}, invocations=WHOLE, errors=WHOLE, refused=WHOLE,
)  # fmt: skip
_LOOK = an_object(
    ("at", "memory", "functions", "lanes"), at={"type": "number"}, memory={"anyOf": [_MACHINE, {"type": "null"}]},
    functions=a_list(_ROW), lanes=TEXT,
)  # fmt: skip
OPERATIONS = (
    Operation(
        "GET", "/v1/top", shown, "What functions use now; counts are since their last change",
        {200: _LOOK}, query={"namespace": TEXT},
    ),
)  # fmt: skip
