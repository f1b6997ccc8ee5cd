"""Retention rules over HTTP: `/v2/_faas/retention`, `/v2/_faas/retention/<pattern>`, `/v2/_faas/retention/run`.

What a rule says: `registry.rules.Rule`. Collections by the clock apply the rules; `run` does it now, and says with
`?dry-run=1` what would go, and why.
"""

from __future__ import annotations

import re
from dataclasses import asdict, fields
from typing import Any

from aiohttp import web

from faas.auth import Permission
from registry.by_pattern import administered, check_room, of_caller
from registry.errors import RegistryError
from registry.extension import OwnEndpoint, bad, is_dry, json_of
from registry.requests import administrator
from registry.rules import Rule
from registry.service import Registry

KEYS = tuple(field.name for field in fields(Rule))
MOST_TAGS = 1_000_000
MOST_DAYS = 36_500.0
MOST_PATTERNS = 32
_TAGS = re.compile(r"[a-zA-Z0-9_*][a-zA-Z0-9._*-]{0,127}")


async def listed(request: web.Request, registry: Registry) -> web.StreamResponse:
    """Those whose pattern the caller administers."""
    mine = await of_caller(request, registry, registry.retention)
    return web.json_response({"rules": [{"pattern": pattern, **asdict(rule)} for pattern, rule in mine.items()]})


async def put(request: web.Request, registry: Registry) -> web.StreamResponse:
    """The whole rule; what is not written is as it is by default."""
    pattern = await administered(request, registry)
    check_room(registry, registry.retention, pattern)
    await registry.retention.put(pattern, parse(await json_of(request, *KEYS)))
    return web.Response(status=204)


async def remove(request: web.Request, registry: Registry) -> web.StreamResponse:
    pattern = await administered(request, registry)
    if not await registry.retention.remove(pattern):
        raise RegistryError("NAME_UNKNOWN", f"there is no retention rule for {pattern}")
    return web.Response(status=204)


async def run(request: web.Request, registry: Registry) -> web.StreamResponse:
    """In the repositories of the caller's namespace; in all where the caller administers all.

    A repository may be called `run` and have its rule: only POST means this.
    """
    caller = await administrator(request, registry, None)
    if request.match_info["pattern"] != "run":
        raise RegistryError("NAME_UNKNOWN", "no such endpoint")
    namespaces = caller.principal.where(Permission.ADMIN)
    if namespaces is not None and len(namespaces) > 1:
        if request.query.get("namespace") not in namespaces:
            raise bad(f"you administer several namespaces: say ?namespace=, one of {', '.join(sorted(namespaces))}")
        namespaces = frozenset({request.query["namespace"]})
    namespace = None if namespaces is None else next(iter(namespaces))
    if is_dry(request):
        return web.json_response(asdict(await registry.preview(expire=True, namespace=namespace)))
    return web.json_response({"counts": asdict(await registry.collect(expire=True, namespace=namespace))})


def parse(body: dict[str, Any]) -> Rule:
    """Raises a 400 that says what is allowed."""
    immutable, movable = body.get("immutable", False), body.get("movable", [])
    if not isinstance(immutable, bool):
        raise bad("immutable must be true or false")
    if not isinstance(movable, list) or not all(isinstance(tag, str) and _TAGS.fullmatch(tag) for tag in movable):
        raise bad("movable must be a list of patterns of tags, such as latest or dev-*")
    if len(movable) > MOST_PATTERNS:
        raise bad(f"movable may hold {MOST_PATTERNS} patterns")
    if movable and not immutable:
        raise bad("movable says which tags move although immutable is set: it does nothing without")
    return Rule(
        keep_last=_number(body, "keep_last", 1, MOST_TAGS, whole=True),
        keep_days=_number(body, "keep_days", 0, MOST_DAYS),
        untagged_days=_number(body, "untagged_days", 0, MOST_DAYS),
        immutable=immutable,
        movable=tuple(movable),
    )


def _number(body: dict[str, Any], key: str, least: int, most: float, *, whole: bool = False) -> Any:
    value = body.get(key)
    if value is None:
        return None
    is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:  # which NaN is not
        raise bad(f"{key} must be a {'whole ' if whole else ''}number from {least} to {most:g}, or null")
    return value


ENDPOINTS: tuple[tuple[str, str, OwnEndpoint], ...] = (
    ("GET", "/v2/_faas/retention", listed),
    ("POST", "/v2/_faas/retention/{pattern:.+}", run),
    ("PUT", "/v2/_faas/retention/{pattern:.+}", put),
    ("DELETE", "/v2/_faas/retention/{pattern:.+}", remove),
)
