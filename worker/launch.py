"""Launching an instance: image, sandbox, Runtime API inside it, process, first sign of life; each part timed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Mapping

from faas.connections import Connections, NoConnections
from faas.errors import FaasError, Unavailable
from faas.leases import ColdStart
from faas.protocol import (
    Revision,
)
from faas.secret import Reveal, Secret
from faas.spec import Interface
from worker import sandbox_spec
from worker.drivers.base import Driver, PreparedImage, Sandbox, SandboxSpec
from worker.http import HttpClient
from worker.instance import Instance
from worker.push_door import PushDoor
from worker.readiness import Readiness
from worker.runtime_api import RuntimeApi
from worker.sandbox_spec import RUNTIME_API_PORT
from worker.turns import Turns

log = logging.getLogger("worker.launch")

PREPARE_SECONDS = 300.0  # an image of some GB, unpacked for the first time
CREATE_SECONDS = 30.0
START_SECONDS = 30.0
KNOWN_IMAGES = 4096
IDLE_CONNECTIONS = 64  # kept per instance of an http function


class Launches:
    """Brings instances up. What a failed launch leaves is the caller's to destroy."""

    def __init__(self, driver: Driver, at_once: int) -> None:
        self._driver = driver
        self._known: OrderedDict[str, PreparedImage] = OrderedDict()  # those that stay, the latest last
        self.turns = Turns(at_once)
        self.connections: Connections = NoConnections()  # that new instances may send messages to
        self.reveal: Reveal = no_secrets

    async def image(self, reference: str) -> PreparedImage:
        """`repository@digest`, which a revision or an instance holds. Raises ImageUnusable, Unavailable."""
        return self._known.get(reference) or await self.prepare(reference)

    async def prepare(self, reference: str) -> PreparedImage:
        """Bring `repository@digest` here. Raises ImageUnusable, Unavailable."""
        async with within(PREPARE_SECONDS, "the image could not be made ready in time"):
            image = await self._driver.prepare(reference)
        if image.stays:
            self._known[reference] = image
            self._known.move_to_end(reference)
            if len(self._known) > KNOWN_IMAGES:
                self._known.popitem(last=False)
        return image

    def spec(self, revision: Revision, image: PreparedImage, instance_id: str) -> SandboxSpec:
        """What an instance that starts now is to be. Raises ImageUnusable; Unavailable where a secret is missing."""
        names = set(revision.spec.secrets.values())
        secrets = self.reveal(revision.key.namespace, names) if names else {}
        return sandbox_spec.sandbox_spec(revision, image, instance_id, now=time.time(), secrets=secrets)

    def forget(self, held: Collection[str]) -> None:
        """Images other than these are looked for again when they are needed."""
        for reference in self._known.keys() - held:
            del self._known[reference]

    async def launch(
        self, instance: Instance, on_begin: Callable[[Instance], None], on_exit: Callable[[Instance], None]
    ) -> None:
        """Make a STARTING instance ready; `on_begin` is called when there is a sandbox to be made, from where on
        calling it off costs something. Raises InitFailed, ImageUnusable, Unavailable."""
        try:
            await self._launch(instance, on_begin, on_exit)
        except FaasError:
            raise
        except Exception as error:
            log.exception("a launch failed", extra={"instance": instance.id})
            raise FaasError(f"our fault: the instance could not be launched ({type(error).__name__})") from None

    async def _launch(
        self, instance: Instance, on_begin: Callable[[Instance], None], on_exit: Callable[[Instance], None]
    ) -> None:
        clock, began = time.perf_counter, time.perf_counter()
        image = await self.image(instance.revision.image)
        prepared = clock() - began
        spec = self.spec(instance.revision, image, instance.id)
        async with self.turns.turn() as turn:
            on_begin(instance)
            times = [clock()]
            async with within(CREATE_SECONDS, "a sandbox could not be created in time"):
                sandbox = await self._driver.create(spec, at_once=True)
            instance.watch(sandbox, on_exit)
            await self._listen(instance, sandbox)
            times.append(clock())
            async with within(START_SECONDS, "the sandbox did not start in time"):
                await self._driver.start(sandbox)
            times.append(clock())
            turn.init_begins()
            found = await self._ready(instance, sandbox, image)
            times.append(clock())
        with contextlib.suppress(OSError):  # it has just ended: `on_exit` says so
            await self._driver.set_cpus(sandbox, sandbox_spec.cpus(instance.revision))
        phases = (after - before for before, after in itertools.pairwise(times))
        instance.cold_start = ColdStart(sandbox.path, prepared, *phases)
        instance.init_seconds = instance.cold_start.init
        instance.ready(found, instance.revision.spec.concurrency if found is Interface.HTTP else 1)

    async def _listen(self, instance: Instance, sandbox: Sandbox) -> None:
        """Before the start: the function cannot take the Runtime API's port."""
        revision = instance.revision
        door = PushDoor(self.connections, revision.key.namespace)
        instance.api = RuntimeApi(function_arn(revision), revision.spec.timeout, door)
        instance.api.serve(await sandbox.listen(RUNTIME_API_PORT))
        instance.output.open(sandbox.stdout, sandbox.stderr)

    async def _ready(self, instance: Instance, sandbox: Sandbox, image: PreparedImage) -> Interface:
        """What it speaks, once it does. Raises InitFailed."""
        revision = instance.revision
        assert instance.api is not None
        idle = min(revision.spec.concurrency, IDLE_CONNECTIONS)
        instance.http = http = HttpClient(sandbox, revision.spec.port, idle)
        wanted = revision.interface if revision.interface is not Interface.AUTO else revision.spec.declared_interface
        exposed = tuple(_ports(image.config.exposed_ports))
        found = await Readiness(sandbox, instance.api, http, instance.output, revision.spec, wanted, exposed).wait()
        if found is not Interface.HTTP:
            instance.http = None
            http.close()
        return found


def no_secrets(namespace: str, names: Collection[str]) -> Mapping[str, Secret]:
    """Where nobody has said where to ask for them."""
    raise Unavailable("nobody gives secrets here")


def function_arn(revision: Revision) -> str:
    return f"arn:aws:lambda:local:000000000000:function:{revision.key.function}"


def _ports(exposed: tuple[str, ...]) -> list[int]:
    """`8080/tcp` → 8080."""
    numbers = (text.partition("/")[0] for text in exposed[:16])
    short = [number for number in numbers if len(number) <= 5 and number.isascii() and number.isdigit()]
    return [int(number) for number in short if 0 < int(number) < 65_536]


@contextlib.asynccontextmanager
async def within(seconds: float, message: str) -> AsyncIterator[None]:
    """A deadline; past it Unavailable says `message`."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Unavailable(message) from None
