"""What can be told of: kinds, subjects, and one look's observation of a subject, in words."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from faas.checkup.finding import MISSING, Finding
from gateway.notify.window import Calls
from gateway.router import function_label, parse_name
from gateway.spending import State as Standing
from gateway.spending import Watched

DAY = 86_400.0
SOON_SECONDS = 21 * DAY  # as `faas doctor`; certificates of our own CA are issued anew long before
URGENT_SECONDS = 3 * DAY
LISTED = 5  # digests in one sentence


class Kind(enum.StrEnum):
    FUNCTION = "function"
    SCHEDULE = "schedule"
    DEAD_LETTER = "dead-letter"
    BUDGET = "budget"
    DISK = "disk"
    CERTIFICATE = "certificate"
    BLOB = "blob"
    BACKUP = "backup"


MACHINE = frozenset({Kind.DISK, Kind.CERTIFICATE, Kind.BLOB, Kind.BACKUP})  # of no namespace


class Severity(enum.IntEnum):
    WARNING = 1
    CRITICAL = 2


@dataclass(frozen=True, slots=True, order=True)
class Subject:
    """`namespace` is "" for the machine's own; `name` as people write it (`hello.team`, `hello.team/nightly`)."""

    kind: Kind
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Observation:
    """Something is wrong, as one look saw it. Words are ours alone: nothing that a function has said is among them.

    `look`: the command that shows more. `share`: of what was looked at so much fails, 1 where that says nothing.
    """

    subject: Subject
    severity: Severity
    summary: str
    look: str
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class ScheduleEnd:
    """How the last fire time of a schedule ended that has ended: `status` of `gateway.store.schedules`."""

    namespace: str
    function: str
    name: str
    status: str
    fire_time: int


@dataclass(frozen=True, slots=True)
class Letters:
    """A function's dead letters of late: how many."""

    namespace: str
    function: str
    count: int


def functions(failing: Mapping[str, Calls], minutes: int) -> list[Observation]:
    """By their labels. Whether the share is too high is for each target to say."""
    found = []
    for label, calls in failing.items():
        namespace, _, _ = parse_name(label)
        summary = f"{calls.errors} of {calls.all} invocations failed in the last {minutes} minutes"
        share = calls.errors / calls.all
        severity = Severity.CRITICAL if share > 0.5 else Severity.WARNING
        look = f"faas logs {label} --since {2 * minutes}m"
        found.append(Observation(Subject(Kind.FUNCTION, namespace, label), severity, summary, look, share))
    return found


def schedules(ends: Iterable[ScheduleEnd]) -> list[Observation]:
    found = []
    for end in ends:
        if end.status == "success":
            continue
        label = function_label(end.namespace, end.function)
        how = "passed and did not run" if end.status == "missed" else "failed"
        found.append(
            Observation(
                Subject(Kind.SCHEDULE, end.namespace, f"{label}/{end.name}"),
                Severity.WARNING,
                f"its fire time {_written(end.fire_time)} {how}",
                f"faas schedule history {label} {end.name}",
            )
        )
    return found


def dead_letters(letters: Iterable[Letters], minutes: int) -> list[Observation]:
    found = []
    for one in letters:
        label = function_label(one.namespace, one.function)
        events = "1 event was" if one.count == 1 else f"{one.count} events were"
        found.append(
            Observation(
                Subject(Kind.DEAD_LETTER, one.namespace, label),
                Severity.WARNING,
                f"{events} given up in the last {minutes} minutes",
                f"faas dlq ls {label}",
            )
        )
    return found


def budgets(watched: Iterable[tuple[Watched, float]]) -> list[Observation]:
    """Each with the share of it that is used."""
    found = []
    for one, ratio in watched:
        if one.state is Standing.OK:
            continue
        budget = one.budget
        summary = f"{100 * ratio:.0f} % of this month's {budget.amount} {budget.unit.value} are used"
        is_reached = one.state is Standing.EXCEEDED
        if is_reached and budget.throttle:
            summary += "; calls are refused until the month ends"
        severity = Severity.CRITICAL if is_reached else Severity.WARNING
        found.append(
            Observation(Subject(Kind.BUDGET, budget.namespace, one.label), severity, summary, "faas budget ls")
        )
    return found


def disk(findings: Iterable[Finding]) -> list[Observation]:
    """Of `faas.checkup.disk.room`."""
    return [
        Observation(Subject(Kind.DISK, "", one.check), Severity.CRITICAL, one.found, "faas doctor")
        for one in findings
        if one.state == MISSING
    ]


def certificates(ends: Mapping[str, float], now: float) -> list[Observation]:
    """Name ("" for everybody else's) → Unix seconds."""
    found = []
    for name, end in ends.items():
        left = end - now
        if left > SOON_SECONDS:
            continue
        severity = Severity.CRITICAL if left <= URGENT_SECONDS else Severity.WARNING
        days = int(left / DAY)
        when = f"ends in {days} days, {_written(end)}" if left > 0 else f"ended {_written(end)}"
        subject = Subject(Kind.CERTIFICATE, "", name or "the listeners' own")
        found.append(Observation(subject, severity, f"it {when}", "faas doctor"))
    return found


def blobs(damaged: list[str]) -> list[Observation]:
    """Digests, and `repository@digest` of manifests."""
    if not damaged:
        return []
    more = f" and {len(damaged) - LISTED} more" if len(damaged) > LISTED else ""
    summary = f"{len(damaged)} found damaged and set aside: {', '.join(damaged[:LISTED])}{more}; a push mends them"
    return [Observation(Subject(Kind.BLOB, "", "registry"), Severity.CRITICAL, summary, "faas image scrub")]


def backup(failure: str) -> list[Observation]:
    """`failure`: what kept the last one from its end, "" where that was whole."""
    if not failure:
        return []
    summary = f"the last backup failed: {failure}"
    return [Observation(Subject(Kind.BACKUP, "", "backup"), Severity.CRITICAL, summary, "faas backup DIR --verify")]


def _written(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
