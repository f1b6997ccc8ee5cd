"""The token store: who a token belongs to, answered from memory; the database holds hashes only.

A token stands alone, or it is a user's, and is called `NAME@USER` then. What a user's token may is worked out when the
token or its user changes, not when it is shown.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from faas.auth import ALL_NAMESPACES, ROOT, Principal, hash_token, new_token, token_in
from faas.background import Background
from faas.errors import Conflict, FaasError, InvalidInput, NotFound
from faas.logins import Logins
from faas.spec import is_namespace
from faas.state.session import Database
from gateway.accounts import ROLES, UserStore
from gateway.edge.throttle import Buckets, Rate
from gateway.periodic import Periodic
from gateway.store import tokens
from gateway.store.tokens import TokenRow

TOKEN_NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
MOST_TOKENS = 10_000
MOST_OF_USER = 50
WRITE_SECONDS = 60.0  # when tokens were last used is written so often, and at the stop
SWEEP_SECONDS = 3600.0
SHOWN_EXPIRED_SECONDS = 86_400.0  # an expired token is listed for a day: somebody may wonder why it opens nothing
SHORTEST, LONGEST = timedelta(minutes=1), timedelta(days=3650)
GRACE = timedelta(hours=1)
PACE = Rate(0.5, 50)  # of changes by who administers nothing
LONGEST_GRACE = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Held:
    """A token, and what it may now."""

    row: TokenRow
    principal: Principal


class TokenStore:
    """Implements `faas.auth.Accounts`. `open` before use; `start` once, `stop` once. `clock` gives Unix seconds.

    Changes go on to their end where their caller has gone, so that memory and database know the same.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._changes = Background()
        self._turn = asyncio.Lock()
        self.users = UserStore(database, self._turn, self._is_taken, self._user_changed)
        self.logins = Logins(self.now)
        self.pace = Buckets(PACE)
        self._admin_hash = ""
        self._by_hash: dict[str, Held] = {}
        self._by_name: dict[str, Held] = {}
        self._used: dict[str, float] = {}  # name → when
        self._unwritten: set[str] = set()
        self._writing = Periodic("when tokens were last used", WRITE_SECONDS, self._write)
        self._sweeping = Periodic("expired tokens", SWEEP_SECONDS, self.sweep, first=60.0)

    async def open(self) -> None:
        await self.users.open()
        async with self._database.read() as tx:
            rows = await tokens.every(tx)
        for row in rows:
            self._put(row)

    def start(self) -> None:
        self._writing.start()
        self._sweeping.start()

    async def stop(self) -> None:
        await self._sweeping.stop()
        await self._writing.stop(once_more=True)

    async def ensure_admin(self, path: Path) -> None:
        """Make the token in the file `path` the administrator's; the file is made (mode 0600) where it is missing."""
        self._admin_hash = hash_token(await asyncio.to_thread(token_in, path))

    # Asked by everybody

    async def authenticate(self, token: str, user: str | None = None) -> Principal | None:
        """See `faas.auth.Authenticator`. Looked up by its hash: nothing to learn from how long that takes."""
        hashed = hash_token(token)
        if self._admin_hash and hmac.compare_digest(hashed, self._admin_hash):
            return ROOT if user in (None, ROOT.name) else None
        held = self._by_hash.get(hashed)
        if held is None or user not in (None, held.row.name, held.row.user or held.row.name):
            return None
        row, now = held.row, self._clock()
        if not row.lives(now) or (hashed != row.hash and now >= (row.old_expires_at or 0.0)):
            return None
        self._used[row.name] = now
        self._unwritten.add(row.name)
        return held.principal

    def takes_password(self, user: str | None) -> bool:
        return False

    async def principal(self, name: str) -> Principal | None:
        """See `faas.auth.Accounts`; a token's name, which is who it is where it stands alone."""
        found = self.now(name)
        return found[0] if found else None

    def now(self, name: str) -> tuple[Principal, float | None] | None:
        """What the token of that name may now, and when it expires; None where it opens nothing."""
        if name == ROOT.name:
            return ROOT, None
        held = self._by_name.get(name)
        return (held.principal, held.row.expires_at) if held and held.row.lives(self._clock()) else None

    def is_known(self, name: str) -> bool:
        """Whether a user or a token is called so."""
        return name == ROOT.name or name in self._by_name or self.users.find(name) is not None

    # Control

    async def rows(self) -> list[TokenRow]:
        """Those of the database, by name: one whose revocation failed is still among them."""
        async with self._database.read() as tx:
            rows = await tokens.every(tx)
        return [replace(row, last_used_at=self._used.get(row.name, row.last_used_at)) for row in rows]

    async def named(self, name: str) -> TokenRow:
        """Raises NotFound where neither memory nor the database has it."""
        if (held := self._by_name.get(name)) is not None:
            return held.row
        for row in await self.rows():
            if row.name == name:
                return row
        raise no_token(name)

    async def create(
        self, wish: Principal, *, user: str = "", lifetime: timedelta | None = None, by: str = ""
    ) -> tuple[TokenRow, str]:
        """A new token, shown this once. Raises InvalidInput, NotFound where there is no such user, Conflict where the
        name is taken or there are too many."""
        check(wish)
        if lifetime is not None and not SHORTEST <= lifetime <= LONGEST:
            raise InvalidInput("a token lives for a minute at least and 3650 days at most")
        if user:
            wish = replace(wish, name=f"{wish.name}@{user}")
        return await self._changes.complete(self._create(wish, user, lifetime, by), "making a token")

    async def _create(self, wish: Principal, user: str, lifetime: timedelta | None, by: str) -> tuple[TokenRow, str]:
        token, now = new_token(), self._clock()
        ends = now + lifetime.total_seconds() if lifetime is not None else None
        row = TokenRow(wish, hash_token(token), now, user, by, ends)
        async with self._turn:
            if user:
                self.users.get(user)
            if wish.name == ROOT.name or self.users.find(wish.name) is not None:
                raise Conflict(f"there is a user or a token {wish.name} already")
            self._check_room(user)
            try:
                async with self._database.write() as tx:
                    await tokens.add(tx, row)
            except Conflict:
                raise Conflict(f"there is a user or a token {wish.name} already") from None
            self._put(row)
        return row, token

    def _check_room(self, user: str) -> None:
        if len(self._by_name) >= MOST_TOKENS:
            raise Conflict(f"there are {MOST_TOKENS} tokens, and that is all", hint="faas token revoke")
        if user and sum(held.row.user == user for held in self._by_name.values()) >= MOST_OF_USER:
            raise Conflict(f"a user has at most {MOST_OF_USER} tokens", hint="revoke one: faas token revoke")

    async def rotate(self, name: str, grace: timedelta = GRACE) -> tuple[TokenRow, str]:
        """A new token in its place; the one before opens for `grace` more, any before that ends now. Raises NotFound,
        InvalidInput, Conflict where it has expired, Unavailable."""
        if not timedelta(0) <= grace <= LONGEST_GRACE:
            raise InvalidInput("the grace must be 0s to 30d")
        return await self._changes.complete(self._rotate(name, grace), "rotating a token")

    async def _rotate(self, name: str, grace: timedelta) -> tuple[TokenRow, str]:
        async with self._turn:
            now = self._clock()
            if (held := self._by_name.get(name)) is None:
                raise no_token(name)
            if not held.row.lives(now):
                raise Conflict("this token has expired", hint="make a new one: faas token create")
            token = new_token()
            old = (held.row.hash, now + grace.total_seconds()) if grace else (None, None)
            row = replace(held.row, hash=hash_token(token), old_hash=old[0], old_expires_at=old[1])
            async with self._database.write() as tx:
                await tokens.put_hashes(tx, row)
            self._put(row)
        return row, token

    async def revoke(self, name: str) -> None:
        """From here on it opens nothing. Raises NotFound; where the database fails, it has to be asked for again."""
        await self._changes.complete(self._revoke(name), "revoking a token")

    async def _revoke(self, name: str) -> None:
        async with self._turn:
            known = self._drop(name)  # first: a failing database must not keep it alive
            async with self._database.write() as tx:
                stored = any(row.name == name for row in await tokens.every(tx))
                await tokens.remove(tx, name)  # whatever memory knows: what stays there is alive after the next start
        if not known and not stored:
            raise no_token(name)

    async def sweep(self) -> None:
        """Forget what has been expired for a day. Raises Unavailable."""
        async with self._turn:
            until = self._clock() - SHOWN_EXPIRED_SECONDS
            over = [name for name, held in self._by_name.items() if not held.row.lives(until)]
            if over:
                async with self._database.write() as tx:
                    await tokens.remove(tx, *over)
            for name in over:
                self._drop(name)

    # Inside

    def _put(self, row: TokenRow) -> None:
        self._forget_hashes(row.name)
        if (principal := self._principal(row)) is None:
            return
        held = self._by_name[row.name] = Held(row, principal)
        for hashed in filter(None, (row.hash, row.old_hash)):
            self._by_hash[hashed] = held

    def _principal(self, row: TokenRow) -> Principal | None:
        """What it may now; None where its user is gone."""
        if not row.user:
            return row.principal
        if (user := self.users.find(row.user)) is None:
            return None
        return replace(row.principal, name=user.name, grants=user.grants, token=row.name)

    def _drop(self, name: str) -> bool:
        self._forget_hashes(name)
        known = self._by_name.pop(name, None) is not None
        self._used.pop(name, None)
        self._unwritten.discard(name)
        self.logins.changed(name)
        return known

    def _forget_hashes(self, name: str) -> None:
        if (held := self._by_name.get(name)) is not None:
            for hashed in filter(None, (held.row.hash, held.row.old_hash)):
                self._by_hash.pop(hashed, None)

    def _user_changed(self, user: str) -> None:
        for row in [held.row for held in self._by_name.values() if held.row.user == user]:
            if self.users.find(user) is None:
                self._drop(row.name)
            else:
                self._put(row)
                self.logins.changed(row.name)

    def _is_taken(self, name: str) -> bool:
        return name in self._by_name

    async def _write(self) -> None:
        """When tokens were last used. What is lost with a crash is a minute of that."""
        if not self._unwritten:
            return
        written, self._unwritten = self._unwritten, set()
        try:
            async with self._database.write() as tx:
                await tokens.used(tx, {name: self._used[name] for name in written if name in self._used})
        except FaasError:
            self._unwritten |= {name for name in written if name in self._used}
            raise


def no_token(name: str) -> NotFound:
    return NotFound(f"there is no token {name}", hint="see faas token ls")


def check(principal: Principal) -> None:
    """What a credential may grant. Raises InvalidInput."""
    if not TOKEN_NAME_PATTERN.fullmatch(principal.name):
        raise InvalidInput("a token's name has 1 to 63 of a-z, 0-9, ., _ and -, first and last a letter or digit")
    if principal.role not in ROLES:
        raise InvalidInput("the role must be one of " + ", ".join(role.value for role in ROLES))
    if principal.namespace != ALL_NAMESPACES and not is_namespace(principal.namespace):
        raise InvalidInput('the namespace must be "*" or a name')
    principal.check_patterns()
