"""Schedules: `due` says what fires (pure), the loop writes it down once and hands it to the dispatcher.

A fire time and its invocation are one transaction, and the fire time's key can be written once: no restart, kill or
clock that is set back makes it fire twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from faas.background import Background
from faas.cron import latest_fires, next_fire
from faas.errors import FaasError
from faas.leases import Trigger
from faas.metrics import Metrics
from faas.spec import Missed, Overlap, ScheduleSpec
from faas.state.session import Database, Tx
from faas.web import new_request_id
from gateway.dispatcher import Dispatcher
from gateway.event import encode
from gateway.router import function_label
from gateway.store import invocations, schedules
from gateway.store.invocations import PENDING, QueuedEvent
from gateway.store.schedules import MISSED, SKIPPED, Fire, ScheduleRow

log = logging.getLogger("faas.scheduler")

LATE_SECONDS = 60  # a fire time that is older than this was missed; younger, it is only served late
MOST_FIRES = 100  # of one schedule at once: with `missed = "all"` the newest of them run
ROWS_AT_ONCE = 16  # schedules whose times are worked out in one go, in a thread: some take tenths of a second
LOOK_SECONDS = 1.0  # the clock on the wall may be set: it is read again this often
SET_BACK_SECONDS = 86_400.0  # a clock that was a day ahead was wrong: go on from now, rather than wait for it


@dataclass(frozen=True, slots=True)
class Due:
    """One schedule's fire times (Unix): `run`, oldest first, and `missed`, which do not run.

    `cut`: the newest of those before them, where there are more than are looked at; they do not run either.
    """

    row: ScheduleRow
    run: tuple[int, ...]
    missed: tuple[int, ...]
    late: int  # how many of them all passed while nobody looked; what is before `cut` is not counted
    cut: int | None = None


def due(rows: Collection[ScheduleRow], at: float) -> list[Due]:
    """What fires at `at`: for each schedule its times since it was last considered, by its `missed` policy."""
    found = []
    for row in rows:
        times = _times(row, at)
        if not times:
            continue
        cut = times.pop(0) if len(times) > MOST_FIRES else None
        late = [t for t in times if at - t > LATE_SECONDS]
        match row.spec.missed:
            case Missed.ALL:
                run = times
            case Missed.SKIP:
                run = times[len(late) :]
            case Missed.ONCE:
                run = times[-1:] if late else times
        missed = times[: len(times) - len(run)]
        found.append(Due(row, tuple(run), tuple(missed), len(late) + (cut is not None), cut))
    return found


def _times(row: ScheduleRow, at: float) -> list[int]:
    if at <= row.considered_until:
        return []
    since, until = datetime.fromtimestamp(row.considered_until, UTC), datetime.fromtimestamp(at, UTC)
    times = latest_fires(row.spec.cron, row.spec.timezone, since, until, MOST_FIRES + 1)
    return [int(moment.timestamp()) for moment in times]


def _coming(rows: Collection[ScheduleRow]) -> list[tuple[float, ScheduleRow]]:
    """Each schedule with its next fire time."""
    found = []
    for row in rows:
        try:
            after = datetime.fromtimestamp(row.considered_until, UTC)
            found.append((next_fire(row.spec.cron, row.spec.timezone, after).timestamp(), row))
        except ValueError as error:  # its zone may have gone from the machine
            log.error("schedule %s of %s: %s", row.spec.name, row.function, error)
    return found


def next_fires(spec: ScheduleSpec, at: float, count: int) -> list[datetime]:
    """The next `count` fire times after `at`."""
    moment, found = datetime.fromtimestamp(at, UTC), []
    for _ in range(count):
        moment = next_fire(spec.cron, spec.timezone, moment)
        found.append(moment)
    return found


def event_of(row: ScheduleRow, fire_time: int, invocation: str) -> bytes:
    """`input` as it stands where it is given (as EventBridge Scheduler), else a Scheduled Event."""
    if row.spec.input:
        return encode(dict(row.spec.input))
    stamp = datetime.fromtimestamp(fire_time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    event: dict[str, Any] = {
        "version": "0",
        "id": invocation,
        "detail-type": "Scheduled Event",
        "source": "aws.events",
        "account": row.namespace,
        "time": stamp,
        "region": "local",
        "resources": [f"arn:aws:events:local:{row.namespace}:rule/{row.function}/{row.spec.name}"],
        "detail": {},
    }
    return encode(event)


class Scheduler:
    """`start`ed once, `stop`ped once. `clock` gives Unix seconds; `tick` is one look at it."""

    def __init__(
        self,
        database: Database,
        dispatcher: Dispatcher,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.time,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._clock = clock
        self._look = look_seconds
        self._coming: list[tuple[float, ScheduleRow]] = []  # each with its next fire time
        self._next: float = 0.0  # the earliest of them
        self._looked: float = 0.0
        self._background = Background()
        self._stale = True

    async def start(self) -> None:
        self._background.start(self._run(), "scheduler")

    async def stop(self) -> None:
        await self._background.cancel()

    def changed(self) -> None:
        """Schedules were made, changed or removed."""
        self._stale = True

    async def tick(self) -> None:
        """Fire what is due at the clock's time."""
        now = self._clock()
        if self._stale or now < self._looked:  # a clock that was set back: nothing known of the future holds
            await self._load(now)
        self._looked = now
        if now < self._next:
            return
        ready = [row for moment, row in self._coming if moment <= now]
        for begin in range(0, len(ready), ROWS_AT_ONCE):
            some = await asyncio.to_thread(due, ready[begin : begin + ROWS_AT_ONCE], now)
            self._dispatcher.added(await self._fire(some, now))
        await self._load(now)

    async def _run(self) -> None:
        while True:
            try:
                await self.tick()
            except FaasError as error:
                log.error("schedules cannot be read: %s", error.message)
            except Exception:
                log.exception("the scheduler goes on")
            wait = max(0.005, self._next - self._clock())
            await asyncio.sleep(min(self._look, wait))

    async def _load(self, now: float) -> None:
        self._stale = False
        async with self._database.read() as tx:
            rows = await tx.run_sync(schedules.every)
        ahead = [row for row in rows if row.considered_until - now > SET_BACK_SECONDS]
        if ahead:
            log.warning("the clock was set back by more than a day: %d schedules go on from now", len(ahead))
            async with self._database.write() as tx:
                for row in ahead:
                    await tx.run_sync(schedules.considered, row, now)
                rows = await tx.run_sync(schedules.every)
        self._coming = await asyncio.to_thread(_coming, rows)
        self._next = min((moment for moment, _ in self._coming), default=float("inf"))

    async def _fire(self, dues: list[Due], now: float) -> list[QueuedEvent]:
        if not dues:
            return []

        def fired(tx: Tx) -> list[QueuedEvent]:
            queued = [event for one in dues for event in _fire_one(tx, one, now)]
            invocations.add(tx, queued)
            return queued

        queued = await self._database.change(fired)
        for one in dues:
            if one.late:
                label = f"{function_label(one.row.namespace, one.row.function)}/{one.row.spec.name}"
                self._metrics.schedule_missed.labels(label).inc(one.late)
        return queued


