"""`UserStore`: people and machines, and what each of them is in which namespace; answered from memory.

A user opens nothing by itself: that is what its tokens do (`gateway.credentials`), each with what its user holds now.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from faas.auth import ALL_NAMESPACES, ROOT, Role
from faas.background import Background
from faas.errors import Conflict, InvalidInput, NotFound
from faas.spec import is_namespace
from faas.state.session import Database
from gateway.store import tokens, users
from gateway.store.users import User

USER_NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
ROLES = (Role.CALLER, Role.SCRAPER, Role.VIEWER, Role.DEPLOYER, Role.ADMIN)
MOST_USERS = 10_000
MOST_ROLES = 100  # of one user
RESERVED = {ROOT.name, "anonymous"}


class UserStore:
    """`open` it before use. `taken` says whether a token is called so; `changed` is called with a user whose rights are
    others now. `turn`: changes of users and tokens come one after another, and memory follows in the same order.
    """

    def __init__(
        self, database: Database, turn: asyncio.Lock, taken: Callable[[str], bool], changed: Callable[[str], None]
    ) -> None:
        self._database = database
        self._turn = turn
        self._taken = taken
        self._changed = changed
        self._changes = Background()
        self._users: dict[str, User] = {}

    async def open(self) -> None:
        async with self._database.read() as tx:
            self._users = {user.name: user for user in await users.every(tx)}

    def every(self) -> list[User]:
        """By name."""
        return [user for _, user in sorted(self._users.items())]

    def find(self, name: str) -> User | None:
        return self._users.get(name)

    def get(self, name: str) -> User:
        """Raises NotFound."""
        if (user := self._users.get(name)) is None:
            raise no_user(name)
        return user

    async def create(self, name: str, roles: Mapping[str, Role], by: str) -> User:
        """Raises InvalidInput, Conflict where the name is taken or there are too many, Unavailable."""
        if not USER_NAME_PATTERN.fullmatch(name):
            raise InvalidInput("a user's name has 1 to 63 of a-z, 0-9, ., _ and -, first and last a letter or digit")
        user = User(name, time.time(), by, checked(roles))
        return await self._changes.complete(self._create(user), "making a user")

    async def _create(self, user: User) -> User:
        async with self._turn:
            if user.name in self._users or user.name in RESERVED or self._taken(user.name):
                raise Conflict(f"there is a user or a token {user.name} already")
            if len(self._users) >= MOST_USERS:
                raise Conflict(f"there are {MOST_USERS} users, and that is all", hint="faas user rm")
            async with self._database.write() as tx:
                await users.add(tx, user)
            self._users[user.name] = user
        return user

    async def set_roles(self, name: str, change: Mapping[str, Role | None]) -> User:
        """What it is from here on in these namespaces, None being nothing; the others stay. Raises NotFound,
        InvalidInput, Unavailable."""
        return await self._changes.complete(self._set_roles(name, change), "changing a user")

    async def _set_roles(self, name: str, change: Mapping[str, Role | None]) -> User:
        async with self._turn:
            user = self.get(name)
            merged = {of: role for of, role in {**user.roles, **change}.items() if role is not None}
            user = replace(user, roles=checked(merged))
            async with self._database.write() as tx:
                await users.put_roles(tx, user)
            self._users[name] = user
            self._changed(name)
        return user

    async def remove(self, name: str) -> None:
        """From here on its tokens open nothing. Raises NotFound; where the database fails, it has to be asked for
        again."""
        await self._changes.complete(self._remove(name), "removing a user")

    async def _remove(self, name: str) -> None:
        async with self._turn:
            user = self.get(name)
            self._users[name] = replace(user, roles={})  # first: a failing database must not keep its rights alive
            self._changed(name)
            async with self._database.write() as tx:
                await tokens.remove_of(tx, name)
                await users.remove(tx, name)
            del self._users[name]
            self._changed(name)


def no_user(name: str) -> NotFound:
    return NotFound(f"there is no user {name}", hint="see faas user ls")


def checked(roles: Mapping[str, Role]) -> dict[str, Role]:
    """Raises InvalidInput."""
    if len(roles) > MOST_ROLES:
        raise InvalidInput(f"a user has roles in at most {MOST_ROLES} namespaces")
    for namespace, role in roles.items():
        if namespace != ALL_NAMESPACES and not is_namespace(namespace):
            raise InvalidInput('a namespace must be "*" or a name')
        if role not in ROLES:
            raise InvalidInput("a role must be one of " + ", ".join(role.value for role in ROLES))
    return dict(roles)
