"""What invocations use: Lambda's REPORT figures, and the one task that samples the memory of busy instances."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from math import ceil
from typing import Protocol

from faas.background import Background
from faas.leases import ColdStart, Report
from faas.metrics import Metrics
from faas.protocol import Ended, Revision
from worker.marks import figures
from worker.sandbox_spec import label

log = logging.getLogger("worker.metering")

SAMPLE_SECONDS = 0.05
SAMPLE_BUDGET_SECONDS = 0.005  # per round: with very many instances each is sampled less often
GIGABYTE = 1_073_741_824
TOLD_AT_ONCE = 64  # reports: in a loop that is cheaper


def billed(duration_seconds: float, init_seconds: float | None = None) -> float:
    """Duration and init, rounded up to 1 ms."""
    if init_seconds is not None:
        duration_seconds += init_seconds
    return ceil(duration_seconds * 1000 - 1e-6) / 1000  # what is exact in ms must not be rounded up by float's last bit


def report_line(request_id: str, report: Report, status: str = "", error_type: str = "", start: str = "") -> str:
    """Lambda's REPORT line; `status` (timeout | error) is appended where it failed, and to a first invocation the
    `start` that its instance had (stem | cold)."""
    fields = [f"REPORT RequestId: {request_id}", figures(report)]
    if report.init_seconds is not None:
        fields.append(f"Init Duration: {report.init_seconds * 1000:.2f} ms")
        if start:
            fields.append(f"Start: {start}")
    if status:
        fields.append(f"Status: {status}")
    if error_type:
        fields.append(f"Error Type: {error_type}")
    return "\t".join(fields)


def count_start(metrics: Metrics, label: str, cold: ColdStart) -> None:
    """An instance of the function `label` is ready."""
    for phase in ("prepare", "create", "start", "init"):
        metrics.cold_start.labels(label, phase).observe(getattr(cold, phase))
    metrics.cold_starts.labels(label, cold.path).inc()
    metrics.init_duration.labels(label).observe(cold.init)


class Reporting:
    """Where the figures of ended invocations go."""

    def __init__(self) -> None:
        self.ended: Ended = lambda key, reports: None  # nobody has asked for them


class Measured(Protocol):
    """What the sampler looks at."""

    def sample_busy(self, now: float) -> bool:
        """Read the kernel's figures and remember them; whether it is busy: else it is none of these any more."""
        ...


class Sampler:
    """Samples what is busy, every 50 ms. One task for all instances, asleep while nothing is busy."""

    def __init__(self) -> None:
        self._busy: dict[Measured, None] = {}
        self._wake = asyncio.Event()
        self._background = Background()

    def open(self) -> None:
        self._background.start(self._run(), "sampler")

    async def close(self) -> None:
        await self._background.cancel()

    def add(self, measured: Measured) -> None:
        if not self._busy:
            self._wake.set()
        self._busy[measured] = None

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(SAMPLE_SECONDS)
            if not self._busy:
                self._wake.clear()
                continue
            self._round()

    def _round(self) -> None:
        began = time.monotonic()
        for measured in list(self._busy):
            now = time.monotonic()
            if now - began > SAMPLE_BUDGET_SECONDS:
                return
            del self._busy[measured]
            try:
                if measured.sample_busy(now):
                    self._busy[measured] = None  # at the end: whoever was left out comes first in the next round
            except Exception:
                log.exception("an instance cannot be sampled")


class Consumption:
    """What the invocations of one revision use. Ledger and metrics have it when somebody looks: nobody does as often as
    they end."""

    __slots__ = (
        "_at_once", "_billed", "_billed_seconds", "_ended", "_key", "_memory_gb", "_peak", "_recent", "_reporting",
    )  # fmt: skip

    def __init__(self, revision: Revision, metrics: Metrics, reporting: Reporting) -> None:
        self._key = revision.key
        self._reporting = reporting
        self._billed = metrics.billed_gb_seconds.labels(label(revision))
        self._memory_gb = revision.spec.memory_bytes / GIGABYTE
        self._billed_seconds = 0.0
        self._peak = 0
        self._recent = RecentPeak()
        self._ended: list[Report] = []  # not told yet
        self._at_once = TOLD_AT_ONCE

    def add_one(self, report: Report) -> None:
        """Of one invocation that has ended: told by `settle`, or with many others."""
        ended = self._ended
        ended.append(report)
        if len(ended) >= self._at_once:
            self.settle()

    def settle(self) -> None:
        if self._ended:
            ended, self._ended = self._ended, []
            self.add(ended)

    def add(self, reports: Sequence[Report]) -> None:
        """Of invocations that have ended."""
        self._reporting.ended(self._key, reports)
        self._billed_seconds += sum([report.billed_seconds for report in reports])
        self._peak = max(self._peak, max([report.max_memory_bytes for report in reports]))

    def close(self) -> None:
        """The revision has no instance any more, and nobody will look."""
        self._at_once = 1
        self.count()

    def count(self) -> None:
        """Before the metrics are read."""
        self.settle()
        seconds, self._billed_seconds = self._billed_seconds, 0.0
        self._billed.inc(seconds * self._memory_gb)

    def recent_peak(self, now: float) -> int:
        """Bytes: the most of the last window or two."""
        self.settle()
        peak, self._peak = self._peak, 0
        self._recent.add(peak, now)
        return self._recent.value(now)


class RecentPeak:
    """The most seen in the last window or two: a gauge that forgets."""

    WINDOW_SECONDS = 150.0

    __slots__ = ("_before", "_now", "_since")

    def __init__(self) -> None:
        self._before = self._now = 0
        self._since = 0.0

    def add(self, value: int, now: float) -> None:
        if now - self._since > self.WINDOW_SECONDS:
            self._before = self._now if now - self._since < 2 * self.WINDOW_SECONDS else 0
            self._now, self._since = 0, now
        if value > self._now:
            self._now = value

    def value(self, now: float) -> int:
        self.add(0, now)
        return max(self._before, self._now)
