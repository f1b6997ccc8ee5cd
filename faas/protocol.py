"""The contract between the gateway, which decides, and the worker, which runs instances.

Plain values in, plain values out, so that the calls could cross a process. The gateway imports this module and
never the worker; the worker's pool implements `Worker`. What one invocation is: `faas.leases`.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from faas.leases import Claim, Invocation, Lease, Report
from faas.secret import Reveal
from faas.spec import FunctionSpec, Interface


class RevisionKey(NamedTuple):
    """Names one immutable revision. Written `hello@v7`, or `hello.team@v7` outside `default`.

    A tuple, because every invocation looks several tables up by it: a dataclass's hash is computed in Python.
    """

    namespace: str
    function: str
    number: int

    def __str__(self) -> str:
        name = self.function if self.namespace == "default" else f"{self.function}.{self.namespace}"
        return f"{name}@v{self.number}"


@dataclass(frozen=True, slots=True)
class Revision:
    """What a worker needs to run instances: the immutable spec and the image pinned by digest.

    `image` is `repository@sha256:…`; `interface` is LAMBDA or HTTP once a check has found it out, AUTO before.
    """

    key: RevisionKey
    spec: FunctionSpec
    image: str
    interface: Interface = Interface.AUTO


class Kind(enum.StrEnum):
    """What an instance is for: the label `kind` of `faas_memory_charged_bytes`."""

    INVOKED = "invoked"  # a function's: it serves invocations
    JOB = "job"  # runs once, to its end
    SERVICE = "service"  # is kept until somebody ends it
    STEM = "stem"  # waits to become a function's: stems, sandboxes made ahead, what else a driver keeps ready


NO_MEMORY = "memory"  # the reason of a Throttled for which there was no memory


Ended = Callable[[RevisionKey, Sequence[Report]], None]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a deploy's check saw: which contract the container speaks, how long its init took, what it wrote."""

    interface: Interface
    init_seconds: float
    log_tail: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """One instance as it is now; `state` is starting | idle | busy | stopping."""

    id: str
    state: str
    started_at: float  # Unix time
    idle_seconds: float
    invocations: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class RevisionStats:
    """What the worker observes of one revision now."""

    starting: int = 0
    idle: int = 0
    busy: int = 0
    executing: int = 0  # leases out; > busy where an instance serves several at once
    waiting: int = 0  # acquires without an instance yet

    @property
    def instances(self) -> int:
        return self.starting + self.idle + self.busy


@dataclass(frozen=True, slots=True)
class Failure:
    """An invocation (`request_id`) or a start of an instance (without one, and with `log_tail`) that failed.

    `code` is the error's own name, as in `X-Error-Type`; `at` is Unix time.
    """

    at: float
    revision: int
    instance: str
    code: str
    message: str
    hint: str = ""
    request_id: str = ""
    log_tail: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """What a worker saw of one revision lately, all of it bounded.

    Of the last `starts` of instances `failed_starts` failed; all since `failing_since` (Unix time; None: the last one
    did not), the last of them with `start_failure`. `failures`: the oldest first.
    """

    starts: int = 0
    failed_starts: int = 0
    failing_since: float | None = None
    start_failure: Failure | None = None
    waiting_for_memory: int = 0  # instances that cannot start
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class RevisionUsage:
    """What one revision's instances use now.

    `memory_bytes` is measured, `charged_bytes` what the ledger holds for them (their limits); `cpus` is cores on
    average since the usage was last measured, None where it was not.
    """

    key: RevisionKey
    stats: RevisionStats
    memory_bytes: int
    charged_bytes: int
    cpus: float | None


