"""Code as `faas dev` sends it, a compressed layer, put into a file as it is unpacked."""

from __future__ import annotations

import errno
import hashlib
import zlib
from pathlib import Path

from faas.build.layer import Layer
from faas.dev import UNPACKED_BYTES
from faas.errors import InvalidInput, PayloadTooLarge, StorageFull
from faas.oci.digest import Digest

CHUNK = 1 << 20
_GZIP = 31  # zlib: a gzip header and trailer are expected


def stored(body: bytes, folder: Path) -> Layer:
    """Blocking. `body` (gzip of a tar) as `folder/HEX.tar`; whether it is a tar is for who unpacks it to say.

    Raises InvalidInput, PayloadTooLarge, StorageFull.
    """
    partial = folder / "code.new"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        digest, size = _unzipped(body, partial)
        path = folder / f"{digest.hex}.tar"
        partial.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("the server's disk has no room for this code") from None
        raise
    finally:
        partial.unlink(missing_ok=True)
    return Layer(path, digest, size, "code")


def _unzipped(body: bytes, path: Path) -> tuple[Digest, int]:
    hasher, size, unzip = hashlib.sha256(), 0, zlib.decompressobj(_GZIP)
    with path.open("wb") as file:
        rest = body
        while not unzip.eof:
            try:
                data = unzip.decompress(rest, CHUNK)
            except zlib.error:
                raise InvalidInput("the code is no gzip") from None
            size += len(data)
            if size > UNPACKED_BYTES:
                raise PayloadTooLarge(f"the code has more than {UNPACKED_BYTES >> 20} MiB")
            if not data and not unzip.unconsumed_tail and not unzip.eof:
                raise InvalidInput("the code is cut off")
            hasher.update(data)
            file.write(data)
            rest = unzip.unconsumed_tail
    return Digest("sha256", hasher.hexdigest()), size
