"""What a server may ask for: from a message to a checked value, for the launcher; and back, for the server. Pure.

The server is not trusted here: it may have been taken over. Each limit is one that an honest one keeps to.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Any

from faas import secret
from faas.errors import InvalidInput
from faas.secret import NOTHING, Given
from faas.spec import Network
from worker.drivers.base import PreparedImage, SandboxSpec
from worker.launcher.wire import Message
from worker.sandbox_spec import REFUSED_FOLDERS, TEXT_BYTES, TOTAL_BYTES, UID_MAX

ID = re.compile(r"[a-z0-9]{1,32}")
REFERENCE_CHARACTERS = 512
REFERENCES_MOST = 100_000
MEGABYTE = 1024 * 1024
MEMORY_LEAST, MEMORY_MOST = 4 * MEGABYTE, 10_240 * MEGABYTE
TMP_MOST = 10_240 * MEGABYTE
CPUS_LEAST, CPUS_MOST = 0.001, 64.0
PIDS_MOST, FILES_LEAST, FILES_MOST = 1024, 16, 4096
TEXTS_MOST = 65_536  # arguments, and variables
PATH_BYTES = 4096
LABEL = re.compile(r"faas\.[a-z]{1,32}")  # other names mean something to runtime programs (`run.oci.…`)
LABELS_MOST, LABEL_CHARACTERS = 16, 256
HOSTNAME = "function"  # of every sandbox
NO_SECRETS: dict[str, Any] = {"values": {}, "variables": {}}


def sandbox_id(message: Message) -> str:
    """Raises InvalidInput, as all of these do."""
    value = message.get("id")
    if not isinstance(value, str) or not ID.fullmatch(value):
        raise InvalidInput("id must be 1 to 32 of a-z and 0-9")
    return value


def reference(message: Message) -> str:
    return _reference(message.get("image"))


def references(message: Message) -> set[str]:
    values = message.get("images")
    if not isinstance(values, list) or len(values) > REFERENCES_MOST:
        raise InvalidInput(f"images must be a list of at most {REFERENCES_MOST}")
    return set(map(_reference, values))


def _reference(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= REFERENCE_CHARACTERS or not value.isprintable():
        raise InvalidInput("an image must be repository@digest")
    return value


def port(message: Message) -> int:
    return _whole(message, "port", 1, 65_535)


def cpus(message: Message) -> float:
    value = message.get("cpus")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidInput("cpus must be a number")
    if not CPUS_LEAST <= value <= CPUS_MOST:
        raise InvalidInput(f"cpus must be {CPUS_LEAST} to {CPUS_MOST}")
    return float(value)


def flag(message: Message, name: str) -> bool:
    value = message.get(name)
    if not isinstance(value, bool):
        raise InvalidInput(f"{name} must be true or false")
    return value


def spec(message: Message, image: PreparedImage) -> SandboxSpec:
    """The sandbox that `create` asks for."""
    args, env = _texts(message.get("args"), "args"), _environment(message.get("env"))
    if not args or not args[0]:
        raise InvalidInput("args must begin with a program")
    given = _given(message.get("secrets"))
    _check_sizes(args, {**env, **given.environment()})
    return SandboxSpec(
        id=sandbox_id(message),
        image=image,
        args=args,
        env=env,
        workdir=_workdir(message.get("workdir")),
        memory_bytes=_whole(message, "memory_bytes", MEMORY_LEAST, MEMORY_MOST),
        cpus=cpus(message),
        tmp_bytes=_whole(message, "tmp_bytes", 0, TMP_MOST),
        user=_user(message.get("user")),
        pids=_whole(message, "pids", 1, PIDS_MOST),
        open_files=_whole(message, "open_files", FILES_LEAST, FILES_MOST),
        writable_root=flag(message, "writable_root"),
        terminal=flag(message, "terminal"),
        network=_network(message.get("network")),
        hostname=HOSTNAME,
        labels=_labels(message.get("labels")),
        secrets=given,
    )


def written(spec: SandboxSpec) -> dict[str, Any]:
    """`spec` as the arguments of `create`. Raises InvalidInput for a host name, which is not the server's to choose."""
    if spec.hostname != HOSTNAME:
        raise InvalidInput(f"the host name of a sandbox is {HOSTNAME}")
    return {
        "id": spec.id,
        "image": spec.image.reference,
        "args": spec.args,
        "env": dict(spec.env),
        "workdir": spec.workdir,
        "memory_bytes": spec.memory_bytes,
        "cpus": spec.cpus,
        "tmp_bytes": spec.tmp_bytes,
        "user": spec.user,
        "pids": spec.pids,
        "open_files": spec.open_files,
        "writable_root": spec.writable_root,
        "terminal": spec.terminal,
        "network": spec.network,
        "labels": dict(spec.labels),
        "secrets": {
            "values": {name: value.reveal() for name, value in spec.secrets.values.items()},
            "variables": dict(spec.secrets.variables),
        },
    }


