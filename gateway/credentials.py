"""The token store: who a token belongs to, answered from memory; the database holds hashes only."""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from pathlib import Path

from faas.auth import ALL_NAMESPACES, ROOT, Principal, Role, hash_token, new_token, token_in
from faas.background import Background
from faas.errors import Conflict, InvalidInput, NotFound
from faas.spec import NAME_PATTERN, is_namespace
from faas.state.session import Database
from gateway.store import tokens
from gateway.store.tokens import TokenRow

TOKEN_NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
FUNCTIONS = 100  # that one caller's token may name
ROLES = (Role.CALLER, Role.SCRAPER, Role.VIEWER, Role.DEPLOYER, Role.ADMIN)


class TokenStore:
    """Implements `faas.auth.Accounts`. `open` it before use.

    Changes go on to their end where their caller has gone, so that memory and database know the same.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._changes = Background()
        self._admin_hash = ""
        self._by_hash: dict[str, TokenRow] = {}

    async def open(self) -> None:
        async with self._database.read() as tx:
            rows = await tokens.every(tx)
        self._by_hash = {row.hash: row for row in rows}

    async def ensure_admin(self, path: Path) -> None:
        """Make the token in the file `path` the administrator's; the file is made (mode 0600) where it is missing."""
        self._admin_hash = hash_token(await asyncio.to_thread(token_in, path))

    async def authenticate(self, token: str, user: str | None = None) -> Principal | None:
        """See `faas.auth.Authenticator`. Looked up by its hash: nothing to learn from how long that takes."""
        hashed = hash_token(token)
        if self._admin_hash and hmac.compare_digest(hashed, self._admin_hash):
            return ROOT if user in (None, ROOT.name) else None
        row = self._by_hash.get(hashed)
        if row is None or user not in (None, row.principal.name):
            return None
        return row.principal

    def takes_password(self, user: str | None) -> bool:
        return False

    async def principal(self, name: str) -> Principal | None:
        """See `faas.auth.Accounts`."""
        if name == ROOT.name:
            return ROOT
        return next((row.principal for row in self._by_hash.values() if row.principal.name == name), None)

    async def rows(self) -> list[TokenRow]:
        """Those of the database, by name: one whose revocation failed is still among them."""
        async with self._database.read() as tx:
            return await tokens.every(tx)

    async def named(self, name: str) -> TokenRow:
        """Raises NotFound where neither memory nor the database has it."""
        rows = [row for row in self._by_hash.values() if row.principal.name == name]
        rows = rows or [row for row in await self.rows() if row.principal.name == name]
        if rows:
            return rows[0]
        raise NotFound(f"there is no token {name}")

    async def create(self, principal: Principal) -> str:
        """A new token, shown this once. Raises InvalidInput, Conflict where the name is taken."""
        check(principal)
        if principal.name == ROOT.name:
            raise Conflict(f"there is a token {principal.name} already")
        return await self._changes.complete(self._create(principal), "making a token")

    async def _create(self, principal: Principal) -> str:
        token = new_token()
        row = TokenRow(principal, hash_token(token), time.time())
        try:
            async with self._database.write() as tx:
                await tokens.add(tx, row)
        except Conflict:
            raise Conflict(f"there is a token {principal.name} already") from None
        self._by_hash[row.hash] = row
        return token

    async def revoke(self, name: str) -> None:
        """From here on it opens nothing. Raises NotFound; where the database fails, it has to be asked for again."""
        await self._changes.complete(self._revoke(name), "revoking a token")

    async def _revoke(self, name: str) -> None:
        known = [row.hash for row in self._by_hash.values() if row.principal.name == name]
        for hashed in known:  # first: a failing database must not keep it alive
            del self._by_hash[hashed]
        async with self._database.write() as tx:
            stored = any(row.principal.name == name for row in await tokens.every(tx))
            await tokens.remove(tx, name)  # whatever memory knows: what stays there is alive after the next start
        if not known and not stored:
            raise NotFound(f"there is no token {name}")


def check(principal: Principal) -> None:
    """What a credential may grant. Raises InvalidInput."""
    if not TOKEN_NAME_PATTERN.fullmatch(principal.name):
        raise InvalidInput("a token's name has 1 to 63 of a-z, 0-9, ., _ and -, first and last a letter or digit")
    if principal.role not in ROLES:
        raise InvalidInput("the role must be one of " + ", ".join(role.value for role in ROLES))
    if principal.namespace != ALL_NAMESPACES and not is_namespace(principal.namespace):
        raise InvalidInput('the namespace must be "*" or a name')
    if principal.functions and principal.role is not Role.CALLER:
        raise InvalidInput("functions narrow a caller's token only")
    if len(principal.functions) > FUNCTIONS or not all(NAME_PATTERN.fullmatch(name) for name in principal.functions):
        raise InvalidInput(f"functions must be at most {FUNCTIONS} names")
    principal.check_repositories()
