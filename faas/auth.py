"""Who may do what: roles, permissions and the port that checks credentials.

A *principal* is who the credentials belong to. A token that stands alone has one role, for one namespace or for all; a
user's token has what its user holds now, in each namespace, and of that no more than the token itself says.
Every route declares the `Permission` that it needs; one middleware (`faas.web`) compares.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from faas import patterns
from faas.errors import InvalidInput
from faas.oci.reference import BASES, namespace_of

ALL_NAMESPACES = "*"
REPOSITORIES = 32  # patterns that may narrow one principal: each request compares with them
REPOSITORIES_LENGTH = 2048  # letters of all of them
FUNCTIONS = 100  # that may narrow one principal
FUNCTION_PATTERN = re.compile(r"[a-z0-9*]([a-z0-9*-]{0,61}[a-z0-9*])?")


class Permission(enum.Enum):
    """What a route may ask of a caller."""

    NOTHING = "nothing"  # health
    SELF = "self"  # who one is, and one's own tokens
    INVOKE = "invoke"
    METRICS = "metrics"
    READ = "read"  # list, describe (environment values hidden), logs
    PULL = "pull"
    CHANGE = "change"  # functions, revisions, schedules, triggers, scale
    PUSH = "push"
    DELETE_IMAGE = "delete-image"
    ADMIN = "admin"  # tokens, environment values, settings


class Role(enum.Enum):
    """The roles of the contract, narrowest first."""

    ANONYMOUS = "anonymous"
    CALLER = "caller"
    SCRAPER = "scraper"
    VIEWER = "viewer"
    DEPLOYER = "deployer"
    ADMIN = "admin"

    def may(self, permission: Permission) -> bool:
        return permission in GRANTS[self]


_KNOWN = frozenset({Permission.NOTHING, Permission.SELF})
_VIEWER = _KNOWN | {Permission.METRICS, Permission.READ, Permission.PULL}
_DEPLOYER = _VIEWER | {Permission.INVOKE, Permission.CHANGE, Permission.PUSH, Permission.DELETE_IMAGE}

GRANTS: dict[Role, frozenset[Permission]] = {
    Role.ANONYMOUS: frozenset({Permission.NOTHING}),
    Role.CALLER: _KNOWN | {Permission.INVOKE},
    Role.SCRAPER: _KNOWN | {Permission.METRICS},
    Role.VIEWER: _VIEWER,
    Role.DEPLOYER: _DEPLOYER,
    Role.ADMIN: frozenset(Permission),
}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request comes from.

    `functions` narrows it to functions, `repositories` what it may do with images (`faas.patterns`); empty = all. What
    is of a namespace and of none of its functions is not for who is narrowed to some.
    `grants`: (namespace, role) pairs, what its user holds now; None: it stands alone. `token`: the name of the user's
    token, where `name` is the user's.
    """

    name: str
    role: Role
    namespace: str = ALL_NAMESPACES
    functions: tuple[str, ...] = ()
    repositories: tuple[str, ...] = ()
    grants: tuple[tuple[str, Role], ...] | None = None
    token: str = ""

    @property
    def credential(self) -> str:
        """By what name `Accounts` finds it again."""
        return self.token or self.name

    @property
    def title(self) -> str:
        """Who that is, in an error's words."""
        return f"the {self.role.value} {self.name}" if self.grants is None else self.name

    def may(self, permission: Permission, namespace: str | None = None, function: str | None = None) -> bool:
        """Whether this principal holds `permission`, in `namespace` and on `function` where given."""
        if not self.may_in(permission, namespace):
            return False
        if namespace is None or not self.functions:
            return True
        return function is not None and any(patterns.fits(pattern, function) for pattern in self.functions)

    def may_in(self, permission: Permission, namespace: str | None) -> bool:
        """Whether it holds `permission` on anything at all there (None: anywhere)."""
        if not self.role.may(permission):
            return False
        if namespace is not None and self.namespace not in (ALL_NAMESPACES, namespace):
            return False
        if self.grants is None or permission in _KNOWN:
            return True
        wanted = self.namespace if namespace is None else namespace
        anywhere = namespace is None and wanted == ALL_NAMESPACES
        return any(role.may(permission) and (anywhere or of in (ALL_NAMESPACES, wanted)) for of, role in self.grants)

    def where(self, permission: Permission) -> frozenset[str] | None:
        """The namespaces in which it holds `permission`; None: in all."""
        if not self.role.may(permission):
            return frozenset()
        held = {ALL_NAMESPACES} if self.grants is None else {of for of, role in self.grants if role.may(permission)}
        if ALL_NAMESPACES in held:
            return None if self.namespace == ALL_NAMESPACES else frozenset({self.namespace})
        return frozenset(held if self.namespace == ALL_NAMESPACES else held & {self.namespace})

    def may_use(self, permission: Permission, repository: str) -> bool:
        """Whether this principal may do that (pull, push, delete) with the images of `repository`.

        Every function stands on the runtime bases: whoever may pull anything may pull them, and nobody but an
        administrator of everything may change them.
        """
        if repository.startswith(BASES):
            return self.may(permission) if permission is Permission.PULL else self.may(Permission.ADMIN, ALL_NAMESPACES)
        namespace = namespace_of(repository)
        return self.reaches(repository) and self.may(permission, namespace, repository.removeprefix(f"{namespace}/"))

    def reaches(self, repository: str) -> bool:
        """Whether no pattern keeps it out, whatever the role may."""
        return not self.repositories or any(patterns.fits(pattern, repository) for pattern in self.repositories)

    def check_patterns(self) -> None:
        """Raises InvalidInput where the patterns narrow nothing, reach nothing, or are too many."""
        if self.repositories and self.role not in (Role.VIEWER, Role.DEPLOYER):
            raise InvalidInput("repositories narrow a viewer's or a deployer's token only")
        if self.functions and self.role in (Role.SCRAPER, Role.ADMIN):
            raise InvalidInput("functions narrow a caller's, a viewer's or a deployer's token only")
        if len(self.functions) > FUNCTIONS or not all(FUNCTION_PATTERN.fullmatch(one) for one in self.functions):
            raise InvalidInput(f"functions must be at most {FUNCTIONS} names, or patterns such as api-*")
        if len(self.repositories) > REPOSITORIES or sum(map(len, self.repositories)) > REPOSITORIES_LENGTH:
            raise InvalidInput(
                f"repositories must be at most {REPOSITORIES} patterns with {REPOSITORIES_LENGTH} letters in all"
            )
        for pattern in self.repositories:
            try:
                within = patterns.namespace_of(patterns.check(pattern))
            except ValueError as error:
                raise InvalidInput(f"each of repositories must be {error}") from None
            if within is not None and self.namespace not in (ALL_NAMESPACES, within):
                raise InvalidInput(f"{pattern} reaches nothing in the namespace {self.namespace}")


