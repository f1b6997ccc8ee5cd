"""`DevSessions`: functions that a `faas dev` keeps, deployed at each save and gone with the command.

Such a function is called and logged as any other one, by the same worker with the same limits. But it has no numbered
revisions, no row in the database and no place in `faas ls`; its schedules, triggers, routes and reservations are not
made. New code is what the next request runs, also where it cannot start: nobody looks at old code unawares.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faas.auth import Principal
from faas.background import Background
from faas.build.layer import Layer
from faas.dev import LEASE_SECONDS, MARK, is_dev
from faas.errors import Conflict, InitFailed, InvalidInput, NotFound, Throttled, Unavailable
from faas.metrics import Metrics
from faas.oci.reference import Reference
from faas.protocol import CheckReport, Revision, RevisionKey, Worker
from faas.spec import FunctionSpec, Interface, parse
from faas.state.session import Database
from faas.turns import Turns
from gateway import dev_code
from gateway.dev_images import DevImages
from gateway.images import Images
from gateway.router import LIVE, FunctionState, Router, function_label, parse_name
from gateway.scaler import Scaler
from gateway.secret_store import SecretStore
from gateway.store import dead_letters, invocations

log = logging.getLogger("faas.dev")

SESSIONS = 64  # of all developers together
OF_ONE = 16  # of one
PREPARE_SECONDS = 120.0
TICK_SECONDS = 1.0
# What stands in a faas.toml and has no effect here.
INACTIVE = ("schedule", "trigger", "route", "follow", "scale.min", "scale.reserved")


@dataclass(slots=True)
class DevSession:
    """`id` names the command that keeps it, `by` whose it is; `image` is what code is put on, or all of it.

    `live` is what calls run, `before` what they ran before that; `until` is monotonic.
    """

    namespace: str
    name: str
    by: str
    id: str
    spec: FunctionSpec
    image: str
    since: float
    until: float
    live: Revision | None = None
    before: Revision | None = None
    check: CheckReport | None = None

    @property
    def label(self) -> str:
        return function_label(self.namespace, self.name)


def inactive(spec: FunctionSpec) -> tuple[FunctionSpec, tuple[str, ...]]:
    """The specification without what a dev function does not have, and the keys that are left out."""
    scale = dataclasses.replace(spec.scale, min=0, reserved=0)
    bare = dataclasses.replace(spec, schedules=(), triggers=(), routes=(), follow="", image="", scale=scale)
    written = (spec.schedules, spec.triggers, spec.routes, spec.follow, spec.scale.min, spec.scale.reserved)
    return bare, tuple(key for key, value in zip(INACTIVE, written, strict=True) if value)


class DevSessions:
    """`images` is what the worker gets images from. In memory alone: after a restart the command begins anew."""

    def __init__(
        self,
        database: Database,
        worker: Worker,
        router: Router,
        scaler: Scaler,
        registry: Images,
        images: DevImages,
        secrets: SecretStore,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._worker = worker
        self._router = router
        self._scaler = scaler
        self._registry = registry
        self._images = images
        self._secrets = secrets
        self._metrics = metrics
        self._clock = clock
        self._sessions: dict[tuple[str, str], DevSession] = {}
        self._turns: Turns[tuple[str, str]] = Turns()
        self._numbers = itertools.count(1)  # of all functions: none has a revision's number of one before it
        self._work = Background()
        self._ticks = Background()

    async def start(self) -> None:
        """What a server that was killed has left is removed."""
        for label in await asyncio.to_thread(self._images.left):
            namespace, name, _ = parse_name(label)
            await self._remove(namespace, name)
        self._ticks.start(self._run(), "dev sessions")

    async def stop(self) -> None:
        await self._ticks.cancel()
        await self._work.finish(1.0)
        for session in list(self._sessions.values()):
            await self._end(session)

    def every(self) -> list[DevSession]:
        return sorted(self._sessions.values(), key=lambda session: session.label)

    def held(self) -> dict[str, list[str]]:
        """Images that are needed → by whom, those included that only the worker knows."""
        found: dict[str, list[str]] = {}
        for session in self._sessions.values():
            for image in {session.image, *(revision.image for revision in _revisions(session))}:
                found.setdefault(image, []).append(f"{session.label} (faas dev)")
        return found

    # What the command says

    async def open(
        self, namespace: str, name: str, session_id: str, spec_data: Mapping[str, Any], image: str, by: Principal
    ) -> tuple[DevSession, tuple[str, ...]]:
        """Begin, go on with another specification or image, or take over from another run of the same person's. With
        the keys that have no effect. Where the image is all (no `runtime`) it is deployed at once.

        Raises SpecError, ImageUnusable, Conflict, Throttled; InitFailed, with the session open.
        """
        spec, without = inactive(parse(spec_data))
        if not is_dev(name):
            raise InvalidInput(f"a dev function is called NAME{MARK}SOMEBODY")
        if spec.name != name:
            raise InvalidInput(f"the specification's name is {spec.name}, the URL's is {name}")
        pinned = await self._registry.pinned(image, by)
        if spec.runtime:  # with its tag: a base is known by all of its name
            reference = Reference.parse(image)
            pinned = str(Reference("", reference.repository, reference.tag, Reference.parse(pinned).digest))
        return await self._work.complete(self._open(namespace, name, session_id, spec, pinned, by), "faas dev"), without

    async def _open(
        self, namespace: str, name: str, session_id: str, spec: FunctionSpec, image: str, by: Principal
    ) -> DevSession:
        key = (namespace, name)
        async with self._turns.of(key):
            session = self._sessions.get(key)
            if session is None:
                session = self._new(namespace, name, session_id, spec, image, by)
            elif session.by != by.name:
                raise Conflict(f"{session.label} is {session.by}'s", hint="take another name with --as")
            session.id, session.spec, session.image = session_id, spec, image
            self._renew(session)
            if not spec.runtime:
                await self._deploy(session, image)
            return session

    def _new(
        self, namespace: str, name: str, session_id: str, spec: FunctionSpec, image: str, by: Principal
    ) -> DevSession:
        if self._router.state(namespace, name) is not None:
            raise Conflict(f"there is a function {function_label(namespace, name)} already")
        if len(self._sessions) >= SESSIONS:
            raise Throttled(f"there are {SESSIONS} dev functions already", reason="DevSessions", retry_after=10)
        if sum(session.by == by.name for session in self._sessions.values()) >= OF_ONE:
            raise Throttled(f"{by.name} has {OF_ONE} dev functions already", reason="DevSessions", retry_after=10)
        made = DevSession(namespace, name, by.name, session_id, spec, image, time.time(), self._clock())
        self._sessions[namespace, name] = made
        return made

    async def push(self, namespace: str, name: str, session_id: str, body: bytes) -> DevSession:
        """New code. Raises as `open`, NotFound, PayloadTooLarge."""
        return await self._work.complete(self._push(namespace, name, session_id, body), "faas dev")

    async def _push(self, namespace: str, name: str, session_id: str, body: bytes) -> DevSession:
        async with self._turns.of((namespace, name)):
            session = self.own(namespace, name, session_id)
            if not session.spec.runtime:
                raise InvalidInput("this function's image is all of it: there is no code to send")
            code = await asyncio.to_thread(dev_code.stored, body, self._images.folder(session.label))
            await self._deploy(session, await self._made(session, code))
            return session

    async def _made(self, session: DevSession, code: Layer) -> str:
        return await self._images.make(session.label, session.spec, session.image, code)

    def own(self, namespace: str, name: str, session_id: str) -> DevSession:
        """The session, kept for longer. Raises NotFound where there is none, Conflict where another run has it."""
        session = self._sessions.get((namespace, name))
        if session is None:
            raise NotFound(f"there is no dev function {function_label(namespace, name)}")
        if session.id != session_id:
            raise Conflict(f"another faas dev has taken {session.label} over")
        self._renew(session)
        return session

    async def close(self, namespace: str, name: str, session_id: str) -> None:
        """It ends. Raises as `own`."""
        await self._work.complete(self._end(self.own(namespace, name, session_id)), "faas dev")

    # Inside

    def _renew(self, session: DevSession) -> None:
        session.until = self._clock() + LEASE_SECONDS

    async def _deploy(self, session: DevSession, image: str) -> None:
        """In the session's turn. Calls run it as soon as its layers are there; what its start says comes after that."""
        with self._secrets.needed(session.namespace, session.spec):
            await self._replace(session, image)

    async def _replace(self, session: DevSession, image: str) -> None:
        key = RevisionKey(session.namespace, session.name, next(self._numbers))
        known = session.live.interface if session.live is not None else Interface.AUTO
        declared = session.spec.declared_interface
        revision = Revision(key, session.spec, image, known if declared is Interface.AUTO else declared)
        try:
            async with asyncio.timeout(PREPARE_SECONDS):
                await self._worker.prepare(revision)
        except TimeoutError:
            raise Unavailable("the function's image could not be made ready in time") from None
        oldest = session.before
        session.before, session.live, session.check = session.live, revision, None
        self._publish(session, revision)
        try:
            session.check = await self._checked(revision)
            session.live = dataclasses.replace(revision, interface=session.check.interface)
            self._publish(session, session.live)
        finally:
            await self._scaler.revision_live(session.live)
            if oldest is not None:
                await self._scaler.retire(oldest.key)
            unneeded = self._images.keep(session.label, {r.image for r in _revisions(session)})
            await asyncio.to_thread(_unlinked, unneeded)
            self._renew(session)

    async def _checked(self, revision: Revision) -> CheckReport:
        """One instance, started. Raises InitFailed."""
        try:
            async with asyncio.timeout(revision.spec.init_timeout + PREPARE_SECONDS):
                return await self._worker.check(revision)
        except TimeoutError:
            raise InitFailed("no instance started in time") from None

    def _publish(self, session: DevSession, revision: Revision) -> None:
        number = revision.key.number
        self._router.put(FunctionState(session.namespace, session.name, {LIVE: number}, {number: revision}))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            await self.tick(self._clock())

    async def tick(self, now: float) -> None:
        """Those whose command has not been heard of end."""
        for session in list(self._sessions.values()):
            if session.until < now:
                log.info("%s ends: its faas dev has not been heard of", session.label)
                try:
                    await self._end(session)
                except Exception:
                    log.exception("a dev function was not removed whole", extra={"function": session.label})

    async def _end(self, session: DevSession) -> None:
        key = (session.namespace, session.name)
        async with self._turns.of(key):
            if self._sessions.get(key) is not session:
                return
            del self._sessions[key]
            self._router.remove(*key)
            for revision in _revisions(session):
                await self._scaler.retire(revision.key)
            await self._remove(*key)

    async def _remove(self, namespace: str, name: str) -> None:
        """What is on the disk of a function that nobody can call any more."""
        label = function_label(namespace, name)
        async with self._database.write() as tx:
            await tx.run_sync(invocations.remove_of, namespace, name)
            await tx.run_sync(dead_letters.remove_of, namespace, name)
        self._worker.forget_logs(namespace, name)
        self._metrics.forget(label)
        await asyncio.to_thread(self._images.forget, label)


def _unlinked(paths: list[Path]) -> None:
    """Blocking."""
    for path in paths:
        path.unlink(missing_ok=True)


def _revisions(session: DevSession) -> list[Revision]:
    return [revision for revision in (session.live, session.before) if revision is not None]
