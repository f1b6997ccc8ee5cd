"""`KeySets`: issuers' public keys, by URL, by the issuer, or from a file of the server, kept and refreshed (RFC 7517).

A set is fetched once for all who wait for it, again when it is no longer fresh, and at most once a minute because of a
key id that it does not have. While an issuer is away the keys that are known go on for a day; nobody waits for it but
who needs a key of its that is not known. Nothing of a token leads anywhere: only what the rule names is ever fetched,
or what the metadata of the issuer that it names say. Each namespace has sets of its own: where there are too many, the
one that has most of them loses its longest unused one, and no other does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from faas.addresses import public_socket
from faas.background import Background
from faas.errors import FaasError, InvalidInput, Unavailable
from gateway.edge.auth.discovery import keys_url, metadata_url

log = logging.getLogger("faas.jwks")

SET_BYTES = 262_144
SET_KEYS = 100
SETS = 1000  # known at once
SETS_BYTES = 67_108_864  # of all of them together
FETCH_SECONDS = 5.0
USUAL_SECONDS, LEAST_SECONDS, MOST_SECONDS = (
    3600.0,
    300.0,
    86_400.0,
)  # how long a set is fresh, whatever its server says
FILE_SECONDS = 60.0
STALE_SECONDS = 86_400.0  # beyond that, while the issuer is away
RETRY_SECONDS = 60.0  # between fetches that an unknown key id or a stale set asks for
FIRST_RETRY_SECONDS = 10.0  # where no key is known at all
RSA_BITS = range(2048, 8193)  # less can be broken, more takes long to check
KEY_ID_CHARACTERS = 256

# Which keys an algorithm is for (RFC 7518, 3.1; RFC 8037).
_FITS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA", ())),
    "ES256": ("EC", ("P-256",)),
    "ES384": ("EC", ("P-384",)),
    "ES512": ("EC", ("P-521",)),
    "EdDSA": ("OKP", ("Ed25519", "Ed448")),
}
_MEMBERS = ("kty", "kid", "alg", "crv", "n", "e", "x", "y")  # of a key; certificates and the like are not kept
DISCOVERED = "issuer:"  # before an issuer whose metadata says where the keys are
_MAX_AGE = re.compile(r"(?:^|[,\s])max-age=\"?(\d{1,9})")


class KeySet:
    """The public keys of one document. What is no key to check signatures with is not in it."""

    def __init__(self, document: bytes) -> None:
        """Raises InvalidInput."""
        try:
            listed = json.loads(document)["keys"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise InvalidInput("it is no key set") from None
        if not isinstance(listed, list) or len(listed) > SET_KEYS:
            raise InvalidInput(f"it is no key set of at most {SET_KEYS} keys")
        self._keys = [
            {name: key[name] for name in _MEMBERS if name in key} for key in listed if _checks_signatures(key)
        ]
        self._made: dict[tuple[str | None, str], jwt.PyJWK | None] = {}

    def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        """The key of that id for `algorithm`; without an id the only one there is for it."""
        kind, curves = _FITS[algorithm]
        fitting = [
            key
            for key in self._keys
            if (key_id is None or key.get("kid") == key_id)
            and key["kty"] == kind
            and key.get("alg", algorithm) == algorithm
            and (not curves or key.get("crv") in curves)
        ]
        if len(fitting) != 1:
            return None
        wanted = (fitting[0].get("kid"), algorithm)
        if wanted not in self._made:
            self._made[wanted] = _made(fitting[0], algorithm)
        return self._made[wanted]


def _checks_signatures(key: Any) -> bool:
    if not isinstance(key, dict) or "kty" not in key or not all(isinstance(key.get(one, ""), str) for one in _MEMBERS):
        return False
    operations = key.get("key_ops", ["verify"])
    return key.get("use", "sig") == "sig" and isinstance(operations, list) and "verify" in operations and "d" not in key


def _made(key: dict[str, Any], algorithm: str) -> jwt.PyJWK | None:
    try:
        made = jwt.PyJWK(key, algorithm)
    except (jwt.PyJWTError, ValueError, TypeError, LookupError):
        return None
    if isinstance(made.key, RSAPublicKey) and made.key.key_size not in RSA_BITS:
        return None
    return made


def fresh_seconds(cache_control: str) -> float:
    """How long a fetched set is taken as fresh, from its Cache-Control."""
    if "no-store" in cache_control or "no-cache" in cache_control:
        return LEAST_SECONDS
    found = _MAX_AGE.search(cache_control)
    return min(MOST_SECONDS, max(LEAST_SECONDS, float(found[1]))) if found else USUAL_SECONDS


@dataclass(slots=True)
class _Source:
    """What is known of one set. Times are of the store's clock."""

    keys: KeySet | None = None
    size: int = 0  # bytes of it
    fresh_until: float = 0.0
    tried_at: float = float("-inf")
    fetching: asyncio.Task[None] | None = None
    failing: bool = field(default=False)


