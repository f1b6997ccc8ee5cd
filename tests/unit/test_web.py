"""The shared middlewares, on real sockets."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession, web

from faas.auth import ALL_NAMESPACES, Permission, Principal, Role, TokenFile
from faas.errors import FaasError, NotFound, Throttled, TimedOut
from faas.web import access, authorization, errors, json_body, new_request_id


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def raising(error: Exception) -> web.Application:
    @access(Permission.NOTHING)
    async def handler(request: web.Request) -> web.Response:
        raise error

    app = web.Application(middlewares=[errors])
    app.router.add_get("/", handler)
    return app


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (NotFound("no function x"), 404, {}),
        (Throttled(retry_after=3), 429, {"Retry-After": "3", "Reason": "ConcurrentInvocationLimitExceeded"}),
        (TimedOut(), 504, {"X-Error-Type": "Sandbox.Timedout"}),
        (ZeroDivisionError("secret detail"), 500, {}),
    ],
)
async def test_every_error_becomes_one_form_with_a_request_id(
    error: Exception, status: int, headers: dict[str, str]
) -> None:
    async with serving(raising(error)) as url, ClientSession() as session, session.get(url) as answer:
        body = await answer.json()
        assert answer.status == status
        assert {k: answer.headers.get(k) for k in headers} == headers
        assert body["error"]["request_id"] == answer.headers["X-Request-Id"]
        assert "secret detail" not in str(body)
        if isinstance(error, FaasError):
            assert body["error"]["code"] == error.code


async def test_an_unknown_path_answers_in_our_form() -> None:
    async with serving(raising(NotFound())) as url, ClientSession() as session, session.get(url + "/x") as answer:
        assert answer.status == 404
        assert (await answer.json())["error"]["code"] == "NotFound"


def guarded() -> web.Application:
    @access(Permission.READ)
    async def read(request: web.Request) -> web.Response:
        return web.Response(text="read")

    async def unmarked(request: web.Request) -> web.Response:
        return web.Response(text="unmarked")

    class Two:
        async def authenticate(self, token: str, user: str | None = None) -> Principal | None:
            if token == "viewer" and user in (None, "vera"):
                return Principal("vera", Role.VIEWER)
            return await TokenFile("root-token").authenticate(token, user)

        def takes_password(self, user: str | None) -> bool:
            return False

    app = web.Application(middlewares=[errors, authorization(Two())])  # type: ignore[list-item]
    app.router.add_get("/read", read)
    app.router.add_get("/unmarked", unmarked)
    return app


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("path", "authorization_header", "status"),
    [
        ("/read", None, 401),
        ("/read", "Bearer viewer", 200),
        ("/read", basic("vera", "viewer"), 200),
        ("/read", basic("other", "viewer"), 401),
        ("/read", "Bearer nonsense", 401),
        ("/read", "Basic !!!", 401),
        ("/read", "Digest x", 401),
        ("/unmarked", "Bearer viewer", 403),
        ("/unmarked", "Bearer root-token", 200),
        ("/nowhere", None, 401),
        ("/nowhere", "Bearer viewer", 404),
    ],
)
async def test_a_route_asks_for_its_permission_and_an_unmarked_one_for_the_administrator(
    path: str, authorization_header: str | None, status: int
) -> None:
    headers = {"Authorization": authorization_header} if authorization_header else {}
    async with serving(guarded()) as url, ClientSession() as s, s.get(url + path, headers=headers) as answer:
        assert answer.status == status


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{}", 200),
        (b"", 200),
        (b"[]", 400),
        (b"{", 400),
        (b"[" * 100_000, 400),
        (b" " * 2000, 413),
        (rb'{"\u00e4": ["\ud83d\ude00"]}', 200),
        (rb'{"a": ["\udc80"]}', 400),
        (rb'{"\ud83d": 1}', 400),
    ],
)
async def test_a_json_body_is_bounded_and_must_be_an_object(body: bytes, status: int) -> None:
    @access(Permission.NOTHING)
    async def handler(request: web.Request) -> web.Response:
        await json_body(request, limit=200_000 if len(body) > 2000 else 1000)
        return web.Response()

    app = web.Application(middlewares=[errors])
    app.router.add_post("/", handler)
    async with serving(app) as url, ClientSession() as session, session.post(url, data=body) as answer:
        assert answer.status == status


def test_request_ids_have_the_form_of_a_uuid() -> None:
    import uuid

    made = {new_request_id() for _ in range(100)}
    assert len(made) == 100
    assert all(uuid.UUID(one).version == 4 for one in made)


def test_a_principal_is_held_to_its_namespace_and_functions() -> None:
    caller = Principal("key", Role.CALLER, "team", ("hello",))
    assert caller.may(Permission.INVOKE, "team", "hello")
    assert not caller.may(Permission.INVOKE, "team", "other")
    assert not caller.may(Permission.INVOKE, "default", "hello")
    assert not caller.may(Permission.READ, "team")
    assert Principal("root", Role.ADMIN, ALL_NAMESPACES).may(Permission.ADMIN, "team", "x")