def _whole(message: Message, name: str, least: int, most: int) -> int:
    value = message.get(name)
    if type(value) is not int or not least <= value <= most:
        raise InvalidInput(f"{name} must be a whole number from {least} to {most}")
    return value


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _joined(texts: Collection[Any], name: str) -> str:
    """All of them, a null character between each two: a start waits for these checks, so they are few passes."""
    if len(texts) > TEXTS_MOST:
        raise InvalidInput(f"{name} holds at most {TEXTS_MOST} texts")
    try:
        joined = "\0".join(texts)
    except TypeError:
        raise InvalidInput(f"{name} must be texts") from None
    if joined.count("\0") != max(0, len(texts) - 1):
        raise InvalidInput(f"{name} must be texts without a null character")
    return joined


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise InvalidInput(f"{name} must be a list of texts")
    _joined(value, name)
    return tuple(value)


def _environment(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise InvalidInput("env must be an object of texts")
    names = _joined(value, "env")
    _joined(value.values(), "env")
    if "" in value or "=" in names:
        raise InvalidInput("a variable must have a name, without =")
    return value


def _check_sizes(args: tuple[str, ...], env: dict[str, str]) -> None:
    total = sum(_size("\0".join(texts)) + 1 for texts in (args, env, env.values())) + len(env)
    if total <= TEXT_BYTES:  # then none of them is larger
        return
    longest = max(map(_size, (*args, *(f"{name}={value}" for name, value in env.items()))))
    if longest >= TEXT_BYTES or total > TOTAL_BYTES:
        raise InvalidInput(f"args and env hold {TEXT_BYTES} bytes each, {TOTAL_BYTES} in all")


def _workdir(value: Any) -> str:
    """Where its links lead is seen when the root is there (`worker.drivers.oci.workdir`)."""
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value or _size(value) > PATH_BYTES:
        raise InvalidInput("workdir must be an absolute path")
    parts = [part for part in value.split("/") if part not in ("", ".")]
    if ".." in parts or f"/{parts[0] if parts else ''}" in REFUSED_FOLDERS:
        raise InvalidInput("workdir must be outside /proc, /sys and /dev, without ..")
    return value


def _user(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(type(n) is int and 0 < n <= UID_MAX for n in value):
        raise InvalidInput("user must be two numbers, neither of them 0")
    return value[0], value[1]


def _network(value: Any) -> Network:
    try:
        return Network(value)
    except ValueError:
        raise InvalidInput("network must be " + " or ".join(Network)) from None


def _given(value: Any) -> Given:
    """No error of it has a value in it."""
    if value == NO_SECRETS:
        return NOTHING
    if not isinstance(value, dict) or value.keys() != {"values", "variables"}:
        raise InvalidInput("secrets must be values and variables")
    values, variables = value["values"], _environment(value["variables"])
    if not isinstance(values, dict) or len(values) > secret.MOST or len(variables) > secret.MOST:
        raise InvalidInput(f"secrets must be objects of at most {secret.MOST} texts each")
    if not all(map(secret.NAME_PATTERN.fullmatch, values)) or not values.keys() >= set(variables.values()):
        raise InvalidInput("a secret must have a name that can be one, and a variable must be of one that is there")
    try:
        return Given({name: secret.checked_value(text) for name, text in values.items()}, variables)
    except ValueError as error:
        raise InvalidInput(f"a secret must be {error}") from None


def _labels(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or len(value) > LABELS_MOST:
        raise InvalidInput(f"labels must be an object of at most {LABELS_MOST} texts")
    for name, text in value.items():
        if not LABEL.fullmatch(name) or not isinstance(text, str) or len(text) > LABEL_CHARACTERS:
            raise InvalidInput("a label must be faas.… and a short text")
    return value
