"""The listener that sends browsers from http to https (`redirect_listen`), and does nothing else."""

from __future__ import annotations

from aiohttp import hdrs, web

from faas.errors import Forbidden, InvalidInput
from faas.web import REQUEST_ID, doubt_about, error_response, errors


def redirect_app(port: int) -> web.Application:
    """308 to the same host and path by https, at `port`. GET and HEAD only: what else was sent has been sent in the
    clear, and its sender is to know."""

    async def sent(request: web.Request) -> web.StreamResponse:
        if doubt := doubt_about(request) or ("" if hdrs.HOST in request.headers else "the request must have one Host"):
            response = error_response(InvalidInput(doubt), request[REQUEST_ID])
            response.force_close()
            return response
        if request.method not in (hdrs.METH_GET, hdrs.METH_HEAD):
            raise Forbidden("this is asked for by https only: the request was not passed on")
        host = request.headers[hdrs.HOST]
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        where = name if port == 443 else f"{name}:{port}"
        return web.Response(status=308, headers={hdrs.LOCATION: f"https://{where}{request.raw_path}"})

    app = web.Application(middlewares=[errors])
    app.router.add_route("*", "/{path:(?s:.*)}", sent)
    return app
