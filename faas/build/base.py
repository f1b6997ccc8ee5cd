"""Runtime bases: images that function images stand on, built on the server from its own interpreters.

    runtime/python:3.11     interpreter, libraries, certificates, zones │ the runtime client
    runtime/node:20         the same for node
    runtime/provided:latest a shell and the C library, for `bootstrap` programs

A client mounts their layers into its own image and never needs their bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import platform
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from faas.build import rootfs
from faas.build.fingerprint import fingerprint
from faas.build.interpreter import Node, Python, find_node, find_python
from faas.build.layer import Layer, Member, pack
from faas.errors import InvalidInput, NotFound
from faas.oci import labels, media_types
from faas.oci.client import RegistryClient
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import CONFIG_BYTES, ImageConfig, Manifest
from faas.oci.platform import architecture
from faas.protocol import RuntimeBase

STEM_LANGUAGES = ("python", "node")  # whose clients can wait for their function
BUILDER = "5"  # changes when the same inputs would give another base
NAME = re.compile(r"(python|node|provided)(\d+(?:\.\d+)?)?")
_ENV = ("PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt")

OpenClient = Callable[[], AbstractAsyncContextManager[RegistryClient]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one base is made: blocking functions that gather its two layers."""

    name: str  # python3.11
    tag: str  # 3.11
    repository: str  # runtime/python
    version: str
    entrypoint: tuple[str, ...]
    digest: str
    language: str
    system: Callable[[Path], list[Member]]
    client: Callable[[Path], list[Member]]


def recipe(name: str) -> Recipe:
    """Blocking. What `python`, `python3.12`, `node` … is on this machine. Raises NotFound, InvalidInput."""
    match = NAME.fullmatch(name)
    if match is None:
        raise InvalidInput(f"no runtime {name!r}", hint="python, python3.x, node, nodeX or provided")
    kind, version = match[1], match[2] or ""
    if kind == "python":
        return _python(find_python(version))
    if kind == "node":
        return _node(find_node(version))
    return Recipe(
        "provided", "latest", "runtime/provided", "", ("/var/task/bootstrap",), _digest("provided", None), "",
        lambda work: rootfs.system() + rootfs.provided_files(work), lambda work: [],
    )  # fmt: skip


def _digest(name: str, interpreter: Python | Node | None) -> str:
    """Changes when a file of this machine that goes into the base, the runtime client or the builder changes: a
    security update of the C library makes a new base at the next push."""
    language = "" if interpreter is None else "python" if isinstance(interpreter, Python) else "node"
    client = fingerprint([rootfs.RUNTIMES / language], ("__pycache__",)) if language else ""
    said = "" if interpreter is None else interpreter.full
    return hashlib.sha256("\0".join((BUILDER, name, said, client, rootfs.made_of(interpreter))).encode()).hexdigest()


def _python(python: Python) -> Recipe:
    binary = f"/usr/bin/python{python.version}"
    return Recipe(
        f"python{python.version}", python.version, "runtime/python", python.version,
        (binary, "-I", "-S", "-B", "/opt/faas/python/bootstrap.py"), _digest(python.version, python), "python",
        lambda work: rootfs.system() + rootfs.python_files(python, work),
        lambda work: rootfs.client_files("python", work, python),
    )  # fmt: skip


def _node(node: Node) -> Recipe:
    return Recipe(
        f"node{node.version}", node.version, "runtime/node", node.version,
        ("/usr/bin/node", "/opt/faas/node/bootstrap.js"), _digest(node.version, node), "node",
        lambda work: rootfs.system() + rootfs.node_files(node, work),
        lambda work: rootfs.client_files("node", work),
    )  # fmt: skip


def wheel_platforms() -> tuple[str, ...]:
    """Wheel tags that run on this machine, best first (PEP 600, PEP 599)."""
    machine = platform.machine()
    minor = int((platform.libc_ver()[1] or "2.17").split(".")[1])
    tags = [f"manylinux_2_{n}_{machine}" for n in range(minor, 4, -1)]
    legacy = [f"manylinux2014_{machine}"] + (
        [f"manylinux2010_{machine}", f"manylinux1_{machine}"] if machine == "x86_64" else []
    )
    return (*tags, *legacy, f"linux_{machine}")


class Bases:
    """The runtime bases of one server: built at first need, one at a time each."""

    def __init__(self, open_client: OpenClient) -> None:
        self._open_client = open_client
        self._locks: dict[str, asyncio.Lock] = {}

    async def ensure(self, name: str) -> RuntimeBase:
        """The base `name`, built and pushed where the registry lacks it or it is out of date."""
        made = await asyncio.to_thread(recipe, name)
        async with self._locks.setdefault(made.name, asyncio.Lock()), self._open_client() as client:
            manifest = await self._current(client, made)
            if manifest is None:
                manifest = await self._build(client, made)
        return RuntimeBase(
            made.name,
            f"{made.repository}:{made.tag}@{manifest.digest}",
            made.version,
            architecture(),
            wheel_platforms() if made.language == "python" else (),
        )

    async def list(self) -> list[RuntimeBase]:
        """What this machine offers, without building: interpreters that are found, and their references if built."""
        found = []
        async with self._open_client() as client:
            for name in ("python", "node", "provided"):
                try:
                    made = await asyncio.to_thread(recipe, name)
                except NotFound:
                    continue
                manifest = await self._current(client, made)
                reference = f"{made.repository}:{made.tag}" + (f"@{manifest.digest}" if manifest else "")
                platforms = wheel_platforms() if made.language == "python" else ()
                found.append(RuntimeBase(made.name, reference, made.version, architecture(), platforms))
        return found

    async def _current(self, client: RegistryClient, made: Recipe) -> Manifest | None:
        try:
            manifest = await client.get_manifest(made.repository, made.tag)
        except NotFound:
            return None
        if manifest.config is None:
            return None
        config = ImageConfig.parse(await client.read_blob(made.repository, manifest.config.digest, CONFIG_BYTES))
        return manifest if config.labels.get(labels.BASE_INPUTS) == made.digest else None

    async def _build(self, client: RegistryClient, made: Recipe) -> Manifest:
        with rootfs.work_folder() as work:
            layers = await asyncio.to_thread(_layers, made, work)
            config = ImageConfig(
                architecture=architecture(),
                diff_ids=tuple(layer.digest for layer in layers),
                entrypoint=made.entrypoint,
                env=_ENV,
                workdir="/var/task",
                labels=_labels(made),
            ).to_json()
            for layer in layers:
                if not await client.has_blob(made.repository, layer.digest):
                    await client.upload_blob(made.repository, layer.path, layer.digest)
        digest = Digest.of(config)
        await client.upload_blob(made.repository, config, digest)
        descriptor = Descriptor(media_types.OCI_CONFIG, digest, len(config))
        manifest = Manifest.image(descriptor, [layer.descriptor for layer in layers])
        await client.put_manifest(made.repository, made.tag, manifest)
        return manifest


def _labels(made: Recipe) -> dict[str, str]:
    stem = {labels.BASE_STEM: labels.STEM_PROTOCOL} if made.language in STEM_LANGUAGES else {}
    return {labels.BASE_INPUTS: made.digest, **stem}


def _layers(made: Recipe, work: Path) -> list[Layer]:
    """Blocking."""
    layers = [pack(made.system(work), work / "system.tar", made.name)]
    client = made.client(work)
    return [*layers, pack(client, work / "client.tar", "runtime client")] if client else layers
