"""Runs one queued event, whatever its kind: to the function, through the same path as every invocation, or out as a
callback. What comes back is an `Answer`; nothing but cancellation is raised."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

from faas.errors import (
    FaasError,
    FunctionError,
    ImageUnusable,
    InvalidInput,
    NotFound,
    PayloadTooLarge,
    ResponseTooLarge,
    ShuttingDown,
    Throttled,
)
from faas.leases import HttpRequest, InvocationResult
from faas.spec import AsyncSpec, Interface
from gateway import trace
from gateway.callback import Callbacks
from gateway.edge.canary.canaries import Canaries
from gateway.event import OWN_PATH, Routed, encode
from gateway.events.file_event import FolderEvents
from gateway.invoke import SYNC_PAYLOAD_BYTES, Invoker
from gateway.payloads import FORMATS
from gateway.retries import Failure
from gateway.router import LIVE, Route, Router
from gateway.store.invocations import Kind, QueuedEvent

log = logging.getLogger("faas.delivery")

CALLBACK_RULES = AsyncSpec(retries=0)  # a callback that is not taken is tried until its event is too old
TYPE_CHARACTERS, MESSAGE_CHARACTERS = 128, 1000


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run gave: `failure` is None where it succeeded. `gone`: there is nothing left to run, and no matter."""

    failure: Failure | None = None
    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    gone: bool = False
    revision: int = 0


class Delivery:
    """One for all queued events."""

    def __init__(
        self, router: Router, invoker: Invoker, folders: FolderEvents, callbacks: Callbacks, canaries: Canaries
    ) -> None:
        self._router = router
        self._invoker = invoker
        self._folders = folders
        self._callbacks = callbacks
        self._canaries = canaries

    def rules(self, event: QueuedEvent) -> AsyncSpec:
        """The retry rules in force now: of the revision that the event would run on, else the live one's."""
        if event.kind is Kind.CALLBACK:
            return CALLBACK_RULES
        for qualifier in (event.qualifier, LIVE):
            try:
                return self._router.resolve(event.namespace, event.function, qualifier).revision.spec.asynchronous
            except NotFound:
                continue
        return AsyncSpec()

    async def run(self, event: QueuedEvent) -> Answer:
        """Run it once, now. Names and aliases are resolved here: when it runs, not when it was accepted."""
        try:
            if event.kind is Kind.CALLBACK:
                await self._callbacks.post(event.callback_url, event.meta["headers"], event.payload)
                return Answer()
            return await self._invoke(event)
        except ShuttingDown as error:
            return Answer(Failure(error.code, error.message, fault=False), error.status)
        except FunctionError as error:
            return _failed(error, error.error_type, fault=True)
        except ImageUnusable as error:
            return _failed(error, error.code, fault=True)
        except (NotFound, PayloadTooLarge, InvalidInput) as error:
            return _failed(error, error.code, fault=True, final=True)
        except FaasError as error:
            reason = error.reason if isinstance(error, Throttled) else error.code
            return _failed(error, reason, fault=False)
        except Exception as error:
            log.exception("event %s", event.id)
            return _failed(FaasError("our fault; it is logged"), type(error).__name__, fault=False)

    async def _invoke(self, event: QueuedEvent) -> Answer:
        turn = self._canaries.pick(self._router.resolve(event.namespace, event.function, event.qualifier))
        with turn as route:
            answer = await self._on(event, route)
            turn.answered(answer.status)
            return answer

    async def _on(self, event: QueuedEvent, route: Route) -> Answer:
        if event.kind is Kind.HTTP:
            route = await self._invoker.known(route, event.trigger)
            if route.revision.interface is Interface.HTTP:
                return await self._request(event, route)
            result = await self._event(event, route, http_payload(event, route.revision.spec.rules.payload))
            return _http(result, route)
        if event.kind is Kind.FILE:
            try:
                payload = await self._folders.load(event)
            except NotFound as error:
                log.info("event %s: %s", event.id, error.message)
                return Answer(gone=True)
            result = await self._event(event, route, payload)
            if result.error_type is None:
                await self._folders.store(event, result.payload)
        else:
            result = await self._event(event, route, event.payload)
        return _plain(result, route)

    async def _event(self, event: QueuedEvent, route: Route, payload: bytes) -> InvocationResult:
        trace_id = next((value for name, value in event.meta.get("fields", ()) if name == trace.AMAZON), "")
        return await self._invoker.invoke_event(
            route, payload, trigger=event.trigger, request_id=event.id, trace_id=trace_id
        )

    async def _request(self, event: QueuedEvent, route: Route) -> Answer:
        """An http function gets the request as it was sent."""
        meta = event.meta
        target = f"{meta['path']}?{meta['query']}" if meta["query"] else meta["path"]
        headers = tuple((name, value) for name, value in meta["fields"])
        request = HttpRequest(meta["method"], target, headers, event.payload or None, len(event.payload))
        async with self._invoker.invoke_http(route, request, trigger=event.trigger, request_id=event.id) as response:
            body = bytearray()
            async for chunk in response.body:
                body += chunk
                if len(body) > SYNC_PAYLOAD_BYTES:
                    raise ResponseTooLarge(f"the response is over {SYNC_PAYLOAD_BYTES} bytes")
        types = [value for name, value in response.headers if name.lower() == "content-type"]
        failure = None
        if response.status >= 500:
            failure = Failure(f"Http.{response.status}", f"the function answered {response.status}", fault=True)
        return Answer(
            failure, response.status, bytes(body), types[0] if types else "application/octet-stream",
            revision=route.revision.key.number,
        )  # fmt: skip


