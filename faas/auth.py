"""Who may do what: roles, permissions and the port that checks credentials.

A *principal* is who the credentials belong to; it has one role, for one namespace or for all.
Every route declares the `Permission` that it needs; one middleware (`faas.web`) compares.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import os
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


class Permission(enum.Enum):
    """What a route may ask of a caller."""

    NOTHING = "nothing"  # health
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


_VIEWER = frozenset({Permission.NOTHING, Permission.METRICS, Permission.READ, Permission.PULL})
_DEPLOYER = _VIEWER | {Permission.INVOKE, Permission.CHANGE, Permission.PUSH, Permission.DELETE_IMAGE}

GRANTS: dict[Role, frozenset[Permission]] = {
    Role.ANONYMOUS: frozenset({Permission.NOTHING}),
    Role.CALLER: frozenset({Permission.NOTHING, Permission.INVOKE}),
    Role.SCRAPER: frozenset({Permission.NOTHING, Permission.METRICS}),
    Role.VIEWER: _VIEWER,
    Role.DEPLOYER: _DEPLOYER,
    Role.ADMIN: frozenset(Permission),
}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request comes from.

    `functions` narrows a caller's key to the names it holds, `repositories` what a viewer or a deployer may do with
    images to the patterns it holds (`faas.patterns`); empty = all.
    """

    name: str
    role: Role
    namespace: str = ALL_NAMESPACES
    functions: tuple[str, ...] = ()
    repositories: tuple[str, ...] = ()

    def may(self, permission: Permission, namespace: str | None = None, function: str | None = None) -> bool:
        """Whether this principal holds `permission`, in `namespace` and on `function` where given."""
        if not self.role.may(permission):
            return False
        if namespace is not None and self.namespace not in (ALL_NAMESPACES, namespace):
            return False
        return not (function is not None and self.functions and function not in self.functions)

    def may_use(self, permission: Permission, repository: str) -> bool:
        """Whether this principal may do that (pull, push, delete) with the images of `repository`.

        Every function stands on the runtime bases: whoever may pull anything may pull them, and nobody but an
        administrator of everything may change them.
        """
        if repository.startswith(BASES):
            return self.may(permission) if permission is Permission.PULL else self.may(Permission.ADMIN, ALL_NAMESPACES)
        return self.reaches(repository) and self.may(permission, namespace_of(repository))

    def reaches(self, repository: str) -> bool:
        """Whether no pattern keeps it out, whatever the role may."""
        return not self.repositories or any(patterns.fits(pattern, repository) for pattern in self.repositories)

    def check_repositories(self) -> None:
        """Raises InvalidInput where the patterns narrow nothing, reach nothing, or are too many."""
        if self.repositories and self.role not in (Role.VIEWER, Role.DEPLOYER):
            raise InvalidInput("repositories narrow a viewer's or a deployer's token only")
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
