"""`Users`: who may log in with a password at a registry that runs alone, as `DIR/users` says (JSON, mode 0600).

`python -m registry user` writes the file, whole or not at all; a registry that runs sees it within a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faas.auth import ALL_NAMESPACES, ROOT, Principal, Role, TokenFile
from faas.errors import InvalidInput
from faas.passwords import Passwords
from faas.spec import is_namespace

log = logging.getLogger("registry")

FILE = "users"
LOOK_SECONDS = 1.0
ROLES = (Role.VIEWER, Role.DEPLOYER, Role.ADMIN)
NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
KEYS = {"name", "role", "namespace", "repositories", "password"}


@dataclass(frozen=True, slots=True)
class User:
    """`password` is its hash (`faas.passwords`)."""

    principal: Principal
    password: str

    def check(self) -> None:
        """Raises InvalidInput."""
        who = self.principal
        if not NAME_PATTERN.fullmatch(who.name):
            raise InvalidInput("a user's name has 1 to 63 of a-z, 0-9, ., _ and -, first and last a letter or digit")
        if who.name == ROOT.name:
            raise InvalidInput(f"{ROOT.name} is the administrator, who logs in with the admin-token")
        if who.role not in ROLES:
            raise InvalidInput("the role must be one of " + ", ".join(role.value for role in ROLES))
        if who.namespace != ALL_NAMESPACES and not is_namespace(who.namespace):
            raise InvalidInput('the namespace must be "*" or a name')
        who.check_patterns()


def read(path: Path) -> dict[str, User]:
    """Blocking. By name; none where there is no file. Raises InvalidInput that names the user it cannot read."""
    try:
        written = json.loads(path.read_text())["users"]
        if not isinstance(written, list):
            raise TypeError
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InvalidInput(f"{path} is not what python -m registry user writes") from None
    users = [_user(path, number, row) for number, row in enumerate(written, 1)]
    return {user.principal.name: user for user in users}


def _user(path: Path, number: int, row: Any) -> User:
    try:
        if not isinstance(row, dict) or row.keys() != KEYS:
            raise ValueError(f"it must have {', '.join(sorted(KEYS))}")
        texts = (row["name"], row["namespace"], row["password"], *row["repositories"])
        if not isinstance(row["repositories"], list) or not all(isinstance(text, str) for text in texts):
            raise ValueError("its values must be texts, and repositories a list of them")
        user = User(
            Principal(row["name"], Role(row["role"]), row["namespace"], repositories=tuple(row["repositories"])),
            row["password"],
        )
        user.check()
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"{path}, user {number}: {error}") from None
    except InvalidInput as error:
        raise InvalidInput(f"{path}, user {number}: {error.message}") from None
    return user


def write(path: Path, users: Mapping[str, User]) -> None:
    """Blocking. The file is replaced as a whole, flushed, for its owner's eyes alone."""
    rows = [
        {
            "name": user.principal.name,
            "role": user.principal.role.value,
            "namespace": user.principal.namespace,
            "repositories": list(user.principal.repositories),
            "password": user.password,
        }
        for _, user in sorted(users.items())
    ]
    written = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with open(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(json.dumps({"users": rows}, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    written.rename(path)


@contextlib.contextmanager
def changing(path: Path) -> Iterator[dict[str, User]]:
    """Blocking. The users, to be changed; written where the block ends well. One process at a time."""
    with open(path.with_name(f"{path.name}.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        users = read(path)
        yield users
        write(path, users)


class Users:
    """Implements `faas.auth.Accounts`: the administrator by token, everybody else by password. `load` first."""

    def __init__(
        self, path: Path, admin: TokenFile, passwords: Passwords, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._admin = admin
        self._passwords = passwords
        self._clock = clock
        self._users: dict[str, User] = {}
        self._seen: tuple[int, ...] = ()  # the file as it was when it was read last
        self._looked = 0.0
        self._looking = asyncio.Lock()

    async def load(self) -> None:
        """Raises InvalidInput."""
        self._looked = self._clock()
        seen, users = await asyncio.to_thread(_changed, self._path, self._seen)
        self._seen = seen
        if users is not None:
            self._users = users

    async def authenticate(self, token: str, user: str | None = None) -> Principal | None:
        """See `faas.auth.Authenticator`. Raises Throttled where too many passwords come at once."""
        if not self.takes_password(user):
            return await self._admin.authenticate(token, user)
        await self._look()
        known = self._users.get(user or "")
        right = await self._passwords.verify(token, known.password if known else None)
        return known.principal if right and known else None

    def takes_password(self, user: str | None) -> bool:
        return user not in (None, ROOT.name)

    async def principal(self, name: str) -> Principal | None:
        """See `faas.auth.Accounts`."""
        if name == ROOT.name:
            return await self._admin.principal(name)
        await self._look()
        known = self._users.get(name)
        return known.principal if known else None

    async def _look(self) -> None:
        """What is in the file now holds; what nobody can read changes nothing, and is logged."""
        async with self._looking:
            if self._clock() < self._looked + LOOK_SECONDS:
                return
            try:
                await self.load()
            except (InvalidInput, OSError) as error:
                log.error("the users stay as they were: %s", error)


def _changed(path: Path, seen: tuple[int, ...]) -> tuple[tuple[int, ...], dict[str, User] | None]:
    """Blocking. (the file's state, its users where that is another one than `seen`)."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return (), {}
    state = (found.st_ino, found.st_mtime_ns, found.st_size)
    return state, None if state == seen else read(path)
