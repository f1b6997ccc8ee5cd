"""What changes here, as the audit log calls it: images pushed and deleted, blobs pushed, mounted and deleted, and what
the registry's own endpoints change. Steps of an upload that nobody can pull yet are none.

Its objects are `repository:tag` or `repository@digest`. Who only learns how to log in (401) has asked for nothing yet,
and is in no record; who is refused is.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from aiohttp import web

from faas import patterns
from faas.audit import Entry, new_entry
from faas.oci.reference import namespace_of
from faas.remote import client_address
from faas.web import REQUEST_ID
from registry.access import STRANGER
from registry.extension import is_dry
from registry.requests import CALLER
from registry.service import Registry

EVERYWHERE = "*"
GONE = 499


class Change(NamedTuple):
    """What a request would change."""

    action: str
    object: str
    namespace: str


CHANGE = web.RequestKey("change", Change)


def of_endpoint(request: web.Request, label: str, repository: str, argument: str) -> Change | None:
    """Of one of the spec's endpoints; None where it changes nothing."""
    method, namespace = request.method, namespace_of(repository)
    if label == "manifests" and method in ("PUT", "DELETE"):
        verb = "push" if method == "PUT" else "delete"
        return Change(f"images.{verb}", _named(repository, argument), namespace)
    if label == "blobs" and method == "DELETE":
        return Change("blobs.delete", _named(repository, argument), namespace)
    if label == "uploads" and method in ("POST", "PUT"):
        mounted = request.query.get("mount", "") if method == "POST" else ""
        digest = mounted or request.query.get("digest", "")
        return Change("blobs.mount" if mounted else "blobs.push", _named(repository, digest), namespace)
    return None


def _named(repository: str, argument: str) -> str:
    return f"{repository}@{argument}" if ":" in argument else f"{repository}:{argument}" if argument else repository


def of_own(request: web.Request) -> Change | None:
    """Of an endpoint that is beside the spec."""
    if request.method in ("GET", "HEAD", "OPTIONS") or is_dry(request):
        return None
    resource = request.match_info.route.resource
    path = re.sub(r"/\{[^}]*\}", "", resource.canonical) if resource is not None else ""
    words = path.removeprefix("/v2/_faas/").replace("/", ".")
    found = request.match_info
    pattern = found.get("pattern", "") if request.method != "POST" else ""  # a POST is for all of the caller's
    namespace = found.get("namespace") or (patterns.namespace_of(pattern) if pattern else None) or EVERYWHERE
    return Change(f"registry.{words}.{request.method.lower()}", request.path.removeprefix("/v2/_faas/"), namespace)


def _entry(request: web.Request, registry: Registry, status: int) -> Entry | None:
    """The record of an answer; None where there is none to make."""
    change, caller = request.get(CHANGE), request.get(CALLER, STRANGER)
    begun = status == 202 and change is not None and change.action.startswith("blobs.")
    if change is None or caller == STRANGER or status == 401 or begun:
        return None
    is_open = registry.access.accounts is None
    return new_entry(
        by="anonymous" if is_open else caller.principal.name,
        token="" if is_open else caller.principal.token,
        address=client_address(request),
        action=change.action,
        object_=change.object,
        status=0 if status == GONE else status,
        namespace=change.namespace,
        request_id=request[REQUEST_ID],
    )


async def recorded(request: web.Request, registry: Registry, status: int) -> None:
    """Before the answer goes out."""
    if (entry := _entry(request, registry, status)) is not None:
        await registry.trail.record(entry)


def abandoned(request: web.Request, registry: Registry) -> None:
    """The client has gone; what it asked for may still be done."""
    if (entry := _entry(request, registry, GONE)) is not None:
        registry.trail.note(entry)
