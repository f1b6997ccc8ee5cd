"""Unpack one layer, as a program of its own: `python -m worker.layers.unpack FOLDER LIMITS < blob` (JSON limits).

It assumes that the archive is hostile. Before the first byte is parsed, the process is in the jail of
`worker.layers.jail`; `tarfile` only parses, every write is `worker.layers.tree`'s. Prints one JSON object:
`{"digest", "diff_id", "bytes", "entries", "skipped"}`, or `{"error"}` and exits with 1.

Whiteouts become overlayfs's own (kernel, Documentation/filesystems/overlayfs.rst; image-spec, layer.md "Whiteouts").
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import zstandard

from worker.layers.jail import confine
from worker.layers.tree import Attributes, Refused, Tree, shown, split

CHUNK = 1 << 18  # bytes read at once
WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
RATIO_FREE = 64 << 20  # bytes that may come out before the ratio is looked at
ZSTD_WINDOW = 1 << 25  # bytes; common encoders stay at 8 MiB
MAX_ID = 2**31 - 2
MAX_TIME = 2**40  # seconds; a larger one is a mistake or an attack


def too_large(limits: dict[str, Any]) -> Refused:
    return Refused(f"the layer unpacks to more than the {limits['bytes']} bytes that its image may still have")


class Source(io.RawIOBase):
    """The decompressed tar stream of a blob: hashed on both sides and bounded."""

    def __init__(self, blob: BinaryIO, limits: dict[str, Any]) -> None:
        self._chunks = self._decompressed(blob)
        self._pending = b""
        self._limits = limits
        self.compressed = hashlib.new(limits["algorithms"][0])
        self.plain = hashlib.new(limits["algorithms"][1])
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
            if self.given > self._limits["bytes"] * 2 + RATIO_FREE:  # headers and padding of many small files
                raise too_large(self._limits)
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
    """Turns entries into what `tree` holds, within `limits`."""

    def __init__(self, tree: Tree, limits: dict[str, Any]) -> None:
        self._tree = tree
        self._limits = limits
        self.bytes = self.entries = self.skipped = 0
        self._times: dict[str, int] = {}  # of folders, set last: every entry in one changes it

    def write(self, archive: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
        self.entries += 1
        if self.entries > self._limits["entries"]:
            raise Refused(f"the layer has more than {self._limits['entries']} entries")
        parts = split(entry.name)
        if len(parts) > self._limits["depth"]:
            raise Refused(f"a path is more than {self._limits['depth']} folders deep")
        if not parts:
            return
        name = parts[-1]
        if name == OPAQUE:
            self._tree.opaque(parts[:-1])
        elif name.startswith(WHITEOUT + WHITEOUT):
            self.skipped += 1  # aufs's own bookkeeping
        elif name.startswith(WHITEOUT):
            hidden = name[len(WHITEOUT) :]
            if hidden in ("", ".", ".."):
                raise Refused(f"the whiteout {shown(entry.name)} names nothing")
            self._tree.whiteout([*parts[:-1], hidden])
        else:
            self._entry(archive, entry, parts)

    def _entry(self, archive: tarfile.TarFile, entry: tarfile.TarInfo, parts: list[str]) -> None:
        if not 0 <= entry.uid <= MAX_ID or not 0 <= entry.gid <= MAX_ID:
            raise Refused(f"{shown(entry.name)} has the owner {entry.uid}:{entry.gid}")
        # Set-id bits have no effect inside: dropped, so that none lies on the host's disk.
        mtime = int(entry.mtime) if abs(entry.mtime) < MAX_TIME else 0
        attributes = Attributes(entry.uid, entry.gid, entry.mode & 0o1777, mtime)
        if entry.isdir():
            self._tree.folder(parts, attributes)
            self._times["/".join(parts)] = mtime
        elif entry.isreg():
            self._take(entry.size)
            content = archive.extractfile(entry)
            assert content is not None
            self._tree.file(parts, attributes, content)  # type: ignore[arg-type]
        elif entry.issym():
            self._tree.link(parts, entry.linkname, attributes)
        elif entry.islnk():
            self._take(self._tree.hard_link(parts, self._link_target(entry), attributes))
        else:
            self.skipped += 1  # devices and FIFOs: nothing in a sandbox may use them

    def _take(self, size: int) -> None:
        self.bytes += size
        if size < 0 or self.bytes > self._limits["bytes"]:
            raise too_large(self._limits)

    @staticmethod
    def _link_target(entry: tarfile.TarInfo) -> list[str]:
        try:
            target = split(entry.linkname)
        except Refused:
            target = []
        if not target:
            raise Refused(f"the hard link {shown(entry.name)} leaves the root")
        return target

    def finish(self) -> None:
        for path, mtime in self._times.items():
            self._tree.set_folder_time(path.split("/"), mtime)


def main(folder: str, limits: dict[str, Any]) -> dict[str, Any]:
    source = Source(sys.stdin.buffer, limits)
    confine(folder, limits)
    tree = Tree(os.open("/", os.O_RDONLY | os.O_DIRECTORY), limits["lowers"], limits["depth"])
    writer = Writer(tree, limits)
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
        return {"error": f"the layer cannot be written: {os.strerror(error.errno or 0)}", "errno": error.errno}
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
