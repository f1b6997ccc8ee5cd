"""Platforms by the names that image configs and indexes use (image-spec, image-index.md "platform"): Go's."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}
_WRITTEN = re.compile(r"([a-z0-9_.-]+)/([a-z0-9_.-]+)(?:/([a-z0-9_.-]+))?")


def architecture() -> str:
    """This machine's."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


@dataclass(frozen=True, slots=True)
class Platform:
    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        """`linux/amd64`, `linux/arm/v7`. Raises ValueError."""
        found = _WRITTEN.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is no platform: OS/ARCHITECTURE, such as linux/amd64")
        return cls(found[1], found[2], found[3] or "")

    def fits(self, os: str, architecture: str, variant: str = "") -> bool:
        """Whether an image for that is one for this; without a variant here, any fits."""
        return (self.os, self.architecture) == (os, architecture) and self.variant in ("", variant)

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))
