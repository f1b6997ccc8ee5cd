"""What a retention rule says, and what of a repository goes by it: pure, of facts and a time.

A rule takes tags; a manifest that has no tag left, and that nothing else keeps, goes when its time without one is over.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from faas.oci.reference import companion_of

DAY = 86_400.0
UNTAGGED_DAYS = 30.0  # a manifest without a tag, where no rule says otherwise
FORGET_SECONDS = 30 * DAY  # a copy's tag that nobody asked for so long after it expired goes


@dataclass(frozen=True, slots=True)
class Rule:
    """What holds for the repositories of one pattern; None: no such rule.

    `keep_last`: so many tags stay, by when they were pushed last. `keep_days`: tags that were pushed within so many
    days stay. With both, a tag goes when neither keeps it. `untagged_days`: so long a manifest without a tag stays.
    `immutable`: a tag that is there moves to no other manifest, but for those that a pattern of `movable` fits.
    """

    keep_last: int | None = None
    keep_days: float | None = None
    untagged_days: float | None = None
    immutable: bool = False
    movable: tuple[str, ...] = ()

    @property
    def takes_tags(self) -> bool:
        return self.keep_last is not None or self.keep_days is not None

    @property
    def untagged_seconds(self) -> float:
        return (UNTAGGED_DAYS if self.untagged_days is None else self.untagged_days) * DAY

    def fixes(self, tag: str) -> bool:
        """Whether this tag, once it is there, stays where it is. Companions of an image (signatures, what refers to
        it) grow with time: they move."""
        if not self.immutable or companion_of(tag):
            return False
        return not any(fnmatch.fnmatchcase(tag, pattern) for pattern in self.movable)


@dataclass(frozen=True, slots=True)
class Tag:
    """`pushed_at`: when it was pushed last, by Unix time."""

    name: str
    digest: str
    pushed_at: float


def expired(rule: Rule, tags: Iterable[Tag], now: float) -> dict[Tag, str]:
    """The tags that go, and why. Companions are not counted and not taken: see `orphans`."""
    newest = sorted((tag for tag in tags if not companion_of(tag.name)), key=lambda tag: (-tag.pushed_at, tag.name))
    found: dict[Tag, str] = {}
    for position, tag in enumerate(newest):
        why = []
        if rule.keep_last is not None:
            if position < rule.keep_last:
                continue
            why.append(f"{position} newer tags, the last {rule.keep_last} are kept")
        if rule.keep_days is not None:
            if tag.pushed_at > now - rule.keep_days * DAY:
                continue
            why.append(f"pushed {_days(now - tag.pushed_at)} ago, {rule.keep_days:g} days are kept")
        if why:
            found[tag] = "; ".join(why)
    return found


def orphans(rule: Rule, tags: Iterable[Tag], here: Collection[str], now: float) -> dict[Tag, str]:
    """Companions whose image is gone, where the rule takes tags at all. `here`: which of their `companion_of` are
    here. One may be pushed before its image: it has the time of a manifest without a tag."""
    if not rule.takes_tags:
        return {}
    return {
        tag: "the image that it is about is gone"
        for tag in tags
        if (image := companion_of(tag.name)) and image not in here and tag.pushed_at <= now - rule.untagged_seconds
    }


@dataclass(frozen=True, slots=True)
class Untagged:
    """A manifest by its times: since when it has had no tag, and until when a client counts on it."""

    untagged_at: float
    leased_until: float


def overdue(rule: Rule, manifest: Untagged, now: float) -> bool:
    """Whether a manifest that nothing names has had its time."""
    return manifest.leased_until <= now and manifest.untagged_at <= now - rule.untagged_seconds


def why_untagged(rule: Rule, manifest: Untagged, now: float) -> str:
    return f"without a tag for {_days(now - manifest.untagged_at)}, {rule.untagged_seconds / DAY:g} days are kept"


def unreached(names: Sequence[str], lives_by: Mapping[str, Collection[str]], roots: Collection[str]) -> list[str]:
    """Those of `names` that nothing keeps. `lives_by`: manifest → those that keep it while they live: the indexes that
    name it, and what it refers to. `roots` live by themselves. Cycles keep nobody alive."""
    keeps: dict[str, list[str]] = {}
    for name, others in lives_by.items():
        for other in others:
            keeps.setdefault(other, []).append(name)
    living, reached = set(roots), list(roots)
    while reached:
        for name in keeps.get(reached.pop(), ()):
            if name not in living:
                living.add(name)
                reached.append(name)
    return [name for name in names if name not in living]


def why_forgotten(expired_at: float, now: float) -> str:
    return f"a copy that nobody asked for since it expired {_days(now - expired_at)} ago"


def _days(seconds: float) -> str:
    return f"{int(seconds // DAY)} days" if seconds >= 2 * DAY else f"{int(seconds // 3600)} hours"
