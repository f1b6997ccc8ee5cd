"""`KeyStore`: API keys, answered from memory; the database holds hashes only.

A key is `faask_ID_SECRET`: by its id, which is no secret, its hashes are found, so that no search over secrets ever
tells how much of a guess was right. Beside tokens (`gateway.credentials`), which are for people and programs that work
with the server, keys are for those who call functions: of one namespace, replaced while both secrets live, with an end
and a usage plan.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

from faas.auth import ALL_NAMESPACES, Principal, hash_token, same_token
from faas.background import Background
from faas.errors import Conflict, FaasError, InvalidInput, NotFound
from faas.spec import NAME_PATTERN
from faas.state.session import Database
from gateway import credentials
from gateway.router import function_label
from gateway.store import api_keys
from gateway.store.api_keys import ApiKey, Secret

log = logging.getLogger("faas.keys")

PREFIX = "faask"  # one that secret scanners can find
MOST_KEYS = 10_000  # of a namespace, as AWS has for a region
WRITE_SECONDS = 60.0  # when keys were last used is written so often, and at the stop
SHORTEST, LONGEST = timedelta(minutes=1), timedelta(days=3650)
OVERLAP = timedelta(hours=24)
LONGEST_OVERLAP = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Made:
    """A key and its new secret, shown this once."""

    key: ApiKey
    secret: str


class KeyStore:
    """`start`ed once, `stop`ped once. `clock` gives Unix seconds.

    Changes go on to their end where their caller has gone, so that memory and database know the same.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._by_id: dict[str, ApiKey] = {}
        self._by_place: dict[tuple[str, str], str] = {}  # → id
        self._used: dict[str, float] = {}  # id → when, of those of memory
        self._unwritten: set[str] = set()
        self._turn = asyncio.Lock()  # of changes: memory follows in the same order
        self._changes = Background()
        self._closing = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        async with self._database.read() as tx:
            rows = await api_keys.every(tx)
        for key in rows:
            self._put(key)
        self._loop = asyncio.create_task(self._run(), name="api keys")

    async def stop(self) -> None:
        self._closing.set()
        if self._loop is not None:
            await self._loop
            self._loop = None

    def of_secret(self, text: str, now: float) -> ApiKey | None:
        """The key that `text` is a live secret of. Every comparison is of whole digests, in constant time."""
        prefix, _, rest = text.partition("_")
        key = self._by_id.get(rest.partition("_")[0]) if prefix == PREFIX else None
        if key is None or not key.lives(now):
            return None
        right = [same_token(text, secret.hash) and secret.lives(now) for secret in key.secrets]
        if not any(right):
            return None
        self._used[key.id] = now
        self._unwritten.add(key.id)
        return key

    # Control

    def every(self) -> Iterator[ApiKey]:
        """By namespace and name, with when they were last used up to now; also where they change meanwhile."""
        return (self.get(*place) for place in sorted(self._by_place) if place in self._by_place)

    def get(self, namespace: str, name: str) -> ApiKey:
        """Raises NotFound."""
        if (found := self._by_place.get((namespace, name))) is None:
            raise NotFound(f"there is no key {function_label(namespace, name)}", hint="see faas key ls")
        key = self._by_id[found]
        return replace(key, last_used_at=self._used.get(key.id, key.last_used_at))

    async def create(self, principal: Principal, *, plan: str = "", lifetime: timedelta | None = None) -> Made:
        """Raises InvalidInput, Conflict where the name is taken or there are too many, Unavailable."""
        _check(principal, plan)
        if lifetime is not None and not SHORTEST <= lifetime <= LONGEST:
            raise InvalidInput("a key lives for a minute at least and 3650 days at most")
        return await self._changes.complete(self._create(principal, plan, lifetime), "making a key")

    async def _create(self, principal: Principal, plan: str, lifetime: timedelta | None) -> Made:
        now = self._clock()
        name = secrets.token_hex(8)
        secret = _secret(name)
        ends = now + lifetime.total_seconds() if lifetime is not None else None
        key = ApiKey(name, principal, (Secret(hash_token(secret), now),), now, ends, plan)
        async with self._turn:
            if sum(namespace == principal.namespace for namespace, _ in self._by_place) >= MOST_KEYS:
                raise Conflict(f"a namespace has at most {MOST_KEYS} keys", hint="revoke one: faas key revoke")
            try:
                async with self._database.write() as tx:
                    await api_keys.add(tx, key)
            except Conflict:
                raise Conflict(f"there is a key {function_label(*key.place)} already") from None
            self._put(key)
        return Made(key, secret)

    async def rotate(self, namespace: str, name: str, overlap: timedelta = OVERLAP) -> Made:
        """A new secret; the one before lives on for `overlap`, any before that ends now. Raises NotFound,
        InvalidInput, Conflict where the key has expired, Unavailable."""
        if not timedelta(0) <= overlap <= LONGEST_OVERLAP:
            raise InvalidInput("the overlap must be 0s to 30d")
        return await self._changes.complete(self._rotate(namespace, name, overlap), "rotating a key")

    async def _rotate(self, namespace: str, name: str, overlap: timedelta) -> Made:
        async with self._turn:
            now = self._clock()
            key = self.get(namespace, name)
            if not key.lives(now):
                raise Conflict("this key has expired", hint="revoke it and make a new one")
            secret = _secret(key.id)
            kept = [ending(old, now + overlap.total_seconds()) for old in key.secrets[:1] if overlap]
            key = replace(key, secrets=(Secret(hash_token(secret), now), *kept))
            async with self._database.write() as tx:
                await api_keys.put_secrets(tx, key)
            self._put(key)
        return Made(key, secret)

    async def put_plan(self, namespace: str, name: str, plan: str) -> ApiKey:
        """The key counts against `plan` ("": none) from the next request on. Raises NotFound, Unavailable."""
        return await self._changes.complete(self._put_plan(namespace, name, plan), "changing a key's plan")

    async def _put_plan(self, namespace: str, name: str, plan: str) -> ApiKey:
        async with self._turn:
            key = replace(self.get(namespace, name), plan=plan)
            async with self._database.write() as tx:
                await api_keys.put_plan(tx, key)
            self._put(key)
        return key

    async def revoke(self, namespace: str, name: str) -> None:
        """From here on it opens nothing. Raises NotFound; where the database fails, it has to be asked for again."""
        await self._changes.complete(self._revoke(namespace, name), "revoking a key")

    async def _revoke(self, namespace: str, name: str) -> None:
        async with self._turn:
            key = self.get(namespace, name)
            self._by_id[key.id] = replace(key, secrets=())  # first: a failing database must not keep it alive
            async with self._database.write() as tx:
                await api_keys.remove(tx, namespace, name)
            del self._by_id[key.id], self._by_place[key.place]
            self._used.pop(key.id, None)
            self._unwritten.discard(key.id)

    # Inside

    def _put(self, key: ApiKey) -> None:
        self._by_id[key.id] = key
        self._by_place[key.place] = key.id

    async def _run(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WRITE_SECONDS):
                    await self._closing.wait()
            await self._write()

    async def _write(self) -> None:
        """When keys were last used. What is lost with a crash is a minute of that."""
        if not self._unwritten:
            return
        written, self._unwritten = self._unwritten, set()
        times = {one: self._used[one] for one in written if one in self._used}
        try:
            async with self._database.write() as tx:
                await api_keys.used(tx, times)
        except FaasError as error:
            self._unwritten |= times.keys()
            log.error("when keys were last used cannot be written yet: %s", error.message)


def _secret(name: str) -> str:
    return f"{PREFIX}_{name}_{secrets.token_urlsafe(32)}"


def ending(secret: Secret, at: float) -> Secret:
    """The secret, which lives until `at` at the latest."""
    return replace(secret, expires_at=at if secret.expires_at is None else min(at, secret.expires_at))


def _check(principal: Principal, plan: str) -> None:
    if not NAME_PATTERN.fullmatch(principal.name):
        raise InvalidInput("a key's name has 1 to 63 of a-z, 0-9 and -, neither first nor last a -")
    if principal.namespace == ALL_NAMESPACES:
        raise InvalidInput("a key is of one namespace")
    credentials.check(principal)
    if plan and not NAME_PATTERN.fullmatch(plan):
        raise InvalidInput("plan must be the name of a usage plan")