ANONYMOUS = Principal("anonymous", Role.ANONYMOUS)
ROOT = Principal("admin", Role.ADMIN)


class Authenticator(Protocol):
    """Checks credentials. Implemented by the gateway's token store, and by `TokenFile` for parts that run alone."""

    async def authenticate(self, token: str, user: str | None = None) -> Principal | None:
        """The principal that `token` belongs to, or None.

        `user` is the name sent beside it with Basic credentials; where given it must be the principal's own.
        """
        ...

    def takes_password(self, user: str | None) -> bool:
        """Whether what comes with this name is a password. It can be guessed, so that a lock comes before it is
        checked (`faas.attempts`); a token, with its 256 random bits, cannot."""
        ...


class Accounts(Authenticator, Protocol):
    """Knows besides who may log in at all, so that what was given to somebody for a while ends with them."""

    async def principal(self, name: str) -> Principal | None:
        """Who may log in by that name now, with the rights that they have now."""
        ...


def new_token() -> str:
    """A fresh token: 256 bits, with a prefix that secret scanners can find."""
    return "faas_" + secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """How a token is stored. Tokens carry 256 random bits, so a plain digest cannot be searched.

    Any text has one: what came in a header need not be UTF-8, and is then nobody's token.
    """
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


def same_token(token: str, stored_hash: str) -> bool:
    """Constant-time comparison of a token with a stored hash."""
    return hmac.compare_digest(hash_token(token), stored_hash)


def token_in(path: Path) -> str:
    """Blocking. The administrator's token in `path`; a new one, for its owner's eyes, where there is no such file.

    The file appears whole or not at all. Raises InvalidInput where it is empty: an empty password must open nothing.
    """
    try:
        token = path.read_text().strip()
    except FileNotFoundError:
        token = new_token()
        written = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        with open(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(file.fileno())
        written.rename(path)
    if not token:
        raise InvalidInput(f"{path} is empty", hint="delete it: a new token is made at the next start")
    return token


class TokenFile:
    """One admin token, held as its hash; enough for a registry that runs alone."""

    def __init__(self, token: str) -> None:
        self._hash = hash_token(token)

    async def authenticate(self, token: str, user: str | None = None) -> Principal | None:
        if user not in (None, ROOT.name) or not same_token(token, self._hash):
            return None
        return ROOT

    def takes_password(self, user: str | None) -> bool:
        return False

    async def principal(self, name: str) -> Principal | None:
        return ROOT if name == ROOT.name else None
