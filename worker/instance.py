"""`Instance`: one running sandbox of a revision, from its start to its end.

STARTING ──ready──▶ IDLE ──claim──▶ BUSY          BUSY: at least one slot is taken; an instance of an http
    │                ▲ │◀──release── │            function with concurrency > 1 may still have free ones
    └──────stop──────┴─┴─────────────┴──stop──▶ STOPPING ──died──▶ DEAD
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from faas.errors import FaasError, FunctionError, InstanceExited, OutOfMemory, TimedOut
from faas.leases import ColdStart, Report
from faas.protocol import (
    InstanceStatus,
    Revision,
)
from faas.spec import Interface
from worker import diagnosis, metering
from worker.drivers.base import Driver, Exit, Sandbox
from worker.exchange import ENDED, HANDED, Exchange, Undelivered
from worker.failures import Failures
from worker.http import HttpClient
from worker.memory.charge import Charge
from worker.metering import SAMPLE_SECONDS, Sampler
from worker.output import Output
from worker.runtime_api import RuntimeApi
from worker.settling import Settling

SETTLE_ITERATIONS = 3  # of the loop, until what was written before an answer has come through the pipes
UNMEASURED_SECONDS = 0.002  # of running, in which a function cannot get many MB
SHARED_SECONDS = 0.01  # so old a measurement may be that several at once share
_report = tuple.__new__  # `Report` itself would call a function written in Python


Account = Callable[[Sequence[Report]], None]


class InstanceState(enum.StrEnum):
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    STOPPING = "stopping"
    DEAD = "dead"


# Looking a member up in its enum costs more than anything that is done with it (0.2 µs on Python 3.11).
_STARTING, IDLE, BUSY, _STOPPING, _DEAD = InstanceState


class Instance:
    """Made STARTING and empty; `Launches` gives it its sandbox, the pool claims and releases its slots."""

    def __init__(
        self,
        instance_id: str,
        revision: Revision,
        driver: Driver,
        output: Output,
        sampler: Sampler,
        settling: Settling,
    ) -> None:
        self.id = instance_id
        self.revision = revision
        self.output = output
        self.state = _STARTING
        self.interface = Interface.AUTO
        self.slots = 1
        self.executing = 0
        self.invocations = 0
        self.started_at = time.time()
        self.idle_since = time.monotonic()
        self.cold_start: ColdStart | None = None
        self.init_seconds: float | None = None
        self.sandbox: Sandbox | None = None
        self.api: RuntimeApi | None = None
        self.http: HttpClient | None = None
        self.exchange: Exchange | None = None
        self.outcome: Exit | None = None
        self.account: Account = lambda reports: None  # where reports go that are made later
        self.failures: Failures | None = None  # where they are told
        self.charge: Charge | None = None  # of the memory ledger; none before there is a sandbox
        self.is_frozen = False
        self.freezing: asyncio.Task[None] | None = None  # on its way to that
        self.is_thawing = False  # on its way back, or left there by a caller who went
        self.can_freeze = True
        self.is_outdated = False  # it goes when what runs in it has ended
        self.when_ready: Callable[[], None] | None = None  # called once, before anybody has a slot of it
        self.grace_is_over = False  # it is frozen as soon as it asks for an event: somebody waits for its memory
        self.memory_bytes = 0  # the last sample
        self.oom_kills = 0
        self._limit_bytes = revision.spec.memory_bytes
        self._peak_bytes = 0  # since the invocation began
        self._sampled_at = 0.0
        self._is_sampled = False  # now and then, by the sampler
        self._unmeasured = 0.0  # seconds that invocations have run since
        self._oom_kills_before = 0
        self._driver = driver
        self._sampler = sampler
        self._settling = settling
        self._unsettled: list[tuple[str, Report | list[str]]] = []  # of ended invocations
        # Of several at once, what is not logged yet: since when they run (`time.monotonic`), by id; of those that ended
        # well their seconds, and since when, where that was not logged before.
        self._begun: dict[str, float] = {}
        self._ended: list[tuple[str, float, float | None]] = []
        self._is_settling = False

    # States

    def _move(self, state: InstanceState, *sources: InstanceState) -> None:
        assert self.state in sources, f"instance {self.id}: {self.state} to {state}"
        self.state = state

    def ready(self, interface: Interface, slots: int) -> None:
        self._move(IDLE, _STARTING)
        self.interface = interface
        self.slots = slots
        self.idle_since = time.monotonic()
        if (called := self.when_ready) is not None:
            self.when_ready = None
            called()

    def claim(self) -> None:
        """Take a slot."""
        assert self.executing < self.slots
        if self.executing == 0:
            assert self.state is IDLE, f"instance {self.id}: {self.state} to busy"
            self.state = BUSY
            if self.charge is not None:
                self.charge.use()
        self.executing += 1
        self.invocations += 1

    def release(self, yields: int = 0) -> None:
        """Give a slot back; `yields`: bytes of its charge that will be free when it stands still."""
        assert self.executing > 0
        self.executing -= 1
        if self.executing == 0 and self.state is BUSY:
            self._move(IDLE, BUSY)
            self.idle_since = time.monotonic()
            self.grace_is_over = False
            if self.charge is not None:
                self.charge.rest(yields)

    def pause(self) -> None:
        """Give the last slot back; its charge stays as it is, for it may be claimed again at once."""
        assert self.state is BUSY, f"instance {self.id}: {self.state} to idle"
        self.executing = 0
        self.state = IDLE
        self.idle_since = time.monotonic()
        self.grace_is_over = False

    def stop(self) -> None:
        """No more slots from here on."""
        self._move(_STOPPING, _STARTING, IDLE, BUSY)

    def died(self) -> None:
        self._move(_DEAD, _STOPPING)

    @property
    def stands_still(self) -> bool:
        """Frozen, or on its way there or back: it is thawed before it is given anything."""
        return self.is_frozen or self.is_thawing or self.freezing is not None

    @property
    def is_asking(self) -> bool:
        """Its runtime waits for an event."""
        return self.api is not None and self.api.is_asked

    @property
    def free_slots(self) -> int:
        return self.slots - self.executing if self.state in (IDLE, BUSY) else 0

    def status(self, now: float) -> InstanceStatus:
        idle = now - self.idle_since if self.state is IDLE else 0.0
        self.sample(now)
        return InstanceStatus(self.id, self.state.value, self.started_at, idle, self.invocations, self.memory_bytes)

    # Invocations

    def begin(self, request_id: str, now: float) -> None:
        """An invocation reaches the function; `now` is `time.monotonic`."""
        if self.slots > 1:
            if not self._is_settling:
                self._settle_soon()
            self._begun[request_id] = now
            return
        if self._unsettled and self.output.goes_on(self._unsettled, request_id):
            self._unsettled.clear()
        else:
            self.settle()
            self.output.begin(request_id)
        if not self._is_settling:
            self._settle_soon()
        # A sample from before says something only while it is fresh; else the one at the end will.
        fresh = now - self._sampled_at < SAMPLE_SECONDS
        self._peak_bytes = self.memory_bytes if fresh else 0
        self._oom_kills_before = self.oom_kills
        if not self._is_sampled:
            self._sample_from_now()

    def ended_well(self, request_id: str, seconds: float) -> bool:
        """It is over, and one of several: its report is made a moment later, with others'. Whether that will do."""
        if self.slots == 1 or self.init_seconds is not None:
            return False
        if not self._is_settling:
            self._settle_soon()
        self._ended.append((request_id, seconds, self._begun.pop(request_id, None)))
        return True

    def end(self, request_id: str, seconds: float, error: BaseException | None, error_type: str | None) -> Report:
        """It is over, `error` being what the caller gets; the report is made and the log's lines are on their way."""
        self._unmeasured += seconds
        if self._unmeasured >= UNMEASURED_SECONDS or not self._peak_bytes:
            # What it has at its end was never less in between; of many short ones the last measurement speaks.
            self.sample(time.monotonic(), 0.0)
        if error is not None or error_type or self.init_seconds is not None:
            return self._end_otherwise(request_id, seconds, error, error_type)
        limit, peak = self._limit_bytes, self._peak_bytes
        billed_seconds = metering.billed(seconds)
        report = _report(Report, (seconds, billed_seconds, limit, peak if peak < limit else limit, None, False))
        self._unsettled.append((request_id, report))
        if not self._is_settling:
            self._settle_soon()
        return report

    def _settle_soon(self) -> None:
        """Whoever calls looks first whether that is so already: a call less for nearly every invocation."""
        self._is_settling = True
        self._settling.add(self)

    def _sample_from_now(self) -> None:
        self._is_sampled = True
        self._sampler.add(self)

    def settle_several(self) -> None:
        """What has begun and ended well, of several at once, since the last time: all have the same memory."""
        self._is_settling = False
        if not self._begun and not self._ended:
            return
        since = time.time() - time.monotonic()
        begun, self._begun = self._begun, {}
        self.output.begin_several([(request_id, since + at) for request_id, at in begun.items()])
        self._oom_kills_before = self.oom_kills
        if self.executing and not self._is_sampled:
            self._sample_from_now()
        ended, self._ended = self._ended, []
        if ended:
            self.sample(time.monotonic(), SHARED_SECONDS)
            limit, billed = self._limit_bytes, metering.billed
            peak = min(self._peak_bytes, limit)
            self._peak_bytes = self.memory_bytes
            reports = [_report(Report, (seconds, billed(seconds), limit, peak, None, False)) for _, seconds, _ in ended]
            self.account(reports)
            together = zip(ended, reports, strict=True)
            self.output.end_several([(one, report, (at and since + at) or 0.0) for (one, _, at), report in together])

    def _end_otherwise(
        self, request_id: str, seconds: float, error: BaseException | None, error_type: str | None
    ) -> Report:
        """The first invocation, or one that failed: there is more to say."""
        limit = self._limit_bytes
        init, self.init_seconds = self.init_seconds, None  # billed once
        peak = limit if isinstance(error, OutOfMemory) else min(self._peak_bytes, limit)
        failed = isinstance(error, FaasError) or bool(error_type)
        report = Report(seconds, metering.billed(seconds, init), limit, peak, init, failed)
        if failed and self.failures is not None:
            self.failures.invocation_failed(self.revision.key, self.id, request_id, error, error_type)
        more = failed or init is not None
        last = self._last_lines(request_id, report, error, error_type) if more else report
        self._unsettled.append((request_id, last))
        if not isinstance(error, TimedOut | InstanceExited):  # else when it is dead and its pipes have ended
            self._settling.add(self)
        return report

    def _last_lines(
        self, request_id: str, report: Report, error: BaseException | None, error_type: str | None
    ) -> list[str]:
        lines, status = [], ""
        if isinstance(error, TimedOut):
            status, error_type = "timeout", None
            stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
            lines.append(f"{stamp}Z {request_id} {error.message}")
        elif isinstance(error, FaasError):
            status = "error"
            error_type = error.error_type if isinstance(error, FunctionError) else error.code
            lines.append(f"RequestId: {request_id} Error: {error.message}")
        elif error_type:
            status = "error"
        lines.append(f"END RequestId: {request_id}")
        start = self.cold_start.path if self.cold_start is not None else ""
        lines.append(metering.report_line(request_id, report, status, error_type or "", start))
        return lines

    def settle_slice(self) -> float | None:
        """Log some of what the function wrote before its answer; None where that and the last lines are logged."""
        if self._unsettled and self.output.take_slice(begun=self._is_alone):
            return self.output.pause_seconds
        self.settle()
        return None

    def settle(self) -> None:
        """Write the last lines of ended invocations, after what the function wrote before its answer."""
        self.settle_several()
        if not self._unsettled:
            self.output.say_start()
            return
        self.output.take_now(begun=self._is_alone)
        for request_id, last in self._unsettled:
            if isinstance(last, Report):
                self.output.end(request_id, last)
            else:
                for line in last:
                    self.output.system(line, request_id)
        self._unsettled.clear()
        if self.exchange is None or self.exchange.state is ENDED:
            self.output.request_id = ""

    @property
    def _is_alone(self) -> bool:
        """No other invocation may be in the middle of a line."""
        return self.slots == 1 or not self.executing

    @property
    def is_settled(self) -> bool:
        return not (self._unsettled or self._begun or self._ended or self.output.owes_start)

    # Memory

    def sample_busy(self, now: float) -> bool:
        """See `worker.metering.Measured`."""
        self._is_sampled = self.executing > 0
        if self._is_sampled:
            self.sample(now)
        return self._is_sampled

    def sample(self, now: float, after_seconds: float = SAMPLE_SECONDS / 2) -> None:
        """Ask the kernel, where the last answer is older than that. Also says so in the log when a process inside was
        killed for want of memory."""
        if self.sandbox is None or self.state is _DEAD or now - self._sampled_at < after_seconds:
            return
        self._sampled_at = now
        self._unmeasured = 0.0
        stats = self._driver.stats(self.sandbox)
        self.memory_bytes = stats.memory_bytes
        self._peak_bytes = max(self._peak_bytes, stats.memory_bytes)
        if stats.oom_kills > self.oom_kills:
            self.oom_kills = stats.oom_kills
            self.output.system(
                f"a process was killed: out of memory (limit {self.revision.spec.memory} MB)", self.output.request_id
            )

    def had_oom_kill(self) -> bool:
        """Whether a process was killed for want of memory since the invocation began, which has failed."""
        self.sample(time.monotonic(), 0.0)
        return self.oom_kills > self._oom_kills_before

    # Its end

    def watch(self, sandbox: Sandbox, on_exit: Callable[[Instance], None]) -> None:
        """From now on `on_exit` is called when the sandbox's first process has ended."""
        self.sandbox = sandbox

        def ended(exited: asyncio.Future[Exit]) -> None:
            if not exited.cancelled():
                self.outcome = exited.result()
                self.fail_open()
                on_exit(self)

        sandbox.exited.add_done_callback(ended)

    def fail_open(self) -> None:
        """Tell the open exchange that the instance has ended; an event that was never taken may go elsewhere."""
        exchange = self.exchange
        if exchange is not None and exchange.state is not ENDED:
            taken = exchange.state is HANDED
            exchange.fail(self.exit_error() if taken else Undelivered("the instance ended before it took the event"))

    def exit_error(self) -> InstanceExited:
        """What a caller is told whose function's instance ended."""
        outcome = self.outcome or Exit(137, 9)
        if outcome.out_of_memory:
            return self.out_of_memory()
        return InstanceExited(f"Runtime exited with error: {outcome}")

    def out_of_memory(self) -> OutOfMemory:
        message, hint = diagnosis.out_of_memory(self.revision.spec.memory, self._peak_bytes)
        return OutOfMemory(message, hint=hint)
