"""`Client`: the control API (`/v1/…`) over aiohttp, one method per operation.

Values go in and out as plain data with the API's own names. Every answer that is an error is raised as the class of
`faas.errors` that it was on the server; its `__cause__` is a `Refusal` with what else the server said.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import aiohttp

from faas.client_errors import ERROR_BYTES, LOG_HEADER, NoAnswer, Unreachable, decoded, error_of
from faas.client_nouns import NounCalls
from faas.errors import FaasError, InvalidInput
from faas.trust import Trust, untrusted

Json = dict[str, Any]

CONNECT_SECONDS = 5.0
CALL_SECONDS = 30.0
DEPLOY_SECONDS = 1200.0  # unpacking a large image, and an init of up to 900 s
INVOKE_SECONDS = 2700.0  # queue_timeout, init_timeout and timeout may be 900 s each


@dataclass(frozen=True, slots=True)
class Answer:
    """A function's answer. `error_type` is "" where it succeeded; `log_tail` holds what was asked for with `log`.

    `status` is the function's own for http functions.
    """

    payload: bytes
    status: int
    content_type: str
    request_id: str
    error_type: str = ""
    log_tail: str = ""


def _is_refusal(response: aiohttp.ClientResponse, body: bytes) -> bool:
    """Whether an invocation's error answer is the API's own, and not what an http function answered."""
    if response.content_type != "application/json":
        return False
    try:
        error = json.loads(body)["error"]
        return isinstance(error, dict) and {"code", "message", "request_id"} <= error.keys()
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


class Client(NounCalls):
    """One connection pool to the API at `url`. Use it as an async context manager.

    Every method may raise any of `faas.errors`, `Unreachable` and `NoAnswer`. `name` is a function's name, or
    `name.namespace`.
    """

    def __init__(
        self,
        url: str,
        token: str = "",
        *,
        trust: Trust = Trust(),  # noqa: B008 - a frozen value
        call_seconds: float = CALL_SECONDS,
    ) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._trust = trust
        self._call_seconds = call_seconds
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._trust.context())
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers, raise_for_status=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    # Server

    async def info(self) -> Json:
        """`{"version", "public_url", "registry", "api", "driver"}`."""
        return await self._object("GET", "/v1/info")

    async def settings(self) -> Any:
        """The running server's settings, each with value and source."""
        return await self._json("GET", "/v1/settings")

    # Functions

    async def functions(self, namespace: str = "") -> list[Json]:
        return await self._list("/v1/functions", "functions", {"namespace": namespace})

    async def function(self, name: str) -> Json:
        return await self._object("GET", _function(name), function=name)

    async def deploy(self, name: str, spec: Mapping[str, Any], image: str, *, check: bool = True) -> Json:
        """Make a revision of `repository@digest`; returns the function as it is then, with `warnings`."""
        body = {"spec": dict(spec), "image": image, "check": check}
        return await self._object("PUT", _function(name), body=body, seconds=DEPLOY_SECONDS, function=name)

    async def delete(self, name: str) -> None:
        await self._json("DELETE", _function(name), function=name, seconds=max(self._call_seconds, 60))

    async def top(self, namespace: str = "") -> Json:
        """`{"at", "memory", "functions"}`: what each function uses now. The server looks twice a second at most."""
        return await self._object("GET", "/v1/top", params={"namespace": namespace})

    async def revisions(self, name: str) -> list[Json]:
        return await self._list(_function(name) + "/revisions", "revisions", function=name)

    async def set_alias(self, name: str, alias: str, revision: int) -> Json:
        path = f"{_function(name)}/aliases/{quote(alias, safe='')}"
        return await self._object("PUT", path, body={"revision": revision}, function=name)

    async def delete_alias(self, name: str, alias: str) -> None:
        await self._json("DELETE", f"{_function(name)}/aliases/{quote(alias, safe='')}", function=name)

    async def rollback(self, name: str, to: int | None = None) -> Json:
        """Move `live` to revision `to`, or to the one before; returns the function."""
        return await self._object("POST", _function(name) + "/rollback", body={"to": to}, function=name)

    async def scale(self, name: str, instances: int) -> int:
        body = {"instances": instances}
        answer = await self._object("POST", _function(name) + "/scale", body=body, function=name)
        return int(answer.get("instances", instances))

    async def logs(
        self,
        name: str,
        *,
        since: float | None = None,
        until: float | None = None,
        follow: bool = False,
        limit: int | None = None,
        **only: str,
    ) -> AsyncGenerator[Json, None]:
        """Log records in the order of their time, from `since` on and before `until` (Unix time). With `follow` it goes
        on until it is cancelled or the function deleted. `only`: filter, request_id, instance, stream."""
        params = {
            **only,
            "since": "" if since is None else f"{since:.6f}",
            "until": "" if until is None else f"{until:.6f}",
            "follow": "1" if follow else "",
            "limit": "" if limit is None else str(limit),
        }
        path = _function(name) + "/logs"
        async with self._request("GET", path, params=params, seconds=None if follow else 300) as response:
            if response.status >= 400:
                raise error_of(response.status, response.headers, await response.content.read(ERROR_BYTES), path, name)
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line:
                        yield json.loads(line)

    async def invoke(
        self, name: str, payload: bytes, *, qualifier: str = "", kind: str = "RequestResponse", log: bool = False
    ) -> Answer:
        """Invoke a function; `kind` is RequestResponse, Event (the answer's payload has the id) or DryRun.

        A function that failed by itself is an `Answer` with `error_type`; one that was killed raises FunctionError.
        """
        target = quote(name, safe="") + (f":{quote(qualifier, safe='')}" if qualifier else "")
        path = f"/v1/functions/{target}/invocations"
        headers = {"Content-Type": "application/json", "X-Faas-Invocation-Type": kind}
        if log:
            headers["X-Faas-Log-Type"] = "Tail"
        async with self._request("POST", path, data=payload, headers=headers, seconds=INVOKE_SECONDS) as response:
            body = await response.read()
            if response.status >= 400 and _is_refusal(response, body):
                raise error_of(response.status, response.headers, body, self.url + path, name)
            error_type = response.headers.get("X-Error-Type", "")
            if response.status >= 400 and not error_type:
                error_type = f"HTTP {response.status}"
            return Answer(
                body,
                response.status,
                response.content_type,
                response.headers.get("X-Request-Id", ""),
                error_type,
                decoded(response.headers.get(LOG_HEADER, "")),
            )

    async def invocation(self, invocation: str) -> Json:
        """What became of an asynchronous one so far; `status` is pending | running | success | error."""
        return await self._object("GET", f"/v1/invocations/{quote(invocation, safe='')}")

    # Events

    async def schedules(self, namespace: str = "") -> list[Json]:
        return await self._list("/v1/schedules", "schedules", {"namespace": namespace})

    async def schedule_history(self, name: str, schedule: str) -> list[Json]:
        path = f"{_function(name)}/schedules/{quote(schedule, safe='')}/history"
        return await self._list(path, "fires", function=name)

    async def triggers(self, namespace: str = "") -> list[Json]:
        return await self._list("/v1/triggers", "triggers", {"namespace": namespace})

    async def dead_letters(self, function: str = "") -> list[Json]:
        return await self._list("/v1/dead-letters", "dead_letters", {"function": function})

    async def dead_letter(self, letter: str) -> Json:
        return await self._object("GET", f"/v1/dead-letters/{quote(letter, safe='')}")

    async def retry_dead_letter(self, letter: str) -> None:
        await self._json("POST", f"/v1/dead-letters/{quote(letter, safe='')}/retry")

    async def delete_dead_letter(self, letter: str) -> None:
        await self._json("DELETE", f"/v1/dead-letters/{quote(letter, safe='')}")

    # Runtimes

    async def ensure_runtime(self, name: str) -> Json:
        """`{"name", "reference", "version", "architecture", "platforms"}`; built on the server where missing."""
        return await self._object("PUT", f"/v1/runtimes/{quote(name, safe='')}", seconds=DEPLOY_SECONDS)

    # Inside

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        *,
        seconds: float | None,
        params: Mapping[str, str] | None = None,
        **options: Any,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request; foreign errors become ours here. `seconds` None: no end (following a log)."""
        assert self._session is not None, "a Client is a context manager"
        wanted = {k: v for k, v in (params or {}).items() if v}
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)
        try:
            async with self._session.request(
                method, self.url + path, params=wanted, timeout=timeout, allow_redirects=False, **options
            ) as response:
                yield response
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise InvalidInput(f"not a URL: {self.url}", hint="like http://127.0.0.1:8081") from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise untrusted(self.url, error) from error
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectionError) as error:
            if isinstance(error, aiohttp.SocketTimeoutError):
                raise NoAnswer(f"{self.url} did not answer in time") from error
            reason = getattr(error, "strerror", None) or str(error) or "the connection was closed"
            raise Unreachable(
                f"cannot reach the server at {self.url}: {reason}", hint="is it running? see faas doctor"
            ) from error
        except TimeoutError as error:
            raise NoAnswer(f"{self.url} did not answer within {seconds:g} s") from error
        except aiohttp.ClientError as error:
            raise FaasError(f"{self.url} does not speak HTTP as it should: {error}") from error

    async def _json(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        payload: bytes | None = None,
        seconds: float | None = None,
        function: str = "",
    ) -> Any:
        options = {"data": payload} if body is None else {"json": body}
        seconds = seconds or self._call_seconds
        async with self._request(method, path, params=params, seconds=seconds, **options) as response:
            raw = await response.read()
            if response.status >= 300:
                raise error_of(response.status, response.headers, raw, self.url + path, function)
        if not raw:
            return None
        try:
            return await asyncio.to_thread(json.loads, raw) if len(raw) > ERROR_BYTES else json.loads(raw)
        except ValueError:
            raise FaasError(f"{self.url}{path} answered no JSON", hint="is this the API's address?") from None

    async def _object(self, method: str, path: str, **options: Any) -> Json:
        answer = await self._json(method, path, **options)
        if not isinstance(answer, dict):
            raise FaasError(f"{self.url}{path} answered no JSON object", hint="is this the API's address?")
        return answer

    async def _list(
        self, path: str, key: str, params: Mapping[str, str] | None = None, *, function: str = ""
    ) -> list[Json]:
        answer = await self._object("GET", path, params=params, function=function)
        return list(answer.get(key) or ())


def _function(name: str) -> str:
    return f"/v1/functions/{quote(name, safe='')}"
