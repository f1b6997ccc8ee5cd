"""Recording, where requests are let in (`faas.web.authorization`): what a changing route did, whoever wrote the route.

A route changes something where its method is not a reading one, unless it only invokes functions; and where it needs
the right to change, whatever its method (a shell in a function is opened by a GET). One record is made of each such
request of somebody known: before its answer is begun, so that who has an answer finds the record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from faas.audit import Entry, Trail, new_entry
from faas.auth import Permission, Principal
from faas.errors import FaasError
from faas.remote import client_address

READING = frozenset({"GET", "HEAD", "OPTIONS"})
CHANGING = frozenset({Permission.CHANGE, Permission.PUSH, Permission.DELETE_IMAGE})
UNCHANGING = frozenset({Permission.NOTHING, Permission.INVOKE, Permission.READ, Permission.PULL, Permission.METRICS})
NAMESPACE = web.RequestKey("audited_namespace", str)
OBJECT = web.RequestKey("audited_object", str)
EVERYWHERE = "*"


def changes(method: str, permission: Permission) -> bool:
    """Whether a route of that method, which needs that permission, changes anything."""
    if method in READING:
        return permission in CHANGING
    return permission not in UNCHANGING


def action_of(method: str, path: str) -> str:
    """`PUT /v1/functions/{name}/aliases/{alias}` → `functions.aliases.put`. A POST is called by what it posts to:
    `keys.rotate`, or `keys.create` where that is a collection."""
    parts = [part for part in path.removeprefix("/v1").split("/") if part]
    words = ".".join(part for part in parts if not part.startswith("{"))
    if method in READING:
        return words
    if method == "POST":
        return words if any(part.startswith("{") for part in parts[:-1]) else f"{words}.create"
    return f"{words}.{method.lower()}"


def about(request: web.Request, name: str) -> None:
    """Say what a request is about, where its path does not: `tokens/ci`."""
    request[OBJECT] = name


def within(request: web.Request, namespace: str) -> None:
    """Say in which namespace something is changed; of several, the record is of all."""
    request[NAMESPACE] = namespace if request.get(NAMESPACE, namespace) == namespace else EVERYWHERE


class Draft:
    """The record of one request, to be written once."""

    def __init__(self, trail: Trail, request: web.Request, principal: Principal, request_id: str) -> None:
        self._trail = trail
        self._request = request
        self._principal = principal
        self._request_id = request_id
        self._is_written = False

    async def write(self, status: int, reason: str = "") -> None:
        if not self._is_written:
            self._is_written = True
            await self._trail.record(self._entry(status, reason))

    def leave(self) -> None:
        """Its client has gone; what was asked for may still be done."""
        if not self._is_written:
            self._is_written = True
            self._trail.note(self._entry(0, ""))

    def _entry(self, status: int, reason: str) -> Entry:
        request, resource = self._request, self._request.match_info.route.resource
        return new_entry(
            by=self._principal.name,
            token=self._principal.token,
            address=client_address(request),
            action=action_of(request.method, resource.canonical if resource is not None else request.path),
            object_=request.get(OBJECT, "") or request.path.removeprefix("/v1/"),
            status=status,
            namespace=request.get(NAMESPACE) or _named(request),
            reason=reason,
            request_id=self._request_id,
        )


def _named(request: web.Request) -> str:
    """The namespace that the path's name has, where nobody came to ask for it."""
    name = request.match_info.get("name")
    return "" if name is None else name.partition(":")[0].partition(".")[2] or "default"


DRAFT = web.RequestKey("audit_draft", Draft)


async def recorded(draft: Draft, work: Callable[[], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    """`work`'s answer, whose record is there before the client hears it."""
    try:
        response = await work()
    except asyncio.CancelledError:
        draft.leave()
        raise
    except FaasError as error:
        await draft.write(error.status, error.code)
        raise
    except web.HTTPException as error:
        await draft.write(error.status)
        raise
    except Exception:
        await draft.write(500, FaasError.code)
        raise
    await draft.write(response.status)
    return response


async def before_a_stream(request: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: what a handler sends itself (a WebSocket, a stream) is recorded before it begins."""
    if (draft := request.get(DRAFT)) is not None:
        await draft.write(response.status)
