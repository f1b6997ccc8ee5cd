"""Tests of the public listener that hold whichever way its requests go: import `both_ways`, and they run by each."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["aiohttp", "lane"], autouse=True)
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way: `tests.support.data_path.application` makes it so."""
    way = str(request.param)
    monkeypatch.setattr("tests.support.data_path.BY_THE_LANE", way == "lane")
    return way
