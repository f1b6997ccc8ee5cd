"""`Expiry`: takes the tags of one repository that go by its retention rule."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import delete, select

from faas.oci.reference import companion_of
from faas.state.session import Transaction
from registry import rules
from registry.index.simulation import AT_ONCE, Transactions
from registry.index.tables import children, manifests, tags
from registry.rules import Rule, Tag

PAGE = 2000  # tags that are read at once


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
        companions = [tag for tag in known if companion_of(tag.name)]
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
        images = sorted({companion_of(tag.name) for tag in companions})
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
