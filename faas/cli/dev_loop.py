"""`DevLoop`: one run of `faas dev`: begin, then until Ctrl-C saves, log lines and signs of life side by side."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, NoReturn

import click

from faas.build.push import code_layer, push_below, push_dockerfile, push_image
from faas.cli import dev_files
from faas.cli.bars import Display, display_of, ticking
from faas.cli.dev_files import Change, Look
from faas.cli.dev_line import line, refused, trouble
from faas.cli.output import note
from faas.cli.push import Place, Source, cache_folder, runtime_base
from faas.cli.registry import described, registry_host, registry_url
from faas.cli.session import Session
from faas.client import Client, Json
from faas.client_errors import NoAnswer, Unreachable
from faas.dev import BEAT_SECONDS, CODE_BYTES, dev_name
from faas.errors import Conflict, FaasError, InitFailed, NotFound, PayloadTooLarge, Unauthenticated, Unavailable
from faas.oci.client import RegistryClient

CLOSE_SECONDS = 5.0
AGAIN_SECONDS = 1.0
_AWAY = (Unreachable, NoAnswer)


class DevLoop:
    """`flags` win over faas.toml, as in a push; `who` is "" for the token's name."""

    def __init__(
        self, session: Session, folder: Path | None, flags: Mapping[str, Any], namespace: str, who: str
    ) -> None:
        self._session = session
        self._folder = folder
        self._flags = flags
        self._source = Source.read(folder, flags)
        self._place = Place.of(self._source.spec.name, namespace)
        self._namespace = namespace
        self._who = who
        self._id = secrets.token_hex(16)
        self._turn = asyncio.Lock()  # a deploy at a time
        self._below = ""  # the image that code is put on
        self._own_images: set[str] = set()  # those of them that this run has pushed
        self._seen: Look | None = None
        self._stale = True  # the server does not have what the folder said of the image and the specification
        self._told = ""  # the last trouble that was told: each is told once
        self._client: Client
        self._images: RegistryClient
        self._registry = self._name = ""

    async def run(self) -> None:
        """Until it is cancelled, or another run takes over."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: nothing is to stay behind
            loop.add_signal_handler(number, signal.raise_signal, signal.SIGINT)
        async with self._session.client() as self._client:
            info = await described(self._client, self._session.target)
            user = str(info.get("user") or self._session.target.user)
            name = dev_name(self._source.spec.name, self._who or user)
            self._name = Place.of(name, self._namespace).name
            self._registry = registry_host(str(info.get("registry") or ""))
            target = self._session.target
            url = registry_url(self._registry, target.url)
            async with RegistryClient(url, user, target.token, target.trust) as self._images:
                try:
                    await self._begin(name)
                    await self._side_by_side(name)
                finally:
                    await self._leave()

    async def _begin(self, name: str) -> None:
        self._seen = await asyncio.to_thread(dev_files.look, self._source.folder, self._source.spec)
        began = time.monotonic()
        answer = await self._setup(name)
        with refused():
            await self._code()
            self._stale = False
            note(f"up after {time.monotonic() - began:.2f} s; save a file, or press Ctrl-C")
        if inactive := answer.get("inactive"):
            note(f"not active here: {', '.join(inactive)}")
        if not answer.get("public"):
            note("it is not public: a call needs a token (or --public here)")
        click.echo(str(answer.get("url") or self._name))

    async def _side_by_side(self, name: str) -> NoReturn:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._beat(name))
                group.create_task(self._logs())
                group.create_task(self._watch(name))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        raise AssertionError("none of them ends by itself")

    async def _leave(self) -> None:
        """Whatever cannot be removed now, the server removes when it has not heard of us for a while."""
        with contextlib.suppress(FaasError, TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._client.dev_close(self._name, self._id)
                await self._forget_images()

    async def _forget_images(self, but: str = "") -> None:
        for image in self._own_images - {but}:
            with contextlib.suppress(FaasError):  # others have it too
                await self._images.delete_manifest(*image.split("@"))
            self._own_images.discard(image)

    # Deploying

    async def _setup(self, name: str) -> Json:
        """The image below the code, and the specification. Where there is no runtime that is all, and it runs then."""
        with display_of(self._session) as display:
            async with ticking(display):
                image = await self._image(display)
                spec = {**self._source.spec.to_dict(), "name": name, "image": ""}
                display.stage("deploy")
                try:
                    answer = await self._client.dev_open(self._name, self._id, spec, image)
                finally:
                    await self._forget_images(but=image)
        self._below = image
        return answer

    async def _image(self, display: Display) -> str:
        source, spec = self._source, self._source.spec
        repository = self._place.repository
        if spec.image:
            display.stage("image")
            pushed = await push_image(source.image, self._images, repository, (), display, self._registry)
            return pushed.reference
        if spec.runtime:
            display.stage("runtime")
            base = runtime_base(await self._client.ensure_runtime(spec.runtime))
            cache, build = cache_folder(), self._client.build
            image = await push_below(source.folder, spec, self._images, base, repository, display, cache, build)
            if image == base.reference:
                return image
        else:
            image = (await push_dockerfile(source.folder, self._images, repository, (), display)).reference
        self._own_images.add(image)
        return image

    async def _code(self) -> Json | None:
        """What the folder has now, sent and deployed; nothing where the image is all."""
        if not self._source.spec.runtime:
            return None
        code = await asyncio.to_thread(self._packed)
        return await self._client.dev_code(self._name, self._id, code)

    def _packed(self) -> bytes:
        """Blocking. Raises InvalidInput, SpecError, PayloadTooLarge."""
        with tempfile.TemporaryDirectory(prefix="faas-dev-") as work:
            layer = code_layer(self._source.folder, self._source.spec, Path(work))
            packed = gzip.compress(layer.path.read_bytes(), compresslevel=1, mtime=0)
        if len(packed) > CODE_BYTES:
            raise PayloadTooLarge(
                f"the code has {len(packed) >> 20} MB compressed; {CODE_BYTES >> 20} MB can be sent at each save",
                hint="list what is no code in .faasignore, or use faas push",
            )
        return packed

    async def _again(self, name: str) -> None:
        """All of it, from what the folder says now."""
        self._source = Source.read(self._folder, self._flags)
        await self._setup(name)
        await self._code()

    # Side by side

    async def _watch(self, name: str) -> NoReturn:
        async with aclosing(dev_files.moments(self._source.folder)) as moments:
            async for _ in moments:
                try:
                    await self._look(name)
                except InitFailed as error:
                    self._stale = False
                    self._tell(error)
                except (FaasError, OSError) as error:
                    self._stale = True
                    if isinstance(error, (*_AWAY, Unavailable, OSError)):
                        self._seen = None  # tried again soon; what is wrong in the folder waits for the next save
                    self._tell(error)
        raise AssertionError("files are watched until it is cancelled")

    async def _look(self, name: str) -> None:
        """Deploy what has changed since the last look; all of it where that failed."""
        now = await asyncio.to_thread(dev_files.look, self._source.folder, self._source.spec)
        if now == self._seen:
            return
        changed = dev_files.change(self._seen, now) if self._seen else Change(("the folder",), ())
        self._seen = now
        async with self._turn:
            began = time.monotonic()
            if changed.setup:
                note(f"{changed} changed: what the code stands on is made anew")
            if changed.setup or self._stale:
                await self._again(name)
            else:
                await self._code()
            self._stale, self._told = False, ""
            note(f"{changed}: runs after {time.monotonic() - began:.2f} s")

    def _tell(self, error: FaasError | OSError) -> None:
        """An error of a save. One that stays is not told at each look."""
        if (text := f"{type(error).__name__} {error}") != self._told or isinstance(error, InitFailed):
            trouble(error)
        self._told = text

    async def _beat(self, name: str) -> NoReturn:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            try:
                await self._client.dev_beat(self._name, self._id)
            except NotFound:
                async with self._turn:
                    note("the server does not know this function any more: it is deployed again")
                    with refused():
                        await self._again(name)
                        self._stale = False
            except (Conflict, Unauthenticated):
                raise
            except FaasError as error:
                self._tell(error)

    async def _logs(self) -> NoReturn:
        """Lines as they come, whatever the connection does meanwhile."""
        since, terminal = 0.0, sys.stdout.isatty()  # all of it: its log begins with this command
        while True:
            with contextlib.suppress(*_AWAY, NotFound):
                records = self._client.logs(self._name, since=since, follow=True)
                async with aclosing(records):
                    async for record in records:
                        since = max(since, float(record.get("time") or 0) + 1e-6)
                        if text := line(record, terminal):
                            click.echo(text)
            await asyncio.sleep(AGAIN_SECONDS)
