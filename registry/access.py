"""Who asks, and what they may do in a repository: a principal's role, narrowed by the scopes of a token.

Short-lived tokens are those of Docker's token flow (distribution, docs/spec/auth/token.md, scope.md): signed with a key
that lives as long as the process, since a client whose token is over, or from before a restart, simply asks again. They
name their owner and say nothing of the owner's rights: whoever loses those has lost them in every token, too.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import time
from dataclasses import dataclass, field

from faas.auth import ANONYMOUS, Permission, Principal

TOKEN_SECONDS = 300
TOKEN_LENGTH = 8000  # what a header holds, whoever serves
SCOPES = 32  # of one token
ACTIONS = {"pull": Permission.PULL, "push": Permission.PUSH, "delete": Permission.DELETE_IMAGE}
CATALOG_SCOPE = "registry:catalog:*"
CATALOG = ("", "catalog")  # the pair for the list of repositories, which is in none of them
_FORM = re.compile(r"[\w-]+\.[\w-]{43}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. What is public is for everybody besides: see `Registry.may`.

    `scopes`: (repository, action) pairs that a token was given; None: the principal's own credentials.
    """

    principal: Principal
    scopes: frozenset[tuple[str, str]] | None = None

    @property
    def is_anonymous(self) -> bool:
        return self.principal is ANONYMOUS

    @property
    def may_list(self) -> bool:
        """Whether the token, where it is one, was given for the list of repositories."""
        return self.scopes is None or CATALOG in self.scopes

    def names(self, permission: Permission, repository: str) -> bool:
        """Whether the token, where it is one, says so."""
        return self.scopes is None or any(
            (repository, action) in self.scopes for action, needed in ACTIONS.items() if needed is permission
        )

    def may(self, permission: Permission, repository: str) -> bool:
        """What the token says, and what its principal may."""
        return self.names(permission, repository) and self.principal.may_use(permission, repository)


STRANGER = Caller(ANONYMOUS)


def parse_scope(text: str) -> list[tuple[str, str]]:
    """`repository:NAME:pull,push` as pairs, `*` being every action; `registry:catalog:*` is one of its own.

    What is no such scope asks for nothing.
    """
    if text == CATALOG_SCOPE:
        return [CATALOG]
    kind, _, rest = text.partition(":")
    name, colon, actions = rest.rpartition(":")
    if kind != "repository" or not colon:
        return []
    words = set(actions.split(","))
    return [(name, action) for action in ACTIONS if action in words or "*" in words]


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token says: whose it is ("": a stranger's), and for which (repository, action) pairs."""

    owner: str
    scopes: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Signer:
    """Makes and reads tokens: `payload.signature`, both base64url, the signature HMAC-SHA256."""

    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def issue(self, caller: Caller, scopes: frozenset[tuple[str, str]], now: float | None = None) -> str:
        payload = {
            "owner": "" if caller.is_anonymous else caller.principal.name,
            "scopes": sorted(scopes),
            "until": int(time.time() if now is None else now) + TOKEN_SECONDS,
        }
        body = _encoded(json.dumps(payload, separators=(",", ":")).encode())
        return f"{body}.{_encoded(self._signature(body))}"

    def is_form_of(self, token: str) -> bool:
        """Whether it may be one of ours, of an earlier process or from long ago, and nobody's own credentials."""
        return _FORM.fullmatch(token) is not None

    def read(self, token: str, now: float | None = None) -> Grant | None:
        """None where it is none of ours, or over."""
        body, dot, signature = token.partition(".")
        if not dot or not hmac.compare_digest(_encoded(self._signature(body)), signature):
            return None
        payload = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        if payload["until"] < (time.time() if now is None else now):
            return None
        return Grant(payload["owner"], frozenset((name, action) for name, action in payload["scopes"]))

    def _signature(self, body: str) -> bytes:
        return hmac.new(self.key, body.encode(), hashlib.sha256).digest()


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
