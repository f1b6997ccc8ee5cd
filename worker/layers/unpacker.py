"""`Unpacker`: starts one jailed child per layer, hears how it ended, and can end those that run."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from faas.errors import FaasError, ImageUnusable, Unavailable

OUR_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}  # not the archive's
_PACKAGES = Path(__file__).resolve().parent.parent.parent  # where the child finds this package


@dataclass(frozen=True, slots=True)
class UnpackLimits:
    """What an image (`bytes`) and each of its layers may cost. `ratio` is unpacked to compressed, beyond 64 MiB."""

    bytes: int = 10 << 30  # Lambda's limit
    entries: int = 500_000
    depth: int = 200
    ratio: int = 200
    seconds: int = 300


class Unpacker:
    """Its `unpack` blocks: call it in a thread. Once closed it ends what runs and starts nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def close(self) -> None:
        """Quick. Whoever waits for a child hears Unavailable."""
        with self._lock:
            self._closed = True
            for child in self._running:
                child.kill()

    def unpack(
        self,
        blob: BinaryIO,
        folder: Path,
        limits: UnpackLimits,
        algorithms: tuple[str, str] = ("sha256", "sha256"),
        lowers: Sequence[Path] = (),
    ) -> dict[str, Any]:
        """Blocking. Unpack `blob` into the empty `folder`: the child's report. Raises ImageUnusable with the reason.

        `algorithms` are those of the blob's digest and of the diff id. `lowers` are the layers below, the top one
        first: a hard link may point into them.
        """
        with contextlib.ExitStack() as stack:
            descriptors = [os.open(lower, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for lower in lowers]
            for descriptor in descriptors:
                stack.callback(os.close, descriptor)
            arguments = {**asdict(limits), "algorithms": algorithms, "lowers": descriptors}
            command = [sys.executable, "-B", "-s", "-m", "worker.layers.unpack", str(folder), json.dumps(arguments)]
            with self._child(command, blob, descriptors) as child:
                return self._report(child, limits.seconds)

    @contextlib.contextmanager
    def _child(self, command: list[str], blob: BinaryIO, descriptors: list[int]) -> Iterator[subprocess.Popen[bytes]]:
        with self._lock:
            if self._closed:
                raise _stopping()
            try:
                child = subprocess.Popen(
                    command,
                    stdin=blob,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    cwd="/",
                    env={"PYTHONPATH": str(_PACKAGES)},
                    pass_fds=descriptors,
                )
            except OSError as error:
                raise FaasError(f"cannot start the unpacking: {error}") from None
            self._running.add(child)
        try:
            with child:  # closes its pipes, and waits
                try:
                    yield child
                finally:
                    child.kill()  # nothing where it has ended
        finally:
            with self._lock:
                self._running.discard(child)

    def _report(self, child: subprocess.Popen[bytes], seconds: int) -> dict[str, Any]:
        try:
            said, complaints = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise ImageUnusable(f"unpacking a layer took more than {seconds} s") from None
        if child.returncode < 0 and self._closed:
            raise _stopping()
        if child.returncode < 0:
            raise ImageUnusable(f"unpacking a layer was ended by signal {-child.returncode}: it costs too much")
        try:
            outcome: dict[str, Any] = json.loads(said)
        except ValueError:
            raise FaasError(f"unpacking a layer failed: {_last_line(complaints)}") from None
        if outcome.get("errno") in OUR_FAULTS:
            raise Unavailable(outcome["error"], hint="free space in the data folder")
        if "error" in outcome:
            raise ImageUnusable(outcome["error"])
        return outcome


def _stopping() -> Unavailable:
    return Unavailable("the server is stopping")


def _last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "nothing was said"
