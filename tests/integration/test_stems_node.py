"""Stems of Node: as of Python (`test_stems.py`), what a function sees of its process and its modules."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from faas.build.interpreter import find_node
from faas.errors import InitFailed, NotFound
from tests.support.leftovers import none_left
from tests.support.stem_functions import Bases, World

SEEN = b"""
const fs = require("fs");
const helper = require("helper");
const rows = fs.readFileSync("/proc/self/status", "utf8").split("\\n");
const wanted = /^(Name|Umask|Pid|PPid|Uid|Gid|Threads|SigIgn|SigBlk|Cap|NoNewPrivs|Seccomp)/;
const kinds = fs.readdirSync("/proc/self/fd").map((name) => {
  try { return fs.readlinkSync("/proc/self/fd/" + name).replace(/\\[.*/, ""); } catch { return "gone"; }
});
const child = require("child_process").execSync("export -p").toString().split("\\n").sort();
const seen = {
  environ: Object.entries(process.env), child, helper, cwd: process.cwd(), argv: process.argv,
  options: process.execArgv,
  status: rows.filter((row) => wanted.test(row)), descriptors: kinds.sort(), paths: module.paths,
  global: require("module").globalPaths, main: require.main.filename, listeners: process.eventNames().map(String),
  zone: [new Date(0).toString(), Intl.DateTimeFormat().resolvedOptions().timeZone], title: process.title,
  input: fs.readFileSync(0, "utf8"), umask: process.umask(), loaded: Object.keys(require.cache),
};
exports.handler = async (event, context) => ({ seen, chance: Math.random(), name: context.functionName });
"""
FILES: dict[str, bytes | str | None] = {
    "var": None,
    "var/task": None,
    "var/task/seen.js": SEEN,
    "var/task/app.js": b"exports.handler = async (event) => event;\n",
    "var/task/module.mjs": b"export const handler = async (event) => ({ esm: event });\n",
    "var/task/broken.js": b"require('nowhere-to-be-found');\n",
    "var/task/raising.js": b"throw new TypeError('no');\n",
}
DEPENDENCIES: dict[str, bytes | str | None] = {
    "opt": None,
    "opt/nodejs": None,
    "opt/nodejs/node_modules": None,
    "opt/nodejs/node_modules/helper": None,
    "opt/nodejs/node_modules/helper/index.js": b"module.exports = __filename;\n",
}
OWN = {"FAAS_INSTANCE", "FAAS_FUNCTION", "AWS_LAMBDA_LOG_STREAM_NAME", "AWS_LAMBDA_FUNCTION_NAME"}
OWN.add("AWS_LAMBDA_LOG_GROUP_NAME")


def has_node() -> bool:
    try:
        find_node("")
    except NotFound:
        return False
    return True


pytestmark = [
    pytest.mark.root,
    pytest.mark.oci,
    pytest.mark.skipif(not has_node(), reason="there is no node on this machine"),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases.build("node", tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def image(bases: Bases) -> str:
    env = (
        "PATH=/usr/local/bin:/usr/bin:/bin",
        "LANG=C.UTF-8",
        "NODE_PATH=/opt/nodejs/node_modules",
        "_HANDLER=app.handler",
    )
    return bases.function(DEPENDENCIES, FILES, env=env)


@pytest.fixture
async def worlds(bases: Bases, tmp_path: Path) -> AsyncIterator[tuple[World, World]]:
    """One with stems, one without."""
    other = replace(bases, data=tmp_path / "data", server_id=secrets.token_hex(4))
    with none_left(bases.server_id):
        made = World(bases, tmp_path / "logs"), World(other, tmp_path / "cold", stems=0)
        for world in made:
            await world.pool.open()
        yield made
        for world in made:
            await world.pool.close(1)


@pytest.mark.parametrize("changed", [{}, {"TZ": "Asia/Tokyo"}, {"HOME": "/var/task"}], ids=str)
async def test_a_function_sees_what_it_would_see_after_an_ordinary_start(
    worlds: tuple[World, World], image: str, changed: dict[str, str]
) -> None:
    await worlds[0].warmed(image, 2)
    keys: dict[str, Any] = {"handler": "seen.handler", "memory": 256, "env": {"GREETING": "hello", **changed}}
    answers = [await world.invoke(world.revision(image, **keys)) for world in worlds]
    assert [answer.path for answer in answers] == ["stem", "cold"]
    for answer in answers:
        seen = answer.value["seen"]
        seen["environ"] = [(name, "" if name in OWN else value) for name, value in seen["environ"]]
        seen["child"] = [row for row in seen["child"] if row.removeprefix("export ").partition("=")[0] not in OWN]
        assert "export GREETING='hello'" in seen["child"]
    stem, ordinary = (answer.value["seen"] for answer in answers)
    assert {name: (stem[name], value) for name, value in ordinary.items() if stem[name] != value} == {}
    again = await worlds[0].once(image, {"a": 1}, handler="module.handler")
    assert (again.path, again.value) == ("stem", {"esm": {"a": 1}})


async def test_an_init_error_reads_the_same(worlds: tuple[World, World], image: str) -> None:
    await worlds[0].warmed(image, 2)
    for handler in ("broken.handler", "raising.handler", "app.other"):
        told = []
        for world in worlds:
            with pytest.raises(InitFailed) as failure:
                await world.invoke(world.revision(image, handler=handler))
            error = failure.value
            told.append((error.message, error.error_type, error.hint, error.log_tail))
        assert told[0] == told[1]
        await worlds[0].until(lambda: worlds[0].ready() == 2)
