"""Freezing through the kernel's groups, which takes its time: what stands still, and what a thaw in between leaves."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from faas.errors import Unavailable
from tests.support.fake_driver import eventually
from worker.drivers.base import Exit
from worker.drivers.oci import sandbox_groups
from worker.drivers.oci.sandbox import OciSandbox
from worker.drivers.oci.sandbox_groups import SandboxGroups


class SlowFreezer:
    """The kernel: all stand still once `still` says so, and not before."""

    def __init__(self) -> None:
        self.wanted = self.still = False

    def freeze(self, _: str) -> bool:
        self.wanted = True
        return self.still

    def thaw(self, _: str) -> None:
        self.wanted = False


class Nothing:
    id = "one"

    def release(self) -> None: ...


def a_sandbox() -> OciSandbox:
    exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
    return OciSandbox(cast("Any", Nothing()), Path("/nowhere"), exited, cast("Any", Nothing()))


async def test_who_does_not_stand_still_in_time_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, sandbox = SlowFreezer(), a_sandbox()
    monkeypatch.setattr(sandbox_groups, "STILL_SECONDS", 0.02)
    with pytest.raises(Unavailable, match="does not stand still"):
        await SandboxGroups(cast("Any", kernel)).freeze(sandbox)
    assert not kernel.wanted
    assert not sandbox.is_frozen


async def test_who_cannot_stand_still_before_it_has_gone_on_is_let_go_on_for_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stuck(SlowFreezer):
        def thaw(self, _: str) -> None:
            self.still = True

    monkeypatch.setattr(sandbox_groups, "STUCK_SECONDS", 0.02)
    sandbox = a_sandbox()
    async with asyncio.timeout(5):
        await SandboxGroups(cast("Any", Stuck())).freeze(sandbox)
    assert sandbox.is_frozen


async def test_a_freeze_that_was_thawed_in_between_does_not_undo_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call of a function that never rests for long freezes it anew, and one freeze may take seconds."""
    kernel, sandbox = SlowFreezer(), a_sandbox()
    groups = SandboxGroups(cast("Any", kernel))
    monkeypatch.setattr(sandbox_groups, "STILL_SECONDS", 0.1)
    monkeypatch.setattr(sandbox_groups, "LOOK_SECONDS", 0.06)  # the second one begins while the first one sleeps
    monkeypatch.setattr(sandbox_groups, "LOOK_SECONDS_MOST", 0.06)
    first = asyncio.create_task(groups.freeze(sandbox))
    await eventually(lambda: kernel.wanted)
    await groups.thaw(sandbox)
    monkeypatch.setattr(sandbox_groups, "STILL_SECONDS", 5.0)
    second = asyncio.create_task(groups.freeze(sandbox))
    await first  # its time is not the second one's
    assert not second.done()
    await asyncio.sleep(0.2)
    assert sandbox.is_frozen
    kernel.still = True
    await second
    assert kernel.wanted
    assert sandbox.is_frozen
