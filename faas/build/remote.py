"""Wheels from the server: what has none is built in a sandbox there, with indexes that only this machine knows."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from faas.build import messages, pip_settings
from faas.build.dependencies import ENV_NAMES, ENV_PREFIXES, Listed, held_versions
from faas.build.messages import Channel
from faas.build.progress import Progress
from faas.build.relay import Fetched, Relay
from faas.build.wanted import Reader, Wanted
from faas.errors import InvalidInput, Unavailable
from faas.settings import environment_for

OpenBuild = Callable[[str], AbstractAsyncContextManager[Channel]]

WHEELS = 2000
WHEEL_BYTES = 1 << 30
NAME = re.compile(r"[A-Za-z0-9_.!+]+(-[A-Za-z0-9_.!+]+){4,5}\.whl")
_NO_COMPILER = re.compile(
    r"(gcc|g\+\+|\bcc\b|c\+\+|cl\.exe|compiler).{0,60}(not found|failed|No such file|cannot find)"
)
_KILLED = re.compile(r"exit code: -9|Killed|signal 9")
_ERROR = re.compile(r"error|no such|cannot|failed|exit code|not found|hash", re.IGNORECASE)
_GENERAL = re.compile(
    r"subprocess-exited|originates from|See above|Failed building wheel|Failed to build|non-zero|metadata-generation"
    r"|Encountered error|This is an issue|did not run successfully|^exit code: \d"
)
_NO_HEADER = re.compile(r"fatal error: (\S+\.h\S*): No such file")
# What pip says of its own steps, and of a folder that is gone with the sandbox.
_NOISE = (b"Stored in directory", b"Getting requirements", b"Preparing metadata", b"Looking in", b"Downloading http")


async def wheels(listed: Listed, runtime: str, work: Path, build: OpenBuild, progress: Progress) -> list[Path]:
    """Every wheel that `listed` needs on the server, in `work`. Raises InvalidInput with what pip said, and what the
    server's builds raise."""
    reader = await asyncio.to_thread(_read, listed, work)
    relay, wanted = reader.relay, reader.wanted
    try:
        async with build(runtime) as channel:
            return await _Conversation(channel, relay, work / "built", progress).hold(wanted)
    finally:
        relay.close()


def _read(listed: Listed, work: Path) -> Reader:
    """Blocking."""
    needs = listed.needs
    folder = needs.lists[0].parent
    settings = pip_settings.ask(folder, (*ENV_NAMES, *needs.variables), ENV_PREFIXES)
    sources = work / "sources"
    sources.mkdir(parents=True, exist_ok=True)
    reader = Reader(folder, Relay(settings, work / "relay", folder), environment_for(needs.variables), sources)
    reader.read(needs.lists[0])
    for held in settings.constraints:
        reader.read(folder / held, constraints=True)
    reader.wanted.constraints += held_versions(path for path in listed.wheels if path.suffix == ".whl")
    reader.add_wheels(listed.wheels)
    return reader


