"""A function's modules are compiled when it is deployed: its instances read the caches."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from faas.oci.reference import Reference
from faas.protocol import Kind
from tests.support.fake_driver import eventually
from tests.support.leftovers import none_left
from tests.support.stem_functions import Bases, World
from worker.drivers.oci.bytecode import MEMORY_BYTES
from worker.layers.store import UnpackedImage

pytestmark = [pytest.mark.root, pytest.mark.oci]

FOLDERS: dict[str, bytes | str | None] = {"var": None, "var/task": None}
BODY = b"def work(value):\n    return value\n" + b"# what makes it worth compiling ahead\n" * 1000
APP = b"""
import os

def handler(event, context):
    module = __import__(event["module"])
    cached = module.__cached__
    return {"cached": cached, "there": os.path.exists(cached), "worked": module.work(1)}
"""
SMALL = b"def work(value):\n    return value\n"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases.build("python", tmp_path_factory.mktemp("data"))


@pytest.fixture(params=[0, 2], ids=["cold", "stem"])
async def world(request: pytest.FixtureRequest, bases: Bases, tmp_path: Path) -> AsyncIterator[World]:
    with none_left(bases.server_id):
        made = World(bases, tmp_path / "logs", request.param)
        await made.pool.open()
        yield made
        await made.pool.close(1)


async def test_large_modules_have_their_cache_and_small_layers_none(world: World) -> None:
    dependencies: dict[str, bytes | str | None] = {"opt": None, "opt/python": None, "opt/python/large.py": BODY}
    image = world.bases.function(dependencies, {**FOLDERS, "var/task/app.py": APP, "var/task/small.py": SMALL})
    if world.driver._stems._most:
        await world.warmed(image)
    answer = await world.once(image, {"module": "large"})
    assert answer.path == ("stem" if world.driver._stems._most else "cold")
    assert answer.value["there"]
    assert answer.value["worked"] == 1
    assert answer.value["cached"].startswith("/opt/python/__pycache__/large.cpython-3")
    assert not (await world.once(image, {"module": "small"})).value["there"]


async def test_code_that_does_not_compile_costs_only_itself(world: World) -> None:
    code = {**FOLDERS, "var/task/app.py": APP, "var/task/large.py": BODY, "var/task/broken.py": b"def (:\n"}
    answer = await world.once(world.bases.function(code), {"module": "large"})
    assert answer.value["there"]


async def test_a_layer_whose_folders_are_links_out_of_it_is_not_followed(world: World, tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "task"
    outside.mkdir(parents=True)
    (outside / "app.py").write_bytes(BODY)
    image = world.bases.function({"var": str(tmp_path / "outside")})
    layers, base = [(await world.driver.prepare(name)).handle for name in (image, world.bases.reference)]
    assert isinstance(layers, UnpackedImage)
    assert isinstance(base, UnpackedImage)
    assert len(layers.layers) == len(base.layers) + 1
    assert [path.name for path in outside.iterdir()] == ["app.py"]


async def test_a_module_that_a_small_layer_brings_anew_is_never_read_from_the_cache_of_the_old_one(
    world: World,
) -> None:
    below = {**FOLDERS, "var/task/app.py": APP, "var/task/large.py": BODY}
    above = {**FOLDERS, "var/task/large.py": SMALL.replace(b"return value", b"return 'new'")}
    image = world.bases.function(below, above)
    if world.driver._stems._most:
        await world.warmed(image)
    assert (await world.once(image, {"module": "large"})).value["worked"] == "new"


async def test_a_package_that_a_layer_deletes_does_not_come_back_with_its_cache(world: World) -> None:
    below = {**FOLDERS, "var/task/app.py": APP, "var/task/gone": None, "var/task/gone/__init__.py": BODY}
    below |= {"var/task/large.py": BODY}
    image = world.bases.function(below, {**FOLDERS, "var/task/.wh.gone": b""})
    if world.driver._stems._most:
        await world.warmed(image)
    assert (await world.once(image, {"module": "large"})).value["there"]
    assert (await world.once(image, {"module": "gone"})).value["errorType"] == "ModuleNotFoundError"


async def test_a_base_that_is_not_what_its_digest_says_compiles_nothing_that_would_stay(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server brings images, and may have been taken over; what is compiled is there longer than it."""
    images, real = world.bases.images, world.bases.reference
    false = images.add("false", world.bases.layers, entrypoint=("/bin/false",))
    image = world.bases.function({**FOLDERS, "var/task/app.py": APP, "var/task/large.py": BODY + b"#false"})
    with monkeypatch.context() as patch:
        manifests = images.manifests
        patch.setitem(manifests, Reference.parse(real).target, manifests[Reference.parse(false).target])
        plain = (await world.driver.prepare(image)).handle
    compiled = (await world.driver.prepare(image)).handle
    assert isinstance(plain, UnpackedImage)
    assert isinstance(compiled, UnpackedImage)
    assert len(compiled.layers) == len(plain.layers) + 1
    assert (await world.once(image, {"module": "large"})).value["there"]


async def test_what_is_compiled_waits_for_no_turn_and_what_is_not_is_used_as_it_is_when_none_comes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [world.bases.function({**FOLDERS, "var/task/large.py": BODY + name}) for name in (b"#1", b"#2")]
    await world.driver.prepare(images[0])
    monkeypatch.setattr("worker.drivers.oci.bytecode.BEGIN_SECONDS", 0.05)
    async with world.driver._bytecode._turn, asyncio.timeout(10):
        handles = [(await world.driver.prepare(image)).handle for image in images]
    compiled, plain = (handle.layers for handle in handles if isinstance(handle, UnpackedImage))
    assert len(compiled) == len(plain) + 1


async def test_what_compiles_has_its_memory_on_the_ledger_and_without_it_the_image_is_used_as_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = world.bases.function({**FOLDERS, "var/task/large.py": BODY + secrets.token_hex(8).encode()})
    ledger = world.pool._ledger
    charged = lambda: ledger.charged[Kind.JOB]  # noqa: E731
    monkeypatch.setattr("worker.pool.LEND_SECONDS", 0.05)
    with ledger.try_charge(Kind.SERVICE, ledger.free - MEMORY_BYTES + 1) or pytest.fail("no memory"):
        plain = (await world.driver.prepare(image)).handle
    assert "compiled ahead" in caplog.text
    assert "512 MB are wanted" in caplog.text
    preparing = asyncio.create_task(world.driver.prepare(image))
    await eventually(lambda: charged() == MEMORY_BYTES)
    compiled = (await preparing).handle
    assert charged() == 0
    assert isinstance(plain, UnpackedImage)
    assert isinstance(compiled, UnpackedImage)
    assert len(compiled.layers) == len(plain.layers) + 1


async def test_caches_never_make_an_image_of_more_layers_than_can_be_mounted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = world.bases.function(*({**FOLDERS, f"var/task/m{n}.py": BODY + b"#%d" % n} for n in range(2)))
    most = len(world.bases.layers) + 3
    monkeypatch.setattr("worker.drivers.oci.bytecode.LAYERS", most)
    handle = (await world.driver.prepare(image)).handle
    assert isinstance(handle, UnpackedImage)
    assert len(handle.layers) == most
