"""Why an instance did not become ready, in words that say what to change. Pure: from what it wrote and how it ended."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from faas.spec import FunctionSpec, Interface
from worker.drivers.base import Exit

MEMORY_MAX_MB = 10_240


@dataclass(frozen=True, slots=True)
class Symptom:
    """A pattern in what an instance wrote, and the hint that goes with it (`{0}` is the pattern's first group)."""

    pattern: re.Pattern[str]
    hint: str


SYMPTOMS = (
    Symptom(
        re.compile(r"exec format error|cannot execute binary file", re.IGNORECASE),
        "the program is for another architecture: build the image for this machine's",
    ),
    Symptom(
        re.compile(r"No module named ['\"]?([\w.]+)"),
        "the Python module {0} is missing: add it to requirements.txt, or check the handler's module name",
    ),
    Symptom(
        re.compile(r"Cannot find (?:module|package) '([^']+)'"),
        "the Node module {0} is missing: add it to package.json, or check the handler's file name",
    ),
    Symptom(
        re.compile(
            r"Handler '([^']+)' missing on module|([\w.]+) is undefined or not exported|HandlerNotFound"
            r"|MalformedHandlerName|has no attribute '(?:handler|app)'"
        ),
        "the handler was not found: handler names file and function, for example app.handler for handler() in app.py",
    ),
    Symptom(
        re.compile(r"bind\(\)? ?to .*:(\d+).*[Pp]ermission denied|[Pp]ermission denied.*\b(?:bind|listen)"),
        "ports below 1024 cannot be opened: listen on $PORT",
    ),
    Symptom(
        re.compile(r"Read-only file system|EROFS"),
        "only /tmp can be written: write there, or set writable_root = true",
    ),
    Symptom(re.compile(r"[Aa]ddress already in use|EADDRINUSE"), "port 9001 is the Runtime API's: listen on $PORT"),
    Symptom(re.compile(r"No space left on device|ENOSPC"), "its /tmp is full: raise ephemeral_storage"),
    Symptom(re.compile(r"error while loading shared libraries: (\S+?):"), "the image lacks the shared library {0}"),
    Symptom(
        re.compile(r"(?:No such file or directory|not found in \$PATH|executable file not found)"),
        "a program or file is not in the image: check command and entrypoint",
    ),
)


def hint_from(text: str) -> str:
    """The hint for the first symptom found in `text`; empty where there is none."""
    for symptom in SYMPTOMS:
        if found := symptom.pattern.search(text):
            return symptom.hint.format(next(filter(None, found.groups()), ""))
    return ""


def larger(memory_mb: int) -> int:
    """The memory to try next, in MB: twice the limit (what was needed is not known: it never got it)."""
    return min(MEMORY_MAX_MB, -(-memory_mb * 2 // 64) * 64)


def out_of_memory_hint(memory_mb: int) -> str:
    if memory_mb >= MEMORY_MAX_MB:
        return "it has the most there is: use less memory"
    return f"set memory = {larger(memory_mb)}"


def out_of_memory(memory_mb: int, seen_bytes: int = 0) -> tuple[str, str]:
    """(message, hint) for a function that the kernel ended because it would have had more than `memory_mb`.

    Its peak is the limit, by the kernel's own counter: it ends nobody before. `seen_bytes`: the last sample, which
    tells a function that grew for long from one that asked for much at once. What would have held it is not known,
    but for this: more than the limit.
    """
    hint = out_of_memory_hint(memory_mb)
    seen = f", {seen_bytes // 1_048_576} MB at the last look" if seen_bytes else ""
    least = f"it needs more than {memory_mb} MB, how much more is not known: {hint}"
    return f"the function had all of its limit of {memory_mb} MB{seen}, and asked for more: {least}", hint


def ended(spec: FunctionSpec, outcome: Exit, log_tail: str) -> tuple[str, str]:
    """(message, hint) for an instance that ended during its init."""
    if outcome.out_of_memory:
        return f"init used more memory than its limit of {spec.memory} MB", out_of_memory_hint(spec.memory)
    return f"the instance ended during init: {outcome}", hint_from(log_tail) or _nothing_ran(outcome)


def _nothing_ran(outcome: Exit) -> str:
    if outcome.code == 0 and not outcome.signal:
        return "the program must go on: take events from the Runtime API, or serve HTTP on $PORT"
    return "see what it wrote"


def not_ready(
    spec: FunctionSpec, interface: Interface, log_tail: str, open_ports: Sequence[int], health: str = ""
) -> tuple[str, str]:
    """(message, hint) for an instance that lives, but asked for no event and opened no port in time.

    `health` is what its health path said last; empty where it was not asked.
    """
    message = f"init did not finish within {spec.init_timeout} s"
    if health:
        hint = hint_from(log_tail) or "let it answer 2xx once it is ready, or raise init_timeout"
        return f"{message}: {spec.health} {health}", hint
    if interface is not Interface.LAMBDA and open_ports:
        port = open_ports[0]
        return (
            f"{message}: nothing listens on port {spec.port}, but something does on {port}",
            f"listen on $PORT, or set port = {port}",
        )
    waited = {
        Interface.LAMBDA: "it never asked the Runtime API for an event",
        Interface.HTTP: f"nothing listens on port {spec.port}",
        Interface.AUTO: f"it neither asked the Runtime API for an event nor listened on port {spec.port}",
    }[interface]
    fallback = "do less at import, or raise init_timeout"
    if interface is not Interface.LAMBDA:
        fallback = "listen on 0.0.0.0:$PORT, or raise init_timeout"
    return f"{message}: {waited}", hint_from(log_tail) or fallback
