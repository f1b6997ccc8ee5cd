"""Deploys: a spec and an image become a revision that is prepared and checked before `live` moves to it.

What calls see changes in one step (`Router.put`), after the database has it; a deploy that fails changes nothing.
Deploys of one function take turns.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from faas.auth import Principal
from faas.background import Background
from faas.dev import MARK, is_dev
from faas.errors import Conflict, Forbidden, InvalidInput, NotFound, Unavailable
from faas.metrics import Metrics
from faas.oci.source import ImageSource
from faas.protocol import CheckReport, Revision, RevisionKey, Worker
from faas.spec import FunctionSpec, TriggerSpec, parse
from faas.state.session import Database, Transaction
from faas.turns import Turns
from gateway.edge.apis.apis import Apis
from gateway.events.folder import FolderTriggers
from gateway.image_holds import ImageHolds
from gateway.images import Images
from gateway.reservations import Reservations
from gateway.router import LIVE, FunctionState, Router, function_label, repository_of
from gateway.scaler import Scaler
from gateway.scheduler import Scheduler
from gateway.secret_store import SecretStore
from gateway.store import aliases, canaries, dead_letters, functions, invocations, revisions, schedules, triggers
from gateway.store.revisions import RevisionRow
from gateway.store.triggers import SeenFile

log = logging.getLogger("faas.deploy")

KEPT_REVISIONS = 10  # beside those that an alias names
PREPARE_SECONDS = 600.0  # an image of some GB, unpacked for the first time
ALIAS_PATTERN = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NUMBERED = re.compile(r"v?[0-9]+")

T = TypeVar("T")
Also = Callable[[Transaction], Awaitable[None]]  # what is committed together with a change


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a deploy did: `changed` is False where spec and image were live already."""

    revision: Revision
    created: bool
    changed: bool
    warnings: tuple[str, ...] = ()
    check: CheckReport | None = None


