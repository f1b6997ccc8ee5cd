"""`SecretStore`: secrets of functions, by namespace and name. In memory they are as sealed as in the database; a value
is opened when an instance starts that is to have it, and nobody else can ask for one.

A revision names secrets and holds none: whatever revision runs, its instances get the values of the moment in which
they start. Those that run keep what they have, until `set` is told to replace them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from faas import secret
from faas.background import Background
from faas.errors import Conflict, FaasError, InvalidInput, NotFound, SpecError, Unavailable
from faas.protocol import Revision, RevisionKey, Worker
from faas.secret import Secret
from faas.spec import FunctionSpec
from faas.state.session import Database
from gateway.router import FunctionState, Router, function_label
from gateway.store import secrets
from gateway.store.secrets import Sealed
from gateway.vault import Vault

log = logging.getLogger("faas.secrets")

MOST = 1000  # of a namespace
RENEWALS = 4  # revisions whose instances are replaced at once


@dataclass(frozen=True, slots=True)
class Renewal:
    """What became of the instances of a revision that has a new value. `error`: why they are the old ones still."""

    key: RevisionKey
    instances: int
    error: str = ""


class SecretStore:
    """`start`ed once. Changes take turns, and go on to their end where their caller has gone."""

    def __init__(
        self, database: Database, worker: Worker, router: Router, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._worker = worker
        self._router = router
        self._clock = clock
        self._vault: Vault
        self._rows: dict[tuple[str, str], Sealed] = {}
        self._awaited: Counter[tuple[str, str]] = Counter()  # by deploys on their way
        self._turn = asyncio.Lock()
        self._changes = Background()
        self.others: Callable[[str, str], list[str]] = lambda namespace, name: []  # who needs it beside functions

    async def start(self, key_file: Path) -> None:
        """Before any instance starts. A rotation that a crash ended is finished."""
        self._vault = Vault(key_file)
        await asyncio.to_thread(self._vault.load)
        async with self._database.read() as tx:
            rows = await secrets.every(tx)
        self._rows = {row.place: row for row in rows}
        if lost := sum(not self._vault.knows(row) for row in rows):
            log.error("%d secrets cannot be read: %s does not hold their key", lost, key_file)
        if self._vault.is_rotating:
            with contextlib.suppress(Unavailable):  # of damaged ones, which are in the log: all others have to run
                await self._reseal()

    async def stop(self, grace_seconds: float) -> None:
        await self._changes.finish(grace_seconds)

    # For instances

    def reveal(self, namespace: str, names: Collection[str]) -> Mapping[str, Secret]:
        """See `faas.secret.Reveal`."""
        found = {}
        for name in names:
            if (row := self._rows.get((namespace, name))) is None:
                log.error("an instance cannot start: there is no secret %s", function_label(namespace, name))
                raise Unavailable("a secret of this function is not there", hint="see faas secret ls")
            found[name] = self._vault.open(row)
        return found

    # For the server itself

    def value(self, namespace: str, name: str) -> Secret:
        """What a part of the server logs in somewhere with. Raises NotFound, Unavailable."""
        return self._vault.open(self.get(namespace, name))

    # For deploys

    @contextlib.contextmanager
    def needed(self, namespace: str, spec: FunctionSpec) -> Iterator[None]:
        """What `spec` names is there, and stays until the block ends. Raises SpecError."""
        for variable, name in sorted(spec.secrets.items()):
            row, label = self._rows.get((namespace, name)), function_label(namespace, name)
            if row is None:
                raise SpecError(
                    f"secrets.{variable}: there is no secret {label}",
                    key=f"secrets.{variable}",
                    hint=f"faas secret set {label}",
                )
            if not self._vault.knows(row):
                raise SpecError(
                    f"secrets.{variable}: the secret {label} cannot be read: its key is not here",
                    key=f"secrets.{variable}",
                    hint=f"set it anew: faas secret set {label}",
                )
        _check_total(spec, {name: self._rows[namespace, name].size for name in spec.secrets.values()})
        places = [(namespace, name) for name in set(spec.secrets.values())]
        self._awaited.update(places)
        try:
            yield
        finally:
            self._awaited.subtract(places)
            self._awaited += Counter()  # without those at 0

    def missing(self, namespace: str, spec: FunctionSpec) -> tuple[str, ...]:
        """Names of those that `spec` needs and that are not here, or cannot be read."""
        if not spec.secrets:
            return ()
        rows = {name: self._rows.get((namespace, name)) for name in sorted(set(spec.secrets.values()))}
        return tuple(name for name, row in rows.items() if row is None or not self._vault.knows(row))

    # Control

    def every(self) -> list[Sealed]:
        return [self._rows[place] for place in sorted(self._rows)]

    def get(self, namespace: str, name: str) -> Sealed:
        """Raises NotFound."""
        if (row := self._rows.get((namespace, name))) is None:
            raise NotFound(f"there is no secret {function_label(namespace, name)}", hint="see faas secret ls")
        return row

    def is_readable(self, row: Sealed) -> bool:
        return self._vault.knows(row)

    def users(self) -> Mapping[tuple[str, str], list[RevisionKey]]:
        """(namespace, name) of a secret → the revisions that calls can reach by an alias and that have it."""
        found: dict[tuple[str, str], list[RevisionKey]] = {}
        for state in self._router.states():
            for revision in _reachable(state):
                for name in sorted(set(revision.spec.secrets.values())):
                    found.setdefault((state.namespace, name), []).append(revision.key)
        return found

    async def set(
        self, namespace: str, name: str, value: Secret, by: str, *, now: bool
    ) -> tuple[Sealed, list[Renewal]]:
        """A new value; instances that start from here on get it. `now`: those that run are replaced, new ones first.

        Raises InvalidInput where a function would have too much, Conflict where there are too many, Unavailable.
        """
        return await self._changes.complete(self._set(namespace, name, value, by, now), "setting a secret")

    async def _set(self, namespace: str, name: str, value: Secret, by: str, now: bool) -> tuple[Sealed, list[Renewal]]:
        async with self._turn:
            before = self._rows.get((namespace, name))
            if before is None and sum(where == namespace for where, _ in self._rows) >= MOST:
                raise Conflict(f"a namespace has at most {MOST} secrets", hint="remove one: faas secret rm")
            using = self._using(namespace, name)
            for revision in using:
                sizes = {one: row.size for (where, one), row in self._rows.items() if where == namespace}
                _check_total(revision.spec, {**sizes, name: value.size})
            await asyncio.to_thread(self._vault.ensure)
            version = before.version + 1 if before else 1
            row = self._vault.seal(Sealed(namespace, name, version, "", b"", 0, self._clock(), by), value)
            async with self._database.write() as tx:
                await secrets.put(tx, row)
            self._rows[row.place] = row
        return row, await self._renew(using, running=now)

    async def remove(self, namespace: str, name: str, *, force: bool) -> None:
        """Raises NotFound; Conflict that names who uses it, unless `force`."""
        await self._changes.complete(self._remove(namespace, name, force), "removing a secret")

    async def _remove(self, namespace: str, name: str, force: bool) -> None:
        async with self._turn:
            place = self.get(namespace, name).place
            users = [str(key) for key in self.users().get(place, ())] + ["a deploy"] * (place in self._awaited)
            users += self.others(namespace, name)
            if users and not force:
                raise Conflict(
                    f"the secret {function_label(namespace, name)} is used by {', '.join(users)}",
                    hint="--force removes it all the same: their next instances will not start",
                )
            async with self._database.write() as tx:
                await secrets.remove(tx, namespace, name)
            self._rows.pop(place, None)
        await self._renew(self._using(namespace, name), running=False)

    async def rotate_key(self) -> int:
        """Seal everything with a new key; how many that were. The old key opens until the last one is stored, also
        over a crash, and is forgotten then. Raises Unavailable."""
        return await self._changes.complete(self._rotate_key(), "rotating the key of secrets")

    async def _rotate_key(self) -> int:
        async with self._turn:
            if any(not self._vault.knows(row) for row in self._rows.values()):
                log.warning("some secrets cannot be read, so they are not sealed anew")
            await asyncio.to_thread(self._vault.begin_rotation)
            return await self._reseal()

    async def _reseal(self) -> int:
        """In a turn, or before anybody else comes. Raises Unavailable where one is damaged: then the old key stays."""
        old = [row for row in self._rows.values() if row.key != self._vault.key and self._vault.knows(row)]
        new = await asyncio.to_thread(self._sealed_anew, old)
        async with self._database.write() as tx:
            await secrets.reseal(tx, new)
        self._rows.update({row.place: row for row in new})
        if left := len(old) - len(new):
            raise Unavailable(
                f"{left} secrets are damaged and were not sealed anew, so the old key stays",
                hint="the server's log names them: set or remove them, then faas secret rotate-key",
            )
        await asyncio.to_thread(self._vault.end_rotation)
        log.info("%d secrets are sealed with a new key", len(new))
        return len(new)

    # Inside

    def _sealed_anew(self, rows: list[Sealed]) -> list[Sealed]:
        """Blocking. Without those that are damaged."""
        found = []
        for row in rows:
            with contextlib.suppress(Unavailable):
                found.append(self._vault.seal(row, self._vault.open(row)))
        return found

    def _using(self, namespace: str, name: str) -> list[Revision]:
        """Every revision that may have instances with it."""
        return [
            revision
            for state in self._router.states()
            if state.namespace == namespace
            for revision in state.revisions.values()
            if name in revision.spec.secrets.values()
        ]

    async def _renew(self, revisions: list[Revision], *, running: bool) -> list[Renewal]:
        """What was made ahead goes; `running`: instances are replaced, too. One that fails keeps nobody from it."""
        turns = asyncio.Semaphore(RENEWALS)

        async def one(revision: Revision) -> Renewal:
            async with turns:
                try:
                    return Renewal(revision.key, await self._worker.renew(revision, running=running))
                except FaasError as error:
                    log.warning("instances of %s keep an old secret: %s", revision.key, error.message)
                    return Renewal(revision.key, 0, error.message)

        done = await asyncio.gather(*map(one, revisions))
        return [renewal for renewal in done if renewal.instances or renewal.error]


def _reachable(state: FunctionState) -> list[Revision]:
    numbers = {*state.aliases.values(), *(canary.number for canary in state.canaries.values() if canary.runs)}
    return [state.revisions[number] for number in sorted(numbers & state.revisions.keys())]


def _check_total(spec: FunctionSpec, sizes: Mapping[str, int]) -> None:
    """Raises InvalidInput where a function would have more than fits its start."""
    total = sum(sizes.get(name, 0) for name in spec.secrets.values())
    if total > secret.TOTAL_BYTES:
        raise InvalidInput(
            f"the secrets of {spec.name} would be {total} bytes together; at most {secret.TOTAL_BYTES} fit its start"
        )
