"""Whether an image is a runtime base of this server's with a function's code on it, and nothing else.

Only then can a runtime that was started from the base alone become the function: what the function's layers add is
mounted into it, and everything else is what an ordinary start would have shown.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from faas.oci import labels
from faas.oci.manifest import ImageConfig
from faas.oci.reference import BASES, Reference
from faas.spec import Network
from worker import sandbox_spec
from worker.drivers.base import PreparedImage, SandboxSpec
from worker.layers.store import UnpackedImage

PLACES = ("var/task", "opt/python", "opt/nodejs")  # where a function's layers may put something
LAYERS_MOST = 8  # of a function's own: what is mounted of them is named in one short text (fsconfig(2))
FOLDER_MODE = 0o755  # of what leads there; another one would be seen
STEM_TMP_BYTES = 512 * 1024 * 1024  # of /tmp: the default of ephemeral_storage
STEM_MEMORY_BYTES = 128 * 1024 * 1024  # the least that a function can have: it only ever grows
# What cannot be changed any more in a sandbox that runs.
_fixed = attrgetter(
    "args",
    "workdir",
    "user",
    "tmp_bytes",
    "pids",
    "open_files",
    "writable_root",
    "network",
    "hostname",
    "terminal",
)
# Read once, by the loader, the C library or the interpreter as they start: too late for a runtime that runs.
START_NAMES = frozenset({"LANG", "LANGUAGE", "LOCPATH", "GCONV_PATH", "GLIBC_TUNABLES"})
START_PREFIXES = ("LD_", "LC_", "MALLOC_", "OPENSSL_", "PYTHON", "NODE_", "UV_", "V8_")


@dataclass(frozen=True, slots=True)
class Standing:
    """What an image adds to its base: its own layers, where they put something, and the modules that they bring to the
    interpreter's path."""

    base: PreparedImage
    layers: tuple[Path, ...]
    places: tuple[str, ...]
    names: frozenset[str]


def base_of(image: ImageConfig) -> Reference | None:
    """The base that the image says to stand on, by digest. Only those of this server count: who pushes an image can
    write what he likes, but not into the repositories of the bases."""
    try:
        reference = Reference.parse(image.labels.get(labels.BASE, ""))
    except ValueError:
        return None
    is_base = reference.local.startswith(BASES) and reference.digest is not None
    return reference if is_base else None


def standing(image: UnpackedImage, base: PreparedImage) -> Standing | None:
    """Blocking: a look into a few folders. None where it is anything but the base and code on it."""
    below = base.handle
    assert isinstance(below, UnpackedImage)
    count = len(below.layers)
    if base.config.labels.get(labels.BASE_STEM) != labels.STEM_PROTOCOL or image.layers[:count] != below.layers:
        return None
    found: dict[str, None] = {}
    names: set[str] = set()
    own = image.layers[count:]
    if len(own) > LAYERS_MOST:
        return None
    for layer in own:
        added = _added(layer)
        if added is None:
            return None
        for place in added:
            found[place] = None
            names.update(entry.partition(".")[0] for entry in _entries(layer / place))
    return Standing(base, own, tuple(found), frozenset(names))


def _added(layer: Path) -> list[str] | None:
    """Which of PLACES are in a layer; None where something else is, or a folder is not as the base has it."""
    found = []
    for folder in ("var", "opt"):
        wanted = [place.partition("/")[2] for place in PLACES if place.startswith(f"{folder}/")]
        if not os.path.lexists(layer / folder):
            continue
        inside = _entries(layer / folder) if _is_plain(layer / folder) else [""]
        if not set(inside) <= set(wanted) or not all(_is_plain(layer / folder / name) for name in inside):
            return None
        found += [f"{folder}/{name}" for name in sorted(inside)]
    return found if set(_entries(layer)) <= {"var", "opt"} else None


def _entries(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def _is_plain(folder: Path) -> bool:
    """A real folder of root's, with the usual mode, that hides nothing below it."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        return False
    owned = (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 0, FOLDER_MODE)
    return owned and not any("overlay" in name for name in os.listxattr(folder, follow_symlinks=False))


def parked(base: PreparedImage, stem_id: str) -> SandboxSpec:
    """The sandbox of a stem. Nothing of any function is in it."""
    config = base.config
    return SandboxSpec(
        id=stem_id,
        image=base,
        args=(*config.entrypoint, *config.cmd),
        env={**_start_environment(config), "FAAS_STEM": labels.STEM_PROTOCOL},
        workdir=config.workdir,
        memory_bytes=STEM_MEMORY_BYTES,
        cpus=sandbox_spec.INIT_CPUS,
        tmp_bytes=STEM_TMP_BYTES,
        user=sandbox_spec.user(config.user),
        pids=sandbox_spec.PIDS,
        open_files=sandbox_spec.OPEN_FILES,
        network=Network.OUTBOUND,
    )


def _start_environment(base: ImageConfig) -> dict[str, str]:
    variables = (variable.partition("=")[::2] for variable in base.env)
    return {**sandbox_spec.DEFAULTS, **{name: value for name, value in variables if name}}


def can_become(stem: SandboxSpec, wanted: SandboxSpec) -> bool:
    """Whether a stem, as `parked` has it, is what `wanted` asks for, once code, environment and limits are there."""
    return (
        _fixed(stem) == _fixed(wanted)
        and wanted.memory_bytes >= stem.memory_bytes
        and _env_can_change(stem.env, wanted.environment())
    )


def _env_can_change(started: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether it has the client's own use, and nothing differs that counts at the start alone."""
    if "_HANDLER" not in wanted and "FAAS_APP" not in wanted:
        return False
    return all(
        started.get(name) == value
        for name, value in wanted.items()
        if name in START_NAMES or (name.startswith(START_PREFIXES) and name != "NODE_PATH")
    )
