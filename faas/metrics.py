"""Every metric of the product, named once. Labels are bounded: function names, never paths or request ids.

The only module that imports `prometheus_client`. One `Metrics` per server; nothing is global.
"""

from __future__ import annotations

import platform

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST

# Seconds. From a warm call's tenths of a millisecond to the longest time limit (900 s).
_DURATIONS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)
_OVERHEADS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)
_AGES = (0.01, 0.1, 1, 10, 60, 300, 1800, 7200, 21600)
_LAGS = (0.01, 0.05, 0.1, 0.5, 1, 5, 30, 60, 600)


class Metrics:
    """The server's metrics. `function` labels are `name` in the namespace default, else `name.namespace`."""

    def __init__(self, version: str) -> None:
        self.registry = r = CollectorRegistry(auto_describe=True)
        f = ("function",)
        self.invocations = Counter(
            "faas_invocations", "Invocations that ran", ("function", "qualifier", "trigger", "status"), registry=r
        )
        self.errors = Counter("faas_errors", "Failed invocations by kind", ("function", "kind"), registry=r)
        self.throttles = Counter(
            "faas_throttles", "Requests refused for want of capacity", ("function", "reason"), registry=r
        )
        self.duration = Histogram("faas_duration_seconds", "Time in the function", f, buckets=_DURATIONS, registry=r)
        self.init_duration = Histogram(
            "faas_init_duration_seconds", "Init of new instances", f, buckets=_DURATIONS, registry=r
        )
        self.queue_wait = Histogram(
            "faas_queue_wait_seconds", "Wait for an instance", f, buckets=_DURATIONS, registry=r
        )
        self.overhead = Histogram(
            "faas_overhead_seconds",
            "Our share of a request: neither queue nor function",
            f,
            buckets=_OVERHEADS,
            registry=r,
        )
        self.cold_start = Histogram(
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
        self.concurrent = Gauge("faas_concurrent_executions", "Invocations running now", f, registry=r)
        self.concurrency_limit = Gauge("faas_concurrency_limit", "Most invocations at once", f, registry=r)
        self.instances = Gauge("faas_instances", "Instances by state", ("function", "state"), registry=r)
        self.billed_gb_seconds = Counter("faas_billed_gb_seconds", "Billed memory times duration", f, registry=r)
        self.budget_used = Gauge(
            "faas_budget_used_ratio", "Share of this month's budget that is used", ("budget",), registry=r
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
        self.build_info = Gauge("faas_build_info", "Always 1", ("version", "python"), registry=r)
        self.build_info.labels(version, platform.python_version()).set(1)
        self._of_functions = (
            self.invocations, self.errors, self.throttles, self.duration, self.init_duration, self.queue_wait,
            self.overhead, self.cold_start, self.cold_starts, self.prewarmed, self.concurrent, self.concurrency_limit,
            self.instances, self.billed_gb_seconds, self.memory_max, self.async_backlog, self.dead_letters,
            self.dead_letters_trimmed,
        )  # fmt: skip

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)

    def forget(self, function: str) -> None:
        """Drop every series of a deleted function, so that deleted names do not pile up."""
        for metric in self._of_functions:
            metric.remove_by_labels({"function": function})
        for family in self.schedule_missed.collect():
            for sample in family.samples:
                schedule = sample.labels["schedule"]
                if schedule.startswith(f"{function}/"):
                    self.schedule_missed.remove_by_labels({"schedule": schedule})
