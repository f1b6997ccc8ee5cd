"""A schedule's whole path on real parts: fire time, queue, function, history; through a restart."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from faas.leases import InvocationResult
from faas.protocol import (
    Revision,
)
from gateway.store import schedules
from tests.support.control import Control, control, until
from tests.support.data_path import sample
from tests.support.fake_worker import FakeWorker

EVERY_MINUTE = {"name": "tick", "cron": "* * * * *", "input": {"kind": "tick"}}


async def early_in_a_minute() -> None:
    """Away from its end: the next fire time must not come in between."""
    if (left := 60 - time.time() % 60) < 20:
        await asyncio.sleep(left + 0.1)


async def set_back(server: Control, seconds: float) -> None:
    """As if the schedule had last been considered so long ago."""
    async with server.gateway.database.write() as tx:
        for row in await tx.run_sync(schedules.every):
            await tx.run_sync(schedules.considered, row, time.time() - seconds)
    server.gateway.scheduler.changed()


async def history(server: Control, name: str = "tick") -> list[dict[str, Any]]:
    return list((await server.call("GET", f"/v1/functions/hello/schedules/{name}/history")).json()["fires"])


async def test_a_fire_runs_the_function_and_its_outcome_is_history(tmp_path: Path) -> None:
    got: list[bytes] = []

    async def function(revision: Revision, event: bytes) -> InvocationResult:
        got.append(event)
        return InvocationResult(b"1") if len(got) == 1 else InvocationResult(b"{}", error_type="ValueError")

    async with control(tmp_path, FakeWorker(function)) as server:
        await server.deploy(schedule=[EVERY_MINUTE], **{"async": {"retries": 0}})
        await early_in_a_minute()
        await set_back(server, 59.9)

        async def ended() -> Any:
            fires = await history(server)
            return fires if fires and fires[0]["status"] in ("success", "error") else None

        (fire,) = await until(ended, 65)
        assert (fire["status"], fire["error"], got) == ("success", "", [b'{"kind":"tick"}'])
        assert fire["duration"] is not None
        (row,) = (await server.call("GET", "/v1/schedules")).json()["schedules"]
        assert row["last"]["status"] == "success"
        assert sample(server.gateway.metrics, "faas_schedule_lag_seconds_count") == 1
        labels = {"function": "hello", "qualifier": "live", "trigger": "schedule", "status": "success"}
        assert sample(server.gateway.metrics, "faas_invocations_total", **labels) == 1
        await server.deploy(schedule=[EVERY_MINUTE | {"name": "tock"}], **{"async": {"retries": 0}})
        await server.gateway.scheduler.stop()
        await early_in_a_minute()
        await set_back(server, 250)
    async with control(tmp_path, FakeWorker(function)) as server:  # after four minutes of downtime

        async def failed() -> Any:
            fires = await history(server, "tock")
            return fires if fires and fires[0]["status"] == "error" else None

        fires = await until(failed)
        assert [f["status"] for f in fires].count("error") == 1
        assert [f["status"] for f in fires].count("missed") >= 2
        assert fires[0]["error"].startswith("ValueError")
        assert len(got) == 2
