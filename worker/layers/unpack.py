"""Unpack one layer, as a program of its own: `python unpack.py FOLDER < blob`, limits as JSON in the second argument.

It assumes that the archive is hostile. Before the first byte is parsed, its root becomes the destination, its memory,
time and file sizes are limited; `tarfile` only parses, every write is done here. Prints one JSON object: `{"digest",
"diff_id", "bytes", "entries", "skipped"}`, or `{"error"}` and exits with 1.

Whiteouts become overlayfs's own (kernel, Documentation/filesystems/overlayfs.rst; image-spec, layer.md "Whiteouts").
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import resource
import stat
import sys
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import zstandard

CHUNK = 1 << 18  # bytes read at once
WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
MEMORY_HEADROOM = 64 << 20  # bytes beyond what the interpreter has when it starts
RATIO_FREE = 64 << 20  # bytes that may come out before the ratio is looked at
ZSTD_WINDOW = 1 << 25  # bytes; common encoders stay at 8 MiB
MAX_ID = 2**31 - 2


class Refused(Exception):
    """The archive is broken or not acceptable; the text says why."""


class Source(io.RawIOBase):
    """The decompressed tar stream of a blob: hashed on both sides and bounded."""

    def __init__(self, blob: BinaryIO, limits: dict[str, Any]) -> None:
        self._chunks = self._decompressed(blob)
        self._pending = b""
        self._limits = limits
        self.compressed = hashlib.new(limits["algorithm"])
        self.plain = hashlib.sha256()
        self.taken = self.given = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, short only at the end, as tarfile's streams want it."""
        parts = []
        while size > 0:
            if not self._pending:
                self._pending = next(self._chunks, b"")
                if not self._pending:
                    break
            parts.append(self._pending[:size])
            self._pending = self._pending[size:]
            size -= len(parts[-1])
        return b"".join(parts)

    def drain(self) -> None:
        """Read on to the end, so that the digests cover every byte."""
        self._pending = b""
        for _ in self._chunks:
            pass

    def _raw(self, blob: BinaryIO) -> Iterator[bytes]:
        while chunk := blob.read(CHUNK):
            self.compressed.update(chunk)
            self.taken += len(chunk)
            yield chunk

    def _decompressed(self, blob: BinaryIO) -> Iterator[bytes]:
        raw = self._raw(blob)
        first = next(raw, b"")
        if first[:2] == b"\x1f\x8b":
            chunks = _gunzip(first, raw)
        elif first[:4] == b"\x28\xb5\x2f\xfd":
            chunks = _unzstd(first, raw)
        else:
            chunks = _plain(first, raw)
        for chunk in chunks:
            self.given += len(chunk)
            self.plain.update(chunk)
            if self.given > self._limits["bytes"] * 2:  # headers and padding of many small files
                raise Refused(f"the layer unpacks to more than {self._limits['bytes']} bytes")
            if self.given > RATIO_FREE and self.given > self.taken * self._limits["ratio"]:
                raise Refused(f"the layer is compressed more than {self._limits['ratio']} to 1: a bomb")
            yield chunk


