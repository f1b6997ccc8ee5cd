"""Files of a watched folder: listed, read and written through the folder's descriptor, never through a symlink.

All of this blocks; callers run it in a thread.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from faas.errors import BadFunctionResponse, InvalidInput, NotFound, PayloadTooLarge
from gateway.store.triggers import SeenFile

# Base64 makes 4 bytes of 3 and the event around it takes some more; a synchronous event has 6,291,556 bytes at most.
CONTENT_BYTES = 4_700_000
OUTPUTS = 100
NAME_BYTES = 255
FORBIDDEN = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/root", "/run", "/sbin",
             "/sys", "/usr", "/var/lib", "/var/log", "/var/cache", "/var/run", "/var/spool")  # fmt: skip


def check_folder(watch: str, data: Path) -> None:
    """Refuse folders that no function has business in: the system's, the server's own, hidden ones.

    Raises InvalidInput. Whether the folder is there is another question.
    """
    if watch != os.path.normpath(watch) or not watch.startswith("/") or watch.startswith("//"):
        raise InvalidInput(f"trigger.watch must be a plain absolute path without .. or trailing /, not {watch!r}")
    for path in {watch, os.path.realpath(watch)}:
        below = [root for root in (*FORBIDDEN, str(data), os.path.realpath(data)) if _within(path, root)]
        if path == "/" or below:
            raise InvalidInput(f"the folder {path} must not be watched", hint="choose one under /srv, /home or /mnt")
        if any(part.startswith(".") for part in path.split("/")):
            raise InvalidInput(f"the folder {path} is hidden: it must not be watched")


def _within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


@contextlib.contextmanager
def opened(watch: str) -> Iterator[int]:
    """The folder's descriptor. Raises NotFound that says why it cannot be used: gone, a symlink, no right."""
    try:
        folder = os.open(watch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(f"the watched folder {watch} cannot be read: {error.strerror}") from None
    try:
        # No component may be a symlink: what was checked at deploy is what is opened now.
        if str(Path(f"/proc/self/fd/{folder}").readlink()) != watch:
            raise NotFound(f"the watched folder {watch} leads elsewhere through a symlink")
        yield folder
    finally:
        os.close(folder)


def listing(watch: str, pattern: str) -> set[SeenFile]:
    """The regular files, not hidden, whose name matches. Raises NotFound."""
    found = set()
    with opened(watch) as folder, os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not fnmatchcase(entry.name, pattern) or not _encodable(entry.name):
                continue
            with contextlib.suppress(OSError):  # gone meanwhile
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    found.add(SeenFile(entry.name, status.st_mtime_ns, status.st_size))
    return found


def _encodable(name: str) -> bool:
    """A name that is not UTF-8 cannot stand in an event."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def read(watch: str, file: SeenFile) -> bytes:
    """The file's content, if it is still the same. Raises NotFound (gone, or changed), PayloadTooLarge."""
    if file.size > CONTENT_BYTES:
        raise PayloadTooLarge(f"{file.name} has {file.size} bytes; a folder trigger takes at most {CONTENT_BYTES}")
    with opened(watch) as folder:
        try:
            # O_NONBLOCK: a FIFO that has taken the name would hold us for ever.
            source = os.open(file.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except OSError as error:
            raise NotFound(f"{file.name} cannot be read: {error.strerror}") from None
        with open(source, "rb") as stream:
            status = os.fstat(source)
            if not stat.S_ISREG(status.st_mode) or (status.st_mtime_ns, status.st_size) != (file.mtime_ns, file.size):
                raise NotFound(f"{file.name} has changed since")
            return stream.read(CONTENT_BYTES + 1)


@dataclass(frozen=True, slots=True)
class Output:
    """A file that a function made: `temporary` lies beside the source until it takes its name."""

    file: SeenFile
    temporary: str


def outputs(payload: bytes) -> list[tuple[str, bytes]]:
    """`{"files": [{"name", "content_base64"}]}` → names and contents; any other answer makes no files.

    Raises BadFunctionResponse for a name that is not a plain file name, or content that is not base64.
    """
    try:
        value = json.loads(payload or b"null")
    except (ValueError, RecursionError):
        return []
    if not isinstance(value, dict) or not isinstance(value.get("files"), list):
        return []
    if len(value["files"]) > OUTPUTS:
        raise BadFunctionResponse(f"the function answered with more than {OUTPUTS} files")
    found: dict[str, bytes] = {}
    for row in value["files"]:
        name, content = (row.get("name"), row.get("content_base64")) if isinstance(row, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(content, str):
            raise BadFunctionResponse("each of the function's files needs name and content_base64")
        plain = name and not name.startswith(".") and "/" not in name and name.isprintable()
        if not plain or not _encodable(name) or len(name.encode()) > NAME_BYTES:
            raise BadFunctionResponse(f"not a plain file name: {name[:80]!r}")
        try:
            found[name] = base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError):
            raise BadFunctionResponse(f"the content of {name} is not base64") from None
    return list(found.items())


def write_temporary(watch: str, source: SeenFile, event_id: str, made: list[tuple[str, bytes]]) -> list[Output]:
    """Write the contents beside the source under hidden names, durably, owned as the folder is.

    A rename keeps size and time, so that what `listing` will see is known before the names are taken.
    """
    written = []
    with opened(watch) as folder:
        owner = os.fstat(folder)
        for number, (name, content) in enumerate(made):
            temporary = f".faas-{event_id}-{number}.tmp"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)  # of a run that was cut short
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(temporary, flags, 0o644, dir_fd=folder), "wb") as stream:
                if os.geteuid() == 0:
                    os.fchown(stream.fileno(), owner.st_uid, owner.st_gid)
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
                status = os.fstat(stream.fileno())
            written.append(Output(SeenFile(name, status.st_mtime_ns, status.st_size), temporary))
    return written


def publish(watch: str, made: list[Output]) -> None:
    """Let the files take their names, each in one step."""
    with opened(watch) as folder:
        for output in made:
            os.rename(output.temporary, output.file.name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
