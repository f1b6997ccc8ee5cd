"""The queue's engine: accepts events durably, claims due ones, runs them, and writes down what became of them.

At least once: a row is over only after its answer is committed. What was running when the server ended is claimed
again by the next start. Whatever happens to an event, it ends in a stored state: over, queued again, or a dead letter.
Nothing here counts invocations: `gateway.invoke` does, as for every trigger.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from faas.background import Background
from faas.errors import FaasError, NotFound, Unavailable
from faas.leases import Trigger
from faas.metrics import Metrics
from faas.state.session import Database, Tx
from faas.web import new_request_id
from gateway import destination
from gateway.delivery import Answer, Delivery
from gateway.retries import EVENT_AGE_EXCEEDED, RETRIES_EXHAUSTED, Failure, RetryRules, expired, retried
from gateway.router import Router, function_label
from gateway.shares import shares
from gateway.store import dead_letters, invocations, schedules
from gateway.store.invocations import CALLBACKS, ERROR, FILES, SUCCESS, Kind, QueuedEvent

log = logging.getLogger("faas.dispatcher")

T = TypeVar("T")

IN_FLIGHT = 256  # events run at once, of all functions; beyond it, one of each function that has none (`shares.py`)
LANE_IN_FLIGHT = 64  # of one function: beyond its instances they would only wait
FILES_IN_FLIGHT = 4  # of one function: each holds a file's content in memory, several times over
CALLBACKS_IN_FLIGHT = 32  # beside the events, of all functions
LANE_CALLBACKS_IN_FLIGHT = 4  # of one function, whose receiver may be slow
POLL_SECONDS = 5.0  # the longest sleep: the wall clock may be set meanwhile
KEPT_SECONDS = 86_400.0  # how long an ended invocation answers for its status
SWEEP_SECONDS = 600.0
STORE_FIRST_SECONDS, STORE_LONGEST_SECONDS = 0.2, 10.0  # between tries to write an outcome down
WRITE_SECONDS = 10.0  # at the end, for what is being accepted
FUNCTION_OF_NOBODY = 4  # in flight for names that lead nowhere: their failing is quick


class Dispatcher:
    """`start`ed once, `stop`ped once. `clock` gives Unix seconds."""

    def __init__(
        self,
        database: Database,
        router: Router,
        delivery: Delivery,
        metrics: Metrics,
        *,
        rules: RetryRules = RetryRules(),  # noqa: B008 - a frozen value
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._router = router
        self._delivery = delivery
        self._metrics = metrics
        self._rules = rules
        self._clock = clock
        self._in_flight: Counter[str] = Counter()
        self._tasks = Background()
        self._writes = Background()
        self._is_open = False
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._closing = False

    async def start(self) -> None:
        """What was running when the server ended is pending again."""

        def recovered(tx: Tx) -> dict[tuple[str, str], int]:
            invocations.recover(tx)
            return invocations.backlog(tx)

        backlog = await self._database.change(recovered)
        for (namespace, function), count in backlog.items():
            self._metrics.async_backlog.labels(function_label(namespace, function)).set(count)
        self._is_open = True
        self._loop = asyncio.create_task(self._run(), name="dispatcher")

    async def stop(self, grace_seconds: float = 0.0) -> None:
        """Claim no more; what runs may finish. What does not runs again at the next start."""
        self._closing = True
        self._wake.set()
        if self._loop is not None:
            await self._loop
            self._loop = None
        await self._tasks.finish(grace_seconds)
        self._is_open = False
        await self._writes.finish(WRITE_SECONDS)

    async def accept(self, event: QueuedEvent) -> str:
        """Store the event; its id once that is durable. Raises Unavailable where it cannot be stored."""

        await self.commit(lambda tx: [event])
        return event.id

    async def commit(self, work: Callable[[Tx], Collection[QueuedEvent]]) -> None:
        """Store the events that `work` gives in the transaction that it works in, and count them once that is
        committed, whoever is still there to hear of it. Raises what `work` raises, Unavailable.
        """
        if not self._is_open:
            raise Unavailable("the server is shutting down")
        await self._writes.complete(self._commit(work), "a write of events")

    async def _commit(self, work: Callable[[Tx], Collection[QueuedEvent]]) -> None:
        def whole(tx: Tx) -> Collection[QueuedEvent]:
            events = work(tx)
            invocations.add(tx, events)
            return events

        self.added(await self._database.change(whole))

    def added(self, events: Collection[QueuedEvent]) -> None:
        for event in events:
            self._backlog(event, 1)
        if events:
            self._wake.set()

    @property
    def running(self) -> int:
        return len(self._tasks)

    # The loop

    async def _run(self) -> None:
        swept = 0.0
        while not self._closing:
            self._wake.clear()
            wait = POLL_SECONDS
            try:
                if time.monotonic() - swept > SWEEP_SECONDS:
                    swept = time.monotonic()
                    await self._sweep()
                next_due = await self._claim()
                if next_due is not None:
                    wait = min(wait, max(0.0, next_due - self._clock()))
            except FaasError as error:
                log.error("the queue cannot be read: %s", error.message)
                wait = 1.0
            except Exception:
                log.exception("the dispatcher goes on")
                wait = 1.0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()

    async def _sweep(self) -> None:
        now = self._clock()

        def removed(tx: Tx) -> dict[tuple[str, str], int]:
            invocations.remove_ended(tx, now - KEPT_SECONDS)
            return dead_letters.remove_old(tx, now)

        for (namespace, function), count in (await self._database.change(removed)).items():
            self._trimmed(namespace, function, count)

    async def _claim(self) -> float | None:
        """Take what is due and has room, and start it; when the next falls due."""
        now = self._clock()
        due, next_due = await self._database.ask(lambda tx: invocations.due(tx, now))
        if not (chosen := self._choose(due)):
            return next_due

        def taken(tx: Tx) -> list[QueuedEvent]:
            events = invocations.claim(tx, now, chosen)
            for event in events:
                if event.trigger is Trigger.SCHEDULE:
                    schedules.running(tx, event.id, now)
            return events

        claimed = await self._database.change(taken)
        for event in claimed:
            self._in_flight[event.lane] += 1
            self._tasks.start(self._process(event), f"event {event.id}")
            if event.kind is not Kind.CALLBACK:
                self._metrics.async_event_age.observe(max(0.0, now - event.created_at))
            if "fire_time" in event.meta and not event.attempts and not event.deferrals:
                self._metrics.schedule_lag.observe(max(0.0, now - event.meta["fire_time"]))
        return next_due

    def _choose(self, due: Mapping[str, int]) -> dict[str, int]:
        """How many rows of each lane start now. Events and callbacks do not take each other's places."""
        chosen: dict[str, int] = {}
        for are_callbacks, most in ((False, IN_FLIGHT), (True, CALLBACKS_IN_FLIGHT)):
            busy = sum(n for lane, n in self._in_flight.items() if lane.endswith(CALLBACKS) is are_callbacks)
            wanted = {
                lane: min(count, self._limit(lane) - self._in_flight[lane])
                for lane, count in due.items()
                if lane.endswith(CALLBACKS) is are_callbacks
            }
            chosen |= shares(wanted, self._in_flight, most - busy)
        return chosen

    def _limit(self, lane: str) -> int:
        if lane.endswith(CALLBACKS):
            return LANE_CALLBACKS_IN_FLIGHT
        namespace, _, function = lane.removesuffix(FILES).partition("/")
        try:
            spec = self._router.resolve(namespace, function).revision.spec
            limit = min(LANE_IN_FLIGHT, spec.scale.limit * spec.concurrency)
        except NotFound:
            limit = FUNCTION_OF_NOBODY
        return min(limit, FILES_IN_FLIGHT) if lane.endswith(FILES) else limit

    # One event

    async def _process(self, event: QueuedEvent) -> None:
        try:
            try:
                await self._outcome(event)
            except Exception as error:
                if self._closing and isinstance(error, Unavailable):
                    raise
                log.exception("event %s", event.id, extra={"request_id": event.id})
                failure = Failure(type(error).__name__, "our fault; it is logged", fault=False)
                await self._fail(event, Answer(failure, 500))
        except Unavailable as error:
            # Not stored before the server ended: the row stays running, and runs again at the next start.
            log.error("event %s: %s", event.id, error.message)
        finally:
            self._in_flight[event.lane] -= 1
            if not self._in_flight[event.lane]:
                del self._in_flight[event.lane]
            self._wake.set()

    async def _outcome(self, event: QueuedEvent) -> None:
        """Run it, and write down what became of it."""
        spec, now = self._delivery.rules(event), self._clock()
        if expired(event, spec, now):
            kept = event.error_message or "the event waited longer than async.max_age"
            failure = Failure(event.error_type or EVENT_AGE_EXCEEDED, kept, fault=False)
            await self._give_up(event, Answer(failure, 504), EVENT_AGE_EXCEEDED)
            return
        answer = await self._delivery.run(event)
        if answer.failure is None:
            await self._succeeded(event, answer)
            return
        # Read again: a deploy may have changed the rules while it ran.
        spec = self._delivery.rules(event)
        again = retried(event, answer.failure, spec, self._clock(), self._rules)
        if again is None:
            await self._give_up(event, answer, RETRIES_EXHAUSTED if answer.failure.fault else EVENT_AGE_EXCEEDED)
        else:
            await self._store(event, lambda tx: invocations.again(tx, again))

    async def _store(self, event: QueuedEvent, work: Callable[[Tx], T]) -> T:
        """Write an outcome down, however long the disk is full: until then the event keeps its place in flight.

        Raises Unavailable once the server is stopping.
        """
        wait = STORE_FIRST_SECONDS
        while True:
            try:
                return await self._database.change(work)
            except Unavailable as error:
                if self._closing:
                    raise
                log.error("the outcome of event %s cannot be stored yet: %s", event.id, error.message)
                await asyncio.sleep(wait)
                wait = min(wait * 2, STORE_LONGEST_SECONDS)

    async def _succeeded(self, event: QueuedEvent, answer: Answer) -> None:
        now = self._clock()
        done = dataclasses.replace(event, status=SUCCESS, ended_at=now, error_type="", error_message="")
        follow_up = _callback(event, answer, now)

        def work(tx: Tx) -> None:
            invocations.end(tx, done)
            invocations.add(tx, follow_up)
            if event.trigger is Trigger.SCHEDULE:
                schedules.ended(tx, event.id, SUCCESS, "", now)

        await self._store(event, work)
        self._backlog(event, -1)

    async def _give_up(self, event: QueuedEvent, answer: Answer, condition: str) -> None:
        """To the function that `on_failure` names, else to the dead letters."""
        on_failure = self._delivery.rules(event).on_failure if event.kind is not Kind.CALLBACK else ""
        sent = None
        if on_failure not in ("", "dlq") and self._router.state(event.namespace, on_failure) is not None:
            dead = _dead(event, answer, self._clock())
            sent = destination.event(dead, answer, condition, on_failure, self._clock())
        await self._fail(event, answer, sent)

    async def _fail(self, event: QueuedEvent, answer: Answer, sent: QueuedEvent | None = None) -> None:
        """The event is over: `sent` goes on for it, else it is a dead letter. A callback is neither."""
        assert answer.failure is not None
        failure, now = answer.failure, self._clock()
        dead, follow_up = _dead(event, answer, now), _callback(event, answer, now)
        if sent is not None:
            follow_up.append(sent)

        def work(tx: Tx) -> tuple[bool, int]:
            """Whether it is a dead letter, and how many older ones had to go for it."""
            there = invocations.end(tx, dead)  # its function may have been deleted, with all its events
            invocations.add(tx, follow_up)
            kept = there and sent is None and event.kind is not Kind.CALLBACK
            if event.trigger is Trigger.SCHEDULE:
                schedules.ended(tx, event.id, ERROR, f"{failure.error_type}: {failure.message}", now)
            return kept, dead_letters.add(tx, dead, now) if kept else 0

        kept, trimmed = await self._store(event, work)
        self._backlog(event, -1)
        for one in follow_up:
            self._backlog(one, 1)
        what = "a callback" if event.kind is Kind.CALLBACK else f"an event of {event.function}"
        where = f"sent to {sent.function}" if sent else "kept as a dead letter" if kept else "dropped"
        log.warning("%s failed for good, %s: %s", what, where, failure.error_type, extra={"request_id": event.id})
        if kept:
            self._metrics.dead_letters.labels(function_label(event.namespace, event.function)).inc()
        if trimmed:
            self._trimmed(event.namespace, event.function, trimmed)

    def _trimmed(self, namespace: str, function: str, count: int) -> None:
        log.warning("%d old dead letters of %s were deleted: see KEPT_LETTERS", count, function)
        self._metrics.dead_letters_trimmed.labels(function_label(namespace, function)).inc(count)

    def _backlog(self, event: QueuedEvent, change: int) -> None:
        """Count what waits or runs. A function that was deleted meanwhile has no series, and gets none again."""
        if event.kind is not Kind.CALLBACK and self._router.state(event.namespace, event.function) is not None:
            self._metrics.async_backlog.labels(function_label(event.namespace, event.function)).inc(change)


