"""A function's code, dependencies and secrets, mounted into a runtime that runs already, as an ordinary start shows
them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from faas.secret import FOLDERS
from worker.drivers.linux import trees

SHARING = ("runc", "crun")  # runtimes whose instances live in mount namespaces of this kernel; runsc's do not


def missing(program: str, work: Path) -> str:
    """Blocking. Why nothing can be mounted into running instances of this runtime; empty where it can."""
    if Path(program).name not in SHARING:
        return f"{Path(program).name} keeps the mounts of its instances to itself"
    return trees.missing(work)


def attach(
    layers: tuple[Path, ...], places: Sequence[str], process: int, empty: Path, secrets: Path | None = None
) -> None:
    """Mount each of `places` (`var/task`) of the merged `layers` (the bottom one first), read-only, at the same place
    inside the mount namespace of `process` (a pidfd), and the folder `secrets` where those are.

    A few system calls, which wait for nobody: about 0.2 ms. Raises OSError.
    """
    made: list[tuple[int, str]] = []
    try:
        made.extend((_merged(layers, place, empty), f"/{place}") for place in places)
        if secrets is not None:
            for target in FOLDERS:
                made.append((trees.clone_of(secrets), target))
                trees.make_inert(made[-1][0])
        trees.attach_inside(process, made)
    finally:
        for tree, _ in made:
            os.close(tree)


def _merged(layers: tuple[Path, ...], place: str, empty: Path) -> int:
    """`place` in those of the layers that have it, as one mount; no link of theirs is followed."""
    folders: list[int] = []
    try:
        for layer in layers:
            root = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                folders.append(trees.folder_below(root, place))
            except FileNotFoundError:
                continue
            finally:
                os.close(root)
        return trees.overlay(folders, empty)
    finally:
        for folder in folders:
            os.close(folder)
