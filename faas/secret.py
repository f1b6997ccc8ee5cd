"""`Secret`: a value that does not show itself; and `[secrets]` of `faas.toml`, which names stored ones.

A secret is stored by the server under a name of its namespace (`gateway.secret_store`). A function gets it by that
name: as a variable of its environment, and as a file. Revisions hold names alone.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from faas.errors import SpecError

NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # of a stored one, and so of its file
NAME_WORDS = "1 to 63 of a-z, 0-9 and -, neither first nor last a -"
VARIABLE_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
VARIABLE_CHARACTERS = 256
VALUE_BYTES = 65_536
MOST = 50  # of one function
TOTAL_BYTES = 524_288  # of one function's values: with its environment they go through execve(2), which takes 1 MB here
FOLDERS = ("/run/secrets", "/var/openfaas/secrets")  # inside; Docker's place, and OpenFaaS's
# Read by the loader or the interpreter before anything could be put there, or set by the server itself.
_TAKEN = re.compile(
    r"(LD|PYTHON|MALLOC|GLIBC|UV|V8|LC|FAAS|AWS_LAMBDA)_.*|PYTHON.*|NODE_(OPTIONS|PATH|EXTRA_CA_CERTS)"
    r"|PORT|_HANDLER|PATH|HOME|LANG|LANGUAGE|TZ|AWS_EXECUTION_ENV|LAMBDA_(TASK_ROOT|RUNTIME_DIR)|_X_AMZN_TRACE_ID"
)


class Secret:
    """A text that nothing shows by accident: no repr, no format, no pickle; compared in constant time."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self._value.encode())

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value.encode(), other._value.encode())

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")


@dataclass(frozen=True, slots=True)
class Given:
    """What one instance is given. `values`: a stored secret's name → its value, each of them a file of that name;
    `variables`: a variable of the environment → the name of the secret that it holds."""

    values: Mapping[str, Secret]
    variables: Mapping[str, str]

    def environment(self) -> dict[str, str]:
        return {variable: self.values[name].reveal() for variable, name in self.variables.items()}


NOTHING = Given({}, {})

Reveal = Callable[[str, Collection[str]], Mapping[str, Secret]]
"""The values of a namespace's secrets by name, as they are now. Raises Unavailable where one is not there, or cannot be
read; in words that name none, since whoever calls the function hears them."""


def checked_value(value: object) -> Secret:
    """A value that is to be stored. Raises ValueError with the words that follow "must be"; none of them is of it."""
    if not isinstance(value, str) or not value:
        raise ValueError("a text that is not empty")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ValueError("UTF-8; encode what is not text, as base64 does") from None
    if "\x00" in value:
        raise ValueError("a text without a null character; encode what is not text, as base64 does")
    if size > VALUE_BYTES:
        raise ValueError(f"at most {VALUE_BYTES} bytes")
    return Secret(value)


def names(value: Any) -> dict[str, str]:
    """`[secrets]`: variable → name of a stored secret. Raises SpecError that shows nothing of what stands at a name's
    place: it may be a value that somebody took for it."""
    if not isinstance(value, Mapping):
        raise SpecError('secrets must be a table: DB_PASSWORD = "db-password"', key="secrets")
    if len(value) > MOST:
        raise SpecError(f"secrets must be at most {MOST}", key="secrets")
    for variable, name in value.items():
        key = f"secrets.{variable}"
        if not VARIABLE_PATTERN.fullmatch(variable) or len(variable) > VARIABLE_CHARACTERS:
            raise SpecError(
                f"secrets must be a table of variables' names ({variable[:80]!r} is none: letters, digits and _, not "
                "first a digit)",
                key="secrets",
            )
        if _TAKEN.fullmatch(variable):
            raise SpecError(
                f"{key}: this variable is read before secrets are there, or is the server's own",
                key=key,
                hint="choose another name for the variable",
            )
        if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
            raise SpecError(
                f"{key} must be the name of a stored secret: {NAME_WORDS}",
                key=key,
                hint="not its value: faas secret set NAME stores that",
            )
    return dict(value)
