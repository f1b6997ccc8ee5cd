"""One subject as one target sees it: pure functions of what was, what was seen, and now (Unix seconds).

```
quiet ──bad in N of M looks──► firing ──no bad look for a while──► quiet
```

What the target was `told` stands beside that, and `due` is the difference: so nothing is told twice over a restart, and
no end is forgotten. What fires again soon after its end must be quiet for longer each time.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from dataclasses import dataclass
from typing import Any, Self

from gateway.notify.subjects import Kind, Observation, Severity

QUIET_SECONDS = 300.0  # without a bad look: it is over
CALM_SECONDS = 3600.0  # what fires again within it flaps; also the longest quiet time that is asked for
REPEAT_SECONDS = 4 * 3600


@dataclass(frozen=True, slots=True)
class Rule:
    """It fires after `bad` of the last `of` looks."""

    bad: int = 1
    of: int = 1


# What is written down somewhere (a dead letter, a fire time) does not flap by itself: one look is enough.
RULES = {kind: Rule(3, 5) if kind in (Kind.FUNCTION, Kind.DISK) else Rule() for kind in Kind}


@dataclass(frozen=True, slots=True)
class Told:
    """What the target was told last, and how often since it began."""

    severity: Severity
    at: float
    count: int


class Notice(enum.Enum):
    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class State:
    """`looks`: the last ones as bits, the newest lowest. `since`: the first bad look of what goes on. `told`: None
    where the target knows of nothing. `ended_at`, `flaps`: its last end, how often it fired soon after one."""

    looks: int = 0
    firing: bool = False
    since: float = 0.0
    bad_at: float = 0.0
    ended_at: float = 0.0
    flaps: int = 0
    severity: Severity = Severity.WARNING
    summary: str = ""
    look: str = ""
    told: Told | None = None

    def dump(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def load(cls, text: str, now: float) -> Self:
        """As it was stored; the quiet time begins anew, since nobody has looked meanwhile. Raises ValueError."""
        try:
            found: dict[str, Any] = json.loads(text)
            told = found.pop("told")
            known = Told(Severity(told.pop("severity")), **told) if told else None
            severity = Severity(found.pop("severity"))
            return cls(**{**found, "bad_at": now if found["firing"] else 0.0}, severity=severity, told=known)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no state: {error}") from None


def step(state: State, seen: Observation | None, rule: Rule, now: float) -> State:
    """After one look. `seen`: None where nothing was wrong. Who could not look does not call this."""
    looks = (state.looks << 1 | (seen is not None)) & ((1 << rule.of) - 1)
    if seen is None:
        return _after_a_good_one(dataclasses.replace(state, looks=looks), now)
    state = dataclasses.replace(
        state,
        looks=looks,
        since=state.since or now,
        bad_at=now,
        severity=seen.severity,
        summary=seen.summary,
        look=seen.look,
    )
    if state.firing or looks.bit_count() < rule.bad:
        return state
    flaps = state.flaps + 1 if state.ended_at and now - state.ended_at < CALM_SECONDS else 0
    return dataclasses.replace(state, firing=True, flaps=flaps)


def _after_a_good_one(state: State, now: float) -> State:
    if not state.firing:
        return state if state.looks or state.told else dataclasses.replace(state, since=0.0)
    if now - state.bad_at < quiet_seconds(state):
        return state
    return dataclasses.replace(state, firing=False, ended_at=now)


def quiet_seconds(state: State) -> float:
    return min(CALM_SECONDS, QUIET_SECONDS * 2.0 ** min(state.flaps, 10))


def due(state: State, repeat: float, now: float) -> Notice | None:
    """What the target should hear now."""
    told = state.told
    if not state.firing:
        return Notice.RESOLVED if told else None
    if told is None or state.severity > told.severity or now - told.at >= repeat:
        return Notice.FIRING
    return None


def heard(state: State, notice: Notice, severity: Severity, now: float) -> State:
    """After the target was told so. What has changed while that was on its way is due again."""
    if notice is Notice.FIRING:
        count = state.told.count + 1 if state.told else 1
        return dataclasses.replace(state, told=Told(severity, now, count))
    since = state.since if state.firing or state.looks else 0.0
    return dataclasses.replace(state, told=None, since=since)


def is_over(state: State, now: float) -> bool:
    """Whether nothing of it is worth remembering."""
    calm = not state.ended_at or now - state.ended_at >= CALM_SECONDS
    return not (state.firing or state.told or state.looks) and calm


def is_kept(state: State) -> bool:
    """Whether a restart must find it."""
    return bool(state.firing or state.told or state.ended_at)


def memorable(state: State) -> tuple[object, ...]:
    """What is written down when it changes."""
    return state.firing, state.severity, state.ended_at, state.flaps, state.told
