"""The server about itself: health, version and addresses, metrics, settings."""

from __future__ import annotations

from urllib.parse import urlsplit

from aiohttp import web

from faas.auth import ALL_NAMESPACES, Permission
from faas.errors import NotFound, ShuttingDown
from faas.metrics import CONTENT_TYPE
from faas.settings import Address
from faas.web import PRINCIPAL, access
from gateway.control.operations import TEXT, Operation, allow, an_object, answer
from gateway.gateway import GATEWAY, ServerInfo
from gateway.lanes import living

PEM = "application/x-pem-file"


@access(Permission.NOTHING)
async def healthy(request: web.Request) -> web.Response:
    lanes = living.words(request.app)
    return web.Response(text=f"ok, {lanes}" if lanes else "ok")


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
            "registry": _by_its_name(request, told, told.registry),
            "api": _by_its_name(request, told, told.api),
            "driver": told.driver,
            "user": request[PRINCIPAL].name,  # what to log in to the registry with
        }
    )


def _by_its_name(request: web.Request, told: ServerInfo, address: str) -> str:
    """An address of ours with the host that the client reached us by, where we answer by every name."""
    if not told.everywhere:
        return address
    try:
        host = urlsplit(f"//{request.host}").hostname
    except ValueError:
        host = None
    scheme, slashes, place = address.rpartition("://")
    return f"{scheme}{slashes}{Address(host, Address.parse(place).port)}" if host else address


@access(Permission.NOTHING)
async def ca(request: web.Request) -> web.Response:
    """Not secret, and worth nothing until its fingerprint was compared: whoever asks cannot know yet who answers."""
    pem = request.app[GATEWAY].info.ca()
    if not pem:
        raise NotFound("this server has no CA of its own")
    return web.Response(text=pem, headers={"Content-Type": PEM})


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
    Operation("GET", "/v1/ca", ca, "The CA behind the listeners' certificate", {200: TEXT}, media_type=PEM),
    Operation("GET", "/v1/info", info, "Version and addresses", {200: _INFO}),
    Operation("GET", "/v1/settings", settings, "Each setting with value and source", {200: an_object(more=True)}),
)
METRICS = Operation("GET", "/metrics", metrics, "Prometheus's page", {200: TEXT}, media_type="text/plain")
OPEN_METRICS = Operation("GET", "/metrics", open_metrics, "Prometheus's page", {200: TEXT}, media_type="text/plain")