@dataclass(frozen=True, slots=True)
class WorkerUsage:
    """What a worker's instances use now; `at` is Unix time, `evictions` counts since the worker's start."""

    at: float
    budget_bytes: int
    charged_bytes: Mapping[Kind, int]
    waiting: int  # instances that cannot start for want of memory
    evictions: int
    revisions: tuple[RevisionUsage, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job or a service ended. `signal` is 0 for a plain exit."""

    code: int
    signal: int = 0
    out_of_memory: bool = False


class Terminal(Protocol):
    """Whoever sits at it: what the program writes is read, what is written is typed."""

    async def read(self) -> bytes:
        """The next bytes; empty once no program has it open any more."""
        ...

    async def write(self, data: bytes) -> None:
        """What no program takes within 10 s is dropped."""
        ...

    def resize(self, columns: int, rows: int) -> None:
        """Its programs are told (SIGWINCH)."""
        ...

    def plain(self) -> None:
        """For programs at this end: what is typed is not shown, and line ends stay as they are."""
        ...


class Running(Protocol):
    """An instance of its own: a job or a service."""

    instance_id: str
    terminal: Terminal | None  # where it was asked for

    async def outcome(self) -> Outcome:
        """Wait for its end. Raises nothing, and may be asked again."""
        ...

    async def connect(self, port: int, seconds: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A stream to what listens on 127.0.0.1:`port` inside, as soon as it does. Raises Unavailable where it has
        ended, or nothing listens within `seconds`. The caller closes it."""
        ...


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One line that an instance (stdout, stderr) or the platform (system) wrote."""

    time: float  # Unix time
    message: str
    stream: str = "stdout"
    revision: int = 0
    instance: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which lines are wanted; `follow` goes on as new ones come, until the function is deleted.

    From `since` on and before `until` (Unix time); `instance`: an id or how it begins; `stream`: stdout, stderr or
    system. Empty: any.
    """

    namespace: str
    function: str
    since: float | None = None
    until: float | None = None
    contains: str = ""
    request_id: str = ""
    instance: str = ""
    stream: str = ""
    follow: bool = False
    limit: int = 10_000


Door = Callable[[str], Claim | None]


class Worker(Protocol):
    """Runs instances of revisions; holds no database and decides nothing about how many there should be.

    All instances together have one memory budget. What does not fit waits, and idle instances go to make room.
    """

    async def prepare(self, revision: Revision) -> None:
        """Bring the image's layers here, unpacked. Idempotent.

        Raises ImageUnusable with the reason, SpecError where the memory budget could never hold an instance.
        """
        ...

    async def collect(self, held: Collection[str]) -> int:
        """Remove what was unpacked here of other images (`repository@digest`) than these; bytes.

        What instances run, and what was prepared within the last hour, stays. Raises FaasError, with nothing removed.
        """
        ...

    async def check(self, revision: Revision) -> CheckReport:
        """Start one instance, see its first `next` or its open port within `init_timeout`, and keep it, idle.

        Raises InitFailed with the diagnosis and the tail of what it wrote, Throttled where memory for it was not free
        within `queue_timeout`.
        """
        ...

    def acquire(self, revision: Revision, invocation: Invocation) -> AbstractAsyncContextManager[Lease]:
        """A slot of an instance; a cold start is waited for here and nowhere else.

        Never starts an instance by itself: `scale` does. Raises Throttled when the wait is over (with the reason
        `memory` where that was wanting), InitFailed when the instance that was started for it did not become ready.
        """
        ...

    def door(self, revision: Revision) -> Door:
        """Told the id of an invocation by HTTP, it gives a slot of an instance that is ready to run this moment; None
        where there is none, where somebody waits already, or where it would have to be thawed: then `acquire` is the
        way. After a None ask for another door: it may be that behind this one nothing will ever be ready.
        """
        ...

    def run(
        self, revision: Revision, kind: Kind, *, wait_seconds: float, terminal: bool = False
    ) -> AbstractAsyncContextManager[Running]:
        """An instance of its own, beside those that `scale` counts: a JOB runs to its end, a SERVICE is kept.

        Entering waits for its memory, so long at most, and starts it; it is never evicted. Leaving ends it, whatever it
        does. Nothing is invoked in it and nothing restarts it. With a `terminal` what it writes goes there, and into
        no log. Raises Throttled, ImageUnusable, Unavailable, NotOffered where the driver has no terminals.
        """
        ...

    async def scale(self, revision: Revision, desired: int) -> None:
        """Say how many instances there should be; idempotent, returns at once. Busy ones finish before they go."""
        ...

    def reserve(self, namespace: str, function: str, memory_bytes: int) -> None:
        """Keep so much of the memory budget for this function's instances, of whatever revision; 0: none.

        They have it at once, whoever else asks, and nobody else gets it: idle instances of others go for it now. Raises
        SpecError with the numbers where too little would be left for everybody; what was reserved stays then.
        """
        ...

    async def retire(self, key: RevisionKey) -> None:
        """This revision gets no new invocations: its instances end when they are idle."""
        ...

    def reveal_with(self, reveal: Reveal) -> None:
        """Where the values of secrets are asked for, each time that an instance starts which has some. None is kept
        here but with that instance.
        """
        ...

    async def renew(self, revision: Revision, *, running: bool) -> int:
        """A secret of this revision has another value: what was made ahead goes. `running`: so do its instances, each
        when another one is ready in its place and its own invocations have ended; how many of them.

        Raises what the first new one failed with (as `check`), and keeps the old ones then.
        """
        ...

    def report_to(self, ended: Ended) -> None:
        """Have `ended` called with the figures of each REPORT line, once, when it is made: also where the caller has
        gone and the function ended later. It must be quick, and raise nothing.
        """
        ...

    def settle(self) -> None:
        """Make those reports now that are put off: by a moment, where one instance runs several invocations at once."""
        ...

    def stats(self, key: RevisionKey) -> RevisionStats: ...

    def instances(self, key: RevisionKey) -> list[InstanceStatus]: ...

    def health(self, key: RevisionKey) -> Health: ...

    async def usage(self) -> WorkerUsage:
        """What all instances use now. Asks the kernel twice a second at most, however often it is called."""
        ...

    def logs(self, query: LogQuery) -> AsyncIterator[LogRecord]:
        """Lines in the order of their time."""
        ...

    def forget_logs(self, namespace: str, function: str) -> None:
        """Remove what a deleted function wrote."""
        ...


@dataclass(frozen=True, slots=True)
class RuntimeBase:
    """A runtime base in the registry, and what a client must know to resolve dependencies for it.

    `reference` is `runtime/python:3.11@sha256:…`; `platforms` are wheel platform tags, best first (Python only).
    """

    name: str  # "python3.11", "node20"
    reference: str
    version: str
    architecture: str
    platforms: tuple[str, ...] = field(default=())
