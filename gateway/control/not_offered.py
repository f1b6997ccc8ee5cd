"""What is not built yet answers 501 and names itself, so that nobody takes it for a mistake of theirs."""

from __future__ import annotations

from aiohttp import web

from faas.auth import Permission
from faas.errors import NotOffered
from faas.web import access

NOUNS = ("restore",)


@access(Permission.READ)
async def refused(request: web.Request) -> web.StreamResponse:
    raise NotOffered(f"{request.match_info['noun']} are not offered yet")


@access(Permission.READ)
async def lambda_api(request: web.Request) -> web.StreamResponse:
    raise NotOffered("Lambda's own API is not offered yet", hint="POST /v1/functions/{name}/invocations invokes")


def routes() -> list[web.AbstractRouteDef]:
    nouns = "|".join(NOUNS)
    return [
        web.route("*", f"/v1/{{noun:{nouns}}}", refused),
        web.route("*", f"/v1/{{noun:{nouns}}}/{{rest:.*}}", refused),
        web.route("*", r"/{date:\d\d\d\d-\d\d-\d\d}/functions{rest:.*}", lambda_api),
    ]
