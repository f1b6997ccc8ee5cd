"""`Rules`: retention rules by pattern, answered from memory; and `expire`, which takes the tags that go by one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.dialects.sqlite import insert

from faas import patterns
from faas.background import Background
from faas.oci.reference import BASES
from faas.state.session import Database, Transaction
from registry import rules
from registry.index.simulation import AT_ONCE, Transactions
from registry.index.tables import children, manifests, retention_rules, tags
from registry.rules import Rule, Tag

PAGE = 2000  # tags that are read at once
CLOSE_SECONDS = 5.0  # for changes on their way


class Rules:
    """`load` before use. Of the rules whose patterns fit a repository, the one that says most holds, and no other.
    A pattern as wide as `*` does not mean the runtime bases: every push of a function needs them as they are.

    Changes go on to their end where their caller has gone, so that memory and database know the same.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._changes = Background()
        self._known: dict[str, Rule] = {}

    async def close(self) -> None:
        await self._changes.finish(CLOSE_SECONDS)

    async def load(self) -> None:
        async with self._database.read() as tx:
            rows = (await tx.execute(select(retention_rules))).all()
        self._known = {
            row.pattern: Rule(
                row.keep_last, row.keep_days, row.untagged_days, row.immutable, tuple(json.loads(row.movable))
            )
            for row in rows
        }

    def all(self) -> dict[str, Rule]:
        """By pattern, sorted."""
        return dict(sorted(self._known.items()))

    def of(self, repository: str) -> Rule:
        is_base = repository.startswith(BASES)
        meant = (pattern for pattern in self._known if not is_base or pattern.startswith(BASES))
        pattern = patterns.best(meant, repository)
        return Rule() if pattern is None else self._known[pattern]

    async def put(self, pattern: str, rule: Rule) -> None:
        await self._changes.complete(self._put(pattern, rule), "changing a retention rule")

    async def _put(self, pattern: str, rule: Rule) -> None:
        values = {
            "keep_last": rule.keep_last,
            "keep_days": rule.keep_days,
            "untagged_days": rule.untagged_days,
            "immutable": rule.immutable,
            "movable": json.dumps(rule.movable),
        }
        async with self._database.write() as tx:
            row = insert(retention_rules).values(pattern=pattern, **values)
            await tx.execute(row.on_conflict_do_update(index_elements=["pattern"], set_=values))
        self._known[pattern] = rule

    async def remove(self, pattern: str) -> bool:
        """Whether it was there."""
        return await self._changes.complete(self._remove(pattern), "removing a retention rule")

    async def _remove(self, pattern: str) -> bool:
        async with self._database.write() as tx:
            await tx.execute(delete(retention_rules).where(retention_rules.c.pattern == pattern))
        return self._known.pop(pattern, None) is not None


@dataclass(frozen=True, slots=True)
class Expiry:
    """Takes the tags of `repository` that go by `rule`, but none that leads to an image in `held`."""

    repository: str
    rule: Rule
    held: Collection[str]
    now: float

    async def run(self, transactions: Transactions) -> list[tuple[Tag, str]]:
        """What went, and why. Decided beside the writers; then taken, some at a time, where nobody has pushed or
        deleted the tag meanwhile."""
        async with transactions.read() as tx:
            going = await self._decide(tx)
        gone = []
        for begin in range(0, len(going), AT_ONCE):
            async with transactions.write() as tx:
                gone += await self._take(tx, going[begin : begin + AT_ONCE])
        return gone

    async def _decide(self, tx: Transaction) -> list[tuple[Tag, str]]:
        known = await self._known(tx)
        going = await asyncio.to_thread(rules.expired, self.rule, known, self.now)
        companions = [tag for tag in known if rules.companion_of(tag.name)]
        going |= rules.orphans(self.rule, companions, await self._images_here(tx, companions), self.now)
        needed = await self._needed(tx, {tag.digest for tag in going})
        return [(tag, why) for tag, why in going.items() if tag.digest not in needed]

    async def _known(self, tx: Transaction) -> list[Tag]:
        """All tags; read a page at a time, so that the loop has its turns between."""
        found: list[Tag] = []
        query = select(tags.c.tag, tags.c.digest, tags.c.updated_at).where(tags.c.repository == self.repository)
        query = query.order_by(tags.c.tag).limit(PAGE)
        while True:
            rows = (await tx.execute(query.where(tags.c.tag > found[-1].name) if found else query)).all()
            found += [Tag(*row) for row in rows]
            if len(rows) < PAGE:
                return found

    async def _images_here(self, tx: Transaction, companions: list[Tag]) -> set[str]:
        """Of the images that companions are about, those that are here. Of a sha512 a name holds the beginning."""
        here = select(manifests.c.digest).where(manifests.c.repository == self.repository)
        images = sorted({rules.companion_of(tag.name) for tag in companions})
        found: set[str] = set()
        for begin in range(0, len(images), AT_ONCE):
            some = images[begin : begin + AT_ONCE]
            found.update((await tx.execute(here.where(manifests.c.digest.in_(some)))).scalars())
        for image in (image for image in images if image.startswith("sha512:")):
            begins = manifests.c.digest.between(image, image + "g")  # behind every hexadecimal digit
            if (await tx.execute(here.where(begins).limit(1))).first() is not None:
                found.add(image)
        return found

    async def _needed(self, tx: Transaction, digests: Collection[str]) -> set[str]:
        """Those of `digests` that are held, themselves or by what stands below them: an index of a held image."""
        if not self.held:
            return set()
        lead_to = {digest: {digest} for digest in digests}  # manifest below → those of `digests` above it
        needed: set[str] = set()
        level = list(lead_to)
        while level:
            needed.update(*(lead_to[name] for name in level if name in self.held))
            below: dict[str, set[str]] = {}
            for begin in range(0, len(level), AT_ONCE):
                edges = select(children.c.manifest, children.c.child).where(
                    children.c.repository == self.repository, children.c.manifest.in_(level[begin : begin + AT_ONCE])
                )
                for manifest, child in (await tx.execute(edges)).all():
                    below.setdefault(child, set()).update(lead_to[manifest])
            lead_to, level = below, list(below)
        return needed

    async def _take(self, tx: Transaction, going: list[tuple[Tag, str]]) -> list[tuple[Tag, str]]:
        mine = (tags.c.repository == self.repository, tags.c.tag.in_([tag.name for tag, _ in going]))
        rows = await tx.execute(select(tags.c.tag, tags.c.digest, tags.c.updated_at).where(*mine))
        same = {Tag(*row) for row in rows.all()}
        gone = [(tag, why) for tag, why in going if tag in same]
        names = [tag.name for tag, _ in gone]
        await tx.execute(delete(tags).where(tags.c.repository == self.repository, tags.c.tag.in_(names)))
        return gone
