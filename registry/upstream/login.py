"""`Login`: how we show who we are at an upstream: Basic, or the tokens of Docker's flow.

A challenge is not trusted: it could send our password anywhere (CVE-2026-33540). A realm counts only on the upstream's
own host, or on the one that is configured as its `auth`.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Sequence

from aiohttp import ClientSession, hdrs
from yarl import URL

from registry.upstream.errors import Denied, Unreachable, Untrusted
from registry.upstream.reading import read
from registry.upstream.upstream import Upstream

TOKEN_BYTES = 65_536  # of the token endpoint's answer
CHALLENGE_CHARACTERS = 4096
LEAST_SECONDS = 60  # that a token lasts where its answer does not say (distribution, docs/spec/auth/token.md)
LONGEST_SECONDS = 3600
EARLY_SECONDS = 10.0  # a token about to end is not used any more
MOST = 256  # repositories whose tokens are remembered
_PARAMETER = r'([a-z_]+)="([^"\\\x00-\x1f\x7f]*)"'
_BEARER = re.compile(rf"bearer +{_PARAMETER}(?: *, *{_PARAMETER})*", re.I)
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")  # RFC 6750, b64token


def bearer(challenge: str) -> dict[str, str] | None:
    """The parameters of a Bearer challenge (RFC 6750 §3); None where it is none, or not written as one."""
    if len(challenge) > CHALLENGE_CHARACTERS or not _BEARER.fullmatch(challenge):
        return None
    pairs = re.findall(_PARAMETER, challenge, re.I)
    found = {key.lower(): value for key, value in pairs}
    return found if len(found) == len(pairs) else None


class Login:
    """`session` reaches the upstream's own hosts. Tokens are kept by repository until shortly before they end."""

    def __init__(self, upstream: Upstream, session: ClientSession) -> None:
        self._upstream = upstream
        self._session = session
        self._known: dict[str, tuple[str, float]] = {}  # repository → header, until when (monotonic)

    def header(self, repository: str) -> dict[str, str]:
        """What is known to be taken there; nothing where nothing was asked for yet."""
        value, until = self._known.get(repository, ("", 0.0))
        return {hdrs.AUTHORIZATION: value} if time.monotonic() < until else {}

    async def answer(self, challenges: Sequence[str], repository: str) -> None:
        """Get what these `WWW-Authenticate` headers ask for. Raises UpstreamError."""
        self._known.pop(repository, None)
        tokens = next((found for text in challenges if (found := bearer(text)) is not None), None)
        if tokens is not None:
            value, seconds = await self._token(tokens, repository)
        elif self._upstream.user and any(text.lower().startswith("basic") for text in challenges):
            value, seconds = self._basic(), float(LONGEST_SECONDS)
        else:
            raise Denied(f"{self._upstream.name} asks for a login that is not configured here")
        while len(self._known) >= MOST:
            del self._known[next(iter(self._known))]
        self._known[repository] = (value, time.monotonic() + seconds - EARLY_SECONDS)

    def _basic(self) -> str:
        pair = f"{self._upstream.user}:{self._upstream.password}"
        return "Basic " + base64.b64encode(pair.encode()).decode()

    async def _token(self, challenge: dict[str, str], repository: str) -> tuple[str, float]:
        """(header, seconds). The scope is ours: we pull, whatever the challenge says."""
        name = self._upstream.name
        realm = self._realm(challenge.get("realm", ""))
        query = {"scope": f"repository:{repository}:pull"}
        if challenge.get("service"):
            query["service"] = challenge["service"]
        headers = {hdrs.AUTHORIZATION: self._basic()} if self._upstream.user else {}
        url = realm.update_query(query)
        async with self._session.get(url, headers=headers, allow_redirects=False) as answer:
            if answer.status in (400, 401, 403):
                raise Denied(f"{name} gives no token for {repository}")
            if answer.status >= 500 or answer.status == 429:
                raise Unreachable(f"{name} gives no token now: {answer.status}")
            if answer.status != 200:
                raise Untrusted(f"the token endpoint of {name} answered {answer.status}")
            raw = await read(answer, TOKEN_BYTES, name)
        try:
            body = json.loads(raw)
            token = body.get("token") or body.get("access_token")
            seconds = body.get("expires_in") or LEAST_SECONDS
        except (ValueError, RecursionError, AttributeError):
            raise Untrusted(f"the token endpoint of {name} answered no token") from None
        if not isinstance(token, str) or not _TOKEN.fullmatch(token) or not isinstance(seconds, int | float):
            raise Untrusted(f"the token endpoint of {name} answered no token")
        return f"Bearer {token}", float(min(max(seconds, LEAST_SECONDS), LONGEST_SECONDS))

    def _realm(self, text: str) -> URL:
        try:
            realm = URL(text)
            origin = realm.origin() if not realm.user and not realm.password else None
        except ValueError:
            origin = None
        if origin is None or origin not in (self._upstream.url, self._upstream.auth):
            raise Untrusted(
                f"{self._upstream.name} sends its clients to another host for tokens; if that is right, say auth= there"
            )
        return realm
