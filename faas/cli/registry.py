"""Where the registry is, as the server says it (`/v1/info`)."""

from __future__ import annotations

from urllib.parse import urlsplit


def registry_url(registry: str, api_url: str) -> str:
    """The registry's URL. Written without a scheme it has the API's: one certificate serves all listeners."""
    if "://" in registry:
        return registry.rstrip("/")
    return f"{urlsplit(api_url).scheme or 'http'}://{registry.rstrip('/')}"


def registry_host(registry: str) -> str:
    """`host:port`, as references and Docker's configuration write it."""
    return (registry.partition("://")[2] or registry).rstrip("/")
