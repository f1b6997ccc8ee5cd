"""A deploy is done once it is committed: what fails after that is caught up, and not told as a failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.events.folder import FolderTriggers
from gateway.scaler import Scaler
from tests.support.control import DIGEST, control


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


async def test_a_narrowed_token_deploys_what_it_may_pull_and_nothing_else(tmp_path: Path) -> None:
    images = (("team/app", 201), ("app", 200), ("runtime/python", 200), ("other/app", 403), ("hello", 403))
    async with control(tmp_path) as server:
        body = {"name": "ci", "role": "deployer", "repositories": ["team/*", "app"]}
        token = (await server.call("POST", "/v1/tokens", body)).json()["token"]
        for image, status in images:
            deploy = {"spec": {"name": "hello"}, "image": f"{image}@{DIGEST}"}
            answered = await server.call("PUT", "/v1/functions/hello", deploy, token=token)
            assert answered.status == status, (image, answered.body)


async def test_nobody_follows_a_repository_that_they_may_not_pull(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        body = {"name": "ci", "role": "deployer", "repositories": ["app"]}
        token = (await server.call("POST", "/v1/tokens", body)).json()["token"]
        for name, status in (("hello", 403), ("app", 201)):
            deploy = {"spec": {"name": name, "follow": "latest"}, "image": f"app@{DIGEST}"}
            answered = await server.call("PUT", f"/v1/functions/{name}", deploy, token=token)
            assert answered.status == status, (name, answered.body)
