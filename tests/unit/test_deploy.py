"""A deploy is done once it is committed: what fails after that is caught up, and not told as a failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.events.folder import FolderTriggers
from gateway.scaler import Scaler
from tests.support.control import control


@pytest.mark.parametrize(("owner", "step"), [(Scaler, "revision_live"), (FolderTriggers, "changed")])
async def test_what_is_committed_is_what_calls_see_though_a_later_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, step: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("broken on purpose")

    async with control(tmp_path) as server:
        await server.deploy()
        with monkeypatch.context() as patch:
            patch.setattr(owner, step, broken)
            assert (await server.deploy(memory=256))["revision"] == 2
        assert (await server.call("GET", "/v1/functions/hello")).json()["revision"] == 2
        assert [key.number for key in server.worker.retired] == []
    assert "broken on purpose" in caplog.text
    async with control(tmp_path) as server:
        assert (await server.call("GET", "/v1/functions/hello")).json()["revision"] == 2
