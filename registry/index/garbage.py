"""`Garbage`: what nobody needs any more, found beside the writers and taken from the rows in short transactions.

A manifest lives while a tag, a holder, a lease or a living index names it, while its subject lives (a signature goes
with what it signs), or while its time without a tag is not over. A blob lives in a repository while a manifest there
needs it or a lease stands, and on disk while any repository sees it; a repository while there is anything in it.

What is read beside the writers may be old when it comes to be taken: every transaction asks again before it takes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from sqlalchemy import ColumnElement, Table, and_, delete, exists, or_, select, true, tuple_, update

from faas.oci.digest import Digest
from faas.state.session import Transaction
from registry import rules
from registry.index.expiry import Expiry
from registry.index.simulation import AT_ONCE, Transactions
from registry.index.tables import blobs, children, manifests, repositories, repository_blobs, tags
from registry.rules import Rule, Untagged

ABOVE = 5000  # manifests that may keep those of one transaction; where there are more, these stay for this time


@dataclass(frozen=True, slots=True)
class Gone:
    """A tag or a manifest that went, or would go: `tag` is "" for a manifest."""

    repository: str
    tag: str
    digest: str
    why: str


@dataclass(frozen=True, slots=True)
class Garbage:
    """`held`: digests that must stay. `rule_of` a repository. `namespace`: the one to look in, None: all of them."""

    transactions: Transactions
    held: Collection[str]
    rule_of: Callable[[str], Rule]
    now: float
    namespace: str | None = None

    # --- tags and manifests

    async def forget_copies(self) -> AsyncIterator[list[Gone]]:
        """Take the tags of copies from an upstream that have been of no use for long."""
        key = (tags.c.repository, tags.c.tag)
        old = tags.c.expires_at < self.now - rules.FORGET_SECONDS
        async for rows in self._paged(tags, key, and_(old, self._mine(tags.c.repository))):
            these = and_(tuple_(*key).in_(rows), old)
            async with self.transactions.write() as tx:
                found = (await tx.execute(select(tags).where(these))).all()
                await tx.execute(delete(tags).where(these))
            yield [Gone(t.repository, t.tag, t.digest, rules.why_forgotten(t.expires_at, self.now)) for t in found]

    async def expire_tags(self) -> AsyncIterator[list[Gone]]:
        """Take the tags that go by their repository's rule, repository by repository."""
        async for repository in self._repositories():
            rule = self.rule_of(repository)
            if rule.takes_tags:
                expiry = Expiry(repository, rule, self.held, self.now)
                yield [Gone(repository, tag.name, tag.digest, why) for tag, why in await expiry.run(self.transactions)]

    async def drop_manifests(self) -> AsyncIterator[list[Gone]]:
        """Take the manifests that nothing keeps, some at a time."""
        async for repository in self._repositories():
            rule, last = self.rule_of(repository), ""
            while True:
                async with self.transactions.read() as tx:
                    names = await self._overdue(tx, repository, rule, last)
                if names:
                    async with self.transactions.write() as tx:
                        gone = await self._drop(tx, repository, rule, names)
                    yield gone
                if len(names) < AT_ONCE:
                    break
                last = names[-1]

    async def _repositories(self) -> AsyncIterator[str]:
        last = ""
        while True:
            query = select(repositories.c.name).where(repositories.c.name > last, self._mine(repositories.c.name))
            async with self.transactions.read() as tx:
                names = (await tx.execute(query.order_by(repositories.c.name).limit(AT_ONCE))).scalars().all()
            for name in names:
                yield name
            if len(names) < AT_ONCE:
                return
            last = names[-1]

    def _mine(self, repository: ColumnElement[str]) -> ColumnElement[bool]:
        """Whether it is one to look in."""
        if self.namespace is None:
            return true()
        return repository.in_(select(repositories.c.name).where(repositories.c.namespace == self.namespace))

    async def _overdue(self, tx: Transaction, repository: str, rule: Rule, last: str) -> Sequence[str]:
        """Manifests after `last` that have had their time and have no tag; something else may keep them."""
        tagged = exists().where(tags.c.repository == repository, tags.c.digest == manifests.c.digest)
        query = select(manifests.c.digest).where(
            manifests.c.repository == repository,
            manifests.c.digest > last,
            manifests.c.untagged_at <= self.now - rule.untagged_seconds,
            manifests.c.leased_until <= self.now,
            ~tagged,
        )
        return (await tx.execute(query.order_by(manifests.c.digest).limit(AT_ONCE))).scalars().all()

    async def _drop(self, tx: Transaction, repository: str, rule: Rule, names: Sequence[str]) -> list[Gone]:
        """Decided and dropped in one transaction: a tag that comes meanwhile finds its manifest or waits."""
        facts, lives_by = await self._above(tx, repository, names)
        tagged = await _among(tx, repository, tags.c.digest, facts)
        unsure = {name for others in lives_by.values() for name in others} - facts.keys()
        roots = unsure | {
            name
            for name, fact in facts.items()
            if name in tagged or name in self.held or not rules.overdue(rule, fact, self.now)
        }
        dead = rules.unreached([name for name in names if name in facts], lives_by, roots)
        for table, column in ((children, children.c.manifest), (manifests, manifests.c.digest)):
            await tx.execute(delete(table).where(table.c.repository == repository, column.in_(dead)))
        return [Gone(repository, "", name, rules.why_untagged(rule, facts[name], self.now)) for name in dead]

    async def _above(
        self, tx: Transaction, repository: str, names: Iterable[str]
    ) -> tuple[dict[str, Untagged], dict[str, set[str]]]:
        """What is known of these manifests and of all that may keep them: their times, and who lives by whom."""
        m = manifests.c
        facts: dict[str, Untagged] = {}
        lives_by: dict[str, set[str]] = {}
        todo = set(names)
        while todo and len(facts) < ABOVE:
            some = sorted(todo)[:AT_ONCE]
            todo.difference_update(some)
            query = select(m.digest, m.subject, m.untagged_at, m.leased_until)
            rows = (await tx.execute(query.where(m.repository == repository, m.digest.in_(some)))).all()
            for row in rows:
                facts[row.digest] = Untagged(row.untagged_at, row.leased_until)
                lives_by[row.digest] = {row.subject} - {""}
            edges = select(children.c.manifest, children.c.child).where(
                children.c.repository == repository, children.c.child.in_([row.digest for row in rows])
            )
            for manifest, child in (await tx.execute(edges)).all():
                lives_by[child].add(manifest)
            todo.update(name for row in rows for name in lives_by[row.digest] if name not in facts)
        if not todo:  # a subject that is not here keeps nobody
            lives_by = {name: others & facts.keys() for name, others in lives_by.items()}
        return facts, lives_by

    # --- blobs

    async def unlink_blobs(self) -> None:
        """Take from each repository the blobs that no manifest there needs and no lease keeps."""
        b = repository_blobs.c
        needed = exists().where(children.c.repository == b.repository, children.c.child == b.digest)
        unneeded = and_(b.leased_until <= self.now, ~needed)
        scope = and_(unneeded, self._mine(b.repository))
        async for rows in self._paged(repository_blobs, (b.repository, b.digest), scope):
            async with self.transactions.write() as tx:
                for repository, group in groupby(rows, lambda row: row[0]):
                    digests = [row[1] for row in group]
                    these = and_(b.repository == repository, b.digest.in_(digests), unneeded)
                    await tx.execute(delete(repository_blobs).where(these))

    async def drop_repositories(self) -> int:
        """Take the repositories with nothing in them. An upload on its way needs none: its blob brings it back."""
        r = repositories.c
        holding = (tags.c.repository, manifests.c.repository, repository_blobs.c.repository)
        empty: ColumnElement[bool] = ~or_(*(exists().where(column == r.name) for column in holding))
        dropped = 0
        async for rows in self._paged(repositories, (r.name,), and_(empty, self._mine(r.name))):
            async with self.transactions.write() as tx:
                names = [row[0] for row in rows]
                dropped += (await tx.execute(delete(repositories).where(r.name.in_(names), empty))).rowcount
        return dropped

    async def leaving(self) -> AsyncIterator[list[tuple[Digest, int]]]:
        """The blobs that no repository sees, with their sizes; marked, so that a crash does not forget them."""
        unseen = ~exists().where(repository_blobs.c.digest == blobs.c.digest)
        async for rows in self._paged(blobs, (blobs.c.digest,), unseen):
            these = and_(blobs.c.digest.in_([row[0] for row in rows]), unseen)
            async with self.transactions.write() as tx:
                await tx.execute(update(blobs).where(these).values(leaving=True))
                marked = (await tx.execute(select(blobs.c.digest, blobs.c.size).where(these))).all()
            yield [(Digest.parse(row.digest), row.size) for row in marked]

    async def still_leaving(self, digest: Digest) -> bool:
        """Whether nobody has brought this blob again. Ask with the digest's turn in hand."""
        async with self.transactions.read() as tx:
            return bool((await tx.execute(select(blobs.c.leaving).where(blobs.c.digest == str(digest)))).scalar())

    async def gone(self, digests: Sequence[Digest]) -> None:
        """Their files are unlinked: now the rows, but of those that somebody has brought again."""
        names = [str(digest) for digest in digests]
        async with self.transactions.write() as tx:
            await tx.execute(delete(blobs).where(blobs.c.digest.in_(names), blobs.c.leaving))

    async def unknown(self, digests: Sequence[Digest]) -> list[Digest]:
        """Those without a row."""
        known: set[str] = set()
        for begin in range(0, len(digests), AT_ONCE):
            names = [str(digest) for digest in digests[begin : begin + AT_ONCE]]
            async with self.transactions.read() as tx:
                known.update((await tx.execute(select(blobs.c.digest).where(blobs.c.digest.in_(names)))).scalars())
        return [digest for digest in digests if str(digest) not in known]

    async def _paged(
        self, table: Table, key: tuple[ColumnElement[str], ...], where: ColumnElement[bool]
    ) -> AsyncIterator[list[tuple[str, ...]]]:
        """The keys of the rows that fit, some at a time; what is done with one page does not disturb the next."""
        beyond: ColumnElement[bool] | None = None
        while True:
            query = select(*key).select_from(table).where(where).order_by(*key).limit(AT_ONCE)
            async with self.transactions.read() as tx:
                rows = [tuple(row) for row in await tx.execute(query if beyond is None else query.where(beyond))]
            if rows:
                yield rows
            if len(rows) < AT_ONCE:
                return
            beyond = tuple_(*key) > tuple_(*rows[-1])


async def _among(tx: Transaction, repository: str, column: ColumnElement[str], names: Iterable[str]) -> set[str]:
    """Those of `names` that a tag of `repository` names."""
    wanted = sorted(names)
    found: set[str] = set()
    for begin in range(0, len(wanted), AT_ONCE):
        query = select(column).where(tags.c.repository == repository, column.in_(wanted[begin : begin + AT_ONCE]))
        found.update((await tx.execute(query)).scalars())
    return found
