"""What was unpacked of images that nothing needs goes; where what is needed is not known, nothing does."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from faas.errors import Unavailable
from gateway.image_upkeep import ImageUpkeep
from tests.support.fake_worker import FakeWorker


async def test_the_worker_is_told_what_is_needed() -> None:
    worker = FakeWorker()

    async def held() -> Mapping[str, object]:
        return {"a@sha256:1": ["a@v1"], "b@sha256:2": ["b@v7", "b@v8"]}

    await ImageUpkeep(worker, held).look()
    assert worker.held == {"a@sha256:1", "b@sha256:2"}


async def test_nothing_is_removed_where_what_is_needed_is_not_known() -> None:
    worker = FakeWorker()

    async def held() -> Mapping[str, object]:
        raise Unavailable("the database is gone")

    with pytest.raises(Unavailable):
        await ImageUpkeep(worker, held).look()
    assert worker.held is None
