"""The control API as the command line sees it: a real HTTP server in a thread, answering what a test tells it to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

TOKEN = "faas_test-token"
REQUEST_ID = "11111111-2222-4333-8444-555555555555"

HELLO: dict[str, Any] = {
    "name": "hello",
    "namespace": "default",
    "revision": 7,
    "state": "ready",
    "reason": "",
    "image": "hello@sha256:" + "ab" * 32,
    "interface": "lambda",
    "memory": 128,
    "timeout": 30,
    "public": True,
    "url": "http://127.0.0.1:8080/function/hello",
    "runtime": "python3.11",
    "created_at": "2030-01-02T03:04:05Z",
    "updated_at": "2030-01-02T03:04:05Z",
    "instances": {"starting": 1, "idle": 2, "busy": 0},
    "schedules": 1,
    "triggers": 1,
    "spec": {
        "handler": "app.handler",
        "ephemeral_storage": 512,
        "network": "outbound",
        "scale": {"min": 0, "max": 50, "idle": "5m"},
        "env": {"LEVEL": "***"},
        "schedule": [{"name": "tick", "cron": "* * * * *", "timezone": "UTC"}],
        "trigger": [{"watch": "/srv/photos", "pattern": "*.jpg"}],
        "route": [{"path": "/photos/{id}", "methods": ["GET"]}],
    },
    "aliases": {"live": 7, "beta": 6},
    "instances_list": [
        {"id": "i-1", "state": "idle", "started_at": 1_700_000_000, "invocations": 3, "memory_bytes": 20_000_000}
    ],
    "revisions": 7,
}
INFO = {
    "version": "0.1.0",
    "public_url": "http://127.0.0.1:8080",
    "registry": "127.0.0.1:1",
    "api": "http://127.0.0.1:8081",
    "driver": "oci",
}


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """`body` as bytes is sent as it is, anything else as JSON."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0


def refusal(status: int, code: str, message: str, hint: str = "", **more: Any) -> Reply:
    error = {"code": code, "message": message, "hint": hint, "request_id": REQUEST_ID, **more}
    return Reply({"error": error}, status)


class FakeApi:
    """Use it as a context manager. `replies[(method, path)]` is a `Reply` or a function of what was `Seen`."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.seen: list[Seen] = []
        self.replies: dict[tuple[str, str], Reply | Callable[[Seen], Reply | None]] = {("GET", "/v1/info"): Reply(INFO)}
        self.otherwise: Callable[[Seen], Reply | None] = lambda seen: None  # for what `replies` does not name
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> FakeApi:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def last(self, method: str) -> Seen:
        return next(seen for seen in reversed(self.seen) if seen.method == method)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
        self._stop = asyncio.Event()
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        headers = {key.lower(): value for key, value in request.headers.items()}
        seen = Seen(request.method, request.path, dict(request.query), headers, await request.read())
        self.seen.append(seen)
        if headers.get("authorization", "").partition(" ")[0] == "Bearer" and not headers["authorization"].endswith(
            TOKEN
        ):
            reply = refusal(401, "Unauthenticated", "unknown token", "log in again: faas login")
        else:
            known = self.replies.get((request.method, request.path), self.otherwise)
            reply = (known if isinstance(known, Reply) else known(seen)) or refusal(
                404, "NotFound", f"there is no {request.path}"
            )
        assert self._stop is not None
        if reply.delay:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), reply.delay)
        sent = {"X-Request-Id": REQUEST_ID, **reply.headers}
        if isinstance(reply.body, bytes):
            return web.Response(body=reply.body, status=reply.status, headers=sent)
        if reply.body is None:
            return web.Response(status=reply.status, headers=sent)
        return web.json_response(reply.body, status=reply.status, headers=sent)