def http_payload(event: QueuedEvent, payload: str) -> bytes:
    """A queued request as a Lambda event, in the payload format that is named."""
    meta = event.meta
    return encode(
        FORMATS[payload].event(
            method=meta["method"],
            path=meta["path"],
            query=meta["query"],
            fields=[(name, value) for name, value in meta["fields"]],
            body=event.payload,
            protocol="HTTP/1.1",
            source_ip=meta["source_ip"],
            request_id=event.id,
            function=meta["label"],
            account=meta["account"],
            now=event.created_at,
            routed=Routed(authorizer=meta["authorizer"]) if meta.get("authorizer") else OWN_PATH,
        )
    )


def storable(text: str, characters: int) -> str:
    """The beginning of what a function wrote; half a surrogate pair, which no database takes, becomes a `?`."""
    return text[:characters].encode(errors="replace").decode()


def _failed(error: FaasError, error_type: str, *, fault: bool, final: bool = False) -> Answer:
    error_type, message = storable(error_type, TYPE_CHARACTERS), storable(error.message, MESSAGE_CHARACTERS)
    body = json.dumps({"errorType": error_type, "errorMessage": message}).encode()
    failure = Failure(error_type, message, fault, body if fault else b"", final)
    return Answer(failure, error.status, body)


def _reported(result: InvocationResult) -> Failure | None:
    """The error that the function itself reported."""
    if result.error_type is None:
        return None
    try:
        message = str(json.loads(result.payload)["errorMessage"])
    except (ValueError, LookupError, TypeError, RecursionError):
        message = "the function failed"
    return Failure(
        storable(result.error_type, TYPE_CHARACTERS), storable(message, MESSAGE_CHARACTERS), True, result.payload
    )


def _plain(result: InvocationResult, route: Route) -> Answer:
    failure = _reported(result)
    status = 200 if failure is None else 502
    return Answer(failure, status, result.payload, result.content_type, revision=route.revision.key.number)


def _http(result: InvocationResult, route: Route) -> Answer:
    """A Lambda function's answer to a request: its body is what the callback gets."""
    if result.error_type is not None:
        return _plain(result, route)
    answer = FORMATS[route.revision.spec.rules.payload].answer
    status, headers, body = answer(result.payload, result.content_type)
    return Answer(
        None, status, body, headers.get("Content-Type", "application/json"), revision=route.revision.key.number
    )
