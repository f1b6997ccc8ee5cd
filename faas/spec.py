"""`FunctionSpec`: what a user may ask of a function, its defaults and its limits (the keys of `faas.toml`).

`parse` takes plain data (from TOML, JSON or flags) and either returns a valid spec or raises `SpecError` that names
the key, what is allowed, and the nearest known key. Nothing is stored and ignored: what is not offered is refused.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

from faas import checks, routes, secret
from faas.checks import Check
from faas.errors import SpecError
from faas.oci.reference import BASES, TAG_PATTERN
from faas.plain import plain as plain
from faas.plain import shallow
from faas.routes import RouteSpec
from faas.rules import rules
from faas.rules.rules import NO_RULES, Rules
from faas.spec_table import table, tables

NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
RUNTIME_PATTERN = re.compile(r"(python|node)(\d+(\.\d+)?)?|provided")
MEMORY_MB_PER_CPU = 1769  # Lambda's: 1,769 MB give one vCPU


def is_namespace(text: str) -> bool:
    """Whether a namespace may be called so; the runtime bases' repositories would be one's otherwise."""
    return NAME_PATTERN.fullmatch(text) is not None and f"{text}/" != BASES


class Interface(enum.StrEnum):
    """How the container takes its work: Lambda's Runtime API, or HTTP on `$PORT`."""

    AUTO = "auto"
    LAMBDA = "lambda"
    HTTP = "http"


class Network(enum.StrEnum):
    OUTBOUND = "outbound"
    NONE = "none"


class Missed(enum.StrEnum):
    """What happens to fire times that passed while the server was down."""

    ONCE = "once"
    SKIP = "skip"
    ALL = "all"


class Overlap(enum.StrEnum):
    ALLOW = "allow"
    SKIP = "skip"


class Idle(enum.StrEnum):
    """How long an unused instance stays, where it is no fixed time."""

    LEARN = "learn"


LEARNED_FROM = timedelta(minutes=10)  # the fixed window of a function that learns, until it has learned


@dataclass(frozen=True, slots=True)
class ScaleSpec:
    """`reserved`: kept for this function alone, and then its most; 0: none."""

    min: int = 0
    max: int = 50
    reserved: int = 0
    target: float = 0.7
    idle: timedelta | Idle = timedelta(minutes=5)

    @property
    def learns(self) -> bool:
        """Whether the windows of unused instances are learned."""
        return isinstance(self.idle, Idle)

    @property
    def idle_seconds(self) -> float:
        """The fixed window."""
        return (LEARNED_FROM if isinstance(self.idle, Idle) else self.idle).total_seconds()

    @property
    def limit(self) -> int:
        """The most instances."""
        return self.reserved or self.max


@dataclass(frozen=True, slots=True)
class AsyncSpec:
    """`on_failure`: a function's name; "dlq", and "" as well, keep the event as a dead letter."""

    retries: int = 2
    max_age: timedelta = timedelta(hours=6)
    on_failure: str = ""


@dataclass(frozen=True, slots=True)
class ScheduleSpec:
    name: str
    cron: str
    timezone: str = "UTC"
    missed: Missed = Missed.ONCE
    overlap: Overlap = Overlap.ALLOW
    input: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TriggerSpec:
    """A watched folder; `pattern` is a shell-style pattern on the file's name."""

    watch: str
    pattern: str = "*"


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """The immutable part of a revision that the user wrote. Sizes in MB, times in seconds."""

    name: str
    runtime: str = ""
    image: str = ""
    handler: str = ""
    app: str = ""
    interface: Interface = Interface.AUTO
    memory: int = 128
    timeout: int = 30
    init_timeout: int = 10
    queue_timeout: int = 10
    concurrency: int = 1
    ephemeral_storage: int = 512
    writable_root: bool = False
    network: Network = Network.OUTBOUND
    port: int = 8080
    health: str = ""
    public: bool = False
    follow: str = ""
    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    workdir: str = ""
    scale: ScaleSpec = ScaleSpec()
    asynchronous: AsyncSpec = AsyncSpec()
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)  # variable → name of a stored secret
    schedules: tuple[ScheduleSpec, ...] = ()
    triggers: tuple[TriggerSpec, ...] = ()
    routes: tuple[RouteSpec, ...] = ()
    rules: Rules = NO_RULES

    @property
    def cpus(self) -> float:
        """CPUs that follow from the memory."""
        return self.memory / MEMORY_MB_PER_CPU

    @property
    def memory_bytes(self) -> int:
        return self.memory * 1024 * 1024

    @property
    def declared_interface(self) -> Interface:
        """What it says to speak: by that name, or by what it gives our own runtimes to run; else AUTO."""
        if self.interface is not Interface.AUTO or self.runtime == "provided" or self.entrypoint or self.command:
            return self.interface
        if self.app:
            return Interface.HTTP
        return Interface.LAMBDA if self.handler else Interface.AUTO

    def to_dict(self) -> dict[str, Any]:
        """Plain data with `faas.toml`'s keys, every key present; `parse` takes it back."""
        values = {_OUTSIDE.get(k, k): v for k, v in shallow(self).items() if k != "rules"}
        return cast("dict[str, Any]", plain({**values, **shallow(self.rules)}))


