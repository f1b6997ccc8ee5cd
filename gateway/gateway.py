"""`Gateway`: the parts that decide, as one value, with their start and stop in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
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
from gateway.audit_trail import AuditTrail
from gateway.callback import Callbacks
from gateway.ceiling import MAX_CONCURRENCY
from gateway.credentials import TokenStore
from gateway.data_path import DataPath
from gateway.delivery import Delivery
from gateway.deploy import Deployer
from gateway.dev_images import DevImages
from gateway.dev_sessions import DevSessions
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
from gateway.failed_deploys import FailedDeploys
from gateway.follow import TagFollower
from gateway.idle_patterns import PatternKeeper
from gateway.image_upkeep import ImageUpkeep
from gateway.images import Images
from gateway.ledger import Ledger
from gateway.notify.facts import Facts
from gateway.notify.keeper import Keeper
from gateway.notify.senders import Senders
from gateway.prices import Prices
from gateway.retries import RetryRules
from gateway.router import Router
from gateway.scaler import BURST, Scaler
from gateway.scheduler import Scheduler
from gateway.secret_store import SecretStore
from gateway.spending import Spending
from gateway.staleness import Staleness
from gateway.summaries import Summaries
from gateway.vault import KEY_FILE


class RuntimeBases(Protocol):
    """Builds and knows runtime bases; wired by the composition root."""

    async def ensure(self, name: str) -> RuntimeBase:
        """The base that `name` ("python", "python3.11", "node") means, built where it is missing.

        Raises InvalidInput for a name that means nothing here.
        """
        ...

    async def list(self) -> list[RuntimeBase]: ...

    async def builder(self, name: str) -> str:
        """The image (`repository@digest`) that wheels are built in for a Python, built where it is missing."""
        ...

    async def current(self, base: str) -> str:
        """The reference that `base` (`runtime/python:3.11`) has now; "" where this machine has not built it yet, or
        cannot any more. Raises FaasError."""
        ...

    async def rebase(self, image: str, base: str) -> str:
        """`image` (`repository@digest`) on `base` as it is now; the new image. Raises Conflict, NotFound, FaasError."""
        ...


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What `/v1/info` and `/v1/settings` tell. `registry` is host:port; `settings`: name → (value, source).

    `named`: whether `public_url` is how others call it, and not only this machine. `everywhere`: API and registry
    answer by every name of this machine. `ca`: the certificate (PEM) of the CA behind the listeners' own, or "".
    """

    version: str
    public_url: str
    api: str
    registry: str
    driver: str
    domain: str = ""
    named: bool = True
    settings: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    everywhere: bool = False
    ca: Callable[[], str] = str


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
    dev: DevSessions
    follower: TagFollower
    runtimes: RuntimeBases
    ledger: Ledger
    spending: Spending
    patterns: PatternKeeper
    edge: Edge
    canaries: CanaryKeeper
    secrets: SecretStore
    images: Images
    failed_deploys: FailedDeploys = field(init=False)
    audit: AuditTrail = field(init=False)
    image_upkeep: ImageUpkeep = field(init=False)
    staleness: Staleness = field(init=False)
    summaries: Summaries = field(default_factory=Summaries, init=False)
    notifications: Keeper = field(init=False)
    ready: bool = False

    def __post_init__(self) -> None:
        self.image_upkeep = ImageUpkeep(self.worker, self.held)
        self.staleness = Staleness(self.images, self.runtimes)
        self.failed_deploys = FailedDeploys(self.database)
        self.audit = self.follower.trail = AuditTrail(self.database, self.tokens.is_known)

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
        dev_images: DevImages,
        allow_private_callbacks: bool = False,
        rules: RetryRules = RetryRules(),  # noqa: B008 - a frozen value
        prices: Prices = Prices(),  # noqa: B008 - a frozen value
        max_concurrency: int = MAX_CONCURRENCY,
        burst: int = BURST,
        key_sets: Path | None = None,
        private_key_sets: bool = False,
        private_notifications: bool = False,
        access_log: AccessLog | None = None,
        spans: Spans | None = None,
    ) -> Gateway:
        """Wire the parts; nothing runs yet. `dev_images`: what `worker` gets images from. `key_sets`: the folder of
        files that `auth.jwt.jwks` may name."""
        ledger = Ledger(database, settle=worker.settle)
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
        spending.changed = path.activator.forget
        callbacks = Callbacks(allow_private=allow_private_callbacks)
        delivery = Delivery(path.router, path.invoker, FolderEvents(database, roots), callbacks, path.canaries)
        dispatcher = Dispatcher(database, path.router, delivery, metrics, rules=rules)
        scheduler = Scheduler(database, dispatcher, metrics)
        folders = FolderTriggers(database, dispatcher, roots)
        own = (info.public_url, f"//{info.api}", f"//{info.registry}")
        names = [urlsplit(url).hostname or "" for url in own]
        apis = Apis(database, taken=names, named=info.named, domain=info.domain, changed=path.router.changed)
        secrets = SecretStore(database, worker, path.router)
        worker.reveal_with(secrets.reveal)
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
            secrets,
            metrics,
            registry=info.registry,
        )
        made = cls(
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
            DevSessions(
                database,
                worker,
                path.router,
                path.scaler,
                Images(images, info.registry),
                dev_images,
                secrets,
                metrics,
            ),
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
            secrets,
            Images(images, info.registry),
        )
        made.notifications = Keeper(
            database,
            Facts(database, path.invoker.tallies, spending),
            Senders(secrets.value, allow_private=private_notifications),
            metrics,
            info.public_url,
        )
        secrets.others = made.notifications.using
        return made

    async def held(self) -> dict[str, list[str]]:
        """Images that must not be deleted → who needs them. The registry's port `Holders`."""
        pending = await self.follower.held()  # first: what is deployed meanwhile is in the second answer
        held, dev = await self.deployer.held(), self.dev.held()
        images = {*held, *pending, *dev}
        return {image: [*held.get(image, ()), *pending.get(image, ()), *dev.get(image, ())] for image in images}

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
        self.tokens.start()
        self.audit.start()
        await self.ledger.start()
        await self.spending.start()
        await self.patterns.start()
        await self.path.start()
        await self.secrets.start(admin_token_file.with_name(KEY_FILE))
        await self.deployer.load()
        await self.failed_deploys.start()
        await self.canaries.start(admin_token_file.with_name("canary-key"))
        await self.edge.start()
        await self.callbacks.start()
        await self.dispatcher.start()
        await self.scheduler.start()
        await self.folders.start()
        await self.follower.start()
        await self.dev.start()
        await self.image_upkeep.start()
        self.notifications.facts.data = admin_token_file.parent
        await self.notifications.start()
        self.ready = True

    async def stop(self, grace_seconds: float) -> None:
        """Sources of events first, then what runs, within `grace_seconds`; what is queued stays queued.

        The worker may end invocations after that: `ledger.stop` again once it has been closed.
        """
        self.ready = False
        await self.notifications.stop()
        await self.image_upkeep.stop()
        await self.dev.stop()
        await self.follower.stop()
        await self.folders.stop()
        await self.scheduler.stop()
        # Side by side: queued events run through the same invoker as requests do.
        await asyncio.gather(self.dispatcher.stop(grace_seconds), self._finish(grace_seconds))
        await self.edge.stop()
        await self.canaries.stop()
        await self.patterns.stop()
        await self.deployer.close(1.0)
        await self.failed_deploys.stop(1.0)
        await self.secrets.stop(1.0)
        await self.callbacks.stop()
        await self.spending.stop()
        await self.ledger.stop()
        await self.tokens.stop()
        await self.audit.stop()

    async def _finish(self, grace_seconds: float) -> None:
        """Connections first: their functions are told of their end."""
        clock = asyncio.get_running_loop().time
        until = clock() + grace_seconds
        await self.edge.drain(grace_seconds / 2)
        await self.path.stop(max(0.0, until - clock()))


GATEWAY = web.AppKey("gateway", Gateway)
AUTHENTICATOR: web.AppKey[Authenticator] = web.AppKey("authenticator")
