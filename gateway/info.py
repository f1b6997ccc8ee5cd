"""The server about itself: health, version and addresses, metrics, settings."""

from __future__ import annotations

from aiohttp import web

from faas.auth import ALL_NAMESPACES, Permission
from faas.errors import ShuttingDown
from faas.metrics import CONTENT_TYPE
from faas.web import PRINCIPAL, access
from gateway.gateway import GATEWAY
from gateway.operations import TEXT, Operation, allow, an_object, answer


@access(Permission.NOTHING)
async def healthy(request: web.Request) -> web.Response:
    return web.Response(text="ok")


@access(Permission.NOTHING)
async def ready(request: web.Request) -> web.Response:
    if not request.app[GATEWAY].ready:
        raise ShuttingDown("not ready")
    return web.Response(text="ok")


@access(Permission.READ)
async def info(request: web.Request) -> web.Response:
    told = request.app[GATEWAY].info
    return answer(
        {
            "version": told.version,
            "public_url": told.public_url,
            "registry": told.registry,
            "api": told.api,
            "driver": told.driver,
            "user": request[PRINCIPAL].name,  # what to log in to the registry with
        }
    )


@access(Permission.METRICS)
async def metrics(request: web.Request) -> web.Response:
    allow(request, Permission.METRICS, ALL_NAMESPACES)  # the page tells of every namespace
    return _metrics(request)


@access(Permission.NOTHING)
async def open_metrics(request: web.Request) -> web.Response:
    """For a listener that is bound to loopback."""
    return _metrics(request)


def _metrics(request: web.Request) -> web.Response:
    return web.Response(body=request.app[GATEWAY].metrics.render(), headers={"Content-Type": CONTENT_TYPE})


@access(Permission.ADMIN)
async def settings(request: web.Request) -> web.Response:
    allow(request, Permission.ADMIN, ALL_NAMESPACES)
    told = request.app[GATEWAY].info.settings
    return answer({name: {"value": value, "source": source} for name, (value, source) in told.items()})


_INFO = an_object(("version", "public_url", "registry", "api", "driver", "user"), version=TEXT, public_url=TEXT,
                  registry=TEXT, api=TEXT, driver=TEXT, user=TEXT)  # fmt: skip
OPERATIONS = (
    Operation("GET", "/healthz", healthy, "Whether the process lives", {200: TEXT}, media_type="text/plain"),
    Operation("GET", "/readyz", ready, "Whether it takes work", {200: TEXT}, media_type="text/plain"),
    Operation("GET", "/v1/info", info, "Version and addresses", {200: _INFO}),
    Operation("GET", "/v1/settings", settings, "Each setting with value and source", {200: an_object(more=True)}),
)
METRICS = Operation("GET", "/metrics", metrics, "Prometheus's page", {200: TEXT}, media_type="text/plain")
OPEN_METRICS = Operation("GET", "/metrics", open_metrics, "Prometheus's page", {200: TEXT}, media_type="text/plain")