_OUTSIDE = {"asynchronous": "async", "schedules": "schedule", "triggers": "trigger", "routes": "route"}

_NAME = checks.matching(NAME_PATTERN, "1 to 63 of a-z, 0-9 and -, neither first nor last a -")

_SCALE: dict[str, Check] = {
    "min": checks.integer(0, 1000),
    "max": checks.integer(1, 1000),
    "reserved": checks.integer(0, 1000),
    "target": checks.number(0.1, 1.0),
    "idle": checks.duration_or(Idle, timedelta(0), timedelta(days=1)),
}
_ASYNC: dict[str, Check] = {
    "retries": checks.integer(0, 2),
    "max_age": checks.duration(timedelta(minutes=1), timedelta(hours=6)),
    "on_failure": checks.matching(re.compile(rf"|dlq|{NAME_PATTERN.pattern}"), 'a function\'s name, "dlq" or ""'),
}
_SCHEDULE: dict[str, Check] = {
    "name": _NAME,
    "cron": checks.cron,
    "timezone": checks.timezone,
    "missed": checks.choice(Missed),
    "overlap": checks.choice(Overlap),
    "input": checks.mapping,
}
_TRIGGER: dict[str, Check] = {"watch": checks.path, "pattern": checks.text}
_FUNCTION: dict[str, Check] = {
    "name": _NAME,
    "runtime": checks.matching(RUNTIME_PATTERN, "python, python3.x, node, nodeX or provided"),
    "image": checks.text,
    "handler": checks.text,
    "app": checks.text,
    "interface": checks.choice(Interface),
    "memory": checks.integer(128, 10_240),
    "timeout": checks.integer(1, 900),
    "init_timeout": checks.integer(1, 900),
    "queue_timeout": checks.integer(0, 900),
    "concurrency": checks.integer(1, 1000),
    "ephemeral_storage": checks.integer(0, 10_240),
    "writable_root": checks.boolean,
    "network": checks.choice(Network),
    "port": checks.integer(1, 65_535),
    "health": checks.path,
    "public": checks.boolean,
    "follow": checks.matching(TAG_PATTERN, "a tag: 1 to 128 letters, digits, ., _ and -, first no . and no -"),
    "command": checks.texts,
    "entrypoint": checks.texts,
    "workdir": checks.workdir,
    "env": checks.env,
    "secrets": secret.names,
}
_OPTIONAL_TEXT = {"runtime", "image", "handler", "app", "health", "follow", "workdir"}


