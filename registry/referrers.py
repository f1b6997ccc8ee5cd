"""Referrers: end-12, what says that it is about a manifest (signatures, SBOMs)."""

from __future__ import annotations

import json

from aiohttp import hdrs, web

from faas.oci import media_types
from registry.answers import send
from registry.index.referrers import Referrer, page_of_referrers
from registry.requests import digest_of, next_link, page
from registry.service import Registry


async def listed(request: web.Request, registry: Registry, repository: str, argument: str) -> web.StreamResponse:
    """Always an index, empty for what nobody refers to; a `Link` where more follows."""
    subject = digest_of(argument)
    count, last = page(request)
    wanted = request.query.get("artifactType", "")
    found, more = await page_of_referrers(registry.index.database, repository, subject, wanted, last, count)
    entries = ",".join(map(_entry, found))
    index = f'{{"schemaVersion":2,"mediaType":"{media_types.OCI_INDEX}","manifests":[{entries}]}}'
    # Set as a header, so that aiohttp adds no charset: the type must be the spec's, without parameters.
    headers: dict[str, str] = {hdrs.CONTENT_TYPE: media_types.OCI_INDEX}
    if wanted:
        headers["OCI-Filters-Applied"] = "artifactType"
    if more:
        filters = {"artifactType": wanted} if wanted else {}
        headers |= next_link(f"/v2/{repository}/referrers/{subject}", count, found[-1].digest, **filters)
    return await send(request, registry.answers, index.encode(), headers)


def _entry(row: Referrer) -> str:
    """Its descriptor. The annotations are JSON already, up to megabytes of it: taken as it is."""
    entry = {"mediaType": row.media_type, "digest": row.digest, "size": row.size}
    if row.artifact_type:
        entry["artifactType"] = row.artifact_type
    written = json.dumps(entry, ensure_ascii=False, separators=(",", ":"))
    return written if row.annotations == "{}" else f'{written[:-1]},"annotations":{row.annotations}}}'