class Deployer:
    """Every change of a function goes through here. `registry` is the address that images may be named with."""

    def __init__(
        self,
        database: Database,
        worker: Worker,
        images: ImageSource,
        router: Router,
        scaler: Scaler,
        reservations: Reservations,
        scheduler: Scheduler,
        folders: FolderTriggers,
        apis: Apis,
        secrets: SecretStore,
        metrics: Metrics,
        *,
        registry: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._worker = worker
        self._images = Images(images, registry)
        self._router = router
        self._scaler = scaler
        self._reservations = reservations
        self._scheduler = scheduler
        self._folders = folders
        self._apis = apis
        self._secrets = secrets
        self._metrics = metrics
        self._clock = clock
        self._turns: Turns[tuple[str, str]] = Turns()  # one change of a function at a time
        self._holds = ImageHolds(self._images)
        self._work = Background()

    async def load(self) -> None:
        """At start: every function becomes callable as it was."""
        async with self._database.read() as tx:
            rows, named, seconds = await revisions.every(tx), await aliases.every(tx), await canaries.every(tx)
        states: dict[tuple[str, str], FunctionState] = {}
        for row in rows:
            key = row.revision.key
            where = (key.namespace, key.function)
            state = states.setdefault(where, FunctionState(*where, named.get(where, {}), {}, seconds.get(where, {})))
            state.revisions[key.number] = row.revision
        for state in states.values():  # before anything starts
            if (live := state.live) is not None:
                self._reservations.settle(state.namespace, state.name, live.spec)
                self._apis.settle(state.namespace, state.name, live.spec.routes)
        for state in states.values():
            self._router.put(state)
            if (live := state.live) is not None:
                await self._scaler.revision_live(live)

    async def close(self, grace_seconds: float) -> None:
        await self._work.finish(grace_seconds)

    async def held(self) -> dict[str, list[str]]:
        """Images (`repository@digest`) that must not be deleted → who needs them: kept revisions, and deploys on their
        way."""
        async with self._database.read() as tx:
            found = await revisions.images(tx)
        for image in self._holds:
            found.setdefault(image, []).append("a deploy")
        return found

    # Deploy

    async def deploy(
        self, namespace: str, name: str, spec_data: Mapping[str, Any], image: str, *, check: bool, by: Principal
    ) -> Deployment:
        """Raises SpecError, ImageUnusable, InitFailed and what else says why not; `live` is then where it was.

        Goes on to its end where the caller is cancelled.
        """
        spec = parse(spec_data)
        if spec.name != name:
            raise InvalidInput(f"the specification's name is {spec.name}, the URL's is {name}")
        if is_dev(name):
            raise InvalidInput(f"names with {MARK} are for faas dev alone", hint="take another name")
        if spec.follow and not self._images.may_pull(by, repository_of(namespace, name)):
            raise Forbidden(f"{by.name} may not pull {repository_of(namespace, name)}, and so not follow it")
        image = await self._images.pinned(image or spec.image, by)
        return await self._complete(self._deploy(namespace, name, spec, image, check, by))

    async def _deploy(
        self, namespace: str, name: str, spec: FunctionSpec, image: str, check: bool, by: Principal
    ) -> Deployment:
        async with self._turns.of((namespace, name)), self._holds.of(image):
            return await self._replace(self._live(namespace, name), namespace, spec, image, check, by)

    async def redeploy(
        self, namespace: str, name: str, image: str, by: Principal, *, when: Callable[[Revision], bool], also: Also
    ) -> Deployment | None:
        """Deploy the live revision's spec with another image, checked. None where nothing is live, or `when` says no.

        `also` is committed with it, also where this image is live already. Raises as `deploy`.
        """
        image = await self._images.pinned(image, by)
        return await self._complete(self._redeploy(namespace, name, image, by, when, also))

    async def _redeploy(
        self, namespace: str, name: str, image: str, by: Principal, when: Callable[[Revision], bool], also: Also
    ) -> Deployment | None:
        async with self._turns.of((namespace, name)), self._holds.of(image):
            live = self._live(namespace, name)
            if live is None or not when(live):
                return None
            if live.image.partition("@")[2] != image.partition("@")[2]:
                return await self._replace(live, namespace, live.spec, image, True, by, also)
            async with self._database.write() as tx:
                await also(tx)
            return Deployment(live, created=False, changed=False)

    def _live(self, namespace: str, name: str) -> Revision | None:
        state = self._router.state(namespace, name)
        return state.live if state else None

    async def _replace(
        self,
        live: Revision | None,
        namespace: str,
        spec: FunctionSpec,
        image: str,
        check: bool,
        by: Principal,
        also: Also | None = None,
    ) -> Deployment:
        """Call it in the function's turn, and holding the image."""
        warnings, present = await self._folders.check(spec.triggers)
        if live is not None and (live.spec, live.image) == (spec, image):
            return Deployment(live, created=False, changed=False, warnings=tuple(warnings))
        async with self._database.write() as tx:
            number = await functions.next_number(tx, namespace, spec.name)
        revision = Revision(RevisionKey(namespace, spec.name, number), spec, image, spec.declared_interface)
        with self._reserving(namespace, spec):
            report = await self._ready(revision, check)
            if report is not None:
                revision = Revision(revision.key, spec, image, report.interface)
                warnings += report.warnings
            warnings += self._doubts(spec, namespace)
            try:
                await self._go_live(revision, by, present, also)
            except BaseException:
                await self._worker.retire(revision.key)
                raise
        return Deployment(revision, created=live is None, changed=True, warnings=tuple(warnings), check=report)

    @contextmanager
    def _reserving(self, namespace: str, spec: FunctionSpec) -> Iterator[None]:
        """What `spec` reserves, its routes and secrets, are held beside what is held already; at the end what is live
        decides. Raises SpecError, Conflict where they cannot be had."""
        self._reservations.widen(namespace, spec.name, spec)
        try:
            with self._secrets.needed(namespace, spec), self._apis.reserving(namespace, spec.name, spec.routes):
                yield
        finally:
            live = self._live(namespace, spec.name)
            self._reservations.settle(namespace, spec.name, live.spec if live else None)

    async def _ready(self, revision: Revision, check: bool) -> CheckReport | None:
        """Prepare, and with `check` start one instance."""
        try:
            async with asyncio.timeout(PREPARE_SECONDS):
                await self._worker.prepare(revision)
            if not check:
                return None
            # The worker itself ends an init; this is for a worker that does not answer.
            async with asyncio.timeout(revision.spec.init_timeout + PREPARE_SECONDS):
                return await self._worker.check(revision)
        except TimeoutError:
            await self._worker.retire(revision.key)
            raise Unavailable("the function's image could not be made ready in time") from None
        except BaseException:
            await self._worker.retire(revision.key)
            raise

    def _doubts(self, spec: FunctionSpec, namespace: str) -> list[str]:
        target = spec.asynchronous.on_failure
        if target not in ("", "dlq") and self._router.state(namespace, target) is None:
            return [
                f"async.on_failure names {target}, which is not deployed; events go to the dead letters until it is"
            ]
        return []

    async def _go_live(
        self, revision: Revision, by: Principal, present: Mapping[TriggerSpec, set[SeenFile]], also: Also | None
    ) -> None:
        key, now = revision.key, self._clock()

        async def change(tx: Transaction) -> None:
            await revisions.add(tx, RevisionRow(revision, now, by.name))
            await self._point_live(tx, revision, now, present)
            if also is not None:
                await also(tx)

        await self._commit(key.namespace, key.function, change)

    async def _point_live(
        self, tx: Transaction, revision: Revision, now: float, present: Mapping[TriggerSpec, set[SeenFile]]
    ) -> None:
        """`live` and what follows it: the schedules and triggers of its spec."""
        key, spec = revision.key, revision.spec
        await aliases.point(tx, key.namespace, key.function, LIVE, key.number)
        await tx.run_sync(schedules.replace, key.namespace, key.function, spec.schedules, now)
        for row in await tx.run_sync(triggers.replace, key.namespace, key.function, spec.triggers, now):
            await self._folders.baseline(tx, row, present.get(row.spec, set()))

    async def _prune(self, tx: Transaction, namespace: str, name: str) -> list[RevisionKey]:
        named = await aliases.named(tx, namespace, name)
        numbers = await revisions.numbers(tx, namespace, name)
        old = [RevisionKey(namespace, name, n) for n in numbers[:-KEPT_REVISIONS] if n not in named]
        for key in old:
            await revisions.remove(tx, key)
        return old

    async def _state(self, tx: Transaction, namespace: str, name: str) -> FunctionState:
        known = self._router.state(namespace, name)
        numbered = await revisions.numbered(tx, namespace, name, known.revisions if known else {})
        named = await aliases.of_function(tx, namespace, name)
        return FunctionState(namespace, name, named, numbered, await canaries.of_function(tx, namespace, name))

    async def _commit(self, namespace: str, name: str, change: Also) -> None:
        """`change`, and the revisions that go with it, in one transaction; then calls see it. In a turn."""
        async with self._database.write() as tx:
            await functions.touch(tx, namespace, name, self._clock())
            await change(tx)
            dropped = await self._prune(tx, namespace, name)
            changed = await self._state(tx, namespace, name)
        await self._publish(changed, dropped)

    async def _publish(self, state: FunctionState, dropped: list[RevisionKey]) -> None:
        """What has been committed is what calls see from here on. It is done: what fails now is logged, not told."""
        self._router.put(state)
        self._scheduler.changed()
        live = state.live
        self._apis.settle(state.namespace, state.name, live.spec.routes if live else ())
        steps: list[Callable[[], Coroutine[Any, Any, None]]] = [self._folders.changed]
        steps += [partial(self._scaler.retire, key) for key in dropped]
        if live is not None:
            steps.insert(0, partial(self._scaler.revision_live, live))
        for step in steps:
            try:
                await step()
            except Exception:
                log.exception("after a change of %s", function_label(state.namespace, state.name))

    # Aliases

    async def point(self, namespace: str, name: str, alias: str, number: int | None) -> None:
        """Move an alias to revision `number`; None, for `live`: to the one before. Raises NotFound, Conflict."""
        if not ALIAS_PATTERN.fullmatch(alias) or _NUMBERED.fullmatch(alias):
            raise InvalidInput("an alias has 1 to 64 letters, digits, - and _, and is no version's number")
        await self._complete(self._point(namespace, name, alias, number))

    async def _point(self, namespace: str, name: str, alias: str, number: int | None) -> None:
        async with self._turns.of((namespace, name)):
            state = self.known(namespace, name)
            if number is None:
                earlier = [n for n in state.revisions if n < state.aliases.get(LIVE, 0)]
                if not earlier:
                    raise Conflict("there is no earlier version to go back to", hint="see faas versions")
                number = max(earlier)
            if (revision := state.revisions.get(number)) is None:
                raise NotFound(f"{name} has no version {number}", hint="see faas versions")
            if alias == LIVE:
                with self._reserving(namespace, revision.spec):
                    await self._point_back(revision)
                return
            await self._commit(namespace, name, lambda tx: aliases.point(tx, namespace, name, alias, number))

    async def _point_back(self, revision: Revision) -> None:
        """`live` to a revision that is there."""
        await self._ready(revision, check=False)
        _, present = await self._folders.check(revision.spec.triggers)
        key, now = revision.key, self._clock()
        await self._commit(key.namespace, key.function, lambda tx: self._point_live(tx, revision, now, present))

    async def change(self, namespace: str, name: str, decide: Callable[[FunctionState], Also]) -> None:
        """Commit what `decide` makes of the function as it is, in its turn. Raises NotFound, or as `decide`."""

        async def work() -> None:
            async with self._turns.of((namespace, name)):
                await self._commit(namespace, name, decide(self.known(namespace, name)))

        await self._complete(work())

    async def remove_alias(self, namespace: str, name: str, alias: str) -> None:
        if alias == LIVE:
            raise Conflict("the alias live cannot be deleted", hint="faas rm deletes the function")
        await self._complete(self._remove_alias(namespace, name, alias))

    async def _remove_alias(self, namespace: str, name: str, alias: str) -> None:
        async with self._turns.of((namespace, name)):
            if alias not in self.known(namespace, name).aliases:
                raise NotFound(f"{name} has no alias {alias}")
            await self._commit(namespace, name, lambda tx: aliases.remove(tx, namespace, name, alias))

    async def delete(self, namespace: str, name: str) -> None:
        """Everything: revisions, schedules, triggers, queued events, dead letters, logs, metrics."""
        await self._complete(self._delete(namespace, name))

    async def _delete(self, namespace: str, name: str) -> None:
        async with self._turns.of((namespace, name)):
            state = self.known(namespace, name)
            async with self._database.write() as tx:
                await functions.remove(tx, namespace, name)
                await tx.run_sync(invocations.remove_of, namespace, name)
                await tx.run_sync(dead_letters.remove_of, namespace, name)
            self._router.remove(namespace, name)
            self._apis.settle(namespace, name, ())
            self._reservations.settle(namespace, name, None)
            self._scheduler.changed()
            await self._folders.changed()
            for revision in state.revisions.values():
                await self._scaler.retire(revision.key)
            self._worker.forget_logs(namespace, name)
            self._metrics.forget(function_label(namespace, name))

    def known(self, namespace: str, name: str) -> FunctionState:
        """A function's state. Raises NotFound, with names that are close."""
        state = self._router.state(namespace, name)
        if state is None:
            near = self._router.near(namespace, name)
            raise NotFound(
                f"there is no function {function_label(namespace, name)}",
                hint=f"did you mean {' or '.join(near)}?" if near else "",
            )
        return state

    async def _complete(self, work: Coroutine[Any, Any, T]) -> T:
        return await self._work.complete(work, "change of a function")
