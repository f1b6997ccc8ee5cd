"""`Failures`: what went wrong lately with functions' instances, by revision; the last few, in memory."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from faas.errors import FaasError, FunctionError, InitFailed
from faas.protocol import Failure, Health, RevisionKey

KEPT = 5  # failures of each revision
STARTS = 10  # whose ends are remembered
MOST = 4096  # revisions; those that nothing happened to for longest go first
MESSAGE_CHARACTERS, TAIL_CHARACTERS = 500, 2000
NO_HEALTH = Health()


@dataclass(slots=True)
class _Kept:
    """Of one revision. `since`: when the starts began to fail that have failed ever since."""

    starts: deque[bool] = field(default_factory=lambda: deque(maxlen=STARTS))  # whether it failed, the oldest first
    since: float | None = None
    last: Failure | None = None  # of its starts
    failures: deque[Failure] = field(default_factory=lambda: deque(maxlen=KEPT))


class Failures:
    """`clock` gives Unix seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._kept: OrderedDict[RevisionKey, _Kept] = OrderedDict()

    def started(self, key: RevisionKey) -> None:
        """An instance is ready."""
        if (kept := self._kept.get(key)) is not None:  # one that never failed costs nothing
            kept.starts.append(False)
            kept.since = kept.last = None

    def start_failed(self, key: RevisionKey, instance: str, error: FaasError) -> None:
        """It did not become ready, or ended right after that."""
        failure = self._failure(key, instance, error)
        kept = self._of(key)
        kept.starts.append(True)
        kept.since = failure.at if kept.since is None else kept.since
        kept.last = failure
        kept.failures.append(failure)

    def invocation_failed(
        self, key: RevisionKey, instance: str, request_id: str, error: BaseException | None, error_type: str | None
    ) -> None:
        """`error` is what its caller gets; None: the function answered an error of its own, of that type."""
        if isinstance(error, FaasError):
            failure = self._failure(key, instance, error, request_id)
        else:
            name = (error_type or "Function.Error")[:MESSAGE_CHARACTERS]
            words = "the function answered an error"
            failure = Failure(self._clock(), key.number, instance, name, words, request_id=request_id)
        self._of(key).failures.append(failure)

    def health(self, key: RevisionKey, waiting_for_memory: int = 0) -> Health:
        kept = self._kept.get(key)
        if kept is None:
            return Health(waiting_for_memory=waiting_for_memory) if waiting_for_memory else NO_HEALTH
        failed = sum(kept.starts)
        return Health(len(kept.starts), failed, kept.since, kept.last, waiting_for_memory, tuple(kept.failures))

    def _of(self, key: RevisionKey) -> _Kept:
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = _Kept()
            if len(self._kept) > MOST:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return kept

    def _failure(self, key: RevisionKey, instance: str, error: FaasError, request_id: str = "") -> Failure:
        return Failure(
            self._clock(),
            key.number,
            instance,
            error.error_type if isinstance(error, FunctionError) else error.code,
            (error.message.splitlines() or [""])[0][:MESSAGE_CHARACTERS],
            error.hint[:MESSAGE_CHARACTERS],
            request_id,
            error.log_tail[-TAIL_CHARACTERS:] if isinstance(error, InitFailed) else "",
        )