def parse(data: Mapping[str, Any]) -> FunctionSpec:
    """Plain data with `faas.toml`'s keys → a valid spec. Raises SpecError."""
    nested = ("scale", "async", "schedule", "trigger", "route", *rules.KEYS)
    values = table("", data, _FUNCTION, nested, optional=_OPTIONAL_TEXT)
    if "name" not in values:
        raise SpecError("a function needs a name", key="name", hint='write name = "…" or pass --name')
    spec = FunctionSpec(
        **values,
        scale=ScaleSpec(**table("scale", data.get("scale", {}), _SCALE)),
        asynchronous=AsyncSpec(**table("async", data.get("async", {}), _ASYNC)),
        schedules=tuple(
            ScheduleSpec(**row) for row in tables("schedule", data.get("schedule", []), _SCHEDULE, ("name", "cron"))
        ),
        triggers=tuple(TriggerSpec(**row) for row in tables("trigger", data.get("trigger", []), _TRIGGER, ("watch",))),
        routes=routes.of_function(data.get("route") or (), values.get("timeout", 30)),
        rules=rules.parse("", data),
    )
    _check_together(spec)
    return spec


def _check_scale(spec: FunctionSpec) -> None:
    scale = spec.scale
    if scale.min > scale.max:
        raise SpecError(f"scale.min ({scale.min}) is above scale.max ({scale.max})", key="scale.min")
    if scale.reserved > scale.max:
        raise SpecError(
            f"scale.reserved ({scale.reserved}) is above scale.max ({scale.max})",
            key="scale.reserved",
            hint="a reservation is the most instances as well: raise scale.max to it",
        )
    if scale.min > scale.limit:
        raise SpecError(
            f"scale.min ({scale.min}) is above scale.reserved ({scale.reserved}), which is the most", key="scale.min"
        )


def _check_auth(spec: FunctionSpec) -> None:
    auth = spec.rules.auth
    if auth is None:
        return
    if auth.public:
        raise SpecError("auth.public is for routes", key="auth.public", hint="write public = true for the function")
    if spec.public:
        raise SpecError(
            "public = true and auth exclude each other: anybody may call, or those whom auth names",
            key="public",
            hint="drop one of the two",
        )
    if auth.authorizer is not None and auth.authorizer.function.partition(":")[0] == spec.name:
        raise SpecError("auth.authorizer.function must not be the function itself", key="auth.authorizer")


def _check_secrets(spec: FunctionSpec) -> None:
    if both := sorted(spec.secrets.keys() & spec.env.keys()):
        raise SpecError(f"{both[0]} stands in env and in secrets", key=f"secrets.{both[0]}", hint="drop one of the two")


def _check_together(spec: FunctionSpec) -> None:
    """Rules between keys."""
    _check_scale(spec)
    _check_secrets(spec)
    if spec.handler and spec.app:
        raise SpecError(
            "handler and app exclude each other", key="app", hint="handler is Lambda style, app is ASGI or WSGI"
        )
    if spec.app and spec.interface is Interface.LAMBDA:
        raise SpecError(
            "an app speaks HTTP, not the Lambda interface", key="interface", hint='drop interface = "lambda"'
        )
    if spec.handler and spec.runtime != "provided" and spec.interface is Interface.HTTP:
        raise SpecError("a handler speaks the Lambda interface, not HTTP", key="interface")
    if spec.concurrency > 1 and (spec.interface is Interface.LAMBDA or spec.handler):
        raise SpecError("a Lambda handler takes one event at a time: concurrency must be 1", key="concurrency")
    if spec.health and spec.interface is Interface.LAMBDA:
        raise SpecError("health is for http functions", key="health")
    _check_auth(spec)
    if spec.asynchronous.on_failure == spec.name:
        raise SpecError("async.on_failure must not be the function itself", key="async.on_failure")
    names = [schedule.name for schedule in spec.schedules]
    if len(names) != len(set(names)):
        raise SpecError("two schedules have the same name", key="schedule")
    if spec.image and (spec.runtime or spec.handler or spec.app):
        raise SpecError(
            "image excludes runtime, handler and app", key="image", hint="use command to say what the image runs"
        )
    for key, value in (("handler", spec.handler), ("app", spec.app)):
        if value and not spec.runtime:
            raise SpecError(
                f"{key} is for a folder of code: it needs a runtime",
                key=key,
                hint="an image, or a Dockerfile's, runs its own command; use command to say another",
            )
    if spec.app and not spec.runtime.startswith("python"):
        raise SpecError(
            f"app is for Python; the runtime is {spec.runtime}", key="app", hint='handler = "index.handler"'
        )
