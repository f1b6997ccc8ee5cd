"""Whose a request is: its client's address, through the proxies that the setting `trusted_proxies` names."""

from __future__ import annotations

from aiohttp import hdrs, web

from faas.proxies import Client, TrustedProxies

PROXIES: web.AppKey[TrustedProxies] = web.AppKey("trusted_proxies", TrustedProxies)
_CLIENT: web.RequestKey[Client] = web.RequestKey("client", Client)


def client(request: web.Request) -> Client:
    """Who asks; found out once."""
    found = request.get(_CLIENT)
    if found is None:
        found = request[_CLIENT] = _client(request)
    return found


def client_address(request: web.Request) -> str:
    """The client's address; "" where the connection has none any more."""
    return client(request).address if request.app.get(PROXIES) else request.remote or ""


def _client(request: web.Request) -> Client:
    peer = request.remote or ""
    if not (proxies := request.app.get(PROXIES)):
        return Client(peer, request.scheme, (peer,))
    headers = request.headers
    return proxies.client(
        peer,
        request.scheme,
        forwarded_for=headers.getall("X-Forwarded-For", ()),
        forwarded=headers.getall(hdrs.FORWARDED, ()),
        forwarded_proto=headers.getall("X-Forwarded-Proto", ()),
    )
