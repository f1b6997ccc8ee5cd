"""A folder of layers as the ids of one instance own it: an id-mapped view, and the user namespace that says so.

Linux maps the layers below an overlay from 5.19 on. What is mapped is the folder that holds all layers: one view
serves whatever an instance is made of, also layers that come later, so that it can be made ahead.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
from collections.abc import Sequence
from pathlib import Path

from faas.errors import Unavailable
from worker.drivers.linux import mounts, trees
from worker.network import programs

Extent = tuple[int, int, int]  # the first id inside (for a view: on the disk), the first outside, how many
Maps = tuple[tuple[Extent, ...], tuple[Extent, ...]]  # of users, and of groups

IDS = 2**32 - 1  # every id that a file can have
SIZE = 65_536  # ids of an instance on the host
PLAIN = SIZE - 1  # of them those for 0 to 65534; the last one is for a USER beyond
UNSHARE_SECONDS = 5.0
MAPPING = ("runc", "crun")  # runsc cannot set up its own process in a namespace that maps no root of the host


def extents(base: int, user: int) -> tuple[Extent, ...]:
    """The ids inside an instance as ids from `base` on: all that 16 bits have, and `user`."""
    plain = (0, base, PLAIN)
    return (plain,) if user < PLAIN else (plain, (user, base + PLAIN, 1))


def outside(base: int, user: int) -> int:
    """The id on the host of `user` inside, by `extents`."""
    return base + min(user, PLAIN)


def swapped(base: int, user: int) -> tuple[Extent, ...]:
    """The same for files, with root's as `user`'s and the other way round: who may write the root needs no root."""
    if user < PLAIN:
        return _swap(base, user, PLAIN)
    return (0, base + PLAIN, 1), (1, base + 1, PLAIN - 1), (user, base, 1)


def exchanged(user: int) -> tuple[Extent, ...]:
    """Files alone, without ids of an instance's own: 0 and `user` change places and every other id stays."""
    return _swap(0, user, IDS)


def _swap(base: int, user: int, end: int) -> tuple[Extent, ...]:
    rows = ((0, base + user, 1), (user, base, 1), (1, base + 1, user - 1), (user + 1, base + user + 1, end - user - 1))
    return tuple(row for row in rows if row[2] > 0)


def lines(rows: Sequence[Extent]) -> str:
    """The content of a uid_map (user_namespaces(7))."""
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in rows)


def namespace(maps: Maps) -> int:
    """Blocking, about 2 ms. A user namespace with these maps, as a descriptor. Nothing runs in it. Raises OSError."""
    command = [programs.find("unshare") or "unshare", "--user", "cat"]
    holder = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env={"PATH": "/usr/bin:/bin"}
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        holder.stdin.write(b"?")  # what comes back comes from inside
        answer = select.poll()  # select takes no descriptor above 1,023
        answer.register(holder.stdout, select.POLLIN)
        if not answer.poll(UNSHARE_SECONDS * 1000) or not holder.stdout.read(1):
            raise OSError("no user namespace could be made")
        for name, rows in zip(("uid_map", "gid_map"), maps, strict=True):
            Path(f"/proc/{holder.pid}/{name}").write_text(lines(rows))
        return os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        holder.kill()
        holder.stdin.close()
        holder.stdout.close()
        holder.wait()


def view(folder: Path, target: Path, owners: int) -> None:
    """Blocking. Mount `folder` on `target`, which is made, read-only and with owners by the maps of the namespace
    `owners`. Raises OSError."""
    tree = trees.clone_of(folder)
    try:
        trees.map_owners(tree, owners)
        target.mkdir(mode=0o700)
        trees.attach(tree, str(target))
    finally:
        os.close(tree)


def missing_views(layers: Path, work: Path) -> str:
    """Blocking. Why layers in the folder `layers` cannot be shown as another's; empty where they can be.

    Tried below `work` and in `layers`, with nothing left behind.
    """
    seen, point, maps = work / "seen", work / "point", (extents(1 << 28, 0),) * 2
    probes = [layers / f"probe-{name}" for name in ("low", "high")]
    for folder in (work, point, *probes):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        owners = namespace(maps)
        try:
            view(layers, seen, owners)
        finally:
            os.close(owners)
        mounts.mount_root(tuple(seen / probe.name for probe in probes[:1]), point, None, seen / probes[1].name)
        shown = point.stat().st_uid
        return "" if shown == 1 << 28 else f"owners are not mapped (root's files are {shown}'s)"
    except (OSError, Unavailable) as error:
        return str(error)
    finally:
        for folder in (point, seen):
            mounts.unmount(folder)
        for folder in (seen, point, work, *probes):
            with contextlib.suppress(FileNotFoundError):
                folder.rmdir()


def missing_namespaces(program: str) -> str:
    """Blocking. Why no instance of the runtime `program` can have a user namespace with a /proc of its own; empty where
    it can."""
    if Path(program).name not in MAPPING:
        return f"{Path(program).name} maps no ids"
    unshare = programs.find("unshare")
    if unshare is None:
        return "unshare is not installed (util-linux)"
    command = [unshare, "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc", "true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=UNSHARE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (done.stderr.strip() or "it failed") if done.returncode else ""
