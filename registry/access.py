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
from collections.abc import Iterable
from dataclasses import dataclass, field

from faas.attempts import Attempts
from faas.auth import ALL_NAMESPACES, ANONYMOUS, ROOT, Accounts, Permission, Principal
from faas.errors import Unauthenticated
from registry.index.policies import Policies
from registry.upstream.upstream import Upstreams

TOKEN_SECONDS = 300
TOKEN_LENGTH = 8000  # what a header holds, whoever serves
SCOPES = 32  # of one token
ACTIONS = {"pull": Permission.PULL, "push": Permission.PUSH, "delete": Permission.DELETE_IMAGE}
CATALOG_SCOPE = "registry:catalog:*"
CATALOG = ("", "catalog")  # the pair for the list of repositories, which is in none of them
_FORM = re.compile(r"[\w-]+\.[\w-]{43}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. What is public is for everybody besides: see `Access.may`.

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
            "owner": "" if caller.is_anonymous else caller.principal.credential,
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


class Access:
    """Who asks, and what they may do here. `accounts` None: everybody is the administrator.

    `token_flow`: clients are told to ask for a token; Basic is taken all the same.
    """

    def __init__(
        self, accounts: Accounts | None, policies: Policies, upstreams: Upstreams, *, token_flow: bool
    ) -> None:
        self.accounts = accounts
        self.signer = Signer()
        self.attempts = Attempts()
        self._policies = policies
        self._upstreams = upstreams
        self._token_flow = token_flow

    async def caller(self, token: str, user: str | None, address: str | None) -> Caller:
        """Who these credentials, sent from `address`, belong to: a token of ours, or a principal's own.

        Raises Unauthenticated, Throttled after too many failures.
        """
        if self.accounts is None:
            return Caller(ROOT)
        if user is None and self.signer.is_form_of(token):
            grant = self.signer.read(token)
            owner = None if grant is None else await self._owner(grant, self.accounts)
            if grant is None or owner is None:  # no failed login: so clients learn that it is over
                raise Unauthenticated("the token is over; ask for a new one")
            return Caller(owner, grant.scopes)
        return Caller(await self.attempts.admit(self.accounts, token, user, address))

    async def _owner(self, grant: Grant, accounts: Accounts) -> Principal | None:
        return await accounts.principal(grant.owner) if grant.owner else ANONYMOUS

    def may(self, caller: Caller, permission: Permission, repository: str) -> bool:
        """What is public may be pulled by everybody, whatever their token says. Copies of an upstream's are public only
        by a pattern that names it: `*` must not have strangers fetch through here whatever they like.

        Copies of an upstream's are for everybody who may pull anything, where no pattern keeps them out; nobody pushes
        there.
        """
        copied = self._upstreams.of(repository)
        public = self._policies.public_by(repository) if permission is Permission.PULL else None
        if public is not None and (copied is None or public.startswith(copied.upstream.prefix)):
            return True
        if copied is None:
            return caller.may(permission, repository)
        if permission is Permission.PULL:
            reached = caller.principal.reaches(repository) and caller.principal.may(permission)
            return reached and caller.names(permission, repository)
        is_root = caller.principal.may(Permission.ADMIN, ALL_NAMESPACES)
        return permission is Permission.DELETE_IMAGE and caller.names(permission, repository) and is_root

    def granted(self, caller: Caller, wanted: Iterable[tuple[str, str]]) -> frozenset[tuple[str, str]]:
        """What of these (repository, action) pairs a token for `caller` may say."""
        return frozenset(pair for pair in wanted if pair == CATALOG or self.may(caller, ACTIONS[pair[1]], pair[0]))

    @property
    def wants_tokens(self) -> bool:
        """Whether clients are told to ask for a token. Where something is public that is so in any case: docker sends
        nothing at all, not even without a login, to a registry that asks for Basic."""
        return self._token_flow or bool(self._policies.public)


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
