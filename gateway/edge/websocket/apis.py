"""`WebSocketApis`: the WebSocket APIs there are, in memory for connections, stored for the next start."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter

from faas.errors import Conflict, InvalidInput, NotFound, SpecError
from faas.metrics import Metrics
from faas.state.session import Database
from gateway.edge.websocket.api import WebSocketApi, parse
from gateway.edge.websocket.connections import Connections
from gateway.edge.websocket.frames import GOING_AWAY
from gateway.edge.websocket.session import Functions
from gateway.invoke import Invoker
from gateway.router import Router, function_label
from gateway.store import websockets as store

log = logging.getLogger("faas.websocket")

APIS = 100  # of a namespace
DELETED = "this API was deleted"


class WebSocketApis:
    """`connections` are theirs."""

    def __init__(self, database: Database, metrics: Metrics, router: Router, invoker: Invoker) -> None:
        self._database = database
        self._metrics = metrics
        self._apis: dict[tuple[str, str], WebSocketApi] = {}
        self._paths: dict[str, WebSocketApi] = {}
        self._namespaces: Counter[str] = Counter()  # how many APIs each has
        self._turn = asyncio.Lock()
        self.functions = Functions(router, invoker)
        self.connections = Connections(metrics)

    async def start(self) -> None:
        async with self._database.read() as tx:
            rows = await store.every(tx)
        for row in rows:
            try:
                self._know(parse(row.namespace, row.name, json.loads(row.definition)))
            except SpecError as error:  # what this version refuses is out of use, not the server
                label = function_label(row.namespace, row.name)
                log.error("the WebSocket API %s cannot be used any more: %s", label, error.message)
        self.connections.start()

    async def drain(self, seconds: float) -> None:
        await self.connections.drain(seconds)

    async def stop(self) -> None:
        await self.connections.stop()

    def every(self) -> list[WebSocketApi]:
        return [self._apis[key] for key in sorted(self._apis)]

    @property
    def is_alone(self) -> bool:
        """Whether one namespace has all of them."""
        return len(self._namespaces) <= 1

    def get(self, namespace: str, name: str) -> WebSocketApi:
        """Raises NotFound."""
        if (api := self._apis.get((namespace, name))) is None:
            raise NotFound("there is no such WebSocket API")
        return api

    def at(self, path: str) -> WebSocketApi | None:
        return self._paths.get(path)

    def has(self, api: WebSocketApi) -> bool:
        """Whether `api`, or what became of it, is still there."""
        return api.key in self._apis

    def now(self, api: WebSocketApi) -> WebSocketApi:
        """What `api` has become since; itself where it was deleted."""
        return self._apis.get(api.key, api)

    async def put(self, api: WebSocketApi) -> bool:
        """Make or replace it; whether it is new. Connections stay, and have their next message routed by it.

        Raises Conflict where another API has its path, InvalidInput where the namespace has too many.
        """
        async with self._turn:
            other = self._paths.get(api.path)
            if other is not None and other.key != api.key:
                raise Conflict(f"the path {api.path} is another WebSocket API's", hint="give it another path")
            before = self._apis.get(api.key)
            if before is None and sum(key[0] == api.namespace for key in self._apis) >= APIS:
                raise InvalidInput(f"a namespace has at most {APIS} WebSocket APIs", hint="delete one")
            row = store.Row(api.namespace, api.name, api.path, json.dumps(api.to_dict()), time.time())
            async with self._database.write() as tx:
                await store.put(tx, row)
            self._forget(before)
            self._know(api)
            return before is None

    async def remove(self, namespace: str, name: str) -> None:
        """Its connections are closed, and `$disconnect` is told. Raises NotFound."""
        async with self._turn:
            api = self.get(namespace, name)
            async with self._database.write() as tx:
                await store.remove(tx, namespace, name)
            self._forget(api)
        for session in self.connections.of(api.key):
            session.close(GOING_AWAY, DELETED)
        self._metrics.websocket_api_connections.remove_by_labels({"api": api.label})

    def _know(self, api: WebSocketApi) -> None:
        self._apis[api.key] = self._paths[api.path] = api
        self._namespaces[api.namespace] += 1

    def _forget(self, api: WebSocketApi | None) -> None:
        if api is not None:
            del self._apis[api.key], self._paths[api.path]
            self._namespaces -= Counter([api.namespace])  # without those that have none any more
