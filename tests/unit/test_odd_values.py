"""Bodies of the control API that were right until one value of them became something else: refused, never our fault.

A description says of a body what its parts are; what is found deeper in is tried here, from bodies that are taken.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SOAK
from tests.support.control import DIGEST, control

ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 10**400, 1e308, "", "\x00", "\udc80", "ä" * 5000, "../..", [], [[]], [None], {}, {"": None},
    {"\x00": {}}, [{}] * 2000,
)  # fmt: skip
RULES: dict[str, Any] = {
    "auth": {
        "token": True, "key": {"header": "X-Api-Key", "query": ""},
        "jwt": {"issuer": "https://a.example", "audience": ["a"], "jwks": "main.json", "scopes": ["s"]},
        "authorizer": {"function": "judge", "format": "2.0", "ttl": "5m", "timeout": 5},
    },
    "cors": {"origins": ["https://a.example"], "methods": ["GET"], "headers": ["x-a"], "max_age": "5m"},
    "throttle": {"rate": 5, "burst": 9, "per": "key"}, "circuit": {"errors": 0.5, "window": "30s", "least": 20},
    "compress": True, "payload": "1.0",
}  # fmt: skip
FUNCTION: dict[str, Any] = {
    "image": f"hello@{DIGEST}",
    "spec": {
        "name": "hello", "memory": 128, "timeout": 5, "env": {"A": "b"}, "async": {"retries": 1}, **RULES,
        "scale": {"min": 0, "max": 3, "idle": "5m"},
        "schedule": [{"name": "tick", "cron": "* * * * *"}], "route": [{"path": "/a/{b}", "methods": ["GET"]}],
    },
}  # fmt: skip
ROUTE: dict[str, Any] = {"path": "/x/{y}", "function": "hello", "methods": ["GET"], "rewrite": "/{y}", "timeout": 5}
BODIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "function": ("PUT", "/v1/functions/hello", FUNCTION),
    "api": (
        "PUT", "/v1/apis/shop",
        {
            "hosts": ["shop.example"], "base_path": "/shop", "stages": {"test": {"variables": {"a": "live"}}},
            "routes": [{"path": "/s", "function": "hello:${stageVariables.a}"}],
        },
    ),
    "route": ("POST", "/v1/apis/default/routes", ROUTE),
    "document": (
        "PUT", "/v1/apis/drawn/openapi.json",
        {
            "openapi": "3.0.1", "info": {"title": "t", "version": "1"},
            "x-faas-api": {"hosts": ["x.example"], "base_path": "/base"},
            "paths": {"/p/{q}": {"get": {
                "parameters": [{"name": "q", "in": "path", "required": True, "schema": {"type": "string"}}],
                "responses": {"200": {"description": "d"}},
                "x-faas-function": "hello", "x-faas-route": {"cors": RULES["cors"]},
            }}},
        },
    ),
    "key": (
        "POST", "/v1/keys",
        {"name": "k", "namespace": "default", "functions": ["hello"], "plan": "gold", "expires": "1h"},
    ),
    "key's plan": ("PATCH", "/v1/keys/held", {"plan": "gold"}),
    "rotation": ("POST", "/v1/keys/held/rotate", {"overlap": "1h"}),
    "plan": (
        "PUT", "/v1/plans/gold",
        {"rate": 5, "burst": 9, "quota": 100, "period": "day", "functions": ["hello"], "apis": ["default"]},
    ),
    "maintenance": ("PUT", "/v1/maintenance/hello", {"message": "soon", "retry_after": 5}),
    "websocket": (
        "PUT", "/v1/websockets/chat",
        {
            "path": "/ws/chat", "stage": "test", "selection": "$request.body.action", "public": True,
            "routes": {"$default": {"function": "hello", "response": True}}, "connections": 5, "in_flight": 2,
            "rules": {"throttle": {"rate": 5}},
        },
    ),
    "weights": (
        "PUT", "/v1/functions/hello/aliases/live",
        {"revision": 1, "weights": {"v2": 10}, "sticky": "cookie", "override": True, "rollback": "errors=5%"},
    ),
    "budget": ("PUT", "/v1/budgets/b", {"cost": 5, "function": "hello", "warn": 50, "throttle": False}),
    "token": ("POST", "/v1/tokens", {"name": "t", "role": "caller", "namespace": "default", "functions": ["hello"]}),
    "scale": ("POST", "/v1/functions/hello/scale", {"instances": 1}),
}  # fmt: skip


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every value within a body, the way to it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*above, key)
        yield from places(one, (*above, key))


def with_value(body: Any, place: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(body)
    at = changed
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return changed


@pytest.mark.parametrize("kind", BODIES)
async def test_a_body_with_one_odd_value_is_never_our_fault(tmp_path: Path, kind: str) -> None:
    method, path, right = BODIES[kind]
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)  # of what is left out
    tries = [(place, value) for place in places(right) for value in ODD]
    chosen = tries if SOAK else random.Random(seed).sample(tries, min(len(tries), 90))
    async with control(tmp_path) as server:
        for number in (1, 2):
            await server.deploy(env={"N": str(number)})
        await server.deploy("judge")
        for needed in (("PUT", "/v1/plans/gold", {"rate": 5}), ("POST", "/v1/keys", {"name": "held"})):
            assert (await server.call(*needed)).status == 201
        taken = await server.call(method, path, right)
        assert taken.status in (200, 201, 202), taken.body
        for place, value in chosen:
            answered = await server.call(method, path, with_value(right, place, value))
            assert answered.status < 500 or answered.status == 501, (place, repr(value)[:80], answered.body)
            assert answered.status < 400 or answered.json()["error"]["message"]
