"""Where a working directory leads inside an image, whose author may have made a link of it."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from faas.errors import ImageUnusable
from worker.sandbox_spec import REFUSED_FOLDERS

HOPS = 40  # links in one path, as the kernel's own limit


def check(root: Path, folder: str) -> None:
    """Raises ImageUnusable where `folder` in the image at `root`, links followed, is in /proc, /sys or /dev."""
    todo, hops = deque(folder.split("/")), 0
    at: list[str] = []
    while todo:
        part = todo.popleft()
        if part in ("", "."):
            continue
        if part == "..":
            del at[-1:]
            continue
        at.append(part)
        if f"/{at[0]}" in REFUSED_FOLDERS:
            raise ImageUnusable(f"the working directory {folder!r} is a link to /{'/'.join(at)}", hint="check workdir")
        try:
            target = str(root.joinpath(*at).readlink())
        except OSError:  # no link, or nothing: the runtime says so
            continue
        hops += 1
        if hops > HOPS:
            raise ImageUnusable(f"the working directory {folder!r} has too many links", hint="check workdir")
        at = [] if target.startswith("/") else at[:-1]
        todo.extendleft(reversed(target.split("/")))