def _plain(first: bytes, raw: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from raw


def _gunzip(first: bytes, raw: Iterator[bytes]) -> Iterator[bytes]:
    """All members, one after the other (RFC 1952 §2.2)."""
    member = zlib.decompressobj(31)
    data = first
    while True:
        while data:
            yield member.decompress(data, CHUNK)
            data = member.unconsumed_tail
            if member.eof:
                data = member.unused_data.lstrip(b"\x00")
                member = zlib.decompressobj(31)
        data = next(raw, b"")
        if not data:
            return


def _unzstd(first: bytes, raw: Iterator[bytes]) -> Iterator[bytes]:
    """All frames; the reader gives at most CHUNK bytes at a time, however small its input."""
    joined = _Joined(first, raw)
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
    with decompressor.stream_reader(joined, read_across_frames=True) as reader:  # type: ignore[arg-type]
        while chunk := reader.read(CHUNK):
            yield chunk


class _Joined(io.RawIOBase):
    def __init__(self, first: bytes, raw: Iterator[bytes]) -> None:
        self._data, self._raw = first, raw

    def read(self, size: int = -1) -> bytes:
        if not self._data:
            self._data = next(self._raw, b"")
        chunk, self._data = (self._data, b"") if size < 0 else (self._data[:size], self._data[size:])
        return chunk


class Writer:
    """Writes entries below the current folder, which is also the root of the file system."""

    def __init__(self, limits: dict[str, Any]) -> None:
        self._limits = limits
        self.bytes = self.entries = self.skipped = 0
        self._folders: list[tuple[str, tarfile.TarInfo]] = []  # whose times are set last

    def write(self, archive: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
        self.entries += 1
        if self.entries > self._limits["entries"]:
            raise Refused(f"the layer has more than {self._limits['entries']} entries")
        parts = [part for part in entry.name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise Refused(f"the name {entry.name[:200]!r} leaves the root")
        if len(parts) > self._limits["depth"]:
            raise Refused(f"a path is more than {self._limits['depth']} folders deep")
        if not parts:
            return
        name = parts[-1]
        if len(parts) > 1:
            self._make_folders(parts[:-1])
        path = "/".join(parts)
        if name == OPAQUE:
            os.setxattr("/".join(parts[:-1]) or ".", "trusted.overlay.opaque", b"y")
        elif name.startswith(WHITEOUT + WHITEOUT):
            self.skipped += 1  # aufs's own bookkeeping
        elif name.startswith(WHITEOUT):
            hidden = "/".join([*parts[:-1], name[len(WHITEOUT) :]])
            if name == WHITEOUT or name[len(WHITEOUT) :] in (".", ".."):
                raise Refused(f"the whiteout {entry.name[:200]!r} names nothing")
            self._remove(hidden)
            os.mknod(hidden, stat.S_IFCHR, os.makedev(0, 0))
        else:
            self._entry(archive, entry, path)

    def _entry(self, archive: tarfile.TarFile, entry: tarfile.TarInfo, path: str) -> None:
        if not 0 <= entry.uid <= MAX_ID or not 0 <= entry.gid <= MAX_ID:
            raise Refused(f"{path[:200]!r} has the owner {entry.uid}:{entry.gid}")
        if entry.isdir():
            if not (os.path.isdir(path) and not os.path.islink(path)):  # noqa: PTH112, PTH114 - no pathlib in here
                self._remove(path)
                os.mkdir(path)  # noqa: PTH102
            self._folders.append((path, entry))
        elif entry.isreg():
            self._file(archive, entry, path)
        elif entry.issym():
            self._remove(path)
            os.symlink(entry.linkname, path)  # noqa: PTH211
        elif entry.islnk():
            self._link(entry, path)
            return
        else:
            self.skipped += 1  # devices and FIFOs: nothing in a sandbox may use them
            return
        os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
        if not entry.issym():
            os.chmod(path, entry.mode & 0o1777)  # noqa: PTH101 - set-id bits have no effect inside: drop them
        if not entry.isdir():
            _set_time(path, entry)

    def _file(self, archive: tarfile.TarFile, entry: tarfile.TarInfo, path: str) -> None:
        self.bytes += entry.size
        if entry.size < 0 or self.bytes > self._limits["bytes"]:
            raise Refused(f"the layer unpacks to more than {self._limits['bytes']} bytes")
        self._remove(path)
        content = archive.extractfile(entry)
        assert content is not None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(path, flags, 0o600), "wb") as target:
            while chunk := content.read(CHUNK):
                target.write(chunk)

    def _link(self, entry: tarfile.TarInfo, path: str) -> None:
        target = [part for part in entry.linkname.split("/") if part not in ("", ".")]
        if ".." in target or not target:
            raise Refused(f"the hard link {path[:200]!r} leaves the root")
        if target != path.split("/"):
            self._remove(path)
            try:
                os.link("/".join(target), path, follow_symlinks=False)
            except FileNotFoundError:
                raise Refused(f"the hard link {path[:200]!r} points to nothing in its layer") from None

    def _make_folders(self, parts: list[str]) -> None:
        """Parents that the archive did not name. A link among them is followed, inside this root."""
        path = ""
        for part in parts:
            path = f"{path}/{part}" if path else part
            try:
                if not stat.S_ISDIR(os.stat(path).st_mode):  # noqa: PTH116
                    self._remove(path)
                    os.mkdir(path, 0o755)  # noqa: PTH102
            except FileNotFoundError:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)  # noqa: PTH108 - a link to nowhere
                os.mkdir(path, 0o755)  # noqa: PTH102

    def _remove(self, path: str) -> None:
        """A later entry replaces an earlier one of the same name."""
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(mode):
            os.unlink(path)  # noqa: PTH108
            return
        for folder, folders, files in os.walk(path, topdown=False):
            for name in files:
                os.unlink(f"{folder}/{name}")  # noqa: PTH108
            for name in folders:
                below = f"{folder}/{name}"
                os.unlink(below) if os.path.islink(below) else os.rmdir(below)  # noqa: PTH106, PTH108, PTH114
        os.rmdir(path)  # noqa: PTH106

    def finish(self) -> None:
        for path, entry in reversed(self._folders):
            if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114
                _set_time(path, entry)


def _set_time(path: str, entry: tarfile.TarInfo) -> None:
    with contextlib.suppress(OSError, OverflowError, ValueError):  # a date that no file system has
        os.utime(path, (int(entry.mtime), int(entry.mtime)), follow_symlinks=False)


def _confine(folder: str, limits: dict[str, Any]) -> None:
    """From here on this process has no other files, and little of the machine."""
    with open("/proc/self/statm") as statm:
        address_space = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + MEMORY_HEADROOM
    os.chroot(folder)
    os.chdir("/")
    os.umask(0)
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    resource.setrlimit(resource.RLIMIT_CPU, (limits["seconds"], limits["seconds"]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits["bytes"], limits["bytes"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def main(folder: str, limits: dict[str, Any]) -> dict[str, Any]:
    source = Source(sys.stdin.buffer, limits)
    writer = Writer(limits)
    _confine(folder, limits)
    try:
        with tarfile.open(fileobj=source, mode="r|", bufsize=CHUNK, errorlevel=2) as archive:
            for entry in archive:
                writer.write(archive, entry)
                archive.members = []  # type: ignore[attr-defined]  # tarfile would remember every entry
        writer.finish()
        source.drain()
    except Refused as error:
        return {"error": str(error)}
    except (tarfile.TarError, zlib.error, zstandard.ZstdError, EOFError, UnicodeError, ValueError) as error:
        return {"error": f"the layer is broken: {error}"}
    except MemoryError:
        return {"error": "the layer needs more memory to parse than is allowed"}
    except OSError as error:
        return {"error": f"the layer cannot be written: {os.strerror(error.errno or 0)}"}
    except RecursionError:
        return {"error": "the layer is nested too deeply"}
    return {
        "digest": source.compressed.hexdigest(),
        "diff_id": source.plain.hexdigest(),
        "bytes": writer.bytes,
        "entries": writer.entries,
        "skipped": writer.skipped,
    }


if __name__ == "__main__":
    outcome = main(sys.argv[1], json.loads(sys.argv[2]))
    sys.stdout.write(json.dumps(outcome))
    sys.exit(1 if "error" in outcome else 0)
