"""A function's code, dependencies and secrets, mounted into a runtime that runs already, as an ordinary start shows
them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from faas.secret import FOLDERS
from worker.drivers.linux import mounts, trees

SHARING = ("runc", "crun")  # runtimes whose instances live in mount namespaces of this kernel; runsc's do not


def missing(program: str, work: Path) -> str:
    """Blocking. Why nothing can be mounted into running instances of this runtime; empty where it can."""
    if Path(program).name not in SHARING:
        return f"{Path(program).name} keeps the mounts of its instances to itself"
    return trees.missing(work)


def attach(
    layers: tuple[Path, ...],
    places: Sequence[str],
    process: int,
    point: Path,
    empty: Path,
    secrets: Path | None = None,
) -> None:
    """Blocking. Mount each of `places` (`var/task`) of the merged `layers`, read-only, at the same place inside the
    mount namespace of `process` (a pidfd), and the folder `secrets` where those are. `point` is a folder to be made,
    for a moment. Raises OSError, Unavailable.
    """
    point.mkdir()
    mounts.mount_root(layers, point, None, empty)
    clones: list[tuple[int, str]] = []
    try:
        root = os.open(point, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for place in places:
                folder = trees.folder_below(root, place)
                try:
                    clones.append((trees.clone(folder), f"/{place}"))
                finally:
                    os.close(folder)
        finally:
            os.close(root)
        if secrets is not None:
            for target in FOLDERS:
                clones.append((trees.clone_of(secrets), target))
                trees.make_inert(clones[-1][0])
        trees.attach_inside(process, clones)
    finally:
        for tree, _ in clones:
            os.close(tree)
        mounts.unmount(point)  # what was cloned of it stays
