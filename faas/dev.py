"""What both sides of `faas dev` agree on: how its functions are called, and its limits."""

from __future__ import annotations

import re

from faas.errors import InvalidInput

MARK = "--dev-"  # in the name of a function that a `faas dev` keeps; nothing else may be deployed under such a name
NAME_CHARACTERS = 63
CODE_BYTES = 16 << 20  # of a code layer, compressed: it is sent again at each save
UNPACKED_BYTES = 64 << 20
LEASE_SECONDS = 30.0  # a dev function whose command has not been heard of for so long is removed
BEAT_SECONDS = 5.0
SESSION = re.compile(r"[0-9a-f]{32}")  # names one run of the command


def is_dev(name: str) -> bool:
    """Whether a function of this name is a `faas dev`'s."""
    return MARK in name


def dev_name(function: str, who: str) -> str:
    """`greeting` and `Alice@example.com` → `greeting--dev-alice-example-com`. Raises InvalidInput where it is too
    long."""
    person = re.sub(r"[^a-z0-9]+", "-", who.lower()).strip("-") or "me"
    name = f"{function}{MARK}{person}"
    if len(name) > NAME_CHARACTERS:
        raise InvalidInput(
            f"{name} is longer than a function's name may be ({NAME_CHARACTERS})", hint="name a shorter one with --as"
        )
    return name
