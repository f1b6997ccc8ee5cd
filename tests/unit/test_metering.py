"""Figures of the REPORT line and the sampler."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from faas.leases import Report
from faas.metrics import Metrics
from tests.support.data_path import revision
from tests.support.fake_driver import eventually
from worker.marks import MEGABYTE
from worker.metering import SAMPLE_SECONDS, Consumption, RecentPeak, Reporting, Sampler, billed, report_line


@pytest.mark.parametrize(
    ("duration", "init", "milliseconds"),
    [
        (0.01574, 0.13049, 147),
        (0.39599, 0.26572, 662),
        (0.0151, None, 16),
        (0.147, None, 147),
        (0.1, 0.2, 300),
        (0, None, 0),
    ],
)
def test_billed_time_includes_init_and_is_rounded_up_to_a_millisecond(
    duration: float, init: float | None, milliseconds: int
) -> None:
    assert round(billed(duration, init) * 1000, 6) == milliseconds


def test_the_report_line_is_lambdas() -> None:
    report = Report(0.01574, billed(0.01574, 0.13049), 128 * MEGABYTE, 54 * MEGABYTE - 10, 0.13049)
    assert report_line("id", report) == (
        "REPORT RequestId: id\tDuration: 15.74 ms\tBilled Duration: 147 ms\tMemory Size: 128 MB\t"
        "Max Memory Used: 54 MB\tInit Duration: 130.49 ms"
    )
    warm = Report(3.0, 3.0, 128 * MEGABYTE, MEGABYTE)
    assert report_line("id", warm, "timeout") == (
        "REPORT RequestId: id\tDuration: 3000.00 ms\tBilled Duration: 3000 ms\tMemory Size: 128 MB\t"
        "Max Memory Used: 1 MB\tStatus: timeout"
    )
    assert report_line("id", warm, "error", "ValueError").endswith("Status: error\tError Type: ValueError")


def test_gigabyte_seconds_are_size_times_billed_time_and_told_when_somebody_looks() -> None:
    metrics = Metrics("test")
    reporting, told = Reporting(), list[Report]()
    reporting.ended = lambda key, reports: told.extend(reports)
    consumption = Consumption(revision(memory=512), metrics, reporting)
    metrics.before_reading(consumption.count)
    for _ in range(2):
        consumption.add([Report(1.9, 2.0, 512 * MEGABYTE, 7 * MEGABYTE)])
    assert b'faas_billed_gb_seconds_total{function="hello"} 2.0' in metrics.render()
    assert b'faas_billed_gb_seconds_total{function="hello"} 2.0' in metrics.render()
    assert consumption.recent_peak(0.0) == 7 * MEGABYTE
    assert len(told) == 2


def test_the_recent_peak_forgets() -> None:
    peak = RecentPeak()
    peak.add(100, 1000.0)
    peak.add(40, 1200.0)
    assert peak.value(1210.0) == 100
    assert peak.value(1400.0) == 40
    assert peak.value(9999.0) == 0


class Busy:
    def __init__(self, *, is_busy: bool = True) -> None:
        self.times: list[float] = []
        self.is_busy = is_busy

    def sample_busy(self, now: float) -> bool:
        if self.is_busy:
            self.times.append(now)
        return self.is_busy

    @property
    def samples(self) -> int:
        return len(self.times)


async def test_only_what_is_busy_is_sampled_every_50_ms() -> None:
    sampler, busy, idle = Sampler(), Busy(), Busy(is_busy=False)
    sampler.open()
    sampler.add(busy)
    sampler.add(idle)
    await eventually(lambda: busy.samples >= 6)
    gaps = [after - before for before, after in itertools.pairwise(busy.times)]
    assert SAMPLE_SECONDS - 0.001 <= min(gaps) < 2 * SAMPLE_SECONDS  # where the machine lets it
    seen, busy.is_busy, idle.is_busy = busy.samples, False, True
    await asyncio.sleep(0.12)
    assert (busy.samples, idle.samples) == (seen, 0), "what was not busy is none of these any more"
    busy.is_busy = True
    sampler.add(busy)
    await eventually(lambda: busy.samples > seen)
    await sampler.close()


async def test_a_slow_round_leaves_the_rest_for_the_next_one() -> None:
    class Slow(Busy):
        def sample_busy(self, now: float) -> bool:
            import time

            time.sleep(0.003)
            return super().sample_busy(now)

    sampler = Sampler()
    many = [Slow() for _ in range(6)]
    for one in many:
        sampler.add(one)
    sampler._round()
    assert sum(one.samples for one in many) < 6
    for _ in range(5):
        sampler._round()
        counts = [one.samples for one in many]
        assert max(counts) - min(counts) <= 1  # whoever was left out comes first
