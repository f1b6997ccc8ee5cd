"""What is said between whoever wants wheels and the sandbox that builds them (`faas/runtimes/builder/build.py`).

One message is a kind and its content; over the control API each is a binary WebSocket message, kind first.

    to the builder: FILE {"name", "size"}, then DATA · GO {"arguments", "environment"}, once, then only answers
    ANSWER {"status", "type", "size"}, then DATA, to each
    from it: ASK {"path"} · LINE a line of output · WHEEL {"name", "size", "sha256", "known"}, then DATA where it is not
    known · END {"ok", "tail", "compiler"}
"""

from __future__ import annotations

from typing import Protocol

FILE, GO, ANSWER, DATA = b"F", b"G", b"A", b"D"
ASK, LINE, WHEEL, END = b"Q", b"L", b"W", b"X"
CHUNK = 1 << 18  # of DATA
MESSAGE_BYTES = 1 << 20
INDEX = "http://127.0.0.1:8090"  # as pip in the sandbox knows it
INPUT = "/tmp/in"  # noqa: S108 - where FILEs are, in a sandbox that is one build's alone


class Channel(Protocol):
    """To the sandbox of one build."""

    async def send(self, kind: bytes, content: bytes) -> None: ...

    async def receive(self) -> tuple[bytes, bytes]:
        """The next message. Raises FaasError where the server ends the build, with its reason."""
        ...
