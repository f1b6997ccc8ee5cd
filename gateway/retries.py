"""What becomes of an asynchronous event that failed: Lambda's table, as pure functions of the event and the time.

- the function's fault: again after 1 minute, then 2 minutes, at most `async.retries` times;
- want of capacity, or ours: again after 1 s, 2 s, 4 s … 5 min, until the event is `async.max_age` old.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from faas.spec import AsyncSpec
from gateway.store.invocations import QueuedEvent

RETRIES_EXHAUSTED, EVENT_AGE_EXCEEDED = "RetriesExhausted", "EventAgeExceeded"  # a destination record's `condition`


@dataclass(frozen=True, slots=True)
class RetryRules:
    """Seconds. `after` holds the wait before each retry; the back-off doubles from `first` to `longest`."""

    after: tuple[float, ...] = (60.0, 120.0)
    first: float = 1.0
    longest: float = 300.0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run failed. `fault`: the function's (it ran, or did not become ready); else there was no capacity.

    `response` is the function's own error object where it gave one; `final`: no other try would end otherwise.
    """

    error_type: str
    message: str
    fault: bool
    response: bytes = b""
    final: bool = False


def expired(event: QueuedEvent, spec: AsyncSpec, now: float) -> bool:
    """Whether the event is too old to be run (again)."""
    return now - event.created_at > spec.max_age.total_seconds()


def retried(event: QueuedEvent, failure: Failure, spec: AsyncSpec, now: float, rules: RetryRules) -> QueuedEvent | None:
    """The event as it is to be queued again, or None where it is to be given up."""
    if failure.fault:
        if failure.final or event.attempts >= spec.retries:
            return None
        wait = rules.after[min(event.attempts, len(rules.after) - 1)]
        attempts, deferrals = event.attempts + 1, event.deferrals
    else:
        wait = min(rules.longest, rules.first * 2.0 ** min(event.deferrals, 30))
        attempts, deferrals = event.attempts, event.deferrals + 1
    if now + wait - event.created_at > spec.max_age.total_seconds():
        return None
    return dataclasses.replace(
        event,
        attempts=attempts,
        deferrals=deferrals,
        not_before=now + wait,
        error_type=failure.error_type,
        error_message=failure.message,
    )
