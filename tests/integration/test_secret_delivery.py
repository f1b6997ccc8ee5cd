"""Secrets of functions on a runtime base, whichever way their instances start; and instances that are replaced."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from faas.errors import InitFailed, Unavailable
from faas.leases import Invocation, Trigger
from faas.oci import labels
from faas.protocol import Revision
from faas.secret import Secret
from tests.support.fake_driver import eventually
from tests.support.leftovers import none_left
from tests.support.stem_functions import Bases, World

pytestmark = [pytest.mark.root, pytest.mark.oci]
APP = b"""
import os, subprocess, time

SEEN = os.environ["DB_PASSWORD"]
if SEEN == "bad":
    raise ValueError("no")

def handler(event, context):
    time.sleep(event.get("sleep", 0))
    places = [f"{folder}/db-password" for folder in ("/run/secrets", "/var/openfaas/secrets")]
    return {
        "at the import": SEEN,
        "files": [open(place).read() for place in places],
        "children": subprocess.check_output(["/bin/sh", "-c", "echo -n $DB_PASSWORD"], text=True),
        "of the process": SEEN in open("/proc/self/environ").read(),
        "names": "FAAS_SECRETS" in os.environ,
        "mode": oct(os.stat(places[0]).st_mode & 0o777),
        "mounted": sorted(row.split()[3].split(",")[0] for row in open("/proc/mounts") if "/secrets" in row.split()[1]),
    }
"""
NODE_APP = b"""
const fs = require("node:fs");
const seen = process.env.DB_PASSWORD;
exports.handler = async () => ({
  seen,
  file: fs.readFileSync("/run/secrets/db-password", "utf8"),
  process: fs.readFileSync("/proc/self/environ", "utf8").includes(seen),
  names: "FAAS_SECRETS" in process.env,
});
"""
FOLDERS: dict[str, bytes | str | None] = {"var": None, "var/task": None}
USED = {"secrets": {"DB_PASSWORD": "db-password"}}


class Values:
    """The gateway's part."""

    def __init__(self) -> None:
        self.value = "first"

    def reveal(self, namespace: str, names: Collection[str]) -> Mapping[str, Secret]:
        if not self.value:
            raise Unavailable("a secret of this function is not there")
        return {name: Secret(self.value) for name in names}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases.build("python", tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def image(bases: Bases) -> str:
    return function_on(bases, {"var/task/app.py": APP})


def function_on(bases: Bases, files: dict[str, Any]) -> str:
    told = {labels.BASE: bases.reference, labels.SECRETS_READER: bases.entrypoint[-1]}
    return bases.function({**FOLDERS, **files}, labels=told)


@pytest.fixture
async def world(bases: Bases, tmp_path: Path) -> AsyncIterator[World]:
    with none_left(bases.server_id):
        made = World(bases, tmp_path / "logs", precreated=1)
        await made.pool.open()
        yield made
        await made.pool.close(1)


@pytest.fixture
def values(world: World) -> Values:
    made = Values()
    world.pool.reveal_with(made.reveal)
    return made


def seen(value: str) -> dict[str, Any]:
    return {
        "at the import": value, "files": [value, value], "children": value, "of the process": False, "names": False,
        "mode": "0o400", "mounted": ["ro", "ro"],
    }  # fmt: skip


async def call(world: World, revision: Revision, **event: Any) -> Any:
    """What the instance that answers has, with as many of them as there are."""
    async with world.pool.acquire(revision, Invocation("r", Trigger.HTTP, 30)) as lease:
        return json.loads((await lease.invoke(json.dumps(event).encode())).payload)["at the import"]


async def test_a_function_sees_its_secrets_alike_whichever_way_it_started(
    world: World, values: Values, image: str
) -> None:
    cold = await world.once(image, **USED)
    await world.until(lambda: world.ready() >= 1)
    stem = await world.once(image, **USED)
    assert (cold.path, stem.path) == ("cold", "stem")
    assert (cold.value, stem.value) == (seen("first"), seen("first"))


async def test_what_was_made_ahead_with_an_old_value_is_not_used(world: World, values: Values, image: str) -> None:
    wide = world.revision(image, ephemeral_storage=64, **USED)  # which no stem serves
    assert (await world.invoke(wide)).value == seen("first")
    await world.until(lambda: world.pool._precreator.ready == 1)
    values.value = "second"
    assert await world.pool.renew(wide, running=False) == 0
    assert world.pool._precreator.ready == 0
    assert (await world.invoke(wide)).value == seen("first"), "it runs already"
    await world.pool.scale(wide, 0)
    await world.until(lambda: not world.pool.instances(wide.key))
    await world.until(lambda: world.pool._precreator.ready == 1)
    again = await world.invoke(wide)
    assert (again.path, again.value) == ("precreated", seen("second"))


async def test_instances_are_replaced_while_the_function_serves_and_a_value_that_breaks_it_replaces_none(
    world: World, values: Values, image: str
) -> None:
    revision = world.revision(image, **USED)
    await world.pool.scale(revision, 2)
    await eventually(lambda: world.pool.stats(revision.key).idle == 2, 20)
    old = {instance.id for instance in world.pool.instances(revision.key)}
    values.value = "bad"
    with pytest.raises(InitFailed):
        await world.pool.renew(revision, running=True)
    assert {i.id for i in world.pool.instances(revision.key) if i.state == "idle"} == old
    slow = [asyncio.create_task(call(world, revision, sleep=1.0)) for _ in range(2)]
    await eventually(lambda: world.pool.stats(revision.key).busy == 2)
    values.value = "second"
    assert await world.pool.renew(revision, running=True) == 2
    assert [await call(world, revision) for _ in range(3)] == ["second"] * 3
    assert [await task for task in slow] == ["first"] * 2, "what ran came to its end"
    await eventually(lambda: not old & {instance.id for instance in world.pool.instances(revision.key)})


async def test_without_its_secret_no_instance_starts(world: World, values: Values, image: str) -> None:
    values.value = ""
    with pytest.raises(Unavailable, match="is not there"):
        await world.once(image, **USED)


async def test_the_node_client_takes_them_as_well(tmp_path: Path) -> None:
    try:
        bases = Bases.build("node", tmp_path / "node")
    except Exception as error:
        pytest.skip(f"no Node here: {error}")
    with none_left(bases.server_id):
        world = World(bases, tmp_path / "logs")
        await world.pool.open()
        try:
            world.pool.reveal_with(Values().reveal)
            image = function_on(bases, {"var/task/app.js": NODE_APP})
            answer = await world.once(image, **USED)
            assert answer.value == {"seen": "first", "file": "first", "process": False, "names": False}
        finally:
            await world.pool.close(1)
