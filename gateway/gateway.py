"""`Gateway`: the parts that decide, as one value, with their start and stop in order."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from aiohttp import web

from faas.access_log import AccessLog
from faas.auth import Authenticator
from faas.metrics import Metrics
from faas.oci.changes import TagChanges
from faas.oci.source import ImageSource
from faas.protocol import RuntimeBase, Worker
from faas.state.session import Database
from gateway.callback import Callbacks
from gateway.ceiling import MAX_CONCURRENCY
from gateway.credentials import TokenStore
from gateway.data_path import DataPath
from gateway.delivery import Delivery
from gateway.deploy import Deployer
from gateway.discovery import store_interface
from gateway.dispatcher import Dispatcher
from gateway.edge.apis.apis import Apis
from gateway.edge.auth.jwks import KeySets
from gateway.edge.canary.keeper import CanaryKeeper
from gateway.edge.edge import Edge
from gateway.edge.spans import Spans
from gateway.events.file_event import FolderEvents
from gateway.events.folder import FolderTriggers
from gateway.events.roots import TriggerRoots
from gateway.follow import TagFollower
from gateway.idle_patterns import PatternKeeper
from gateway.image_upkeep import ImageUpkeep
from gateway.ledger import Ledger
from gateway.prices import Prices
from gateway.retries import RetryRules
from gateway.router import Router
from gateway.scaler import BURST, Scaler
from gateway.scheduler import Scheduler
from gateway.spending import Spending


class RuntimeBases(Protocol):
    """Builds and knows runtime bases; wired by the composition root."""

    async def ensure(self, name: str) -> RuntimeBase:
        """The base that `name` ("python", "python3.11", "node") means, built where it is missing.

        Raises InvalidInput for a name that means nothing here.
        """
        ...

    async def list(self) -> list[RuntimeBase]: ...


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What `/v1/info` and `/v1/settings` tell. `registry` is host:port; `settings`: name → (value, source).

    `named`: whether `public_url` is how others call it, and not only this machine.
    """

    version: str
    public_url: str
    api: str
    registry: str
    driver: str
    domain: str = ""
    named: bool = True
    settings: Mapping[str, tuple[Any, str]] = field(default_factory=dict)


