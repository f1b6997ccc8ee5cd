"""How many instances a revision should have: a pure function of what was asked, what was observed, and the time.

Two rules, by `concurrency`:

- **1** (every Lambda handler): an invocation needs an instance of its own, so instances follow the demand at once,
  and stay while any moment of the last `scale.idle` needed them.
- **more** (http functions): instances are wanted for the average over 60 s ÷ (`target` × `concurrency`); when the
  average over 6 s wants twice what there is, it panics: follows the short average and does not come down for 60 s.
  What is waiting now is never kept waiting for an average.

"I don't know" is a value (`valid=False`) and never takes an instance away.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from faas.spec import FunctionSpec
from gateway import keepalive
from gateway.collector import STABLE_SECONDS, Observed
from gateway.keepalive import Windows

PANIC_THRESHOLD = 2.0  # panic when the short average wants this many times what there is
MAX_UP_RATE = 10.0  # by averages, at most this many times what there is in one decision


@dataclass(frozen=True, slots=True)
class Panic:
    """The memory of a panic: until when, and the most that was wanted in it."""

    until: float
    most: int


@dataclass(frozen=True, slots=True)
class ScaleResult:
    """`desired` instances and why; with `valid` False nothing may be scaled down. `panic` goes into the next call."""

    desired: int
    valid: bool
    reason: str
    panic: Panic | None = None


def decide(
    spec: FunctionSpec,
    observed: Observed | None,
    now: float,
    *,
    live: bool = True,
    panic: Panic | None = None,
    windows: Windows | None = None,
) -> ScaleResult:
    """The number of instances wanted at `now` (seconds, monotonic).

    `live`: the revision is the one that `live` names; only there `scale.min` holds. `windows`: what was learned of the
    function's calls, where its `scale.idle` says so.
    """
    if observed is None:
        return ScaleResult(0, False, "nothing is known", panic)
    if windows is not None and observed.ended is not None:
        observed = dataclasses.replace(observed, peak=_expected(observed, observed.ended, now, windows))
    low = spec.scale.min if live else 0
    if spec.concurrency > 1:
        wanted, reason, panic = _by_average(spec, observed, now, panic)
    elif observed.peak > observed.demand:
        needed = f"{observed.peak} were needed within the idle window"
        wanted, reason = observed.peak, needed if windows is None else f"learned: {windows.reason}"
    else:
        wanted, reason = observed.demand, f"{observed.demand} in flight"
    desired = max(low, min(wanted, spec.scale.limit))
    if desired != wanted:
        reason += f", held to {low}..{spec.scale.limit}"
    return ScaleResult(desired, True, reason, panic)


def _expected(observed: Observed, ended: float, now: float, windows: Windows) -> int:
    """What stands for the peak while nothing is in flight: nothing where no call is expected, room for one call where
    one is. What has not gone since the last call, and what was seeded, stays as long as a fixed window holds it."""
    stays = observed.seeded or not windows.prewarm or now - ended <= windows.linger
    if keepalive.wanted(windows, ended, now):
        return max(observed.peak if stays else 0, 1)
    return observed.peak if observed.seeded else 0


def _by_average(
    spec: FunctionSpec, observed: Observed, now: float, panic: Panic | None
) -> tuple[int, str, Panic | None]:
    target = max(1.0, spec.scale.target * spec.concurrency)
    ceiling = math.ceil(max(observed.instances, 1) * MAX_UP_RATE)
    stable = min(math.ceil(observed.stable / target - 1e-9), ceiling)
    short = min(math.ceil(observed.panic / target - 1e-9), ceiling)
    # No average may keep a request waiting, and what was really needed within `idle` stays.
    now_needed = math.ceil(observed.demand / spec.concurrency)
    kept = math.ceil(observed.peak / spec.concurrency)
    if observed.instances and short >= PANIC_THRESHOLD * observed.instances:
        panic = Panic(now + STABLE_SECONDS, max(short, panic.most if panic else 0))
    elif panic is not None and now >= panic.until:
        panic = None
    if panic is not None:
        panic = Panic(panic.until, max(panic.most, short, stable))
        return max(panic.most, now_needed, kept), f"panic: {observed.panic:.1f} on average of 6 s", panic
    # An average that fades out must not hold the last instance for longer than `idle` asks.
    wanted = stable if observed.peak or observed.demand else 0
    return max(wanted, now_needed, kept), f"{observed.stable:.1f} on average of 60 s", None
