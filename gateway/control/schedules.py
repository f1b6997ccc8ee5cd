"""Schedules of all functions: their next fire times and what became of past ones."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from faas.auth import Permission
from faas.errors import NotFound
from faas.web import access
from gateway.control.operations import (
    FLAG,
    TEXT,
    TIME,
    Operation,
    a_list,
    a_whole_list,
    an_object,
    answer,
    function_name,
    may,
    namespace_asked,
    path_text,
    stamp,
)
from gateway.gateway import GATEWAY
from gateway.scheduler import next_fires
from gateway.store import schedules
from gateway.store.schedules import Fire, ScheduleRow

NEXT = 3


@access(Permission.READ)
async def listed(request: web.Request) -> web.Response:
    gateway, namespace, now = request.app[GATEWAY], namespace_asked(request), time.time()
    async with gateway.database.read() as tx:
        rows, last = await tx.run_sync(schedules.every), await tx.run_sync(schedules.last_fires)
    found = (
        _shown(row, last.get(row.key), now)
        for row in rows
        if namespace in ("", row.namespace) and may(request, Permission.READ, row.namespace, row.function)
    )
    return await a_whole_list("schedules", found)


def _shown(row: ScheduleRow, fire: Fire | None, now: float) -> dict[str, Any]:
    """`fire`: the last one."""
    try:
        coming = [stamp(moment.timestamp()) for moment in next_fires(row.spec, now, NEXT)]
    except ValueError:  # its zone has gone from the machine
        coming = []
    return {
        "function": row.function,
        "namespace": row.namespace,
        "name": row.spec.name,
        "cron": row.spec.cron,
        "timezone": row.spec.timezone,
        "missed": row.spec.missed.value,
        "overlap": row.spec.overlap.value,
        "next": coming,
        "last": {"fire_time": stamp(fire.fire_time), "status": fire.status} if fire else None,
        "enabled": True,
    }


@access(Permission.READ)
async def history(request: web.Request) -> web.Response:
    gateway, where = request.app[GATEWAY], function_name(request, Permission.READ)
    state, name = gateway.deployer.known(where.namespace, where.name), path_text(request, "schedule")
    async with gateway.database.read() as tx:
        rows = await tx.run_sync(schedules.every)
        fires = await tx.run_sync(schedules.history, where.namespace, where.name, name)
    if (state.namespace, state.name, name) not in {row.key for row in rows}:
        raise NotFound(f"{where.name} has no schedule {name}")
    return answer(
        {
            "fires": [
                {
                    "fire_time": stamp(fire.fire_time),
                    "status": fire.status,
                    "started_at": stamp(fire.started_at),
                    "duration": round(fire.ended_at - fire.started_at, 3)
                    if fire.ended_at is not None and fire.started_at is not None
                    else None,
                    "error": fire.error,
                    "invocation": fire.invocation,
                }
                for fire in fires
            ]
        }
    )


_SCHEDULE = an_object(
    ("function", "namespace", "name", "cron", "timezone", "next"), more=True, function=TEXT, namespace=TEXT, name=TEXT,
    cron=TEXT, timezone=TEXT, next=a_list(TIME), enabled=FLAG,
)  # fmt: skip
_FIRE = an_object(("fire_time", "status"), more=True, fire_time=TIME, status=TEXT, error=TEXT)
OPERATIONS = (
    Operation(
        "GET", "/v1/schedules", listed, "Schedules, with their next fire times",
        {200: an_object(("schedules",), schedules=a_list(_SCHEDULE))}, query={"namespace": TEXT},
    ),
    Operation(
        "GET", "/v1/functions/{name}/schedules/{schedule}/history", history, "Past fire times, newest first",
        {200: an_object(("fires",), fires=a_list(_FIRE))},
    ),
)  # fmt: skip
