"""Containers that hold a network and wait: there are always some ready, none is left behind, none that died is used."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from faas.errors import Unavailable
from faas.spec import Network
from tests.conftest import IN_CI
from tests.support.engine import Engine
from tests.support.images import MemoryImages
from tests.support.leftovers import none_left
from tests.support.sandboxes import Workbench, workbench
from worker.drivers.base import DriverPaths, Exit
from worker.drivers.docker.driver import DockerDriver
from worker.drivers.docker.pauses import Pauses
from worker.network.firewall import BridgeFirewall

pytestmark = [pytest.mark.root, pytest.mark.docker]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    if not shutil.which("dockerd"):
        pytest.fail("needs dockerd") if IN_CI else pytest.skip("needs dockerd")
    made = Engine(tmp_path_factory.mktemp("engine"))
    made.start()
    yield made
    made.remove()


@pytest.fixture
async def bench(tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Workbench]:
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    server_id = secrets.token_hex(4)
    with none_left(server_id, str(tmp_path)):
        async with workbench(tmp_path, server_id, "docker") as made:
            yield made
    assert engine.of(server_id) == []


def driver_of(bench: Workbench) -> DockerDriver:
    assert isinstance(bench.driver, DockerDriver)
    return bench.driver


def pauses_of(bench: Workbench) -> Pauses:
    return driver_of(bench)._pauses


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def full(bench: Workbench) -> list[str]:
    """The containers that are ready, when two are."""
    await until(lambda: len(pauses_of(bench).known()) == 2)
    return pauses_of(bench).known()


async def test_a_start_takes_one_that_is_ready_and_another_one_is_made(bench: Workbench, engine: Engine) -> None:
    ready = await full(bench)
    async with bench.running("env", "GREETING", "wait", network=Network.OUTBOUND) as sandbox, asyncio.timeout(20):
        assert await sandbox.stdout.readline() == b"hello\n"
        assert sandbox.pause.container == ready[0]  # type: ignore[attr-defined]
        again = await full(bench)
        assert again[0] == ready[1]
        assert again[1] not in ready
        assert engine.pauses(bench.server_id) == sorted({*ready, *again})
    assert engine.pauses(bench.server_id) == sorted(again)


async def test_nothing_is_kept_of_what_nobody_needs(bench: Workbench) -> None:
    outbound = await full(bench)
    async with bench.running("wait", network=Network.NONE):
        pass
    await until(lambda: len(pauses_of(bench).known()) == 4)
    assert pauses_of(bench).known()[:2] == outbound


async def test_one_that_nobody_waits_for_leaves_the_ready_ones_to_others(bench: Workbench) -> None:
    ready = await full(bench)
    sandbox = await bench.driver.create(bench.spec("wait", network=Network.OUTBOUND), ahead=True)
    assert sandbox.pause.container not in ready  # type: ignore[attr-defined]
    assert pauses_of(bench).known() == ready
    await bench.driver.delete(sandbox.id)


async def test_what_is_ready_is_measured_goes_when_its_memory_is_needed_and_comes_back(
    bench: Workbench, engine: Engine
) -> None:
    await full(bench)
    assert 100_000 < bench.driver.spare_bytes() < 100_000_000
    await bench.driver.drop_spares()
    assert (bench.driver.spare_bytes(), engine.pauses(bench.server_id)) == (0, [])
    assert (await bench.run("env", "GREETING", network=Network.OUTBOUND))[0] == Exit(0)
    await full(bench)


async def test_one_that_was_dropped_while_it_was_made_is_removed(bench: Workbench, engine: Engine) -> None:
    await bench.driver.drop_spares()
    await until(lambda: pauses_of(bench)._filling is None)
    assert (pauses_of(bench).known(), engine.pauses(bench.server_id)) == ([], [])


async def test_one_that_somebody_ended_is_replaced(bench: Workbench, engine: Engine) -> None:
    first, second = await full(bench)
    with engine.api() as api:
        api.kill(first)
    await until(lambda: first not in pauses_of(bench).known())
    await full(bench)
    await until(lambda: first not in engine.pauses(bench.server_id))
    assert second in engine.pauses(bench.server_id)


async def test_one_whose_end_was_not_heard_is_not_used(
    bench: Workbench, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await full(bench)
    monkeypatch.setattr(pauses_of(bench), "died", lambda container: None)
    with engine.api() as api:
        api.kill(first)
        api.wait(first)
    async with bench.running("env", "GREETING", network=Network.OUTBOUND) as sandbox, asyncio.timeout(20):
        assert sandbox.pause.container == second  # type: ignore[attr-defined]
        assert await sandbox.exited == Exit(0)


async def test_an_instance_whose_network_somebody_ended_ends(bench: Workbench, engine: Engine) -> None:
    async with bench.running("wait", network=Network.OUTBOUND) as sandbox, asyncio.timeout(20):
        with engine.api() as api:
            api.kill(sandbox.pause.container)  # type: ignore[attr-defined]
        assert (await sandbox.exited).signal == 9


async def test_one_made_ahead_whose_network_has_gone_is_made_anew(bench: Workbench, engine: Engine) -> None:
    spec = bench.spec("env", "GREETING", network=Network.OUTBOUND)
    made = await bench.driver.create(spec, ahead=True)
    with engine.api() as api:
        api.kill(made.pause.container)  # type: ignore[attr-defined]
    async with asyncio.timeout(20):
        await made.exited
        sandbox = await bench.driver.create(spec)
        assert sandbox.path == "cold"
        await bench.driver.start(sandbox)
        assert await sandbox.exited == Exit(0)
    await bench.driver.delete(spec.id)


async def test_one_made_ahead_that_somebody_pruned_is_made_anew(bench: Workbench, engine: Engine) -> None:
    spec = bench.spec("env", "GREETING")
    await bench.driver.create(spec, ahead=True)
    with engine.api() as api:
        api.prune_containers()
    sandbox = await bench.driver.create(spec)
    assert sandbox.path == "cold"
    await bench.driver.start(sandbox)
    async with asyncio.timeout(20):
        assert await sandbox.exited == Exit(0)
    await bench.driver.delete(spec.id)


async def test_one_whose_making_was_not_answered_is_found_by_its_mark_and_removed(
    bench: Workbench, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = await full(bench)
    api: Any = driver_of(bench)._engine.api
    create = api.create_container

    def unanswered(*args: Any, **kwargs: Any) -> Any:
        create(*args, **kwargs)
        raise requests.ConnectionError("reset by peer")

    with monkeypatch.context() as patched:
        patched.setattr(api, "create_container", unanswered)
        with pytest.raises(Unavailable, match="reset by peer"):
            await bench.driver.create(bench.spec("wait", network=Network.OUTBOUND, hostname="another"))
    assert engine.pauses(bench.server_id) == sorted(ready)


async def test_a_driver_that_cannot_be_opened_leaves_nothing(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: BridgeFirewall) -> None:
        raise Unavailable("no firewall here")

    monkeypatch.setenv("DOCKER_HOST", engine.host)
    monkeypatch.setattr(BridgeFirewall, "open", refused)
    driver = DockerDriver(DriverPaths(tmp_path, "fail0000"), MemoryImages())
    with none_left("fail0000"):
        with pytest.raises(Unavailable, match="no firewall"):
            await driver.open()
        assert engine.of("fail0000") == []
        assert not driver._machine.run.exists()


async def test_without_memory_to_spare_none_is_kept_and_starts_go_on(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.drivers.docker.pauses.is_short", lambda: True)
    await bench.driver.drop_spares()
    assert (await bench.run("env", "GREETING", network=Network.OUTBOUND))[0] == Exit(0)
    await until(lambda: pauses_of(bench)._filling is None)
    assert pauses_of(bench).known() == []
