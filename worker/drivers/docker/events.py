"""How containers end: from one stream of an engine's events; after an engine's restart, from its own look at them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVarTuple

from worker.drivers.base import Exit

log = logging.getLogger("worker.drivers.docker")

ENDED = ("exited", "dead", "stopped")  # the last is Podman's, until it has cleaned up
RETRY_SECONDS = 0.5  # between looks at an engine that does not answer
Ts = TypeVarTuple("Ts")


class Endings:
    """Listens in a thread of its own, until closed, and tells it in the loop that made it.

    `ended` may be called twice for one container; `back` when an engine that was gone answers again. `known` are the
    containers that somebody waits for; `errors` are what calls of `api` may raise.
    """

    def __init__(
        self,
        api: Any,
        label: str,
        known: Callable[[], list[str]],
        ended: Callable[[str, Exit], None],
        back: Callable[[], None],
        errors: tuple[type[Exception], ...],
    ) -> None:
        self._api = api
        self._filters = {"type": "container", "event": "die", "label": label}
        self._known = known
        self._ended = ended
        self._back = back
        self._errors: tuple[type[Exception], ...] = (*errors, ValueError)  # on a torn answer
        self._loop = asyncio.get_running_loop()
        self._stream: Any = None
        self._closing = threading.Event()
        threading.Thread(target=self._listen, name="docker events", daemon=True).start()

    def close(self) -> None:
        self._closing.set()
        if self._stream is not None:
            with contextlib.suppress(*self._errors, AttributeError):  # it has broken off already
                self._stream.close()

    def _listen(self) -> None:
        lost = False
        while not self._closing.is_set():
            since = int(time.time())  # what ends between the look and the stream is told by the stream
            why: object = "the stream of its events ended"
            try:
                self._look()
                self._stream = self._api.events(since=since, filters=self._filters, decode=True)
                if lost:
                    log.warning("the Docker Engine answers again")
                    self._tell(self._back)
                lost = False
                for event in self._stream:
                    container = event["Actor"]["ID"]
                    code = int(event["Actor"]["Attributes"].get("exitCode", -1))
                    self._tell(self._ended, container, exit_of(code, self._state(container)))
            except self._errors as error:
                why = error
            if not lost and not self._closing.is_set():
                log.error("the Docker Engine does not answer; no instance starts until it does: %s", why)
            lost = True
            self._closing.wait(RETRY_SECONDS)

    def _look(self) -> None:
        """What ended while nobody listened."""
        for container in self._known():
            state = self._state(container)
            if state["Status"] in ENDED:
                self._tell(self._ended, container, exit_of(state["ExitCode"], state))

    def _tell(self, what: Callable[[*Ts], None], *about: *Ts) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed
            self._loop.call_soon_threadsafe(what, *about)

    def _state(self, container: str) -> dict[str, Any]:
        try:
            state: dict[str, Any] = self._api.inspect_container(container)["State"]
        except self._errors as error:
            if getattr(error, "status_code", None) != 404:
                raise
            return {"Status": "dead", "ExitCode": 137}  # somebody has removed it
        return state


def exit_of(code: int, state: dict[str, Any]) -> Exit:
    """Of an engine's `State`."""
    number = code - 128 if 128 < code < 193 else 0
    return Exit(code, number, bool(state.get("OOMKilled")) and code != 0)
