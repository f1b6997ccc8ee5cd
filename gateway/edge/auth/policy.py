"""What an authorizer function answers: yes or no, or an IAM policy that is looked at for each request. Pure.

Source: Amazon API Gateway, "Output from a Lambda authorizer" and "Lambda authorizers for HTTP APIs"; IAM's evaluation
logic: an explicit deny wins, and what nothing allows is denied. What this reads wrong would open a door, so that
whatever it does not know (conditions, NotAction, NotResource) is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from faas.rules.payload import Payload

INVOKE = "execute-api:invoke"
ARN = "arn:aws:execute-api:local:000000000000:"
POLICY_BYTES = 8192  # as JSON
CONTEXT_BYTES = 10_240
NAME_CHARACTERS = 128


class BadAnswer(ValueError):
    """Not an authorizer's answer; the words say why, for the log."""


@dataclass(frozen=True, slots=True)
class Statement:
    allows: bool
    resources: tuple[Glob, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """`simple`: for everything; else what `statements` say of a request. `context`: for the function that is called."""

    simple: bool | None
    statements: tuple[Statement, ...] = ()
    context: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    def allows(self, arns: Collection[str], others: Collection[str] = ()) -> bool:
        """Whether the request comes in that these stand for: all of `arns` are allowed, and neither they nor `others`,
        which it may be taken for, are denied."""
        if self.simple is not None:
            return self.simple
        said = [self._said(arn) for arn in arns]
        return all(one and all(one) for one in said) and all(all(self._said(arn)) for arn in set(others) - set(arns))

    def _said(self, arn: str) -> list[bool]:
        return [s.allows for s in self.statements if any(glob.matches(arn) for glob in s.resources)]


def method_arn(api: str, stage: str, method: str, path: str) -> str:
    return f"{ARN}{api}/{stage}/{method}/{path.lstrip('/')}"


@dataclass(frozen=True, slots=True)
class Glob:
    """A pattern with `*` (any characters) and `?` (one). Its parts are looked for one after the other, so that no
    pattern of a function's takes longer than reading the text once for each of them."""

    parts: tuple[re.Pattern[str], ...]
    ends: int  # characters of the last part

    @classmethod
    def of(cls, pattern: str) -> Glob:
        parts = pattern.split("*")
        expressions = (re.escape(part).replace(r"\?", ".") for part in parts)
        return cls(tuple(re.compile(one, re.DOTALL) for one in expressions), len(parts[-1]))

    def matches(self, text: str) -> bool:
        first, *others = self.parts
        if not others:
            return first.fullmatch(text) is not None
        if (found := first.match(text)) is None:
            return False
        place, last = found.end(), len(text) - self.ends
        for part in others[:-1]:
            if (found := part.search(text, place)) is None:
                return False
            place = found.end()
        return place <= last and others[-1].match(text, last) is not None


def read(payload: bytes, format_: Payload) -> Verdict:
    """An authorizer's payload → its verdict. Raises BadAnswer."""
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        raise BadAnswer("it is no JSON") from None
    if not isinstance(value, dict):
        raise BadAnswer("it is no object")
    context = {} if value.get("context") is None else value["context"]
    if not isinstance(context, dict) or len(json.dumps(context)) > CONTEXT_BYTES:
        raise BadAnswer(f"its context is no object of at most {CONTEXT_BYTES} bytes")
    if "isAuthorized" in value and format_ is Payload.V2:
        if not isinstance(value["isAuthorized"], bool):
            raise BadAnswer("isAuthorized is neither true nor false")
        return Verdict(value["isAuthorized"], context=context)
    if "policyDocument" not in value:
        raise BadAnswer("it has no policyDocument" + (" and no isAuthorized" if format_ is Payload.V2 else ""))
    name = value.get("principalId")
    if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARACTERS or not name.isprintable():
        raise BadAnswer("its principalId is no text of 1 to 128 characters")
    return Verdict(None, _statements(value["policyDocument"]), context, name)


def _statements(document: Any) -> tuple[Statement, ...]:
    listed = document.get("Statement") if isinstance(document, dict) else None
    if isinstance(listed, dict):
        listed = [listed]
    if not isinstance(listed, list) or len(json.dumps(listed)) > POLICY_BYTES:
        raise BadAnswer(f"its policy has no list of statements of at most {POLICY_BYTES} bytes")
    return tuple(found for found in map(_statement, listed) if found is not None)


def _statement(value: Any) -> Statement | None:
    """None where it is about other actions."""
    if not isinstance(value, dict):
        raise BadAnswer("a statement is no object")
    if unknown := value.keys() - {"Sid", "Effect", "Action", "Resource"}:
        raise BadAnswer(f"a statement has {sorted(map(str, unknown))[0][:64]}, which is not offered")
    if value.get("Effect") not in ("Allow", "Deny"):
        raise BadAnswer("a statement's Effect is neither Allow nor Deny")
    actions, resources = _patterns(value, "Action"), _patterns(value, "Resource")
    if not any(Glob.of(action.lower()).matches(INVOKE) for action in actions):
        return None
    return Statement(value["Effect"] == "Allow", tuple(map(Glob.of, resources)))


def _patterns(value: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found = value.get(key)
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not found or not all(isinstance(one, str) for one in found):
        raise BadAnswer(f"a statement's {key} is no text, nor a list of texts")
    return tuple(found)
