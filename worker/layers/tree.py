"""`Tree`: the entries of one layer written below one folder, with no path ever handed to the kernel whole.

Every step is an open relative to the folder before it that does not follow links; a link among the parents is read
and walked like a name, never above the root. So confinement does not rest on the changed root alone, which the
unpacking child has besides.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from dataclasses import dataclass
from typing import BinaryIO

HOPS = 40  # links in one path, as the kernel's own limit
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
CHUNK = 1 << 18  # bytes copied at once
OPAQUE_XATTR = "trusted.overlay.opaque"


class Refused(Exception):
    """The archive is broken or not acceptable; the text says why."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """An entry's owner, permissions (without set-id bits) and time (whole seconds)."""

    uid: int
    gid: int
    mode: int
    mtime: int


def shown(name: str) -> str:
    return repr(name[:200])


def split(path: str) -> list[str]:
    """The names of a path, which may not climb. Raises Refused."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Refused(f"the name {shown(path)} leaves the root")
    return parts


class Tree:
    """Writes below the folder of the descriptor `root`; `lowers` are the layers below, the top one first."""

    def __init__(self, root: int, lowers: list[int], depth: int) -> None:
        self._root = root
        self._lowers = lowers
        self._depth = depth
        self._at: list[str] = []  # the names of the folder that was entered last, and its open parents
        self._open = [root]
        self._asked: list[str] | None = []

    def enter(self, parts: list[str], make: bool = True) -> int:
        """The folder at `parts`, made where it is missing; the descriptor stays the tree's.

        Raises Refused; without `make` OSError where there is no such folder.
        """
        if parts == self._asked:
            return self._open[-1]
        self._leave()
        todo, hops = deque(parts), 0
        while todo:
            part = todo.popleft()
            if part in ("", "."):
                continue
            if part == "..":
                self._up()
                continue
            target = self._step(part, make)
            if target is None:
                continue
            hops += 1
            if hops > HOPS:
                raise Refused(f"too many links in {shown('/'.join(parts))}")
            if target.startswith("/"):
                self._leave()
            todo.extendleft(reversed(target.split("/")))
        self._asked = list(parts)
        return self._open[-1]

    def _step(self, part: str, make: bool) -> str | None:
        """Go down one name; or the target, where it is a link."""
        here = self._open[-1]
        if len(self._at) >= self._depth:
            raise Refused(f"a path is more than {self._depth} folders deep")
        try:
            inner = os.open(part, FOLDER, dir_fd=here)
        except FileNotFoundError:
            if not make:
                raise
            inner = self._make(here, part)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            if stat.S_ISLNK(os.stat(part, dir_fd=here, follow_symlinks=False).st_mode):
                return os.readlink(part, dir_fd=here)
            if not make:
                raise
            os.unlink(part, dir_fd=here)  # a file, or a whiteout, that a folder replaces
            inner = self._make(here, part)
        self._open.append(inner)
        self._at.append(part)
        return None

    def _make(self, here: int, part: str) -> int:
        """A parent that the archive does not name: as it is in the layers below, since it will hide theirs."""
        os.mkdir(part, 0o755, dir_fd=here)
        inner = os.open(part, FOLDER, dir_fd=here)
        below = self.below([*self._at, part])
        if below is not None:
            folder, name = below
            try:
                known = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if stat.S_ISDIR(known.st_mode):
                    os.fchown(inner, known.st_uid, known.st_gid)
                    os.fchmod(inner, stat.S_IMODE(known.st_mode) & 0o1777)
            finally:
                os.close(folder)
        return inner

    def _up(self) -> None:
        if self._at:
            self._at.pop()
            os.close(self._open.pop())

    def _leave(self) -> None:
        """Back to the root."""
        self._asked = None
        while self._at:
            self._up()

    def below(self, parts: list[str]) -> tuple[int, str] | None:
        """(open folder, name) of what the layers below show at `parts`, for the caller to close; None where nothing."""
        for lower in self._lowers:
            folder, hidden = os.dup(lower), False
            try:
                for part in parts[:-1]:
                    inner = os.open(part, FOLDER, dir_fd=folder)
                    os.close(folder)
                    folder = inner
                    hidden = hidden or _is_opaque(folder)
                found = os.stat(parts[-1], dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                os.close(folder)
                if hidden:
                    return None
                continue
            except OSError:  # a file, a link or a whiteout stands where a folder was: it hides what is below
                os.close(folder)
                return None
            if stat.S_ISCHR(found.st_mode):
                os.close(folder)
                return None
            return folder, parts[-1]
        return None

    def folder(self, parts: list[str], attributes: Attributes) -> None:
        here, name = self.enter(parts[:-1]), parts[-1]
        try:
            inner = os.open(name, FOLDER, dir_fd=here)
        except OSError:
            self.remove(parts)
            os.mkdir(name, 0o700, dir_fd=here)
            inner = os.open(name, FOLDER, dir_fd=here)
        try:
            os.fchown(inner, attributes.uid, attributes.gid)
            os.fchmod(inner, attributes.mode)
        finally:
            os.close(inner)

    def set_folder_time(self, parts: list[str], mtime: int) -> None:
        """Nothing where a later entry replaced the folder."""
        with contextlib.suppress(OSError, Refused):
            inner = os.open(parts[-1], FOLDER, dir_fd=self.enter(parts[:-1], make=False))
            try:
                set_time(inner, mtime)
            finally:
                os.close(inner)

    def file(self, parts: list[str], attributes: Attributes, content: BinaryIO) -> None:
        self.remove(parts)
        with open(os.open(parts[-1], NEW_FILE, 0o600, dir_fd=self.enter(parts[:-1])), "wb") as target:
            while chunk := content.read(CHUNK):
                target.write(chunk)
            target.flush()
            os.fchown(target.fileno(), attributes.uid, attributes.gid)
            os.fchmod(target.fileno(), attributes.mode)
            set_time(target.fileno(), attributes.mtime)

    def link(self, parts: list[str], target: str, attributes: Attributes) -> None:
        self.remove(parts)
        here = self.enter(parts[:-1])
        os.symlink(target, parts[-1], dir_fd=here)
        os.chown(parts[-1], attributes.uid, attributes.gid, dir_fd=here, follow_symlinks=False)

    def hard_link(self, parts: list[str], target: list[str], attributes: Attributes) -> int:
        """Give what is at `target` a second name; what only a layer below has is copied. The bytes that were copied."""
        source = os.dup(self.enter(target[:-1]))
        try:
            real = [*self._at, target[-1]]
            try:
                os.stat(target[-1], dir_fd=source, follow_symlinks=False)
            except FileNotFoundError:
                return self._copy_up(parts, real, attributes)
            here = self.enter(parts[:-1])
            if [*self._at, parts[-1]] == real:
                return 0
            self.remove(parts)
            here = self.enter(parts[:-1])
            os.link(target[-1], parts[-1], src_dir_fd=source, dst_dir_fd=here, follow_symlinks=False)
            return 0
        finally:
            os.close(source)

    def _copy_up(self, parts: list[str], target: list[str], attributes: Attributes) -> int:
        below = self.below(target)
        if below is None:
            raise Refused(f"the hard link {shown('/'.join(parts))} points to nothing")
        folder, name = below
        try:
            known = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISLNK(known.st_mode):
                self.link(parts, os.readlink(name, dir_fd=folder), attributes)
                return 0
            if not stat.S_ISREG(known.st_mode):
                raise Refused(f"the hard link {shown('/'.join(parts))} points to no file")
            with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder), "rb") as content:
                own = Attributes(known.st_uid, known.st_gid, stat.S_IMODE(known.st_mode) & 0o1777, int(known.st_mtime))
                self.file(parts, own, content)
            return known.st_size
        finally:
            os.close(folder)

    def whiteout(self, parts: list[str]) -> None:
        """Hide what the layers below have at `parts`, in overlayfs's own way."""
        self.remove(parts)
        os.mknod(parts[-1], stat.S_IFCHR, os.makedev(0, 0), dir_fd=self.enter(parts[:-1]))

    def opaque(self, parts: list[str]) -> None:
        """Hide all that the layers below have in the folder at `parts`."""
        os.setxattr(self.enter(parts), OPAQUE_XATTR, b"y")

    def remove(self, parts: list[str]) -> None:
        """What an earlier entry put at `parts`, with all below; nothing there is no error."""
        here, name = self.enter(parts[:-1]), parts[-1]
        try:
            mode = os.stat(name, dir_fd=here, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        if stat.S_ISDIR(mode):
            _remove_folder(here, name)
        else:
            os.unlink(name, dir_fd=here)


def _remove_folder(here: int, name: str) -> None:
    """As deep as the tree's limit at most, so recursion is safe."""
    inner = os.open(name, FOLDER, dir_fd=here)
    try:
        with os.scandir(inner) as entries:
            rows = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for below, is_folder in rows:
            _remove_folder(inner, below) if is_folder else os.unlink(below, dir_fd=inner)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=here)


def _is_opaque(folder: int) -> bool:
    with contextlib.suppress(OSError):
        return os.getxattr(folder, OPAQUE_XATTR) == b"y"
    return False


def set_time(file: int, mtime: int) -> None:
    with contextlib.suppress(OSError, OverflowError):  # a date that no file system has
        os.utime(file, (mtime, mtime))