class KeySets:
    """`start`ed once, `stop`ped once. `folder`: where files of keys are; `allow_private`: URLs may stay on this machine
    and its networks."""

    def __init__(
        self, folder: Path | None, *, allow_private: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._allow_private = allow_private
        self._clock = clock
        self._sources: dict[str, OrderedDict[str, _Source]] = {}  # by namespace, the longest unused first
        self._fetches = Background()
        self._session: ClientSession | None = None

    async def start(self) -> None:
        allowed = None if self._allow_private else public_socket
        self._session = ClientSession(
            connector=TCPConnector(limit=0, force_close=True, socket_factory=allowed),
            timeout=ClientTimeout(total=FETCH_SECONDS),
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
        )

    async def stop(self) -> None:
        await self._fetches.cancel()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def key(self, where: str, key_id: str | None, algorithm: str, *, namespace: str = "") -> jwt.PyJWK | None:
        """The key of the set at `where`, a URL, a file's name, or DISCOVERED and an issuer, for a function of
        `namespace`. Raises Unavailable where no key at all is known."""
        source = self._source(namespace, where)
        now = self._clock()
        if source.keys is None or now >= source.fresh_until + STALE_SECONDS:
            await self._refreshed(where, source, FIRST_RETRY_SECONDS)
            if source.keys is None or self._clock() >= source.fresh_until + STALE_SECONDS:
                raise Unavailable("the keys of the issuer cannot be read now")
        elif now >= source.fresh_until:
            self._fetch(where, source, RETRY_SECONDS)
        found = source.keys.find(key_id, algorithm)
        if found is None and (await self._refreshed(where, source, RETRY_SECONDS)):
            found = source.keys.find(key_id, algorithm)
        return found

    def _source(self, namespace: str, where: str) -> _Source:
        own = self._sources.setdefault(namespace, OrderedDict())
        source = own.get(where)
        if source is None:
            source = own[where] = _Source()
            if sum(map(len, self._sources.values())) > SETS:
                self._forget(len, source)
        own.move_to_end(where)
        return source

    def _make_room(self, newest: _Source) -> None:
        """Forget what is longest unused where all of them together are too large."""
        while sum(_size(own) for own in self._sources.values()) > SETS_BYTES and self._forget(_size, newest):
            pass

    def _forget(self, much: Callable[[Mapping[str, _Source]], int], newest: _Source) -> bool:
        """The longest unused one of the namespace that has most, but not `newest`; whether there was one."""
        most = max(self._sources, key=lambda namespace: much(self._sources[namespace]))
        own = self._sources[most]
        oldest = next((where for where, source in own.items() if source is not newest), None)
        if oldest is None:
            return False
        del own[oldest]
        if not own:
            del self._sources[most]
        return True

    async def _refreshed(self, where: str, source: _Source, after: float) -> bool:
        """Wait for a fetch, one for all; whether there was one. None begins within `after` seconds of the last."""
        fetching = self._fetch(where, source, after)
        if fetching is None:
            return False
        await asyncio.shield(fetching)
        return True

    def _fetch(self, where: str, source: _Source, after: float) -> asyncio.Task[None] | None:
        if source.fetching is None and self._clock() - source.tried_at >= after:
            source.tried_at = self._clock()
            source.fetching = self._fetches.own(self._load(where, source), f"the key set {where}")
        return source.fetching

    async def _load(self, where: str, source: _Source) -> None:
        """Raises nothing: where it fails, what was known stays."""
        try:
            document, seconds = await self._document(where)
            source.keys = KeySet(document)
            source.size = len(document)
            self._make_room(source)
            source.fresh_until = self._clock() + seconds
            source.failing = False
        except FaasError as error:
            if not source.failing:
                log.warning("the key set %s cannot be read: %s", where, error.message)
            source.failing = True
        finally:
            source.fetching = None

    async def _document(self, where: str) -> tuple[bytes, float]:
        """(document, seconds it is fresh). Raises Unavailable, InvalidInput."""
        if where.startswith(DISCOVERED):
            issuer = where.removeprefix(DISCOVERED)
            metadata, _ = await self._get(metadata_url(issuer))
            return await self._get(keys_url(metadata, issuer))
        return await (self._get(where) if "://" in where else self._read(where))

    async def _get(self, url: str) -> tuple[bytes, float]:
        """(document, seconds it is fresh). Raises Unavailable."""
        assert self._session is not None
        document = bytearray()
        try:
            async with self._session.get(
                url, allow_redirects=False, headers={"Accept": "application/json", "Accept-Encoding": "identity"}
            ) as answer:
                if answer.status != 200:
                    raise Unavailable(f"it was answered with {answer.status}")
                async for chunk in answer.content.iter_any():
                    document += chunk
                    if len(document) > SET_BYTES:
                        raise Unavailable(f"it has more than {SET_BYTES} bytes")
                return bytes(document), fresh_seconds(answer.headers.get("Cache-Control", "").lower())
        except (TimeoutError, ClientError, OSError, ValueError) as error:
            raise Unavailable(f"{type(error).__name__}: {error}") from None

    async def _read(self, name: str) -> tuple[bytes, float]:
        """Raises Unavailable."""
        if self._folder is None:
            raise Unavailable("this server has no folder for key sets")
        with contextlib.suppress(OSError):
            document = await asyncio.to_thread(_bytes_of, self._folder / name)
            if len(document) <= SET_BYTES:
                return document, FILE_SECONDS
            raise Unavailable(f"it has more than {SET_BYTES} bytes")
        raise Unavailable(f"there is no readable {name} in the folder jwks of the server's data")


def _size(own: Mapping[str, _Source]) -> int:
    return sum(source.size for source in own.values())


def _bytes_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(SET_BYTES + 1)
