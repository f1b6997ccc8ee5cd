"""A hundred calls of a function whose image is not here: it is fetched once; else all are told why."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from faas.errors import FaasError, ImageUnusable, Unavailable
from faas.leases import Invocation, Trigger
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.protocol import (
    Revision,
)
from tests.support.images import MemoryImages
from tests.support.leftovers import none_left
from tests.support.stem_functions import Bases, World
from worker import launch

pytestmark = [pytest.mark.root, pytest.mark.oci]

CALLS = 100
APP = b"def handler(event, context):\n    return event\n"


class SlowImages(MemoryImages):
    """Counts what is fetched, each of which takes its time; with `hangs` it never comes."""

    def __init__(self, of: MemoryImages) -> None:
        super().__init__()
        self.blobs, self.manifests = of.blobs, of.manifests
        self.fetched: Counter[Digest] = Counter()
        self.hangs = False

    async def open_blob(self, repository: str, descriptor: Descriptor) -> BinaryIO:
        self.fetched[descriptor.digest] += 1
        if self.hangs:
            await asyncio.Event().wait()
        await asyncio.sleep(0.2)
        return await super().open_blob(repository, descriptor)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases.build("python", tmp_path_factory.mktemp("data"))


@pytest.fixture
async def world(bases: Bases, tmp_path: Path) -> AsyncIterator[World]:
    images = SlowImages(bases.images)
    own = replace(bases, data=tmp_path / "data", server_id=secrets.token_hex(4), images=images)
    with none_left(own.server_id, str(own.data)):
        made = World(own, tmp_path / "logs", stems=0)
        await made.pool.open()
        yield made
        await made.pool.close(1)


async def crowd(world: World, revision: Revision) -> list[Any]:
    """What each of so many calls at once is answered, or its error."""

    async def call(number: int) -> Any:
        async with world.pool.acquire(revision, Invocation(secrets.token_hex(4), Trigger.HTTP, 60)) as lease:
            return json.loads((await lease.invoke(json.dumps(number).encode())).payload)

    await world.pool.scale(revision, 4)
    return await asyncio.gather(*map(call, range(CALLS)), return_exceptions=True)


def images_of(world: World) -> SlowImages:
    images = world.bases.images
    assert isinstance(images, SlowImages)
    return images


async def test_each_layer_is_fetched_once_for_all_who_wait(world: World, bases: Bases) -> None:
    reference = bases.function({"var": None, "var/task": None, "var/task/app.py": APP})
    assert await crowd(world, world.revision(reference)) == list(range(CALLS))
    manifest = images_of(world).manifests[reference.partition("@")[2]]
    assert {images_of(world).fetched[layer.digest] for layer in manifest.layers} == {1}


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [("hangs", Unavailable, "could not be made ready in time"), ("is gone", ImageUnusable, "no image|is gone")],
)
async def test_where_it_cannot_be_had_everybody_is_told_and_it_works_when_it_can(
    world: World, bases: Bases, monkeypatch: pytest.MonkeyPatch, what: str, error: type[FaasError], words: str
) -> None:
    reference = bases.function(
        {"var": None, "var/task": None, "var/task/app.py": APP + what.encode().join([b"#", b""])}
    )
    images, digest = images_of(world), reference.partition("@")[2]
    revision = world.revision(reference)
    with monkeypatch.context() as patched:
        if what == "hangs":
            patched.setattr(launch, "PREPARE_SECONDS", 1.0)
            patched.setattr(images, "hangs", True)
        else:
            patched.delitem(images.manifests, digest)
        answers = await crowd(world, revision)
    assert {type(answer) for answer in answers} == {error}
    for answer in answers[:3]:
        with pytest.raises(error, match=words):
            raise answer
    await world.until(lambda: not world.pool.instances(revision.key))
    assert await crowd(world, revision) == list(range(CALLS))
