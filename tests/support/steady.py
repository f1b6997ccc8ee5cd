"""A steady, well-behaved load on one function: what it lost, and how long its answers took."""

from __future__ import annotations

import http.client
import math
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

GOOD = """
def handler(event, context):
    return {"statusCode": 200, "body": event["rawPath"]}
"""
GOOD_TOML = "memory = 256\n[scale]\nmin = 2\nmax = 4"
ANSWER_SECONDS = 30.0


def percentile(values: Iterable[float], share: float) -> float:
    """Nearest rank: a value that was measured."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


class Beside(threading.Thread):
    """Runs as long as the block lasts: until `_enough` is set."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._enough = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._enough.set()
        self.join()


class Steady(Beside):
    """Calls the function at `path`, which answers with the path that it was called by, every `pause` seconds, as long
    as the block lasts. `lost` says what went wrong, `taken` how many seconds each answer took.

    Open loop: a call's time counts from when it was due, so a server that stands still is seen in every call that it
    keeps waiting.
    """

    def __init__(self, public: str, path: str, pause: float = 0.02) -> None:
        super().__init__()
        self._host = public.removeprefix("http://")
        self._path = path
        self._pause = pause
        self.lost: list[str] = []
        self.taken: list[float] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._host, timeout=ANSWER_SECONDS)
        due = time.monotonic()
        while not self._enough.wait(max(0.0, due - time.monotonic())):
            self._call(connection, f"/{len(self.taken)}")
            self.taken.append(time.monotonic() - due)
            due += self._pause
        connection.close()

    def _call(self, connection: http.client.HTTPConnection, mark: str) -> None:
        try:
            connection.request("GET", self._path + mark)
            answer = connection.getresponse()
            body = answer.read().decode()
            if (answer.status, body) != (200, mark):
                self.lost.append(f"{mark}: {answer.status} {body[:200]}")
        except (OSError, http.client.HTTPException) as error:
            self.lost.append(f"{mark}: {error!r}")
            connection.close()  # the next call connects anew

    def p99_ms(self) -> float:
        return percentile(self.taken, 0.99) * 1000
