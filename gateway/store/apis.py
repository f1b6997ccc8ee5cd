"""APIs: one row each, as its owner wrote it."""

from __future__ import annotations

import json
import logging
import time

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects.sqlite import insert

from faas.errors import SpecError
from faas.state.tables import apis
from gateway.edge.apis.api import Api, parse

log = logging.getLogger("faas.apis")


def every(tx: Connection) -> list[tuple[Api, int]]:
    """Each with its size in characters. What this version refuses is out of use, not the server."""
    found = []
    for row in tx.execute(select(apis).order_by(apis.c.namespace, apis.c.name)):
        try:
            found.append((parse(row.namespace, row.name, json.loads(row.value)), len(row.value)))
        except SpecError as error:
            log.error("the API %s of %s cannot be used any more: %s", row.name, row.namespace, error.message)
    return found


def text_of(api: Api) -> str:
    """As it is stored."""
    return json.dumps(api.to_dict())


def put(tx: Connection, api: Api, text: str) -> None:
    """Make the row, or replace it. `text`: `text_of` the API."""
    values = {"value": text, "updated_at": time.time()}
    key = {"namespace": api.namespace, "name": api.name}
    tx.execute(insert(apis).values(key | values).on_conflict_do_update(set_=values))


def remove(tx: Connection, namespace: str, name: str) -> None:
    tx.execute(delete(apis).where(apis.c.namespace == namespace, apis.c.name == name))
