"""How runtime bases are made of this machine's own interpreters: what is gathered, and the image that it becomes.

    runtime/python:3.11     interpreter, libraries, certificates, zones │ the runtime client
    runtime/node:20         the same for node
    runtime/provided:latest a shell and the C library, for `bootstrap` programs

Everything blocks, and nothing here needs more than Python itself: a bundle is made where the project is not installed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from faas.build import rootfs
from faas.build.fingerprint import fingerprint
from faas.build.interpreter import Node, Python, find_node, find_python
from faas.build.layer import Layer, Member, pack
from faas.errors import InvalidInput
from faas.oci import labels, media_types
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import ImageConfig, Manifest
from faas.oci.platform import architecture

STEM_LANGUAGES = ("python", "node")  # whose clients can wait for their function
BUILDER = "6"  # changes when the same inputs would give another base
NAME = re.compile(r"(python|node|provided)(\d+(?:\.\d+)?)?")
_ENV = ("PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt")


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
    # As `rootfs.client_files` compiles it (PEP 3147).
    client = f"/opt/faas/python/__pycache__/bootstrap.cpython-{python.version.replace('.', '')}.pyc"
    return Recipe(
        f"python{python.version}", python.version, "runtime/python", python.version,
        (binary, "-I", "-S", "-B", client), _digest(python.version, python), "python",
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


@dataclass(frozen=True, slots=True)
class Built:
    """A base's image; the files of its layers last as long as the folder that they were made in."""

    layers: tuple[Layer, ...]
    config: bytes
    manifest: Manifest

    @property
    def config_descriptor(self) -> Descriptor:
        return _described(self.config)


def build(made: Recipe, work: Path) -> Built:
    """The same files of this machine give the same bytes."""
    layers = [pack(made.system(work), work / "system.tar", made.name)]
    if client := made.client(work):
        layers.append(pack(client, work / "client.tar", "runtime client"))
    config = ImageConfig(
        architecture=architecture(),
        diff_ids=tuple(layer.digest for layer in layers),
        entrypoint=made.entrypoint,
        env=_ENV,
        workdir="/var/task",
        labels=_labels(made),
    ).to_json()
    manifest = Manifest.image(_described(config), [layer.descriptor for layer in layers])
    return Built(tuple(layers), config, manifest)


def _described(config: bytes) -> Descriptor:
    return Descriptor(media_types.OCI_CONFIG, Digest.of(config), len(config))


def _labels(made: Recipe) -> dict[str, str]:
    client = {labels.BASE_STEM: labels.STEM_PROTOCOL, labels.SECRETS_READER: made.entrypoint[-1]}
    stem = client if made.language in STEM_LANGUAGES else {}
    return {labels.BASE_INPUTS: made.digest, **stem}
