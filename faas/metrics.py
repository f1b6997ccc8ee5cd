"""Every metric of the product, named once. Labels are bounded: function names, never paths or request ids.

The only module that imports `prometheus_client`. One `Metrics` per server; nothing is global.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections import Counter as Tallied
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from time import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST

# Seconds. From a warm call's tenths of a millisecond to the longest time limit (900 s).
_DURATIONS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)
_OVERHEADS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)
_AGES = (0.01, 0.1, 1, 10, 60, 300, 1800, 7200, 21600)
_LAGS = (0.01, 0.05, 0.1, 0.5, 1, 5, 30, 60, 600)


class _Number:
    """A value without a lock: what is counted by every invocation is counted on the event loop alone."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float) -> None:
        self.value += amount

    def set(self, value: float, timestamp: float | None = None) -> None:
        self.value = value

    def get(self) -> float:
        return self.value

    def get_exemplar(self) -> None:
        return None


class LoopCounter(Counter):
    """A tenth of `Counter`'s cost, for the event loop alone; quickly made, for a function's first call waits for it."""

    def _metric_init(self) -> None:
        self._value = _Number()
        self._created = time()

    def inc(self, amount: float = 1, exemplar: Any = None) -> None:
        self._value.value += amount


class LoopGauge(Gauge):
    def _metric_init(self) -> None:
        self._value = _Number()

    def inc(self, amount: float = 1) -> None:
        self._value.value += amount

    def dec(self, amount: float = 1) -> None:
        self._value.value -= amount


class LoopHistogram(Histogram):
    def _metric_init(self) -> None:
        self._created = time()
        self._sum = _Number()
        self._buckets = [_Number() for _ in self._upper_bounds]

    def observe(self, amount: float, exemplar: Any = None) -> None:
        self._sum.value += amount
        self._buckets[bisect_left(self._upper_bounds, amount)].value += 1

    def observe_all(self, amounts: Sequence[float]) -> None:
        """`observe` each; many together cost a third."""
        self._sum.value += sum(amounts)
        for bucket, count in Tallied(map(partial(bisect_left, self._upper_bounds), amounts)).items():
            self._buckets[bucket].value += count


class Folding(Collector):
    """Has what was put aside counted before anything is read: it stands first in the registry, and holds nothing."""

    def __init__(self) -> None:
        self.folds: list[Callable[[], None]] = []

    def collect(self) -> Iterable[Metric]:
        for fold in self.folds:
            fold()
        return ()


