"""Unpack one blob and say what it cost: `python -m tests.support.unpacking FOLDER LIMITS < blob` (JSON limits).

A process of its own, since the peak that the kernel tells of children is that of the largest one, and begins with what
their parent had when it started them.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from faas.errors import ImageUnusable
from worker.layers.unpacker import Unpacker, UnpackLimits


@dataclass(frozen=True)
class Unpacking:
    """`error` holds the refusal's words, or nothing where it worked; `peak_bytes` is the jailed child's memory."""

    error: str
    peak_bytes: int


def unpack_measured(blob: BinaryIO, folder: Path, limits: UnpackLimits) -> Unpacking:
    command = [sys.executable, "-m", "tests.support.unpacking", str(folder), json.dumps(asdict(limits))]
    done = subprocess.run(command, stdin=blob, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return Unpacking(**json.loads(done.stdout))


def main(folder: str, limits: str) -> None:
    error = ""
    try:
        Unpacker().unpack(sys.stdin.buffer, Path(folder), UnpackLimits(**json.loads(limits)))
    except ImageUnusable as refusal:
        error = refusal.message
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(json.dumps(asdict(Unpacking(error, peak))))


if __name__ == "__main__":
    main(*sys.argv[1:])