@dataclass(slots=True)
class Gateway:
    """Collaborators only; what they do is theirs."""

    database: Database
    worker: Worker
    metrics: Metrics
    info: ServerInfo
    path: DataPath
    tokens: TokenStore
    dispatcher: Dispatcher
    scheduler: Scheduler
    folders: FolderTriggers
    callbacks: Callbacks
    deployer: Deployer
    follower: TagFollower
    runtimes: RuntimeBases
    ledger: Ledger
    spending: Spending
    patterns: PatternKeeper
    edge: Edge
    canaries: CanaryKeeper
    image_upkeep: ImageUpkeep = field(init=False)
    ready: bool = False

    def __post_init__(self) -> None:
        self.image_upkeep = ImageUpkeep(self.worker, self.held)

    @classmethod
    def create(
        cls,
        database: Database,
        worker: Worker,
        images: ImageSource,
        runtimes: RuntimeBases,
        metrics: Metrics,
        info: ServerInfo,
        roots: TriggerRoots,
        changes: TagChanges,
        *,
        allow_private_callbacks: bool = False,
        rules: RetryRules = RetryRules(),  # noqa: B008 - a frozen value
        prices: Prices = Prices(),  # noqa: B008 - a frozen value
        max_concurrency: int = MAX_CONCURRENCY,
        burst: int = BURST,
        key_sets: Path | None = None,
        private_key_sets: bool = False,
        access_log: AccessLog | None = None,
        spans: Spans | None = None,
    ) -> Gateway:
        """Wire the parts; nothing runs yet. `key_sets`: the folder of files that `auth.jwt.jwks` may name."""
        ledger = Ledger(database)
        spending = Spending(database, ledger.month, prices, metrics)
        worker.report_to(ledger.add)
        path = DataPath.create(
            worker,
            metrics,
            found=partial(store_interface, database),
            admit=spending.admit,
            max_concurrency=max_concurrency,
            burst=burst,
        )
        callbacks = Callbacks(allow_private=allow_private_callbacks)
        delivery = Delivery(path.router, path.invoker, FolderEvents(database, roots), callbacks, path.canaries)
        dispatcher = Dispatcher(database, path.router, delivery, metrics, rules=rules)
        scheduler = Scheduler(database, dispatcher, metrics)
        folders = FolderTriggers(database, dispatcher, roots)
        own = (info.public_url, f"//{info.api}", f"//{info.registry}")
        names = [urlsplit(url).hostname or "" for url in own]
        apis = Apis(database, taken=names, named=info.named, domain=info.domain, changed=path.router.changed)
        deployer = Deployer(
            database,
            worker,
            images,
            path.router,
            path.scaler,
            path.reservations,
            scheduler,
            folders,
            apis,
            metrics,
            registry=info.registry,
        )
        return cls(
            database,
            worker,
            metrics,
            info,
            path,
            TokenStore(database),
            dispatcher,
            scheduler,
            folders,
            callbacks,
            deployer,
            TagFollower(database, deployer, path.router, changes, rules=rules),
            runtimes,
            ledger,
            spending,
            PatternKeeper(database, path.patterns),
            Edge.create(
                database,
                metrics,
                path,
                KeySets(key_sets, allow_private=private_key_sets),
                apis,
                access_log,
                spans,
            ),
            CanaryKeeper(deployer, path.router, path.canaries, metrics),
        )

    async def held(self) -> dict[str, list[str]]:
        """Images that must not be deleted → who needs them. The registry's port `Holders`."""
        pending = await self.follower.held()  # first: what is deployed meanwhile is in the second answer
        held = await self.deployer.held()
        return {image: held.get(image, []) + pending.get(image, []) for image in {*held, *pending}}

    @property
    def router(self) -> Router:
        return self.path.router

    @property
    def scaler(self) -> Scaler:
        return self.path.scaler

    async def start(self, admin_token_file: Path) -> None:
        """Everything that was there is callable again before the first new event is taken."""
        await self.tokens.open()
        await self.tokens.ensure_admin(admin_token_file)
        await self.ledger.start()
        await self.spending.start()
        await self.patterns.start()
        await self.path.start()
        await self.deployer.load()
        await self.canaries.start(admin_token_file.with_name("canary-key"))
        await self.edge.start()
        await self.callbacks.start()
        await self.dispatcher.start()
        await self.scheduler.start()
        await self.folders.start()
        await self.follower.start()
        await self.image_upkeep.start()
        self.ready = True

    async def stop(self, grace_seconds: float) -> None:
        """Sources of events first, then what runs, within `grace_seconds`; what is queued stays queued.

        The worker may end invocations after that: `ledger.stop` again once it has been closed.
        """
        self.ready = False
        await self.image_upkeep.stop()
        await self.follower.stop()
        await self.folders.stop()
        await self.scheduler.stop()
        # Side by side: queued events run through the same invoker as requests do.
        await asyncio.gather(self.dispatcher.stop(grace_seconds), self._finish(grace_seconds))
        await self.edge.stop()
        await self.canaries.stop()
        await self.patterns.stop()
        await self.deployer.close(1.0)
        await self.callbacks.stop()
        await self.spending.stop()
        await self.ledger.stop()

    async def _finish(self, grace_seconds: float) -> None:
        """Connections first: their functions are told of their end."""
        clock = asyncio.get_running_loop().time
        until = clock() + grace_seconds
        await self.edge.drain(grace_seconds / 2)
        await self.path.stop(max(0.0, until - clock()))


GATEWAY = web.AppKey("gateway", Gateway)
AUTHENTICATOR: web.AppKey[Authenticator] = web.AppKey("authenticator")
