"""An issuer of JWTs with real keys, and its key set on a real server of this machine."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from tests.support.control import serving

ISSUER = "https://issuer.example"


@cache
def rsa_key(number: int = 0, bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


@cache
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def public(key: Any, **members: Any) -> dict[str, Any]:
    """A key's public half as a JWK."""
    algorithm = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    found: dict[str, Any] = algorithm.to_jwk(key.public_key(), as_dict=True)
    return {**found, "use": "sig", **members}


def claims(**changes: Any) -> dict[str, Any]:
    """Right ones, with `changes`; None takes one out."""
    now = int(time.time())
    given = {"iss": ISSUER, "aud": "us", "sub": "alice", "exp": now + 600, "iat": now, "scope": "read write"}
    return {name: value for name, value in {**given, **changes}.items() if value is not None}


def token(
    payload: dict[str, Any] | None = None,
    key: PrivateKeyTypes | bytes | None = None,
    algorithm: str = "RS256",
    **header: Any,
) -> str:
    signed = json.dumps(claims() if payload is None else payload).encode()  # of whatever kind the claims are
    fields = {"kid": "one", "typ": "JWT", **header}
    return jwt.PyJWS().encode(signed, key or rsa_key(), algorithm, headers=fields)  # type: ignore[arg-type]


def forged(header: dict[str, Any], payload: dict[str, Any] | None = None, signature: bytes = b"") -> str:
    """What no library makes."""
    parts = (json.dumps(header).encode(), json.dumps(payload or claims()).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


@dataclass
class Issuer:
    """`url` is where its key set is, `name` what it calls itself where it is to be found by its metadata. Set `keys`,
    `status`, `headers` or `body` to change what it answers; while `hangs` it does not answer at all."""

    keys: list[dict[str, Any]] = field(default_factory=lambda: [public(rsa_key(), kid="one")])
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    hangs: bool = False
    fetched: int = 0
    url: str = ""
    name: str = ""
    metadata: dict[str, Any] | None = None  # None: right ones
    asked: int = 0  # for its metadata
    leave: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.Response:
        self.fetched += 1
        if self.hangs:
            await self.leave.wait()
        body = json.dumps({"keys": self.keys}).encode() if self.body is None else self.body
        return web.Response(status=self.status, headers=self.headers, body=body)

    async def describe(self, request: web.Request) -> web.Response:
        self.asked += 1
        return web.json_response(self.metadata or {"issuer": self.name, "jwks_uri": self.url})


@asynccontextmanager
async def issuing() -> AsyncIterator[Issuer]:
    issuer, app = Issuer(), web.Application()
    app.router.add_get("/keys.json", issuer.answer)
    app.router.add_get("/me/.well-known/openid-configuration", issuer.describe)
    async with serving(app) as url:
        issuer.url, issuer.name = f"{url}/keys.json", f"{url}/me"
        yield issuer
        issuer.leave.set()
