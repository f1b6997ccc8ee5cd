"""`Stems`: runtimes that are started, sandboxed and waiting; one becomes a function's instance in a few milliseconds.

A stem is a sandbox of a runtime base alone: nothing of any function is in it. It becomes one function's instance, once,
and never comes back. The few of each base are made in the background after that base was first needed, and again after
each use; they go when nobody needed them for a while, or when memory gets short.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from faas.background import Background
from faas.errors import FaasError, ImageUnusable, Unavailable
from faas.metrics import Metrics
from faas.oci.digest import Digest
from faas.oci.reference import BASES
from worker.drivers.base import PreparedImage, SandboxSpec
from worker.drivers.oci import standing as standings
from worker.drivers.oci.sandbox import OciSandbox
from worker.drivers.oci.standing import Standing
from worker.layers.store import UnpackedImage
from worker.memory import meminfo

log = logging.getLogger("worker.drivers.oci")

GIVEN_SECONDS = 0.01  # after one is given it is counted and replaced: its function comes first
PATIENCE_SECONDS = 0.02  # before one is made: whoever took the last is starting an instance on the same cores
PARK_SECONDS = 60.0  # until a stem is ready: it comes after everybody else on the CPU
NAMES_BYTES = 65_536
IDLE_SECONDS = 600.0  # after the last need of a base its stems go
UPKEEP_SECONDS = 15.0
BACKOFF_MOST_SECONDS = 300.0
DROPPED_SECONDS, DROPPED_MOST_SECONDS = 30.0, 600.0  # none is made after their memory was needed; longer each time
ASSIGNMENT_BYTES = 65_536  # a socket takes them at once; a larger environment starts the ordinary way
KNOWN_IMAGES = 4096


@dataclass(frozen=True, slots=True)
class Verbs:
    """What the driver does for stems. All raise FaasError or OSError."""

    load: Callable[[str], Awaitable[UnpackedImage]]  # an image, by reference
    in_thread: Callable[[Callable[[], Standing | None]], Awaitable[Standing | None]]
    park: Callable[[SandboxSpec], Awaitable[OciSandbox]]  # start one that has a channel
    become: Callable[[OciSandbox, SandboxSpec, Standing], None]  # limits and code, at once
    remove: Callable[[OciSandbox], None]  # in the background
    measure: Callable[[OciSandbox], int]  # bytes of memory, by a few file reads


@dataclass(eq=False)
class Shelf:
    """The stems of one base."""

    base: PreparedImage
    stem: SandboxSpec  # what each of them is, but for the id
    runtime: str  # python:3.11
    names: frozenset[str] = frozenset()  # modules that its stems have imported
    ready: deque[OciSandbox] = field(default_factory=deque)
    filling: asyncio.Task[None] | None = None
    failures: int = 0  # in a row
    needed_at: float = 0.0  # the loop's clock


class Stems:
    """`most` ready ones per base; with 0, or before `open`, there are none."""

    def __init__(self, most: int, verbs: Verbs, metrics: Metrics) -> None:
        self._most = most
        self._verbs = verbs
        self._metrics = metrics
        self._is_open = False
        self._standings: OrderedDict[Digest, Standing | None] = OrderedDict()
        self._shelves: dict[str, Shelf] = {}  # by the base's reference
        self._bytes: dict[OciSandbox, int] = {}  # of those that are ready, as last measured
        self._drops = 0  # in a row
        self._not_before = 0.0  # the loop's clock
        self._work = Background()

    def open(self, missing: str) -> None:
        """`missing`: why this machine cannot have any; empty where it can."""
        if self._most and missing:
            log.warning("no stems, so every start is an ordinary one: %s", missing)
        elif self._most:
            self._is_open = True
            self._work.start(self._keep_up(), "upkeep of stems")

    async def close(self) -> None:
        """No new ones, none in the making; those that are ready are the driver's to delete."""
        self._is_open = False
        await self._work.cancel()

    async def know(self, image: UnpackedImage) -> None:
        """Find out whether stems can become instances of this image; only for such ones can `give` give any."""
        if not self._is_open or image.digest in self._standings:
            return
        self._standings[image.digest] = await self._standing(image)
        while len(self._standings) > KNOWN_IMAGES:
            self._standings.popitem(last=False)

    async def _standing(self, image: UnpackedImage) -> Standing | None:
        reference = standings.base_of(image.config)
        if reference is None:
            return None
        try:
            loaded = await self._verbs.load(str(reference))
            base = PreparedImage(str(reference), loaded.config, loaded)
            found = await self._verbs.in_thread(lambda: standings.standing(image, base))
        except (ImageUnusable, OSError) as error:  # a base that is gone: functions on it start the ordinary way
            log.info("no stems for %s: %s", reference, error)
            return None
        if found is not None and base.reference not in self._shelves:
            runtime = f"{reference.repository.removeprefix(BASES)}:{reference.tag or 'untagged'}"
            self._shelves[base.reference] = Shelf(base, standings.parked(base, "stem"), runtime)
        return found

    def forget(self, is_here: Callable[[Path], bool]) -> None:
        """Layers were collected: what stands on one that is not here is found out anew when it is needed."""
        for digest, standing in list(self._standings.items()):
            if standing is None or not all(map(is_here, (*standing.layers, *_layers(standing.base)))):
                del self._standings[digest]
        for reference, shelf in list(self._shelves.items()):
            if shelf.filling is None and not shelf.ready and not all(map(is_here, _layers(shelf.base))):
                del self._shelves[reference]

    # Giving

    def can_serve(self, spec: SandboxSpec) -> bool:
        """Whether a stem can become `spec`: there may be none at this moment."""
        found = self._shelf(spec)
        return found is not None and not found[1].failures and _assignment(*found, spec) is not None

    def _shelf(self, spec: SandboxSpec) -> tuple[Standing, Shelf] | None:
        """Whose stems `spec` is a case for."""
        image = spec.image.handle
        assert isinstance(image, UnpackedImage)
        standing = self._standings.get(image.digest) if self._is_open else None
        if standing is None:
            return None
        shelf = self._shelves[standing.base.reference]
        return (standing, shelf) if standings.can_become(shelf.stem, spec) else None

    def give(self, spec: SandboxSpec) -> OciSandbox | None:
        """A ready stem that has become the sandbox of `spec`, created and not started; None where there is none."""
        if (found := self._shelf(spec)) is None:
            return None
        standing, shelf = found
        shelf.needed_at = asyncio.get_running_loop().time()
        stem = None
        if shelf.ready and (assignment := _assignment(standing, shelf, spec)) is not None:
            stem = shelf.ready.popleft()
            if not self._assign(shelf, stem, spec, standing, assignment):
                stem = None
        asyncio.get_running_loop().call_later(GIVEN_SECONDS, self._given, shelf)
        return stem

    def _assign(self, shelf: Shelf, stem: OciSandbox, spec: SandboxSpec, standing: Standing, assignment: bytes) -> bool:
        """False where that failed, and it is thrown away."""
        try:
            self._verbs.become(stem, spec, standing)
            stem.tell(assignment)
        except (FaasError, OSError) as error:
            log.warning("a stem of %s could not become an instance: %s", shelf.runtime, error)
            self._metrics.stem_failures.labels(shelf.runtime).inc()
            self._verbs.remove(stem)
            return False
        shelf.failures = 0
        return True

    def _given(self, shelf: Shelf) -> None:
        self._count(shelf)
        self._refill(shelf)

    # Making

    def _refill(self, shelf: Shelf) -> None:
        if self._is_open and shelf.filling is None and len(shelf.ready) < self._most:
            shelf.filling = self._work.start(self._fill(shelf), f"stems of {shelf.runtime}")

    async def _fill(self, shelf: Shelf) -> None:
        try:
            while len(shelf.ready) < self._most:
                pause = min(BACKOFF_MOST_SECONDS, PATIENCE_SECONDS * 4**shelf.failures)
                await asyncio.sleep(max(pause, self._not_before - asyncio.get_running_loop().time()))
                if meminfo.is_short():
                    return
                try:
                    await self._make(shelf)
                except (FaasError, OSError) as error:
                    self._failed(shelf, str(error))
        finally:
            shelf.filling = None

    async def _make(self, shelf: Shelf) -> None:
        stem = await self._verbs.park(replace(shelf.stem, id=f"stem{secrets.token_hex(8)}"))
        try:
            async with asyncio.timeout(PARK_SECONDS):
                shelf.names = frozenset(json.loads(await stem.wait(NAMES_BYTES)))
        except BaseException as error:
            self._verbs.remove(stem)
            if isinstance(error, TimeoutError | ValueError):
                raise Unavailable(f"it did not get ready: {error!r}") from None
            raise
        self._bytes[stem] = self._verbs.measure(stem)
        shelf.ready.append(stem)
        stem.exited.add_done_callback(lambda _: self._ended(shelf, stem))
        self._count(shelf)

    def _ended(self, shelf: Shelf, stem: OciSandbox) -> None:
        """A process has ended; as long as it waited here, it is to be replaced."""
        if stem not in shelf.ready:
            return
        shelf.ready.remove(stem)
        self._count(shelf)
        self._verbs.remove(stem)
        if self._is_open:
            self._failed(shelf, "it ended while it waited")
            self._refill(shelf)

    def _failed(self, shelf: Shelf, why: str) -> None:
        shelf.failures += 1
        self._metrics.stem_failures.labels(shelf.runtime).inc()
        log.warning("a stem of %s: %s", shelf.runtime, why)

    # Few

    async def _keep_up(self) -> None:
        while True:
            await asyncio.sleep(UPKEEP_SECONDS)
            self.shrink(asyncio.get_running_loop().time(), short=meminfo.is_short())
            for stem in self._bytes:
                self._bytes[stem] = self._verbs.measure(stem)

    def shrink(self, now: float, *, short: bool) -> None:
        """Throw away what nobody needs, or everything where memory is short."""
        for shelf in self._shelves.values():
            if short or now - shelf.needed_at > IDLE_SECONDS:
                for stem in self._cleared(shelf):
                    self._verbs.remove(stem)

    def drop(self) -> list[OciSandbox]:
        """Their memory is needed: all that are ready, for the caller to end. None is made for a while."""
        now = asyncio.get_running_loop().time()
        self._drops = self._drops + 1 if now < self._not_before + DROPPED_MOST_SECONDS else 1
        self._not_before = now + min(DROPPED_MOST_SECONDS, DROPPED_SECONDS * 2 ** min(self._drops - 1, 10))
        return [stem for shelf in self._shelves.values() for stem in self._cleared(shelf)]

    def _cleared(self, shelf: Shelf) -> list[OciSandbox]:
        """What it had; the next need of its base makes new ones."""
        if shelf.filling is not None:
            shelf.filling.cancel()
        stems, shelf.ready = list(shelf.ready), deque()
        self._count(shelf)
        return stems

    @property
    def memory_bytes(self) -> int:
        """Of all that are ready, as last measured."""
        return sum(self._bytes.values())

    def _count(self, shelf: Shelf) -> None:
        ready = {stem for other in self._shelves.values() for stem in other.ready}
        self._bytes = {stem: size for stem, size in self._bytes.items() if stem in ready}
        shelves = (other for other in self._shelves.values() if other.runtime == shelf.runtime)
        self._metrics.stems.labels(shelf.runtime).set(sum(len(other.ready) for other in shelves))


def _layers(base: PreparedImage) -> tuple[Path, ...]:
    assert isinstance(base.handle, UnpackedImage)
    return base.handle.layers


def _assignment(standing: Standing, shelf: Shelf, spec: SandboxSpec) -> bytes | None:
    """What a stem is told; None where it cannot become this."""
    # A module of the function's own that has the name of one that a stem has imported already would be another.
    if shelf.names & standing.names:
        return None
    told = json.dumps({"env": spec.environment(), "workdir": spec.workdir}).encode()
    return told if len(told) <= ASSIGNMENT_BYTES else None
