"""Every table of the gateway, but those of who there is (`faas.state.people`) and who is told (`faas.state.told`). All
are keyed by namespace; times are Unix seconds.

`migrations/versions` brings a database to exactly this (a test compares the two).
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from faas.state import people, told  # noqa: F401 - so that `metadata` has them all
from faas.state.columns import metadata as metadata
from faas.state.columns import name as _name


def _of_function(column: str = "function") -> ForeignKeyConstraint:
    """The row goes when its function goes."""
    return ForeignKeyConstraint(["namespace", column], ["functions.namespace", "functions.name"], ondelete="CASCADE")


functions = Table(
    "functions",
    metadata,
    _name("namespace", key=True),
    _name("name", key=True),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
)

# The last number given out. It outlives the function: a name that is deleted and made again goes on counting, since
# instances, logs and image tags of the old `v1` may still be about.
revision_numbers = Table(
    "revision_numbers",
    metadata,
    _name("namespace", key=True),
    _name("function", key=True),
    Column("last", Integer, nullable=False),
)

revisions = Table(
    "revisions",
    metadata,
    _name("namespace", key=True),
    _name("function", key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("image", Text, nullable=False),  # repository@digest
    Column("spec", Text, nullable=False),  # JSON, as FunctionSpec.to_dict gives it
    Column("interface", String(16), nullable=False),  # lambda | http | auto (not found out yet)
    Column("created_at", Float, nullable=False),
    Column("created_by", String(128), nullable=False),
    _of_function(),
)

aliases = Table(
    "aliases",
    metadata,
    _name("namespace", key=True),
    _name("function", key=True),
    _name("name", key=True),
    Column("number", Integer, nullable=False),
    ForeignKeyConstraint(
        ["namespace", "function", "number"],
        ["revisions.namespace", "revisions.function", "revisions.number"],
        ondelete="CASCADE",
    ),
)

# The second revision behind an alias. A row stays when it was taken back, to say why; it goes when the alias moves.
canaries = Table(
    "canaries",
    metadata,
    _name("namespace", key=True),
    _name("function", key=True),
    _name("alias", key=True),
    Column("id", String(32), nullable=False),
    Column("number", Integer, nullable=False),
    Column("percent", Float, nullable=False),
    Column("sticky", String(160), nullable=False),
    Column("override", Boolean, nullable=False),
    Column("limits", String(200), nullable=False),  # as Limits writes itself; "" for none
    Column("began_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("reason", Text, nullable=False),
    ForeignKeyConstraint(
        ["namespace", "function", "alias"],
        ["aliases.namespace", "aliases.function", "aliases.name"],
        ondelete="CASCADE",
    ),
    ForeignKeyConstraint(
        ["namespace", "function", "number"],
        ["revisions.namespace", "revisions.function", "revisions.number"],
        ondelete="CASCADE",
    ),
)

# What became of the last push of the tag that a function follows.
follows = Table(
    "follows",
    metadata,
    _name("namespace", key=True),
    _name("function", key=True),
    Column("tag", String(128), nullable=False),
    Column("digest", String(140), nullable=False),
    Column("moved_at", Float, nullable=False),  # with the two before it: which push
    Column("state", String(16), nullable=False),  # deployed | failed | retrying | skipped
    Column("error", Text, nullable=False),
    Column("at", Float, nullable=False),
    _of_function(),
)

# The last deploy that failed, until one succeeds.
failed_deploys = Table(
    "failed_deploys",
    metadata,
    _name("namespace", key=True),
    _name("function", key=True),
    Column("at", Float, nullable=False),
    Column("code", String(128), nullable=False),
    Column("message", Text, nullable=False),
    Column("hint", Text, nullable=False),
    Column("log_tail", Text, nullable=False),
    Column("image", Text, nullable=False),
    Column("by", Text, nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("live", Integer, nullable=False),  # the number of the revision that was live then
    _of_function(),
)

# The queue of asynchronous invocations. Rows that ended stay for a day, without payload, to answer for their status.
invocations = Table(
    "invocations",
    metadata,
    _name("namespace", key=True),
    _name("id", key=True),
    _name("function"),
    Column("qualifier", String(128), nullable=False),
    Column("trigger", String(16), nullable=False),
    Column("kind", String(16), nullable=False),  # event | http | file | callback
    Column("lane", String(160), nullable=False),  # rows of one lane share a bound on what is in flight
    Column("payload", LargeBinary, nullable=False),
    Column("meta", Text, nullable=False),  # JSON: what else `kind` needs
    Column("callback_url", Text, nullable=False),
    Column("status", String(16), nullable=False),  # pending | running | success | error
    Column("attempts", Integer, nullable=False),  # runs that failed by the function's fault
    Column("deferrals", Integer, nullable=False),  # tries that found no capacity
    Column("not_before", Float, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("error_type", Text, nullable=False),
    Column("error_message", Text, nullable=False),
    UniqueConstraint("id"),
    Index(None, "status", "lane", "not_before"),
    Index(None, "status", "ended_at"),
    Index(None, "namespace", "function"),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    _name("namespace", key=True),
    _name("id", key=True),
    _name("function"),
    Column("qualifier", String(128), nullable=False),
    Column("trigger", String(16), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("meta", Text, nullable=False),
    Column("error_type", Text, nullable=False),
    Column("error_message", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("died_at", Float, nullable=False),
    Column("payload", LargeBinary, nullable=False),  # last: what comes after a long value is slow to read
    UniqueConstraint("id"),
    Index(None, "namespace", "function", "died_at"),
)

schedules = Table(
    "schedules",
    metadata,
    _name("namespace", key=True),
    _name("function", key=True),
    _name("name", key=True),
    Column("cron", Text, nullable=False),
    Column("timezone", Text, nullable=False),
    Column("missed", String(16), nullable=False),
    Column("overlap", String(16), nullable=False),
    Column("input", Text, nullable=False),  # JSON
    Column("considered_until", Float, nullable=False),  # fire times up to here are dealt with
    _of_function(),
)

# One row per fire time: its key is what makes a schedule fire once.
schedule_fires = Table(
    "schedule_fires",
    metadata,
    _name("namespace", key=True),
    _name("function", key=True),
    _name("schedule", key=True),
    Column("fire_time", BigInteger, primary_key=True, autoincrement=False),
    Column("status", String(16), nullable=False),  # pending | running | success | error | skipped | missed
    Column("invocation", String(64), nullable=False),
    Column("started_at", Float),
    Column("ended_at", Float),
    Column("error", Text, nullable=False),
    ForeignKeyConstraint(
        ["namespace", "function", "schedule"],
        ["schedules.namespace", "schedules.function", "schedules.name"],
        ondelete="CASCADE",
    ),
    Index(None, "invocation"),
)

triggers = Table(
    "triggers",
    metadata,
    _name("namespace", key=True),
    _name("function", key=True),
    Column("watch", Text, primary_key=True),
    Column("pattern", Text, primary_key=True),
    Column("created_at", Float, nullable=False),
    _of_function(),
)

# Files that a trigger has dealt with, in the very state in which it did.
trigger_files = Table(
    "trigger_files",
    metadata,
    _name("namespace", key=True),
    _name("function", key=True),
    Column("watch", Text, primary_key=True),
    Column("pattern", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("mtime_ns", BigInteger, primary_key=True, autoincrement=False),
    Column("size", BigInteger, primary_key=True, autoincrement=False),
    ForeignKeyConstraint(
        ["namespace", "function", "watch", "pattern"],
        ["triggers.namespace", "triggers.function", "triggers.watch", "triggers.pattern"],
        ondelete="CASCADE",
    ),
)

# What each function used: a row an hour, and a row a day once it is old. It outlives the function: it is the bill.
usage = Table(
    "usage",
    metadata,
    _name("namespace", key=True),
    _name("function", key=True),
    Column("hour", BigInteger, primary_key=True, autoincrement=False),  # its start
    Column("requests", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("cold_starts", BigInteger, nullable=False),
    Column("duration_us", BigInteger, nullable=False),
    Column("billed_ms", BigInteger, nullable=False),
    Column("mb_ms", BigInteger, nullable=False),  # memory size in MB times billed milliseconds
    Column("max_memory_bytes", BigInteger, nullable=False),
    Index(None, "hour"),
)

# What is learned of a function whose `scale.idle` is "learn".
idle_patterns = Table(
    "idle_patterns",
    metadata,
    _name("namespace", key=True),
    _name("function", key=True),
    Column("pattern", Text, nullable=False),  # JSON, as Pattern.dump gives it
    Column("ended_at", Float),  # the last call, where none was in flight after it
    _of_function(),
)

budgets = Table(
    "budgets",
    metadata,
    _name("namespace", key=True),
    _name("name", key=True),
    _name("function"),  # "" for the whole namespace
    Column("unit", String(16), nullable=False),  # cost | gb_seconds | requests
    Column("amount", Text, nullable=False),  # a decimal number, exactly as it was given
    Column("warn", Integer, nullable=False),  # percent
    Column("throttle", Boolean, nullable=False),
)

# API keys: who may call which functions. What opens stands in `api_key_secrets`, as hashes.
api_keys = Table(
    "api_keys",
    metadata,
    _name("namespace", key=True),
    _name("name", key=True),
    Column("id", String(32), nullable=False),  # a part of the key itself, and no secret
    Column("functions", Text, nullable=False),  # JSON list; empty: all of the namespace
    Column("plan", String(128), nullable=False),  # "" for none
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("last_used_at", Float),
    UniqueConstraint("id"),
)

api_key_secrets = Table(
    "api_key_secrets",
    metadata,
    _name("namespace", key=True),
    _name("key", key=True),
    Column("hash", String(64), primary_key=True),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),  # of one that another follows: the overlap's end
    ForeignKeyConstraint(["namespace", "key"], ["api_keys.namespace", "api_keys.name"], ondelete="CASCADE"),
)

# APIs in front of functions. A function's own routes are in its revisions.
apis = Table(
    "apis",
    metadata,
    _name("namespace", key=True),
    _name("name", key=True),
    Column("value", Text, nullable=False),  # JSON, as Api.to_dict gives it
    Column("updated_at", Float, nullable=False),
)

# Usage plans: what each API key of one may do. 0: no bound.
plans = Table(
    "plans",
    metadata,
    _name("namespace", key=True),
    _name("name", key=True),
    Column("rate", Float, nullable=False),  # requests a second
    Column("burst", Integer, nullable=False),
    Column("quota", BigInteger, nullable=False),  # requests in each period
    Column("period", String(16), nullable=False),  # day | week | month
    Column("functions", Text, nullable=False),  # JSON lists; both empty: everything of the namespace
    Column("apis", Text, nullable=False),
)

# What each key has used of its plan. It outlives the key.
plan_usage = Table(
    "plan_usage",
    metadata,
    _name("namespace", key=True),
    _name("plan", key=True),
    _name("key", key=True),
    Column("period", String(16), primary_key=True),
    Column("start", BigInteger, primary_key=True, autoincrement=False),
    Column("used", BigInteger, nullable=False),
    Index(None, "start"),
)

# What is not served for a while.
maintenance = Table(
    "maintenance",
    metadata,
    _name("namespace", key=True),  # "*" for everything
    _name("function", key=True),  # "*" for everything
    Column("message", Text, nullable=False),
    Column("retry_after", Integer, nullable=False),  # seconds
    Column("since", Float, nullable=False),
    _name("by"),
)

websocket_apis = Table(
    "websocket_apis",
    metadata,
    _name("namespace", key=True),
    _name("name", key=True),
    Column("path", String(300), nullable=False),
    Column("definition", Text, nullable=False),  # JSON, with the control API's keys
    Column("changed_at", Float, nullable=False),
    UniqueConstraint("path"),
)

# Secrets of functions, sealed (`gateway.vault`): what stands here is worth nothing without the key file.
secrets = Table(
    "secrets",
    metadata,
    _name("namespace", key=True),
    _name("name", key=True),
    Column("version", Integer, nullable=False),
    Column("key", String(32), nullable=False),  # which of the vault's keys opens it
    Column("sealed", LargeBinary, nullable=False),
    Column("size", Integer, nullable=False),  # bytes of the value
    Column("set_at", Float, nullable=False),
    _name("set_by"),
)
