"""The audit log's rows, which are only ever added at the end and taken away at the beginning, and the chain's two ends.

A trigger refuses to change a row, and to take one away that the first end does not say is gone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, delete, insert, or_, select, update
from sqlalchemy import func as sql

from faas.audit import FIELDS, NO_HASH, Entry, Record
from faas.state.people import audit, audit_ends
from faas.state.session import Tx

FIRST, LAST = "first", "last"  # the one before the first row that is kept; the newest


@dataclass(frozen=True, slots=True)
class End:
    """The number and the hash of a record, and when it was written or taken away (Unix milliseconds)."""

    seq: int
    hash: str
    at: int


@dataclass(frozen=True, slots=True)
class Query:
    """`since` and `until` are Unix milliseconds; `action` and `object` end in `*` for all that begin so; `namespaces`
    None: all."""

    since: int | None = None
    until: int | None = None
    by: str = ""
    action: str = ""
    object: str = ""
    namespaces: Collection[str] | None = None
    after: int = 0
    newest: bool = False
    limit: int = 1000


def end(tx: Tx, name: str) -> End:
    row = tx.execute(select(audit_ends).where(audit_ends.c.name == name)).first()
    return End(0, NO_HASH, 0) if row is None else End(row.seq, row.hash, row.at)


def append(tx: Tx, entries: Sequence[Entry]) -> End:
    """Add them behind the newest; the newest as it is then."""
    last = end(tx, LAST)
    rows = []
    for entry in entries:
        record = Record(last.seq + 1, last.hash, entry)
        rows.append({"seq": record.seq, "previous": record.previous, "hash": record.hash, **asdict(entry)})
        last = End(record.seq, record.hash, entry.at)
    if rows:
        tx.execute(insert(audit), rows)
        _put_end(tx, LAST, last)
    return last


def find(tx: Tx, query: Query) -> list[tuple[Record, str]]:
    """Records with the hashes that stand beside them: those after `after`, or the newest; the oldest of them first."""
    order = audit.c.seq.desc() if query.newest else audit.c.seq
    rows = tx.execute(_where(select(audit), query).order_by(order).limit(query.limit)).all()
    return [(_record(row), row.hash) for row in (reversed(rows) if query.newest else rows)]


def walk(tx: Tx, after: int, limit: int) -> tuple[End, list[tuple[Record, str]], End]:
    """(the first end, records behind `after`, the last end), of one moment."""
    rows = tx.execute(select(audit).where(audit.c.seq > after).order_by(audit.c.seq).limit(limit)).all()
    return end(tx, FIRST), [(_record(row), row.hash) for row in rows], end(tx, LAST)


def hash_at(tx: Tx, seq: int) -> str | None:
    """The hash of one record; None where it is not there (any more)."""
    if (first := end(tx, FIRST)).seq == seq:
        return first.hash
    return tx.execute(select(audit.c.hash).where(audit.c.seq == seq)).scalar()


def trim(tx: Tx, before: int, most: int, limit: int, now: int) -> int:
    """Take away records that are older than `before` (Unix milliseconds) or more than `most`, so many at once; how many
    that were. The first end says up to which."""
    low, high = tx.execute(select(sql.min(audit.c.seq), sql.max(audit.c.seq))).one()
    if low is None:
        return 0
    young = tx.execute(select(audit.c.seq).where(audit.c.at >= before).order_by(audit.c.seq).limit(1)).scalar()
    keep = max(high + 1 if young is None else young, high - most + 1)
    upto = min(keep - 1, low + limit - 1)
    row = tx.execute(select(audit.c.seq, audit.c.hash).where(audit.c.seq <= upto).order_by(audit.c.seq.desc())).first()
    if row is None:
        return 0
    _put_end(tx, FIRST, End(row.seq, row.hash, now))
    return tx.execute(delete(audit).where(audit.c.seq <= row.seq)).rowcount


def _put_end(tx: Tx, name: str, value: End) -> None:
    changed = tx.execute(update(audit_ends).where(audit_ends.c.name == name).values(**asdict(value)))
    if not changed.rowcount:
        tx.execute(insert(audit_ends).values(name=name, **asdict(value)))


def _record(row: Row[Any]) -> Record:
    return Record(row.seq, row.previous, Entry(**{name: getattr(row, name) for name in FIELDS}))


def _where(statement: Select[Any], query: Query) -> Select[Any]:
    c = audit.c
    wanted: list[ColumnElement[bool]] = [c.seq > query.after]
    if query.since is not None:
        wanted.append(c.at >= query.since)
    if query.until is not None:
        wanted.append(c.at < query.until)
    if query.by:
        wanted.append(or_(c.by == query.by, c.token == query.by))
    for column, text in ((c.action, query.action), (c.object, query.object)):
        if text.endswith("*"):
            wanted.append(column.startswith(text[:-1], autoescape=True))
        elif text:
            wanted.append(column == text)
    if query.namespaces is not None:
        wanted.append(c.namespace.in_(sorted(query.namespaces)))
    return statement.where(*wanted)