class Metrics:
    """The server's metrics. `function` labels are `name` in the namespace default, else `name.namespace`."""

    def __init__(self, version: str) -> None:
        self.registry = r = CollectorRegistry(auto_describe=True)
        self._folding = Folding()
        r.register(self._folding)
        f = ("function",)
        self.invocations = LoopCounter(
            "faas_invocations", "Invocations that ran", ("function", "qualifier", "trigger", "status"), registry=r
        )
        self.errors = LoopCounter("faas_errors", "Failed invocations by kind", ("function", "kind"), registry=r)
        self.throttles = LoopCounter(
            "faas_throttles", "Requests refused for want of capacity", ("function", "reason"), registry=r
        )
        self.duration = LoopHistogram(
            "faas_duration_seconds", "Time in the function", f, buckets=_DURATIONS, registry=r
        )
        self.init_duration = LoopHistogram(
            "faas_init_duration_seconds", "Init of new instances", f, buckets=_DURATIONS, registry=r
        )
        self.queue_wait = LoopHistogram(
            "faas_queue_wait_seconds", "Wait for an instance", f, buckets=_DURATIONS, registry=r
        )
        self.overhead = LoopHistogram(
            "faas_overhead_seconds",
            "Our share of a request: neither queue nor function",
            f,
            buckets=_OVERHEADS,
            registry=r,
        )
        self.cold_start = LoopHistogram(
            "faas_cold_start_seconds", "Parts of a cold start", ("function", "phase"), buckets=_DURATIONS, registry=r
        )
        self.cold_starts = Counter("faas_cold_starts", "New instances by start path", ("function", "path"), registry=r)
        self.prewarmed = Counter(
            "faas_prewarmed", "Instances started for an expected call", ("function", "outcome"), registry=r
        )
        self.stems = Gauge("faas_stems", "Runtimes that wait for a function", ("runtime",), registry=r)
        self.stem_failures = Counter(
            "faas_stem_failures",
            "Stems that failed to start, to wait, or to become an instance",
            ("runtime",),
            registry=r,
        )
        self.precreated = Gauge(
            "faas_precreated", "Sandboxes made ahead for revisions that are likely to scale", registry=r
        )
        self.concurrent = LoopGauge("faas_concurrent_executions", "Invocations running now", f, registry=r)
        self.websocket_connections = Gauge(
            "faas_websocket_connections", "WebSocket connections passed through to http functions", f, registry=r
        )
        self.websocket_api_connections = Gauge(
            "faas_websocket_api_connections", "Connections of WebSocket APIs", ("api",), registry=r
        )
        self.canary_requests = LoopCounter(
            "faas_canary_requests", "Calls of an alias with two revisions", ("function", "side", "status"), registry=r
        )
        self.canary_rollbacks = LoopCounter(
            "faas_canary_rollbacks", "Canaries that were taken back by themselves", f, registry=r
        )
        self.access_log_dropped = Counter(
            "faas_access_log_dropped", "Requests that the access log has no line of", registry=r
        )
        self.api_requests = LoopCounter(
            "faas_api_requests", "Requests to APIs by class of status", ("api", "route", "status"), registry=r
        )
        self.api_duration = LoopHistogram(
            "faas_api_duration_seconds", "From a request's head to the end of its answer", ("api",),
            buckets=_DURATIONS, registry=r,
        )  # fmt: skip
        self.concurrency_limit = Gauge("faas_concurrency_limit", "Most invocations at once", f, registry=r)
        self.instances = Gauge("faas_instances", "Instances by state", ("function", "state"), registry=r)
        self.billed_gb_seconds = LoopCounter("faas_billed_gb_seconds", "Billed memory times duration", f, registry=r)
        self.budget_used = Gauge(
            "faas_budget_used_ratio", "Share of this month's budget that is used", ("budget",), registry=r
        )
        self.plan_requests = Counter(
            "faas_plan_requests", "Requests with API keys of a usage plan", ("plan", "outcome"), registry=r
        )
        self.circuit_state = Gauge(
            "faas_circuit_state", "The circuit breaker: 0 closed, 1 half-open, 2 open", f, registry=r
        )
        self.memory_max = Gauge("faas_memory_max_bytes", "Most memory an invocation used lately", f, registry=r)
        self.memory_budget = Gauge("faas_memory_budget_bytes", "What all instances may have together", registry=r)
        self.memory_charged = Gauge("faas_memory_charged_bytes", "Memory given to instances", ("kind",), registry=r)
        self.memory_evictions = Counter(
            "faas_memory_evictions", "Idle instances ended to make room for others", ("kind",), registry=r
        )
        self.async_backlog = Gauge("faas_async_backlog", "Asynchronous invocations not ended", f, registry=r)
        self.async_event_age = Histogram(
            "faas_async_event_age_seconds", "Age of asynchronous events when they run", buckets=_AGES, registry=r
        )
        self.dead_letters = Counter("faas_dead_letters", "Events given up and kept as dead letters", f, registry=r)
        self.dead_letters_trimmed = Counter(
            "faas_dead_letters_trimmed", "Dead letters deleted for being too many or too old", f, registry=r
        )
        self.schedule_lag = Histogram("faas_schedule_lag_seconds", "Fire time to claim", buckets=_LAGS, registry=r)
        self.schedule_missed = Counter(
            "faas_schedule_missed", "Fire times that passed while down", ("schedule",), registry=r
        )
        self.registry_requests = Counter(
            "faas_registry_requests", "Registry requests", ("method", "route", "status"), registry=r
        )
        self.registry_bytes = Counter("faas_registry_bytes", "Blob bytes moved", ("direction",), registry=r)
        self.registry_storage = Gauge("faas_registry_storage_bytes", "Bytes of stored blobs", registry=r)
        self.registry_collected_bytes = Counter(
            "faas_registry_collected_bytes", "Bytes that garbage collections freed", registry=r
        )
        self.registry_collected_at = Gauge(
            "faas_registry_collection_timestamp_seconds",
            "When a garbage collection last came to its end, or the server started",
            registry=r,
        )
        self.registry_damaged = Gauge(
            "faas_registry_damaged_blobs", "Blobs and manifests found damaged and not mended", registry=r
        )
        self.certificate_end = Gauge(
            "faas_tls_certificate_end_timestamp_seconds", "When a certificate that is shown ends", ("name",), registry=r
        )
        self.notifications = Counter(
            "faas_notifications", "Messages to targets of notifications", ("kind", "outcome"), registry=r
        )
        for kind in ("webhook", "mail"):
            for outcome in ("sent", "failed"):
                self.notifications.labels(kind, outcome)
        self.lane_processes = Gauge("faas_lane_processes", "Lane processes that serve the public port", registry=r)
        self.lane_requests = LoopCounter(
            "faas_lane_requests", "Requests that lane processes have served", ("process",), registry=r
        )
        self.lent_slots = Gauge("faas_lent_slots", "Slots of instances that are lent to lane processes", registry=r)
        self.build_info = Gauge("faas_build_info", "Always 1", ("version", "python"), registry=r)
        self.build_info.labels(version, platform.python_version()).set(1)
        self._of_functions = (
            self.invocations, self.errors, self.throttles, self.duration, self.init_duration, self.queue_wait,
            self.overhead, self.cold_start, self.cold_starts, self.prewarmed, self.concurrent, self.concurrency_limit,
            self.instances, self.billed_gb_seconds, self.memory_max, self.async_backlog, self.dead_letters,
            self.canary_requests, self.canary_rollbacks,
            self.dead_letters_trimmed, self.websocket_connections, self.circuit_state,
        )  # fmt: skip

    def before_reading(self, fold: Callable[[], None]) -> None:
        """Have `fold` called before the metrics are read: it counts what was put aside."""
        self._folding.folds.append(fold)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)

    def show_certificates(self, ends: Mapping[str, float]) -> None:
        """Name ("" for all that have none of their own) → Unix seconds; what is not there any more goes."""
        self.certificate_end.clear()
        for name, end in ends.items():
            self.certificate_end.labels(name).set(end)

    def forget_api(self, api: str) -> None:
        """Drop every series of an API that is gone."""
        for metric in (self.api_requests, self.api_duration):
            metric.remove_by_labels({"api": api})

    def forget(self, function: str) -> None:
        """Drop every series of a deleted function, so that deleted names do not pile up."""
        for metric in self._of_functions:
            metric.remove_by_labels({"function": function})
        for family in self.schedule_missed.collect():
            for sample in family.samples:
                schedule = sample.labels["schedule"]
                if schedule.startswith(f"{function}/"):
                    self.schedule_missed.remove_by_labels({"schedule": schedule})
