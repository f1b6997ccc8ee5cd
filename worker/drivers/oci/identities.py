"""Who an instance is on this machine: ids that no other instance has, in a user namespace of its own.

Inside, an instance sees the ids 0 to 65534, and its image's USER where that is beyond; outside they are 65,536 ids of
its own, far above users'. Its layers are seen through an id-mapped view (`ownership`), so that root's files are root's
inside and nobody's outside. Some views are made ahead, so that a start need not wait for one; the namespace that says
whose files are whose is kept for the next instance with the same ids.

Where the kernel, or what confines this server, has no such views or namespaces, an instance gets one id of its own on
the host, and an image's own USER is kept, shared with whoever else has that number: a deploy is told so.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from faas.errors import FaasError, Unavailable
from worker import sandbox_spec, shared
from worker.drivers.base import NOBODY
from worker.drivers.linux import mounts
from worker.drivers.oci import id_maps as ownership
from worker.drivers.oci.id_maps import PLAIN, SIZE, Maps

log = logging.getLogger("worker.drivers.oci")

FIRST = 0x1000_0000  # above users, subordinate ids and what systemd hands out by habit
SLOTS = 2048  # instances of one server
SECTIONS = 12  # servers on one machine: to 0x7000_0000, since runtimes refuse users above 2^31
READY = 4  # identities with a view kept ready
PATIENCE_SECONDS = 0.1  # before one is made ahead: whoever took the last is starting an instance on the same cores


@dataclass(frozen=True, slots=True)
class Identity:
    """Of one instance. `user` is (uid, gid) inside, `on_host` the same on the host; `root` is who root inside is there.

    `maps` are of its user namespace; None where it has none. `view` is where its layers are seen as it owns them, or
    as `owners` says, where that is another way than is usual for its slot.
    """

    slot: int
    user: tuple[int, int]
    on_host: tuple[int, int]
    root: int = 0
    maps: Maps | None = None
    view: Path | None = None
    owners: Maps | None = None

    def layers(self, layers: tuple[Path, ...]) -> tuple[Path, ...]:
        """Short names of layers (`…/l/1f`) as this instance sees them."""
        view = self.view
        return layers if view is None else tuple(view / layer.parent.name / layer.name for layer in layers)

    def hide(self) -> None:
        """Blocking. Take its view away, if it is there; what was mounted from it stays. Raises Unavailable."""
        if self.view is not None:
            mounts.unmount(self.view)
            with contextlib.suppress(FileNotFoundError):
                self.view.rmdir()


def first_id(section: int, slot: int) -> int:
    return FIRST + (section * SLOTS + slot) * SIZE


def section_of(server_id: str) -> int:
    """Where a server begins to look for ids that no other one has."""
    return hashlib.sha256(server_id.encode()).digest()[0] % SECTIONS


class Identities:
    """For instances whose layers are in the folder `layers`; views are mounted below `points`, in `threads`.

    `namespaces`: whether instances are to have some, where this machine can.
    """

    def __init__(
        self, server_id: str, layers: Path, points: Path, threads: ThreadPoolExecutor, *, namespaces: bool = True
    ) -> None:
        self._server_id = server_id
        self._layers = layers
        self._points = points
        self._threads = threads
        self._wanted = namespaces
        self._claim: socket.socket | None = None
        self._section = 0
        self._next = 0
        self._ready: deque[int] = deque()  # slots that are free and have a view
        self._free: deque[int] = deque()  # others that are free, the one free for longest first
        self._owners: dict[int, int] = {}  # by slot: the user namespace of its maps, as a descriptor
        self._filling: asyncio.Task[None] | None = None
        self._closed = False
        self._can_view = False
        self.missing = ""  # why instances have no user namespace; empty where they have

    def open(self, program: str) -> None:
        """Blocking. See what this machine and the runtime `program` can, and claim ids. The two folders are there."""
        self._claim_section()
        no_views = ownership.missing_views(self._layers, self._points / "probe")
        self._can_view = not no_views
        no_namespaces = ownership.missing_namespaces(program)
        self.missing = "they are turned off" if not self._wanted else no_namespaces or no_views
        if self.missing:
            log.warning("instances have no user namespaces, but an id each: %s", self.missing)

    def _claim_section(self) -> None:
        """One that no other server has."""
        first = section_of(self._server_id)
        for section in ((first + n) % SECTIONS for n in range(SECTIONS)):
            if (claim := shared.claim(f"ids-{section}")) is not None:
                self._claim, self._section = claim, section
                return
        log.warning("more than %d servers run here: instances of two of them may have the same ids", SECTIONS)
        self._section = first

    def warnings(self, written: str) -> tuple[str, ...]:
        """What a deploy should be told about an image's USER. Raises ImageUnusable on a number that is no user."""
        user = sandbox_spec.user(written)
        if not self.missing or user == (NOBODY, NOBODY):
            return ()
        words = f"the image's USER {written} is kept, with that number on this machine, which others may have too"
        return (f"{words}: instances have no user namespaces ({self.missing})",)

    def make_ahead(self) -> None:
        """In the background."""
        if self._closed or self.missing or self._filling or len(self._ready) >= READY:
            return
        self._filling = asyncio.create_task(self._fill())
        self._filling.add_done_callback(lambda _: setattr(self, "_filling", None))

    async def _fill(self) -> None:
        try:
            if self._ready:
                await asyncio.sleep(PATIENCE_SECONDS)
            while len(self._ready) < READY and not self._closed:
                slot = self._slot()
                try:
                    await self._in_thread(partial(self._show, slot))
                except OSError:
                    self._free.append(slot)
                    raise
                self._ready.append(slot)
        except (FaasError, OSError) as error:
            log.warning("cannot make the ids of an instance ahead: %s", error)

    async def close(self) -> None:
        """Views go with the other mounts of the server."""
        self._closed = True
        if self._filling is not None:
            await self._filling
        for owners in self._owners.values():
            os.close(owners)
        self._owners.clear()
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    def take(self, user: tuple[int, int], writable_root: bool = False) -> Identity:
        """For an instance whose user inside is `user`. Its view is there once it is shown. Raises Unavailable."""
        if not (self.missing or writable_root or max(user) >= PLAIN):
            return self._common(user)
        slot = self._slot()
        base, own = first_id(self._section, slot), self._points / f"{slot:x}-own"
        if self.missing:
            kept = (base, base) if user == (NOBODY, NOBODY) else user
            identity = Identity(slot, kept, kept)
            if not (writable_root and self._can_view):
                return identity  # layers as they are
            return replace(identity, view=own, owners=(ownership.exchanged(kept[0]), ownership.exchanged(kept[1])))
        on_host = (ownership.outside(base, user[0]), ownership.outside(base, user[1]))
        owners = self._maps(slot, user, swapped=writable_root)
        return Identity(slot, user, on_host, base, self._maps(slot, user), own, owners)

    def _common(self, user: tuple[int, int]) -> Identity:
        slot = self._ready.popleft() if self._ready else self._slot()
        self.make_ahead()
        base = first_id(self._section, slot)
        return Identity(slot, user, (base + user[0], base + user[1]), base, self._maps(slot), self._point(slot))

    def show(self, identity: Identity) -> None:
        """Blocking. Mount its view, where it has one. Raises Unavailable."""
        try:
            if identity.view is not None and identity.owners is not None:
                self._show_own(identity.view, identity.owners)
            elif identity.view is not None:
                self._show(identity.slot)
        except OSError as error:
            raise Unavailable(f"an instance cannot have ids of its own: {error}") from None

    async def discard(self, identity: Identity) -> None:
        """When nothing of the instance is there any more."""
        await self._in_thread(identity.hide)
        self._free.append(identity.slot)

    def _slot(self) -> int:
        """A free one without a view."""
        if self._free:
            return self._free.popleft()
        if self._next == SLOTS:
            if not self._ready:
                raise Unavailable(f"{SLOTS} instances are there, and no more ids for another one")
            return self._ready.popleft()
        self._next += 1
        return self._next - 1

    def _maps(self, slot: int, user: tuple[int, int] = (0, 0), swapped: bool = False) -> Maps:
        extents = ownership.swapped if swapped else ownership.extents
        base = first_id(self._section, slot)
        return extents(base, user[0]), extents(base, user[1])

    def _point(self, slot: int) -> Path:
        return self._points / f"{slot:x}"

    def _show(self, slot: int) -> None:
        """Blocking: 0.1 ms, or 2 for a slot's first time. Mount the view of those whose ids are the slot's as they are.
        Raises OSError."""
        if slot not in self._owners:
            self._owners[slot] = ownership.namespace(self._maps(slot))
        if not self._point(slot).exists():  # else it was made ahead, and the slot used without it meanwhile
            ownership.view(self._layers, self._point(slot), self._owners[slot])

    def _show_own(self, point: Path, maps: Maps) -> None:
        """Blocking. The same for one instance. Raises OSError."""
        owners = ownership.namespace(maps)
        try:
            ownership.view(self._layers, point, owners)
        finally:
            os.close(owners)

    async def _in_thread(self, work: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, work)
