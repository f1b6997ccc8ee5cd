"""Patterns of repository names, as rules and tokens are written with: `*` stands for anything, slashes too.

`*` is every repository, `team/*` those of a namespace, `team/app` one alone. Where several fit, the one that says most
(the most letters that are no `*`) holds.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

PATTERN = re.compile(r"[a-z0-9*][a-z0-9*._/-]{0,254}")


def check(pattern: str) -> str:
    """Raises ValueError with words that follow "must be"."""
    if not PATTERN.fullmatch(pattern):
        raise ValueError(f"a repository or a pattern such as team/*, not {pattern[:64]!r}")
    return pattern


def fits(pattern: str, name: str) -> bool:
    begins = pattern.partition("*")[0]  # most differ there: many patterns are compared with many names
    return name.startswith(begins) and fnmatch.fnmatchcase(name, pattern)


def best(patterns: Iterable[str], name: str) -> str | None:
    """The pattern that holds for `name`; among equals the first in the alphabet."""
    fitting = [pattern for pattern in patterns if fits(pattern, name)]
    return min(fitting, key=lambda pattern: (-len(pattern.replace("*", "")), pattern), default=None)


def namespace_of(pattern: str) -> str | None:
    """The one namespace that a pattern stays within; None where it may reach into several.

    A name without a slash is of `default` (`faas.oci.reference.namespace_of`).
    """
    first, slash, _ = pattern.partition("/")
    if "*" in first:
        return None
    return first if slash else "default"