def _fire_one(tx: Tx, one: Due, now: float) -> list[QueuedEvent]:
    row, queued = one.row, []
    if not schedules.considered(tx, row, float(max((*one.run, *one.missed)))):
        return []  # changed since its times were worked out: the next look has its new ones
    if one.cut is not None:
        since = datetime.fromtimestamp(row.considered_until, UTC).strftime("%Y-%m-%d %H:%M UTC")
        error = f"and every fire time before it since {since}"
        log.warning("schedule %s of %s missed this one %s", row.spec.name, row.function, error)
        schedules.record(tx, row, [Fire(one.cut, MISSED, error=error)])
    schedules.record(tx, row, [Fire(t, MISSED) for t in one.missed])
    for fire_time in one.run:
        if row.spec.overlap is Overlap.SKIP and schedules.unfinished(tx, row):
            error = "the run before it had not ended"
            schedules.record(tx, row, [Fire(fire_time, SKIPPED, error=error)])
            continue
        event_id = new_request_id()
        if not schedules.record(tx, row, [Fire(fire_time, PENDING, event_id)]):
            continue  # it has fired before
        queued.append(
            QueuedEvent(
                id=event_id,
                namespace=row.namespace,
                function=row.function,
                trigger=Trigger.SCHEDULE,
                payload=event_of(row, fire_time, event_id),
                meta={"fire_time": fire_time, "schedule": row.spec.name},
                created_at=now,
            )
        )
    return queued
