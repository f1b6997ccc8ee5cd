"""The registry that the command speaks to: where it is, as the server says it (`/v1/info`), or the address itself where
a registry runs alone there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from faas.cli.session import Session, Target
from faas.client import Client, Json
from faas.errors import FaasError, NotFound
from faas.oci.client import RegistryClient


@asynccontextmanager
async def open_registry(client: Client, target: Target) -> AsyncIterator[tuple[RegistryClient, str]]:
    """A client of it, with the target's own credentials, and its `host:port`."""
    info = await described(client, target)
    registry = str(info.get("registry") or "")
    if not registry:
        raise FaasError("the server does not say where its registry is", hint="update the server")
    user = str(info.get("user") or target.user)
    async with RegistryClient(registry_url(registry, target.url), user, target.token, target.trust) as images:
        yield images, registry_host(registry)


async def described(client: Client, target: Target) -> Json:
    """What the server says of itself; of a registry that runs alone only where that is."""
    try:
        return await client.info()
    except NotFound:
        async with RegistryClient(target.url, target.user, target.token, target.trust) as images:
            if not await images.is_there():
                raise
    return {"registry": target.url}


@asynccontextmanager
async def images_of(session: Session) -> AsyncIterator[RegistryClient]:
    """The client alone, for commands that only speak to the registry."""
    async with session.client() as client, open_registry(client, session.target) as (images, _):
        yield images


def registry_url(registry: str, api_url: str) -> str:
    """The registry's URL. Written without a scheme it has the API's: one certificate serves all listeners."""
    if "://" in registry:
        return registry.rstrip("/")
    return f"{urlsplit(api_url).scheme or 'http'}://{registry.rstrip('/')}"


def registry_host(registry: str) -> str:
    """`host:port`, as references and Docker's configuration write it."""
    return (registry.partition("://")[2] or registry).rstrip("/")
