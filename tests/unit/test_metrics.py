"""The metrics, against a table written from the contract."""

from __future__ import annotations

from typing import Any

import pytest

from faas import errors
from faas.leases import Trigger
from faas.metrics import Metrics
from faas.protocol import (
    NO_MEMORY,
)
from gateway.counters import KINDS, RouteCounters
from gateway.router import Route
from gateway.spending import REASON as BUDGET
from tests.support.data_path import revision

FUNCTION = ("function",)
CONTRACT: dict[str, tuple[str, tuple[str, ...]]] = {
    "faas_invocations_total": ("counter", ("function", "qualifier", "trigger", "status")),
    "faas_errors_total": ("counter", ("function", "kind")),
    "faas_throttles_total": ("counter", ("function", "reason")),
    "faas_duration_seconds": ("histogram", FUNCTION),
    "faas_init_duration_seconds": ("histogram", FUNCTION),
    "faas_queue_wait_seconds": ("histogram", FUNCTION),
    "faas_overhead_seconds": ("histogram", FUNCTION),
    "faas_cold_start_seconds": ("histogram", ("function", "phase")),
    "faas_cold_starts_total": ("counter", ("function", "path")),
    "faas_prewarmed_total": ("counter", ("function", "outcome")),
    "faas_concurrent_executions": ("gauge", FUNCTION),
    "faas_concurrency_limit": ("gauge", FUNCTION),
    "faas_instances": ("gauge", ("function", "state")),
    "faas_billed_gb_seconds_total": ("counter", FUNCTION),
    "faas_budget_used_ratio": ("gauge", ("budget",)),
    "faas_memory_max_bytes": ("gauge", FUNCTION),
    "faas_memory_budget_bytes": ("gauge", ()),
    "faas_memory_charged_bytes": ("gauge", ("kind",)),
    "faas_memory_evictions_total": ("counter", ("kind",)),
    "faas_async_backlog": ("gauge", FUNCTION),
    "faas_async_event_age_seconds": ("histogram", ()),
    "faas_dead_letters_total": ("counter", FUNCTION),
    "faas_schedule_lag_seconds": ("histogram", ()),
    "faas_schedule_missed_total": ("counter", ("schedule",)),
    "faas_registry_requests_total": ("counter", ("method", "route", "status")),
    "faas_registry_bytes_total": ("counter", ("direction",)),
    "faas_registry_storage_bytes": ("gauge", ()),
    "faas_registry_collected_bytes_total": ("counter", ()),
    "faas_registry_collection_timestamp_seconds": ("gauge", ()),
    "faas_build_info": ("gauge", ("version", "python")),
}


def series(metrics: Metrics) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    found = (sample for family in metrics.registry.collect() for sample in family.samples)
    return {(sample.name, tuple(sample.labels.items())) for sample in found}


def every(metrics: Metrics) -> dict[str, Any]:
    """Name → metric."""
    found = {}
    for metric in vars(metrics).values():
        for family in metric.collect() if hasattr(metric, "_labelnames") else ():
            found[family.name + ("_total" if family.type == "counter" else "")] = metric
    return found


def test_every_metric_of_the_contract_is_there_with_its_type_and_labels() -> None:
    seen = {name: (metric._type, metric._labelnames) for name, metric in every(Metrics("test")).items()}
    assert CONTRACT.items() <= seen.items()


@pytest.mark.parametrize("name", [n for n, metric in every(Metrics("x")).items() if "function" in metric._labelnames])
def test_a_deleted_function_leaves_no_series_of_any_metric(name: str) -> None:
    metrics = Metrics("test")
    before = series(metrics)
    metric = every(metrics)[name]
    for label in ("gone", "gone-too"):
        metric.labels(**{key: label if key == "function" else "x" for key in metric._labelnames})
    metrics.forget("gone")
    left = series(metrics) - before
    assert {dict(labels)["function"] for _, labels in left} == {"gone-too"}


def test_failures_of_every_kind_are_zeros_before_the_first_of_them() -> None:
    classes: list[type[errors.FunctionError]] = [
        errors.FunctionError,
        *errors.FunctionError.__subclasses__(),
        *errors.InstanceExited.__subclasses__(),
    ]
    assert {one.kind for one in classes} | {"handled"} == set(KINDS)
    metrics = Metrics("test")
    RouteCounters(metrics, Route(revision(), "live"), Trigger.HTTP)
    for kind in KINDS:
        assert metrics.registry.get_sample_value("faas_errors_total", {"function": "hello", "kind": kind}) == 0
    for reason in (errors.Throttled().reason, BUDGET, NO_MEMORY):
        refused = {"function": "hello", "reason": reason}
        assert metrics.registry.get_sample_value("faas_throttles_total", refused) == 0
    assert metrics.registry.get_sample_value("faas_dead_letters_total", {"function": "hello"}) == 0
