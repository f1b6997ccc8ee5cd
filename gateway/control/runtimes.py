"""Runtime bases: listed, and built on the server where one is missing."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from aiohttp import web

from faas.auth import Permission
from faas.errors import InvalidInput, Unavailable
from faas.protocol import RuntimeBase
from faas.spec import RUNTIME_PATTERN
from faas.web import access
from gateway.control.operations import TEXT, Operation, a_list, an_object, answer
from gateway.gateway import GATEWAY

BUILD_SECONDS = 900.0


def _shown(base: RuntimeBase) -> dict[str, Any]:
    return asdict(base) | {"platforms": list(base.platforms)}


@access(Permission.READ)
async def listed(request: web.Request) -> web.Response:
    return answer({"runtimes": [_shown(base) for base in await request.app[GATEWAY].runtimes.list()]})


@access(Permission.CHANGE)
async def ensured(request: web.Request) -> web.Response:
    name = request.match_info["runtime"]
    if not RUNTIME_PATTERN.fullmatch(name):
        raise InvalidInput("a runtime is python, python3.x, node, nodeX or provided")
    gateway = request.app[GATEWAY]
    try:
        async with asyncio.timeout(BUILD_SECONDS):
            return answer(_shown(await gateway.runtimes.ensure(name)))
    except TimeoutError:
        raise Unavailable(f"the runtime base could not be built within {BUILD_SECONDS:g} s") from None
    finally:
        gateway.staleness.forget()


_RUNTIME = an_object(
    ("name", "reference", "version", "architecture", "platforms"), name=TEXT, reference=TEXT, version=TEXT,
    architecture=TEXT, platforms=a_list(TEXT),
)  # fmt: skip
OPERATIONS = (
    Operation("GET", "/v1/runtimes", listed, "Runtime bases that are built",
              {200: an_object(("runtimes",), runtimes=a_list(_RUNTIME))}),
    Operation("PUT", "/v1/runtimes/{runtime}", ensured, "Build a runtime base where it is missing", {200: _RUNTIME}),
)  # fmt: skip
