"""`Edge`: what stands in front of functions, as one value that starts and stops. Both listeners share it."""

from __future__ import annotations

from dataclasses import dataclass

from faas.access_log import AccessLog
from faas.auth import Authenticator
from faas.metrics import Metrics
from faas.state.session import Database
from gateway.api_keys import KeyStore
from gateway.data_path import DataPath
from gateway.edge.apis.apis import Apis
from gateway.edge.apis.arrivals import Arrivals
from gateway.edge.auth.authorizer import AuthorizerMethod
from gateway.edge.auth.jwks import KeySets
from gateway.edge.auth.jwt import JwtMethod
from gateway.edge.auth.keys import KeyMethod
from gateway.edge.doorman import Doorman
from gateway.edge.guards import Guards
from gateway.edge.maintenance import Maintenance
from gateway.edge.passage import Passage
from gateway.edge.spans import Spans
from gateway.edge.websocket.apis import WebSocketApis
from gateway.edge.witness import Witness


@dataclass(slots=True)
class Edge:
    """Collaborators only; what they do is theirs."""

    path: DataPath
    keys: KeyStore
    key_sets: KeySets
    websockets: WebSocketApis
    apis: Apis
    guards: Guards
    witness: Witness
    spans: Spans | None

    @classmethod
    def create(
        cls,
        database: Database,
        metrics: Metrics,
        path: DataPath,
        key_sets: KeySets,
        apis: Apis,
        access_log: AccessLog | None = None,
        spans: Spans | None = None,
    ) -> Edge:
        """The log and the spans are their maker's to close."""
        witness = Witness(metrics, access_log, tracing=spans is not None)
        apis.gone = witness.forget
        guards = Guards.create(database, metrics, path.router.changed)
        apis.table.changed = path.router.changed
        websockets = WebSocketApis(database, metrics, path.router, path.invoker)
        return cls(path, KeyStore(database), key_sets, websockets, apis, guards, witness, spans)

    def doorman(self, authenticator: Authenticator, *, everybody_logs_in: bool = False) -> Doorman:
        """One listener's; the cheapest way in is asked first."""
        authorizers = AuthorizerMethod(self.path.router, self.path.invoker)
        methods = (KeyMethod(self.keys), JwtMethod(self.key_sets), authorizers)
        return Doorman(authenticator, everybody_logs_in, methods)

    def arrivals(self) -> Arrivals:
        """The public listener's way from paths to routes."""
        return Arrivals(self.apis.table, self.path.router)

    def passage(self, doorman: Doorman) -> Passage:
        """One listener's way to functions."""
        return Passage(
            self.path.router, self.path.invoker, doorman, self.path.canaries, self.guards, self.witness
        )  # fmt: skip

    @property
    def maintenance(self) -> Maintenance:
        return self.guards.maintenance

    async def start(self) -> None:
        """Before the first request is taken."""
        await self.keys.start()
        await self.key_sets.start()
        await self.websockets.start()
        await self.guards.start()
        await self.apis.start()

    async def drain(self, seconds: float) -> None:
        """End what would last on, while functions can still be told of it."""
        await self.websockets.drain(seconds)

    async def stop(self) -> None:
        """After the last one."""
        await self.apis.close(1.0)
        await self.key_sets.stop()
        await self.keys.stop()
        await self.websockets.stop()
        await self.guards.stop()
