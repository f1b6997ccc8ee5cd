"""`Service`: the launcher's side. Verbs on ids, checked, over an `OciDriver`; no verb takes a path or gives a file.

Whoever sits at the other end gets what the verbs allow: its own sandboxes, made of images whose layers were verified,
within the limits of every function. It may leave at any moment; then everything goes.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import cast

from faas.errors import Conflict, ImageUnusable, NotFound, Unavailable
from faas.oci.source import ImageSource
from worker.drivers.base import PreparedImage, SandboxSpec
from worker.drivers.linux.cgroups import thawing_at
from worker.drivers.oci.driver import OciDriver
from worker.drivers.oci.sandbox import OciSandbox
from worker.launcher import requests
from worker.launcher.figures import Figures
from worker.launcher.images import ServersImages
from worker.launcher.loans import asking
from worker.launcher.lock import Lock
from worker.launcher.peer import Answer, Handler, Peer
from worker.launcher.wire import Message, close_all, memory_file
from worker.sandbox_spec import RUNTIME_API_PORT

log = logging.getLogger("worker.launcher")

PREPARED = 8192  # images whose layers are here, the latest last; a server that forgot one prepares it again
DESCRIPTORS_EACH = 8  # of a sandbox, at most, in this process
OUTPUTS = 2

Verb = Callable[[Message], Answer | Awaitable[Answer]]
MakeDriver = Callable[[ImageSource, Figures], OciDriver]


class Service:
    """Answers on `end` until it closes, which `on_end` hears. Before `open`, and without `lock`, nothing is touched."""

    def __init__(self, end: socket.socket, lock: Lock, make: MakeDriver, on_end: Callable[[str], None]) -> None:
        self._peer = Peer(end, self._verbs(), on_end)
        self._driver = make(ServersImages(self._peer), Figures(self._peer))
        self._driver.lend = asking(self._peer)
        self._lock = lock
        self._images: OrderedDict[str, PreparedImage] = OrderedDict()
        self._held: dict[str, OciSandbox] = {}
        self._told: set[OciSandbox] = set()  # their end
        self._making = 0
        self._most = max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // DESCRIPTORS_EACH)
        self._opening: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    def _verbs(self) -> Mapping[str, Handler]:
        verbs: dict[str, Verb] = {
            "open": self._open,
            "close": self._close,
            "prepare": self._prepare,
            "collect": self._collect,
            "create": self._create,
            "listen": self._listen,
            "connect": self._connect,
            "start": self._start,
            "kill": self._kill,
            "delete": self._delete,
            "set_cpus": self._set_cpus,
            "freeze": self._freeze,
            "thaw": self._thaw,
            "ids": self._ids,
            "spare_bytes": self._spare_bytes,
            "drop_spares": self._drop_spares,
        }
        return {name: _without_descriptors(self._guarded(name, verb)) for name, verb in verbs.items()}

    def _guarded(self, name: str, verb: Verb) -> Verb:
        """Nothing before `open` is through, and nothing from `close` on, but those two."""

        def run(message: Message) -> Answer | Awaitable[Answer]:
            opened = self._opening is not None and self._opening.done() and self._opening.exception() is None
            if name not in ("open", "close") and (not opened or self._closing is not None):
                raise Unavailable("the launcher is not open")
            return verb(message)

        return run

    # Life

    async def _open(self, _: Message) -> Answer:
        if self._opening is not None:
            raise Conflict("the launcher was opened already")
        self._opening = asyncio.create_task(self._begin())
        await asyncio.shield(self._opening)
        return Answer()

    async def _begin(self) -> None:
        await self._lock.take()
        await self._driver.open()
        gc.collect()
        gc.freeze()  # what is here by now stays: no start waits until it has been looked through

    async def _close(self, _: Message) -> Answer:
        await self._end()
        return Answer()

    async def _end(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close_driver())
        await asyncio.shield(self._closing)

    async def _close_driver(self) -> None:
        """Not before it is open, whole or in part: what another launcher has on this machine is not ours to end."""
        if self._opening is not None:
            await asyncio.wait([self._opening])
            if not self._opening.cancelled():
                self._opening.exception()  # whoever opened heard it
        if self._lock.is_held:
            await self._driver.close()

    async def close(self) -> None:
        """End everything; what the server has asked for and waits for is called off."""
        await self._peer.close()
        await self._end()

    # Images

    async def _prepare(self, message: Message) -> Answer:
        reference = requests.reference(message)
        image = await self._driver.prepare(reference)
        self._images[reference] = image
        self._images.move_to_end(reference)
        if len(self._images) > PREPARED:
            self._images.popitem(last=False)
        return Answer({"warnings": list(image.warnings)}, [memory_file(image.config.to_json())])

    async def _collect(self, message: Message) -> Answer:
        """What is removed by mistake, or in malice, is brought here again when it is needed."""
        return Answer(await self._driver.collect(requests.references(message)))

    # Sandboxes

    def _sandbox(self, message: Message) -> OciSandbox:
        found = self._held.get(requests.sandbox_id(message))
        if found is None:
            raise NotFound("there is no such sandbox")
        return found

    def _create(self, message: Message) -> Answer | Awaitable[Answer]:
        """What becomes of a stem is there at once, and on its way as well where that is asked for."""
        image = self._images.get(requests.reference(message))
        if image is None:
            raise ImageUnusable("the image was not prepared")
        spec, ahead = requests.spec(message, image), requests.flag(message, "ahead")
        at_once = requests.flag(message, "at_once")
        if len(self._held) + self._making >= self._most:
            raise Unavailable(f"{self._most} sandboxes are all that this machine's limit of open files has room for")
        if not ahead and (stem := self._driver.from_stem(spec, at_once=at_once)) is not None:
            return self._hand_over(stem)
        return self._make(spec, ahead)

    async def _make(self, spec: SandboxSpec, ahead: bool) -> Answer:
        self._making += 1
        try:
            sandbox = cast("OciSandbox", await self._driver.create(spec, ahead=ahead))
        finally:
            self._making -= 1
        if self._held.get(spec.id) is sandbox:  # what was made ahead has its owner now
            return Answer({"path": sandbox.path, "group": self._driver.group(sandbox)})
        return self._hand_over(sandbox)

    def _hand_over(self, sandbox: OciSandbox) -> Answer:
        """Its outputs, from here on the server's, and a listening socket for the Runtime API."""
        if sandbox.exited.done() or len(sandbox.unread) != OUTPUTS:
            raise Conflict("it is being removed")
        given = [_detached(sandbox.listener(RUNTIME_API_PORT)), *sandbox.take_unread()]
        told = {"path": sandbox.path, "group": self._driver.group(sandbox), "under_way": sandbox.is_under_way}
        self._held[sandbox.id] = sandbox
        sandbox.exited.add_done_callback(lambda _: self._tell_end(sandbox.id, sandbox))
        return Answer(told, given)

    def _listen(self, message: Message) -> Answer:
        return Answer(None, [_detached(self._sandbox(message).listener(requests.port(message)))])

    async def _connect(self, message: Message) -> Answer:
        connected = await self._sandbox(message).connect(requests.port(message))
        return Answer(None, [connected.detach()])

    async def _start(self, message: Message) -> Answer:
        sandbox = self._sandbox(message)
        await self._driver.start(sandbox)
        return Answer(None, [sandbox.take_terminal()] if sandbox.spec.terminal else [])

    async def _kill(self, message: Message) -> Answer:
        sandbox = self._sandbox(message)
        await self._driver.kill(sandbox)
        self._tell_end(sandbox.id, sandbox)
        return Answer()

    async def _delete(self, message: Message) -> Answer:
        sandbox_id = requests.sandbox_id(message)
        sandbox = self._held.pop(sandbox_id, None)
        try:
            await self._driver.delete(sandbox_id)
        finally:
            if sandbox is not None:
                self._tell_end(sandbox_id, sandbox)
                self._told.discard(sandbox)
        return Answer()

    def _tell_end(self, sandbox_id: str, sandbox: OciSandbox) -> None:
        """Once, and before the answer to what ended it."""
        exited = sandbox.exited
        if sandbox in self._told or not exited.done() or exited.cancelled():
            return
        self._told.add(sandbox)
        ended = exited.result()
        self._peer.tell(
            "exited", id=sandbox_id, code=ended.code, signal=ended.signal, out_of_memory=ended.out_of_memory
        )

    async def _set_cpus(self, message: Message) -> Answer:
        await self._driver.set_cpus(self._sandbox(message), requests.cpus(message))
        return Answer()

    async def _freeze(self, message: Message) -> Answer:
        """With the file that thaws it, to be written to: on the way to an answer no message is in time."""
        sandbox = self._sandbox(message)
        await self._driver.freeze(sandbox)
        path, _ = thawing_at(self._driver.group(sandbox))
        try:
            return Answer(None, [os.open(path, os.O_WRONLY | os.O_CLOEXEC)])
        except FileNotFoundError:  # it has ended
            return Answer()

    async def _thaw(self, message: Message) -> Answer:
        await self._driver.thaw(self._sandbox(message))
        return Answer()

    async def _ids(self, _: Message) -> Answer:
        return Answer([found for found in await self._driver.ids() if requests.ID.fullmatch(found)])

    async def _spare_bytes(self, _: Message) -> Answer:
        return Answer(self._driver.spare_bytes())

    async def _drop_spares(self, _: Message) -> Answer:
        await self._driver.drop_spares()
        return Answer()


def _without_descriptors(verb: Verb) -> Handler:
    """No verb takes any: what comes is closed."""

    def run(message: Message, descriptors: list[int]) -> Answer | Awaitable[Answer]:
        close_all(descriptors)
        return verb(message)

    return run


def _detached(listener: socket.socket) -> int:
    return listener.detach()  # the server's: it would keep the namespace alive here