class _Conversation:
    """With the builder of one build, from the first file to the last wheel."""

    def __init__(self, channel: Channel, relay: Relay, target: Path, progress: Progress) -> None:
        self._channel = channel
        self._relay = relay
        self._target = target
        self._progress = progress
        self._found: list[Path] = []
        target.mkdir(parents=True, exist_ok=True)

    async def hold(self, wanted: Wanted) -> list[Path]:
        for name, path in wanted.files.items():
            await self._send_file(messages.FILE, {"name": name, "size": path.stat().st_size}, path)
        for name in ("requirements", "constraints"):
            text = self._target / f"{name}.txt"
            text.write_text("".join(f"{line}\n" for line in getattr(wanted, name)), encoding="utf-8")
            await self._send_file(messages.FILE, {"name": text.name, "size": text.stat().st_size}, text)
        await self._channel.send(messages.GO, json.dumps({"arguments": self._arguments(wanted)}).encode())
        while True:
            kind, content = await self._channel.receive()
            if kind == messages.LINE:
                if not content.strip().startswith(_NOISE):
                    self._progress.line(content.decode("utf-8", "replace"))
            elif kind == messages.ASK:
                await self._answer(str(_said(content).get("path")))
            elif kind == messages.WHEEL:
                await self._take(_said(content))
            elif kind == messages.END:
                self._check_end(_said(content))
                return self._found

    def _arguments(self, wanted: Wanted) -> list[str]:
        words = ["--requirement", f"{messages.INPUT}/requirements.txt"]
        words += ["--constraint", f"{messages.INPUT}/constraints.txt"]
        if any(name.startswith("links/") for name in wanted.files):
            words += ["--find-links", f"{messages.INPUT}/links"]
        return [*words, *self._relay.arguments(messages.INDEX), *self._relay.settings.arguments]

    async def _answer(self, path: str) -> None:
        fetched: Fetched = await asyncio.to_thread(self._relay.fetch, path)
        head = {"status": fetched.status, "type": fetched.content_type, "size": fetched.path.stat().st_size}
        await self._send_file(messages.ANSWER, head, fetched.path)

    async def _send_file(self, kind: bytes, head: dict[str, Any], path: Path) -> None:
        await self._channel.send(kind, json.dumps(head).encode())
        with path.open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, messages.CHUNK):
                await self._channel.send(messages.DATA, chunk)

    async def _take(self, head: dict[str, Any]) -> None:
        """A wheel, checked for what its head says of it. What a build gives is its packages' word, and no more."""
        name, size, digest = str(head.get("name")), head.get("size"), str(head.get("sha256"))
        if not NAME.fullmatch(name) or len(self._found) >= WHEELS:
            raise InvalidInput(f"the build gave what is no wheel: {name[:80]!r}")
        if not isinstance(size, int) or not 0 < size <= WHEEL_BYTES:
            raise InvalidInput(f"the wheel {name} has more than {WHEEL_BYTES >> 20} MB")
        target = self._target / name
        if head.get("known") and digest in self._relay.passed:
            self._relay.passed[digest].replace(target)
            self._relay.passed[digest] = target
        else:
            await self._receive(target, size, digest)
        self._found.append(target)

    async def _receive(self, target: Path, size: int, digest: str) -> None:
        hasher = hashlib.sha256()
        with target.open("wb") as file:
            while file.tell() < size:
                kind, data = await self._channel.receive()
                if kind != messages.DATA or not data or file.tell() + len(data) > size:
                    raise InvalidInput(f"the wheel {target.name} is not as long as the build said")
                await asyncio.to_thread(file.write, data)
                hasher.update(data)
        if hasher.hexdigest() != digest:
            raise InvalidInput(f"the wheel {target.name} is not what the build said")

    def _check_end(self, said: dict[str, Any]) -> None:
        if said.get("ok") is True:
            return
        tail = "\n".join(str(line) for line in said.get("tail") or ())
        found = hint(tail, has_compiler=bool(said.get("compiler"))) or "; ".join(self._relay.refusals)
        raise InvalidInput(f"the build failed: {reason(tail)}", hint=found)


def reason(tail: str) -> str:
    """Of the last lines of a build those that say why it failed; all of them have been shown. Pure."""
    lines = [line.strip(" │╰─>×") for line in tail.splitlines() if line.strip()]
    errors = list(dict.fromkeys(line for line in lines if _ERROR.search(line) and not _GENERAL.search(line)))
    return "; ".join(errors[-2:] or lines[-3:])[-500:]


def hint(tail: str, *, has_compiler: bool) -> str:
    """What the last lines of a build say is missing on the server; "" where they say something else. Pure."""
    if not has_compiler and _NO_COMPILER.search(tail):
        return "the server has no compiler: apt-get install gcc g++ make python3-dev there"
    if header := _NO_HEADER.search(tail):
        missing = "python3-dev" if header[1] == "Python.h" else f"what has {header[1]}"
        return f"{missing} is not on the server: put a wheel into wheels/ where a package needs a C library"
    if _KILLED.search(tail):
        return "it was killed: a build has 1 GB of memory; put a wheel into wheels/"
    return ""


def _said(content: bytes) -> dict[str, Any]:
    try:
        said = json.loads(content)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise Unavailable("the builder says something unknown", hint="update faas here, or the server")
    return said
