"""What invocations use: Lambda's REPORT figures, and the one task that samples the memory of busy instances."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import Protocol

from faas.background import Background
from faas.leases import ColdStart, Report
from faas.metrics import Metrics
from faas.protocol import Ended
from worker.marks import figures

log = logging.getLogger("worker.metering")

SAMPLE_SECONDS = 0.05
SAMPLE_BUDGET_SECONDS = 0.005  # per round: with very many instances each is sampled less often
GIGABYTE = 1_073_741_824


def billed(duration_seconds: float, init_seconds: float | None) -> float:
    """Duration and init, rounded up to 1 ms."""
    total = (duration_seconds + (init_seconds or 0.0)) * 1000
    return math.ceil(total - 1e-6) / 1000  # what is exact in ms must not be rounded up by float's last bit


def gb_seconds(report: Report) -> float:
    return report.memory_bytes / GIGABYTE * report.billed_seconds


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
        self.ended: Ended = lambda key, report: None  # nobody has asked for them


class Measured(Protocol):
    """What the sampler looks at."""

    def sample(self, now: float) -> None:
        """Read the kernel's figures and remember them."""
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

    def discard(self, measured: Measured) -> None:
        self._busy.pop(measured, None)

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
            try:
                measured.sample(now)
            except Exception:
                log.exception("an instance cannot be sampled")
                self.discard(measured)
            if measured in self._busy:  # to the end: whoever was left out comes first in the next round
                del self._busy[measured]
                self._busy[measured] = None


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
