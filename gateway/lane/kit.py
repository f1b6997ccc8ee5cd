"""`Kit`: what all connections of a lane work with."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from faas.trace_id import TraceIds
from gateway.activator import Activator
from gateway.edge.witness import Witness
from gateway.invoke import Invoker
from gateway.lane.shape import Shapes
from gateway.lane.stamps import RequestIds, Stamps


@dataclass(slots=True)
class Kit:
    """`tasks`: of requests that have to wait for an instance."""

    activator: Activator
    invoker: Invoker
    witness: Witness | None  # where somebody watches
    shapes: Shapes = field(default_factory=Shapes)
    stamps: Stamps = field(default_factory=Stamps)
    ids: RequestIds = field(default_factory=RequestIds)
    traces: TraceIds = field(default_factory=TraceIds)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name="lane")
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task
