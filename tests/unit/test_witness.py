"""What is counted of APIs and their routes; bounded, whatever is asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from faas.metrics import Metrics
from gateway.edge import witness as witness_module
from gateway.edge.witness import Witness
from tests.support.control import Control, control


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Control]:
    async with control(tmp_path) as running:
        await running.deploy(route=[{"path": "/users/{id}", "methods": ["GET"]}])
        yield running


def series(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """(api, route, status) → how often."""
    return {
        (s.labels["api"], s.labels["route"], s.labels["status"]): s.value
        for family in metrics.api_requests.collect()
        for s in family.samples
        if s.name.endswith("_total")
    }


async def test_requests_are_counted_by_api_route_and_class_of_status(server: Control) -> None:
    for number in range(3):
        assert (await server.call("GET", f"/users/{number}", public=True)).status == 200
    assert (await server.call("POST", "/users/1", public=True)).status == 405
    await server.call("GET", "/function/hello", public=True)
    metrics = server.gateway.metrics
    assert series(metrics) == {
        ("default", "GET /users/{id}", "2xx"): 3,
        ("default", "unknown", "4xx"): 1,
    }
    assert metrics.registry.get_sample_value("faas_api_duration_seconds_count", {"api": "default"}) == 4


async def test_unknown_names_add_no_series(server: Control) -> None:
    await server.call("GET", "/users/1", public=True)
    await server.call("GET", "/nowhere", public=True)
    await server.call("GET", "/function/nobody", public=True)
    before = server.gateway.metrics.render().count(b"\n")
    for number in range(300):
        await server.call("GET", f"/nowhere/{number}", public=True)
        await server.call(f"M{number}", f"/users/{number}", public=True)
        await server.call("GET", f"/function/nobody-{number}", public=True)
    assert server.gateway.metrics.render().count(b"\n") == before


def test_many_routes_share_one_series_beyond_a_bound_and_an_apis_go_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness_module, "MOST_SERIES", 10)
    metrics = Metrics("test")
    seen = Witness(metrics)
    for number in range(10_000):
        seen._count("big", f"GET /{number}", 200, 0.1)
    found = series(metrics)
    assert len(found) == 11
    assert found["big", "others", "2xx"] == 9_990
    seen.forget("big")
    assert series(metrics) == {}
    assert metrics.registry.get_sample_value("faas_api_duration_seconds_count", {"api": "big"}) is None
