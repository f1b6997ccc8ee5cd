"""Files of a watched folder: listed, read and written through the folder's descriptor, never through a symlink.

All of this blocks; callers run it in a thread.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import json
import os
import signal
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from faas.errors import BadFunctionResponse, NotFound, PayloadTooLarge
from gateway.store.triggers import SeenFile

# Base64 makes 4 bytes of 3 and the event around it takes some more; a synchronous event has 6,291,556 bytes at most.
CONTENT_BYTES = 4_700_000
OUTPUTS = 100
NAME_BYTES = 255
# O_NONBLOCK: a FIFO that has taken the name would hold us for ever.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# File systems whose leases are a server's word on caching: they say nothing of who is writing.
_LEASED_BY_SERVER = {"nfs4", "cifs", "smb3"}


@contextlib.contextmanager
def opened(watch: str) -> Iterator[int]:
    """The folder's descriptor. Raises NotFound that says why it cannot be used: gone, a symlink, no right."""
    try:
        folder = os.open(watch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        who = f" (the server runs as the user {os.geteuid()})" if isinstance(error, PermissionError) else ""
        raise NotFound(f"the watched folder {watch} cannot be read: {error.strerror}{who}") from None
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


def being_written(watch: str, found: Iterable[SeenFile]) -> set[SeenFile] | None:
    """Those of the files that a program of this machine has open for writing; None where that cannot be told here.

    A read lease is refused while there is such a program, and given back at once where it is granted.
    """
    with opened(watch) as folder:
        if _file_system(folder) in _LEASED_BY_SERVER:
            return None
        written = set()
        for file in found:
            try:
                source = os.open(file.name, _READ, dir_fd=folder)
            except OSError:  # gone meanwhile
                continue
            try:
                # A writer that comes in between is announced to us by a signal: SIGIO, the usual one, would end us.
                fcntl.fcntl(source, fcntl.F_SETSIG, signal.SIGURG)
                fcntl.fcntl(source, fcntl.F_SETLEASE, fcntl.F_RDLCK)
                fcntl.fcntl(source, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            except BlockingIOError:
                written.add(file)
            except OSError:  # there are none here, or none for us: not root, and not our file
                return None
            finally:
                os.close(source)
        return written


def _file_system(folder: int) -> str:
    """Its type; "" where it cannot be told."""
    device = os.fstat(folder).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            mount, _, source = line.partition(" - ")
            if mount.split()[2] == number:
                return source.split()[0]
    return ""


def read(watch: str, file: SeenFile) -> bytes:
    """The file's content, if it is still the same. Raises NotFound (gone, or changed), PayloadTooLarge."""
    if file.size > CONTENT_BYTES:
        raise PayloadTooLarge(f"{watch}/{file.name} has {file.size:,} bytes; an event holds at most {CONTENT_BYTES:,}")
    with opened(watch) as folder:
        try:
            source = os.open(file.name, _READ, dir_fd=folder)
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
