"""`Passwords`: hashed with argon2id, and checked without holding up the loop or filling the memory.

The cost is the second of RFC 9106's recommendations (§4: three passes over 64 MiB, four lanes). A client that sends its
password with each request pays once: pairs that were right are remembered for a while, as an HMAC under a key of this
process; a hash that changes makes its pairs worthless at once.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.profiles import RFC_9106_LOW_MEMORY

from faas.errors import InvalidInput, Throttled
from faas.turns import Turns

AT_ONCE = 2  # hashes, of 64 MiB and tens of milliseconds each
MOST = 32  # wanted at once, those that wait among them
REMEMBERED_SECONDS = 300.0
REMEMBERED = 1024
LENGTH = range(8, 1025)  # letters

T = TypeVar("T")


def check_password(password: str) -> str:
    """Raises InvalidInput where it is none to choose."""
    if len(password) not in LENGTH:
        raise InvalidInput(f"a password has {LENGTH.start} to {LENGTH.stop - 1} letters")
    if not password.isprintable():
        raise InvalidInput("a password has printable letters only")
    return password


class Passwords:
    """`close` it after use."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._hasher = PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="argon2")
        self._wanted = 0
        self._turns: Turns[bytes] = Turns()
        self._key = secrets.token_bytes(32)
        self._right: OrderedDict[bytes, float] = OrderedDict()  # the pair's HMAC → until when it is remembered
        self._nobodys = _no_hash()  # what an unknown user's password is compared with

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    async def hash(self, password: str) -> str:
        """In PHC form, with its own salt. Raises Throttled where too many are wanted."""
        return await self._run(lambda: self._hasher.hash(_bytes(password)))

    async def verify(self, password: str, stored: str | None) -> bool:
        """Whether `password` is the one of the hash `stored`; None, for an unknown user, costs as much and is False.

        Raises Throttled where too many are wanted.
        """
        against = stored or self._nobodys
        pair = hmac.digest(self._key, hashlib.sha256(against.encode()).digest() + _bytes(password), "sha256")
        async with self._turns.of(pair):  # layers are pulled in parallel, with one password
            if self._right.get(pair, 0.0) > self._clock():
                return True
            right = await self._run(lambda: self._matches(against, password)) and stored is not None
            if right:
                self._remember(pair)
            return right

    def _matches(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, _bytes(password))
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, work: Callable[[], T]) -> T:
        if self._wanted >= MOST:
            raise Throttled("too many logins at once", reason="TooManyLogins")
        self._wanted += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._wanted -= 1

    def _remember(self, pair: bytes) -> None:
        self._right[pair] = self._clock() + REMEMBERED_SECONDS
        self._right.move_to_end(pair)
        if len(self._right) > REMEMBERED:
            self._right.popitem(last=False)


def _no_hash() -> str:
    """In form and cost like any other, and the hash of nothing that is known."""
    salt, digest = (base64.b64encode(secrets.token_bytes(size)).rstrip(b"=").decode() for size in (16, 32))
    cost = RFC_9106_LOW_MEMORY
    return f"$argon2id$v=19$m={cost.memory_cost},t={cost.time_cost},p={cost.parallelism}${salt}${digest}"


def _bytes(password: str) -> bytes:
    """Any text has some: what came in a header need not be UTF-8, and is then nobody's password."""
    return password.encode(errors="surrogatepass")
