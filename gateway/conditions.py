"""Why a function is not ready, since when, and what to do: from what was observed to a list of conditions. Pure.

As Knative's: each has a type, a status, a reason in one word and a message for people. `Ready` comes first and says all
of them in one; a False one whose severity is `error` makes it False, a `warning` does not, `info` is as it should be.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from faas.protocol import Health, Revision, RevisionStats

ALL_FAIL = 2  # starts in a row that failed: below that it may have been one bad moment
CRASH_LOOP = 3
MEGABYTE = 1_048_576


class Status(enum.StrEnum):
    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Severity(enum.StrEnum):
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


_RANKS = {severity: rank for rank, severity in enumerate(Severity)}


@dataclass(frozen=True, slots=True)
class Condition:
    """`since` is Unix time, None where nobody knows; `action` is what to do, "" where nothing is to be done."""

    type: str
    status: Status
    reason: str
    message: str = ""
    since: float | None = None
    action: str = ""
    severity: Severity = Severity.ERROR

    @property
    def is_bad(self) -> bool:
        return self.status is not Status.TRUE and self.severity is not Severity.INFO


@dataclass(frozen=True, slots=True)
class Deploy:
    """The last deploy, where it failed."""

    at: float
    code: str
    message: str
    hint: str = ""
    log_tail: str = ""
    image: str = ""
    by: str = ""
    request_id: str = ""
    live: int = 0  # the number of the revision that was live then


class Observed(NamedTuple):
    """What is known of a function's live revision. `name` is as commands take it; times are Unix seconds. A tuple:
    a list makes and compares one for each function."""

    name: str
    revision: Revision
    live_since: float
    stats: RevisionStats = RevisionStats()
    health: Health = Health()
    failed_deploy: Deploy | None = None
    image_problem: str = ""  # it is not in the registry any more, or damaged
    circuit: str = "closed"
    maintenance: tuple[float, str] | None = None  # since, words
    maintenance_of_all: bool = False
    budget: tuple[str, float] | None = None  # name of the one that is used up, and when it begins anew
    memory_budget_bytes: int = 0  # 0: not known
    reservation_missing: bool = False
    missing_secrets: tuple[str, ...] = ()
    folder_problems: tuple[str, ...] = ()
    follow_error: tuple[float, str] | None = None  # of the last push to the tag that it follows


def conditions(seen: Observed) -> list[Condition]:
    """`Ready`, then what makes it so, the worst first."""
    found = [
        *_serving(seen),
        *_image(seen),
        *_secrets(seen),
        *_starts(seen),
        *_memory(seen),
        *_circuit(seen),
        *_budget(seen),
        *_minimum(seen),
        *_deploy(seen),
        *_reservation(seen),
        *_events(seen),
        *_activity(seen),
    ]
    found.sort(key=_rank)  # stable
    return [ready(found, seen.live_since), *found]


def _rank(one: Condition) -> tuple[bool, int]:
    return not one.is_bad, _RANKS[one.severity]


def ready(found: list[Condition], live_since: float) -> Condition:
    """The summary: False where an error is, else True."""
    for one in found:
        if one.is_bad and one.severity is Severity.ERROR:
            return Condition("Ready", one.status, one.reason, one.message, one.since, one.action)
    return Condition("Ready", Status.TRUE, "Ready", since=live_since, severity=Severity.INFO)


def worst(found: list[Condition]) -> Condition | None:
    """What a list of functions says of this one; None where nothing is wrong."""
    return next((one for one in found if one.is_bad), None)


def _bad(
    type_: str, reason: str, message: str, since: float | None, action: str, *, warning: bool = False
) -> Condition:
    severity = Severity.WARNING if warning else Severity.ERROR
    return Condition(type_, Status.FALSE, reason, message, since, action, severity)


def _good(type_: str, reason: str, message: str = "", since: float | None = None) -> Condition:
    return Condition(type_, Status.TRUE, reason, message, since, severity=Severity.INFO)


def _serving(seen: Observed) -> list[Condition]:
    if seen.maintenance is None:
        return []
    since, words = seen.maintenance
    where = "--all" if seen.maintenance_of_all else seen.name
    return [_bad("Serving", "Maintenance", f"callers hear 503: {words}", since, f"faas maintenance off {where}")]


def _image(seen: Observed) -> list[Condition]:
    if not seen.image_problem:
        return []
    message = f"{seen.revision.image}: {seen.image_problem}"
    return [_bad("ImageAvailable", "ImageGone", message, None, "push it again, or faas rollback " + seen.name)]


def _secrets(seen: Observed) -> list[Condition]:
    if not (missing := seen.missing_secrets):
        return []
    message = f"there is no secret {', '.join(missing)}: no instance can start"
    return [_bad("SecretsAvailable", "SecretMissing", message, None, f"faas secret set {missing[0]}")]


def _starts(seen: Observed) -> list[Condition]:
    """Whether its instances become ready. One that could not have memory says nothing of the function."""
    health, last = seen.health, seen.health.start_failure
    if last is None or last.code == "Throttled":
        return [_good("Startable", "Started")] if health.starts or seen.stats.idle or seen.stats.busy else []
    count = f"{health.failed_starts} of the last {health.starts} starts failed"
    action = "; ".join(filter(None, (last.hint, f"faas logs {seen.name} --instance {last.instance}")))
    serves = seen.stats.idle + seen.stats.busy > 0
    reason = "CrashLoop" if health.failed_starts >= CRASH_LOOP else last.code
    warning = serves or health.failed_starts < ALL_FAIL
    return [_bad("Startable", reason, f"{count}: {last.message}", health.failing_since, action, warning=warning)]


def _memory(seen: Observed) -> list[Condition]:
    spec, last = seen.revision.spec, seen.health.start_failure
    budget = seen.memory_budget_bytes
    if budget and spec.memory_bytes > budget:
        message = f"memory = {spec.memory} MB, and all instances together may have {budget // MEGABYTE} MB"
        return [_bad("MemoryAvailable", "NeverFits", message, None, "lower memory, or raise memory_budget")]
    if not seen.health.waiting_for_memory and (last is None or last.code != "Throttled"):
        return []
    waiting = seen.health.waiting_for_memory
    words = f"{waiting} instances wait for {spec.memory} MB each" if waiting else "the last start found no memory"
    serves = seen.stats.idle + seen.stats.busy > 0
    action = "see faas top; lower memory or scale.max of others, or raise memory_budget"
    since = seen.health.failing_since
    return [_bad("MemoryAvailable", "NoMemory", words, since, action, warning=serves)]


def _circuit(seen: Observed) -> list[Condition]:
    if seen.circuit == "closed":
        return []
    if seen.circuit == "half-open":
        message = "too many calls failed; one at a time tries whether it works again"
        return [Condition("CircuitClosed", Status.UNKNOWN, "CircuitHalfOpen", message, severity=Severity.WARNING)]
    message = "too many of the last calls failed: callers hear 503"
    return [_bad("CircuitClosed", "CircuitOpen", message, None, _look(seen))]


def _look(seen: Observed) -> str:
    """The command that shows the last invocation that failed."""
    for failure in reversed(seen.health.failures):
        if failure.request_id:
            return f"faas logs {seen.name} --request-id {failure.request_id}"
    return f"faas logs {seen.name}"


def _budget(seen: Observed) -> list[Condition]:
    if seen.budget is None:
        return []
    name, _ = seen.budget
    message = f"this month's budget {name} is used up: callers hear 429 until the month ends"
    return [
        _bad("WithinBudget", "BudgetReached", message, None, f"faas usage; faas budget set {name} with a higher amount")
    ]


def _minimum(seen: Observed) -> list[Condition]:
    least, there = seen.revision.spec.scale.min, seen.stats.idle + seen.stats.busy
    if not least:
        return []
    if there >= least:
        return [_good("MinimumReached", "MinimumReached", f"{there} of scale.min = {least}")]
    message = f"{there} of scale.min = {least} instances are ready"
    if seen.stats.starting:
        message += f", {seen.stats.starting} start"
    last = seen.health.start_failure
    why = last.hint or last.message if last else "see faas top, whether memory is free"
    return [_bad("MinimumReached", "MinimumNotReached", message, seen.health.failing_since, why, warning=True)]


def _deploy(seen: Observed) -> list[Condition]:
    number = f"v{seen.revision.key.number}"
    if (failed := seen.failed_deploy) is None:
        return [_good("Deployed", "Live", f"{number} is live", seen.live_since)]
    action = failed.hint or "mend it and push again"
    message = f"{failed.message}; {number} stays live"
    return [_bad("Deployed", "DeployFailed", message, failed.at, action, warning=True)]


def _reservation(seen: Observed) -> list[Condition]:
    if not seen.reservation_missing:
        return []
    scale = seen.revision.spec.scale
    message = f"scale.reserved = {scale.reserved} is not kept: the server has too little memory or concurrency for it"
    action = "lower scale.reserved, or raise memory_budget or max_concurrency"
    return [_bad("Reserved", "NotReserved", message, None, action, warning=True)]


def _events(seen: Observed) -> list[Condition]:
    found = [
        _bad("FoldersWatched", "FolderProblem", problem, None, "see faas trigger ls", warning=True)
        for problem in seen.folder_problems
    ]
    if seen.follow_error is not None:
        at, words = seen.follow_error
        message = f"the last push to {seen.revision.spec.follow} was not deployed: {words}"
        found.append(_bad("Following", "FollowFailed", message, at, "push an image that runs", warning=True))
    return found


def _activity(seen: Observed) -> list[Condition]:
    stats = seen.stats
    if stats.idle or stats.busy:
        return [_good("Active", "Active", f"{stats.idle} idle, {stats.busy} busy")]
    if stats.starting:
        return [Condition("Active", Status.UNKNOWN, "Starting", f"{stats.starting} start", severity=Severity.INFO)]
    words = "no instances: the next call starts one"
    return [Condition("Active", Status.FALSE, "ScaledToZero", words, severity=Severity.INFO)]
