"""Who asks, and what they may do in a repository: a principal's role, narrowed by the scopes of a token.

Short-lived tokens are those of Docker's token flow (distribution, docs/spec/auth/token.md, scope.md): signed with a key
that lives as long as the process, since a client whose token is over, or from before a restart, simply asks again.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from faas.auth import ALL_NAMESPACES, ANONYMOUS, Permission, Principal, Role
from faas.oci.reference import BASES
from registry.index.index import namespace_of

TOKEN_SECONDS = 300
SCOPES = 32  # of one token
ACTIONS = {"pull": Permission.PULL, "push": Permission.PUSH, "delete": Permission.DELETE_IMAGE}


@dataclass(frozen=True, slots=True)
class Caller:
    """`scopes`: (repository, action) pairs that a token was given; None: the principal's own credentials."""

    principal: Principal
    scopes: frozenset[tuple[str, str]] | None = None

    @property
    def is_anonymous(self) -> bool:
        return self.principal is ANONYMOUS

    def holds(self, permission: Permission, repository: str) -> bool:
        """Whether the principal may, whatever the token says.

        Every function stands on the runtime bases: whoever may pull anything may pull them, and nobody but an
        administrator of everything may change them.
        """
        if not repository.startswith(BASES):
            return self.principal.may(permission, namespace_of(repository))
        if permission is Permission.PULL:
            return self.principal.may(permission)
        return self.principal.may(Permission.ADMIN, ALL_NAMESPACES)

    def may(self, permission: Permission, repository: str) -> bool:
        named = self.scopes is None or any(
            (repository, action) in self.scopes for action, needed in ACTIONS.items() if needed is permission
        )
        return named and self.holds(permission, repository)

    def granted(self, wanted: Iterable[tuple[str, str]]) -> frozenset[tuple[str, str]]:
        """What of these (repository, action) pairs a token for this caller may say."""
        return frozenset((name, action) for name, action in wanted if self.holds(ACTIONS[action], name))


STRANGER = Caller(ANONYMOUS)


def parse_scope(text: str) -> list[tuple[str, str]]:
    """`repository:NAME:pull,push` as pairs; `*` means every action. What is no such scope asks for nothing."""
    kind, _, rest = text.partition(":")
    name, colon, actions = rest.rpartition(":")
    if kind != "repository" or not colon:
        return []
    words = set(actions.split(","))
    return [(name, action) for action in ACTIONS if action in words or "*" in words]


@dataclass(frozen=True, slots=True)
class Signer:
    """Makes and reads tokens: `payload.signature`, both base64url, the signature HMAC-SHA256."""

    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def issue(self, caller: Caller, scopes: frozenset[tuple[str, str]], now: float | None = None) -> str:
        principal = caller.principal
        payload = {
            "name": principal.name,
            "role": principal.role.value,
            "namespace": principal.namespace,
            "scopes": sorted(scopes),
            "until": int(time.time() if now is None else now) + TOKEN_SECONDS,
        }
        body = _encoded(json.dumps(payload, separators=(",", ":")).encode())
        return f"{body}.{_encoded(self._signature(body))}"

    def read(self, token: str, now: float | None = None) -> Caller | None:
        """Who a token speaks for; None where it is none of ours, or over."""
        body, dot, signature = token.partition(".")
        if not dot or not hmac.compare_digest(_encoded(self._signature(body)), signature):
            return None
        payload = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        if payload["until"] < (time.time() if now is None else now):
            return None
        role = Role(payload["role"])
        principal = ANONYMOUS if role is Role.ANONYMOUS else Principal(payload["name"], role, payload["namespace"])
        return Caller(principal, frozenset((name, action) for name, action in payload["scopes"]))

    def _signature(self, body: str) -> bytes:
        return hmac.new(self.key, body.encode(), hashlib.sha256).digest()


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
