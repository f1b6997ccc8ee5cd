"""`Opening`: one client's way to a connection: the handshake's head, `$connect`, and then 101 or what that said."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
import secrets
import time

from aiohttp import hdrs, web

from faas.auth import Permission
from faas.errors import FaasError, FunctionError, InvalidInput
from faas.leases import InvocationResult
from faas.logins import watching
from faas.protocol import RevisionKey
from faas.remote import client_address
from faas.web import REQUEST_ID, REQUEST_ID_HEADER
from gateway.edge.doorman import Caller
from gateway.edge.entry import Entry
from gateway.edge.websocket import events
from gateway.edge.websocket.api import CONNECT, WebSocketApi
from gateway.edge.websocket.apis import DELETED, WebSocketApis
from gateway.edge.websocket.connections import SHUTDOWN, Place
from gateway.edge.websocket.events import Peer
from gateway.edge.websocket.frames import ABNORMAL, GOING_AWAY, POLICY
from gateway.edge.websocket.session import Session
from gateway.event import http_answer
from gateway.event_v1 import flat_authorizer
from gateway.headers import inbound
from gateway.invoke import Invoker
from gateway.router import Route

logger = logging.getLogger("faas.websocket")

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
VERSION = "13"
PROTOCOL = "Sec-WebSocket-Protocol"


class UpgradeRequired(InvalidInput):
    """WebSocket connections are taken here, and nothing else."""

    code = "UpgradeRequired"
    status = 426


def accept_key(request: web.Request) -> str:
    """`Sec-WebSocket-Accept` for a request that asks for a connection. Raises UpgradeRequired, InvalidInput."""
    upgrades = {token.strip().lower() for token in request.headers.get(hdrs.UPGRADE, "").split(",")}
    tokens = {token.strip().lower() for token in ",".join(request.headers.getall(hdrs.CONNECTION, ())).split(",")}
    if "websocket" not in upgrades or "upgrade" not in tokens:
        raise UpgradeRequired(hint="a WebSocket client sends Connection: Upgrade and Upgrade: websocket")
    if request.headers.get(hdrs.SEC_WEBSOCKET_VERSION, "") != VERSION:
        raise UpgradeRequired(f"the WebSocket protocol is taken in version {VERSION} only")
    keys = list(request.headers.getall(hdrs.SEC_WEBSOCKET_KEY, ()))
    try:
        nonce = base64.b64decode(keys[0], validate=True) if len(keys) == 1 else b""
    except (binascii.Error, ValueError):
        nonce = b""
    if len(nonce) != 16 or request.method != "GET" or request.version < (1, 1) or request.body_exists:
        raise InvalidInput("this is no WebSocket handshake: GET of HTTP/1.1 with a Sec-WebSocket-Key of 16 bytes")
    return base64.b64encode(hashlib.sha1(keys[0].strip().encode() + _GUID).digest()).decode()  # noqa: S324 - the RFC's


class Opening:
    """`ask` is the passage's last step, `session` then takes over what it has let in."""

    def __init__(self, apis: WebSocketApis, api: WebSocketApi, place: Place, accept: str) -> None:
        self._apis = apis
        self._api = api
        self._place = place
        self._accept = accept
        self._peer: Peer | None = None  # once it has been let in
        self._let_in_by: RevisionKey | None = None

    async def ask(
        self, request: web.Request, invoker: Invoker, entry: Entry, route: Route, caller: Caller
    ) -> web.StreamResponse:
        """101, not sent yet, or the answer of a `$connect` that refuses. Raises FaasError."""
        account = "anonymous" if caller.is_stranger else caller.principal.name
        authorizer = flat_authorizer(caller.context, account) if caller.context else caller.context
        peer = Peer(
            secrets.token_hex(16),  # found by nobody who was not told it; never like an option of a command line
            self._api.label,
            self._api.stage,
            request.headers.get(hdrs.HOST, ""),
            client_address(request),
            request.headers.get(hdrs.USER_AGENT, "")[:1024],
            time.time(),
            authorizer,
        )
        protocol = ""
        if CONNECT in self._api.routes:
            result = await self._invoked(request, entry, route, caller, peer)
            status, headers, body = http_answer(result.payload, result.content_type)
            if not 200 <= status <= 299:
                return web.Response(status=status, headers=headers, body=body)
            protocol = headers.get(PROTOCOL, "")
        self._peer, self._let_in_by = peer, entry.route.revision.key
        answer = web.StreamResponse(status=101, headers={REQUEST_ID_HEADER: request[REQUEST_ID]})
        answer.headers[hdrs.CONNECTION] = "Upgrade"
        answer.headers[hdrs.UPGRADE] = "websocket"
        answer.headers[hdrs.SEC_WEBSOCKET_ACCEPT] = self._accept
        offered = {name.strip() for name in ",".join(request.headers.getall(PROTOCOL, ())).split(",")}
        if protocol in offered - {""}:
            answer.headers[PROTOCOL] = protocol
        answer.force_close()
        return answer

    async def _invoked(
        self, request: web.Request, entry: Entry, route: Route, caller: Caller, peer: Peer
    ) -> InvocationResult:
        """`$connect`'s answer. Where its client goes meanwhile, and it would have been let in, its end is told."""
        request_id = request[REQUEST_ID]
        fields = inbound(request, request_id)
        event = events.connect(peer, fields, entry.target.query, request_id, peer.connected_at)
        asked = asyncio.create_task(self._apis.functions.invoke(route, event, request_id))
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            self._place.keep(self._gone_meanwhile(asked, peer))
            raise
        except FunctionError as error:
            logger.info("$connect of %s: %s", self._api.label, error.error_type, extra={"request_id": request_id})
            refused = FunctionError("the function that lets clients in has failed", error_type=error.error_type)
            refused.status = error.status
            raise refused from None

    async def _gone_meanwhile(self, asked: asyncio.Task[InvocationResult], peer: Peer) -> None:
        try:
            result = await asked
            status, _, _ = http_answer(result.payload, result.content_type)
        except FaasError:
            return
        if 200 <= status <= 299:
            await self._tell_end(peer)

    def abandoned(self) -> None:
        """No connection has come of it: whoever was told of one is told of its end."""
        if self._peer is not None and not self._place.is_kept:
            self._place.keep(self._tell_end(self._peer))

    async def _tell_end(self, peer: Peer) -> None:
        api = self._apis.now(self._api)
        await self._place.telling(self._apis.functions.tell_end(api, peer, ABNORMAL, ""))

    async def session(self, request: web.Request, answer: web.StreamResponse) -> None:
        """Send the 101 and serve the connection to its end."""
        assert self._peer is not None
        assert self._let_in_by is not None
        await answer.prepare(request)
        transport = request.transport
        if transport is None or transport.is_closing():
            return
        connections, apis, api = self._apis.connections, self._apis, self._api
        session = Session(
            lambda: apis.now(api),
            self._peer,
            apis.functions,
            answer,
            transport,
            connections.remove,
            connections.wrote,
        )
        self._place.open(session)
        session.begin(request)
        if connections.stopping:  # it came in while the others were told
            session.close(GOING_AWAY, SHUTDOWN)
        elif not apis.has(api):
            session.close(GOING_AWAY, DELETED)
        key = self._let_in_by
        with watching(
            request, Permission.INVOKE, key.namespace, key.function, lambda: session.close(POLICY, "this login is over")
        ):
            await session.over()