def _dead(event: QueuedEvent, answer: Answer, now: float) -> QueuedEvent:
    assert answer.failure is not None
    failure = answer.failure
    return dataclasses.replace(
        event,
        status=ERROR,
        ended_at=now,
        attempts=event.attempts + (1 if failure.fault else 0),
        error_type=failure.error_type,
        error_message=failure.message,
    )


def _callback(event: QueuedEvent, answer: Answer, now: float) -> list[QueuedEvent]:
    """The row that takes the result to the event's `callback_url`, where it has one."""
    if not event.callback_url or event.kind is Kind.CALLBACK:
        return []
    headers = {
        "Content-Type": answer.content_type,
        "X-Call-Id": event.id,
        "X-Function-Name": function_label(event.namespace, event.function),
        "X-Function-Status": str(answer.status),
        "X-Duration-Seconds": f"{max(0.0, now - event.created_at):.6f}",
    }
    if answer.failure is not None:
        headers["X-Error-Type"] = "".join(c for c in answer.failure.error_type if c.isprintable())
    return [
        QueuedEvent(
            id=new_request_id(),
            namespace=event.namespace,
            function=event.function,
            trigger=Trigger.ASYNC,
            kind=Kind.CALLBACK,
            payload=answer.body,
            meta={"headers": headers},
            callback_url=event.callback_url,
            created_at=now,
        )
    ]
