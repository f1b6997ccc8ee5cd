"""`Digest`: `algorithm:hex`, checked (image-spec, descriptor, "Digests"). sha256 and sha512 are supported."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

_LENGTHS = {"sha256": 64, "sha512": 128}
ALGORITHMS = tuple(_LENGTHS)
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Raises ValueError on anything but a supported algorithm with lower-case hex of the right length."""
        algorithm, colon, encoded = text.partition(":")
        if not colon or _LENGTHS.get(algorithm) != len(encoded) or not _HEX.fullmatch(encoded):
            raise ValueError(f"not a sha256 or sha512 digest: {text[:160]!r}")
        return cls(algorithm, encoded)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    def hasher(self) -> Any:
        """A fresh hash object of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"
