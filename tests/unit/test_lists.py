"""Lists of the control API: what is kept of their rows is never old, and long ones leave others their turns."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway.control.operations import TURN_SECONDS, a_whole_list
from gateway.summaries import MOST, Summaries
from tests.support.control import DIGEST, Control, control, until


async def listed(server: Control) -> dict[str, Any]:
    functions = (await server.call("GET", "/v1/functions")).json()["functions"]
    return {one["name"]: one for one in functions}


async def test_a_list_of_functions_tells_each_change_at_once(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await server.deploy("first", memory=128)
        await server.deploy("second")
        before = await listed(server)
        assert await listed(server) == before
        assert before["first"]["instances"]["idle"] == 1
        assert before["second"]["reason"] == ""

        server.worker.fails = "No module named 'nope'"
        body = {"spec": {"name": "second", "public": True, "memory": 256}, "image": f"second@{DIGEST}"}
        assert (await server.call("PUT", "/v1/functions/second", body)).status == 502
        server.worker.fails = ""
        assert (await listed(server))["second"]["reason"].startswith("DeployFailed: ")
        await server.deploy("first", memory=256)
        assert (await listed(server))["first"]["memory"] == 256
        assert (await server.call("PUT", "/v1/maintenance/first", {"message": "soon"})).status in (200, 201)
        assert (await listed(server))["first"]["reason"] == "Maintenance: callers hear 503: soon"
        assert (await server.call("POST", "/v1/functions/second/scale", {"instances": 3})).status == 200
        await until(
            lambda: server.worker.stats(server.gateway.deployer.known("default", "second").revisions[1].key).idle
        )
        assert (await listed(server))["second"]["instances"]["idle"] == 3
        assert (await server.call("DELETE", "/v1/functions/first")).status == 204
        assert list(await listed(server)) == ["second"]


def test_a_text_is_made_anew_only_for_other_facts_and_not_all_are_kept() -> None:
    summaries, made = Summaries(), list[str]()

    def text(label: str, *facts: object) -> bytes:
        def make() -> dict[str, Any]:
            made.append(label)
            return {"facts": facts}

        return summaries.text(label, facts, make)

    assert text("a", 1) == text("a", 1) == b'{"facts": [1]}'
    assert text("a", 2) == b'{"facts": [2]}'
    assert made == ["a", "a"]
    for number in range(MOST):
        text(f"f{number}", 1)
    assert len(summaries._kept) <= MOST
    assert text("a", 2) == b'{"facts": [2]}'
    assert made.count("a") == 3


async def test_while_a_long_list_is_made_others_have_their_turns() -> None:
    turns, rows = 0, 20

    def slow() -> Iterator[Any]:
        for number in range(rows):
            until = time.monotonic() + TURN_SECONDS
            while time.monotonic() < until:
                pass
            yield {"n": number} if number % 2 else b'{"n": %d}' % number

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    other = asyncio.create_task(others())
    answered = await a_whole_list("rows", slow())
    other.cancel()
    assert isinstance(answered.body, bytes)
    assert json.loads(answered.body) == {"rows": [{"n": number} for number in range(rows)]}
    assert answered.headers["Content-Type"] == "application/json; charset=utf-8"
    assert turns >= rows // 2
