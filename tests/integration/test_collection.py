"""Layers that nothing needs go from the machine; what runs, what is deployed and what waits stays usable."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from faas.errors import ImageUnusable
from tests.support.leftovers import none_left
from tests.support.stem_functions import Bases, World
from worker.layers.store import UnpackedImage

pytestmark = [pytest.mark.root, pytest.mark.oci]

APP = b"def handler(event, context):\n    return open('/var/task/big').read(2)\n" + b"# worth compiling ahead\n" * 2000


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases.build("python", tmp_path_factory.mktemp("data"))


@pytest.fixture(params=[0, 1], ids=["cold", "stem"])
async def world(
    request: pytest.FixtureRequest, bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    monkeypatch.setattr("worker.layers.store.WANTED_SECONDS", 0.0)
    monkeypatch.setattr("worker.drivers.oci.stems.DROPPED_SECONDS", 1.0)
    with none_left(bases.server_id):
        made = World(bases, tmp_path / "logs", request.param)
        await made.pool.open()
        yield made
        await made.pool.close(1)


def function(bases: Bases, name: bytes) -> str:
    return bases.function({"var": None, "var/task": None, "var/task/app.py": APP, "var/task/big": name * 500_000})


async def folders(world: World, image: str) -> list[Path]:
    handle = (await world.driver.prepare(image)).handle
    assert isinstance(handle, UnpackedImage)
    return [layer.resolve() for layer in handle.layers]


def in_use(world: World) -> set[str]:
    return {one.spec.image.reference for one in world.driver._sandboxes.values() if not one.is_parked}


async def test_what_runs_and_what_is_held_works_on_and_the_rest_is_gone_and_comes_back(world: World) -> None:
    held, running, gone = (function(world.bases, name) for name in (b"he", b"ru", b"go"))
    for image in (held, gone):
        await world.once(image)
    revision = world.revision(running)
    assert (await world.invoke(revision)).value == "ru"
    theirs, others = await folders(world, gone), await folders(world, held)
    assert len(theirs) == len(world.bases.layers) + 2  # its code, and the code's caches
    await world.until(lambda: in_use(world) == {running})  # an instance that ends holds its layers to its end
    assert await world.pool.collect([held]) > 900_000
    assert [layer.exists() for layer in theirs] == [True] * len(world.bases.layers) + [False] * 2
    assert all(layer.exists() for layer in others)
    assert (await world.invoke(revision)).value == "ru"
    for image, answer in ((held, "he"), (gone, "go"), (held, "he")):
        assert (await world.once(image)).value == answer
    await world.pool.retire(revision.key)


async def test_a_base_that_nothing_needs_goes_too_and_its_functions_start_again(world: World) -> None:
    image = function(world.bases, b"ba")
    await world.once(image)
    await world.driver.drop_spares()
    await world.until(lambda: not world.driver._sandboxes)
    assert await world.pool.collect([]) > 10_000_000
    assert (await world.once(image)).value == "ba"
    if world.driver._stems._most:
        await world.until(lambda: world.ready() > 0)
        assert (await world.once(image)).path == "stem"


async def test_where_one_that_is_held_cannot_be_looked_up_nothing_goes(world: World) -> None:
    image = function(world.bases, b"st")
    await world.once(image)
    before = await folders(world, image)
    with pytest.raises(ImageUnusable):
        await world.pool.collect([f"hello@sha256:{'0' * 64}"])
    assert all(layer.exists() for layer in before)
