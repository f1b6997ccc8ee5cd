"""`Registry`: the registry's parts, opened and closed together. `registry.app` speaks HTTP for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from faas.attempts import Attempts
from faas.auth import ALL_NAMESPACES, ANONYMOUS, ROOT, Accounts, Permission, Principal
from faas.background import Background
from faas.errors import FaasError, Unauthenticated
from faas.metrics import Metrics
from registry.access import ACTIONS, CATALOG, Caller, Grant, Signer
from registry.gc import Collected, Collection, Preview
from registry.holders import Holders
from registry.index.index import Index
from registry.index.policies import Policies
from registry.index.retention import Rules
from registry.scrub import Scrub
from registry.sendfile import FileSender
from registry.space import Space
from registry.storage.base import BlobStore
from registry.storage.filesystem import FileBlobStore
from registry.upstream.cache import Cache
from registry.upstream.upstream import Upstreams

log = logging.getLogger("registry")

UPLOAD_SECONDS = 24 * 3600.0  # an upload session that nobody touches for so long is thrown away
SWEEP_SECONDS = 3600.0
COLLECT_SECONDS = 3600.0
MEASURE_SECONDS = 2.0


class Registry:
    """Blobs on disk, rows beside them. `authenticator` None: no login at all."""

    def __init__(
        self,
        index: Index,
        blobs: BlobStore,
        authenticator: Accounts | None,
        metrics: Metrics,
        holders: Holders | None,
        upstreams: Upstreams,
    ) -> None:
        self.index = index
        self.blobs = blobs
        self.authenticator = authenticator
        self.metrics = metrics
        self.holders = holders
        self.policies = Policies(index.database)
        self.retention = Rules(index.database)
        self.space = Space(index.quotas, blobs)
        self.scrub = Scrub(index, blobs, metrics)
        self.cache = Cache(upstreams, index, blobs, self.space, metrics, self.stored)
        self.sender = FileSender()
        self.signer = Signer()
        self.attempts = Attempts()
        self.token_flow = False  # see `wants_tokens`; Basic is taken all the same
        self._background = Background()
        self._collecting = asyncio.Lock()
        self._changed = asyncio.Event()

    @classmethod
    async def open(
        cls,
        data: Path,
        database_url: str,
        *,
        authenticator: Accounts | None,
        metrics: Metrics,
        holders: Holders | None = None,
        upstreams: Upstreams | None = None,
    ) -> Registry:
        blobs = FileBlobStore(data)
        await blobs.open()
        registry = cls(await Index.open(database_url), blobs, authenticator, metrics, holders, upstreams or Upstreams())
        await registry.policies.load()
        await registry.retention.load()
        metrics.registry_collected_at.set_to_current_time()
        await registry.index.quotas.load()
        registry.stored()
        registry._background.start(registry._measure(), "adding up")
        registry._background.start(registry._sweep(), "registry sweeper")
        registry._background.start(registry._collect_regularly(), "garbage collection")
        registry._background.start(registry.scrub.run(), "scrub")
        return registry

    async def close(self) -> None:
        await self._background.cancel()
        await self.policies.close()
        await self.retention.close()
        await self.cache.close()
        await self.index.close()
        self.blobs.close()
        self.sender.close()

    async def caller(self, token: str, user: str | None, address: str | None) -> Caller:
        """Who these credentials, sent from `address`, belong to: a token of ours, or a principal's own.

        Raises Unauthenticated, Throttled after too many failures.
        """
        if self.authenticator is None:
            return Caller(ROOT)
        if user is None and self.signer.is_form_of(token):
            grant = self.signer.read(token)
            owner = None if grant is None else await self._owner(grant, self.authenticator)
            if grant is None or owner is None:  # no failed login: so clients learn that it is over
                raise Unauthenticated("the token is over; ask for a new one")
            return Caller(owner, grant.scopes)
        return Caller(await self.attempts.admit(self.authenticator, token, user, address))

    async def _owner(self, grant: Grant, accounts: Accounts) -> Principal | None:
        return await accounts.principal(grant.owner) if grant.owner else ANONYMOUS

    def may(self, caller: Caller, permission: Permission, repository: str) -> bool:
        """What is public may be pulled by everybody, whatever their token says. Copies of an upstream's are public only
        by a pattern that names it: `*` must not have strangers fetch through here whatever they like.

        Copies of an upstream's are for everybody who may pull anything, where no pattern keeps them out; nobody pushes
        there.
        """
        copied = self.cache.upstreams.of(repository)
        public = self.policies.public_by(repository) if permission is Permission.PULL else None
        if public is not None and (copied is None or public.startswith(copied.upstream.prefix)):
            return True
        if copied is None:
            return caller.may(permission, repository)
        if permission is Permission.PULL:
            reached = caller.principal.reaches(repository) and caller.principal.may(permission)
            return reached and caller.names(permission, repository)
        is_root = caller.principal.may(Permission.ADMIN, ALL_NAMESPACES)
        return permission is Permission.DELETE_IMAGE and caller.names(permission, repository) and is_root

    def granted(self, caller: Caller, wanted: Iterable[tuple[str, str]]) -> frozenset[tuple[str, str]]:
        """What of these (repository, action) pairs a token for `caller` may say."""
        return frozenset(pair for pair in wanted if pair == CATALOG or self.may(caller, ACTIONS[pair[1]], pair[0]))

    @property
    def wants_tokens(self) -> bool:
        """Whether clients are told to ask for a token. Where something is public that is so in any case: docker sends
        nothing at all, not even without a login, to a registry that asks for Basic."""
        return self.token_flow or bool(self.policies.public)

    def stored(self) -> None:
        """The bytes that are stored have changed: say how many they are, soon."""
        self._changed.set()

    async def _measure(self) -> None:
        """Once for many changes: adding up costs more than a small blob."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                self.metrics.registry_storage.set(await self.index.total_bytes())
            except FaasError as error:
                log.warning("cannot add up what is stored: %s", error.message)
            await asyncio.sleep(MEASURE_SECONDS)

    async def collect(self, *, expire: bool = False, namespace: str | None = None) -> Collected:
        """Take away what nobody needs, one collection at a time; see `gc.Collection`."""
        async with self._collecting:
            await self.cache.forget()
            found = await self._collection(expire, namespace).run()
        if found != Collected():
            log.info("collected", extra=asdict(found))
        self.metrics.registry_collected_bytes.inc(found.bytes)
        if namespace is None:
            self.metrics.registry_collected_at.set_to_current_time()
        self.stored()
        return found

    async def preview(self, *, expire: bool = False, namespace: str | None = None) -> Preview:
        """What a collection would take away now."""
        async with self._collecting:
            return await self._collection(expire, namespace).preview()

    def _collection(self, expire: bool, namespace: str | None) -> Collection:
        return Collection(self.index, self.blobs, self.holders, self.retention.of, expire, namespace)

    async def _collect_regularly(self) -> None:
        while True:
            await asyncio.sleep(COLLECT_SECONDS)
            try:
                await self.collect(expire=True)
            except Exception:
                log.exception("the garbage collection failed; nothing is lost, it is tried again")

    async def _sweep(self) -> None:
        while True:
            try:
                if swept := await self.blobs.sweep(UPLOAD_SECONDS):
                    log.info("swept %d abandoned uploads", swept)
            except OSError as error:
                log.warning("cannot sweep uploads: %s", error)
            await asyncio.sleep(SWEEP_SECONDS)
