"""The one door to croniter: five-field cron expressions in IANA time zones, right through clock changes.

croniter counts on naive wall-clock time here; this module maps wall clock to instants, by two rules:
- the hour field begins with `*` (`*/5 * * * *`, `0 */2 * * *`): the job follows the clock on the wall as it really
  runs, so it fires in both passes of a repeated hour, and not in an hour that is left out;
- any other hour field (`30 2 * * *`): once per calendar day it names. A repeated time fires at its first pass. A time
  that does not exist that night does not fire and leaves no trace (Vixie cron would run it right after the change).
Fire times are UTC datetimes on whole minutes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import CroniterError, croniter

FIELDS = ("minute", "hour", "day of month", "month", "day of week")
_FIELD_PATTERN = re.compile(r"[0-9a-zA-Z*,/-]+")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_NAMES = frozenset((*_MONTHS, *_WEEKDAYS))
_EXAMPLE = 'five cron fields such as "*/5 * * * *"'
_SECOND = timedelta(seconds=1)
_PROBE = timedelta(days=1)  # no zone changes its offset twice within a day


def check_expression(text: object) -> str:
    """The expression, spaces made single. Raises ValueError with words that follow "must be"."""
    if not isinstance(text, str):
        raise ValueError(_EXAMPLE)
    fields = text.split()
    if len(fields) in (6, 7):
        raise ValueError(f"{_EXAMPLE} (minute hour day month weekday), without seconds or years")
    if len(fields) != len(FIELDS):
        raise ValueError(f"{_EXAMPLE} (minute hour day month weekday)")
    for name, field in zip(FIELDS, fields, strict=True):
        words = re.findall(r"[a-zA-Z]+", field)
        if not _FIELD_PATTERN.fullmatch(field) or any(word.lower() not in _NAMES for word in words):
            raise ValueError(f"{_EXAMPLE}; its {name} field may hold numbers, names and * , - /")
    expression = " ".join(fields)
    try:
        next_fire(expression, "UTC", datetime(2000, 1, 1, tzinfo=UTC))
    except (CroniterError, ValueError) as error:
        raise ValueError(f"{_EXAMPLE} that can come true ({_reason(error)})") from None
    return expression


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or "it cannot be read"


def check_timezone(text: object) -> str:
    """An IANA zone's name. Raises ValueError with words that follow "must be"."""
    if isinstance(text, str) and text:
        try:
            _zone(text)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            pass
        else:
            return text
    raise ValueError('the name of a time zone such as "UTC" or "Europe/Berlin"')


def next_fire(expression: str, timezone: str, after: datetime) -> datetime:
    """The first fire time after `after` (aware), in UTC. Raises ValueError where there is none within
    50 years, or the zone is gone."""
    try:
        zone = _zone(timezone)
    except (ZoneInfoNotFoundError, OSError):
        raise ValueError(f"this machine knows no time zone {timezone}") from None
    # Whole seconds are enough: fire times are on whole minutes.
    begin = after.astimezone(UTC).replace(microsecond=0) + _SECOND
    try:
        if expression.split()[1].startswith("*"):
            return _next_real(expression, zone, begin)
        return _next_wall(expression, zone, begin)
    except CroniterError as error:
        raise ValueError(_reason(error)) from None


def fires_between(expression: str, timezone: str, after: datetime, until: datetime) -> Iterator[datetime]:
    """Every fire time in (after, until], in order."""
    moment = after
    while (moment := next_fire(expression, timezone, moment)) <= until:
        yield moment


def latest_fires(expression: str, timezone: str, after: datetime, until: datetime, limit: int) -> list[datetime]:
    """The last fire times in (after, until], at most `limit`, in order; cheap however long the span is."""
    window = timedelta(hours=1)
    while True:
        begin = max(after, until - window)
        found = list(fires_between(expression, timezone, begin, until))
        if begin == after or len(found) >= limit:
            return found[-limit:]
        window *= 4


@lru_cache(maxsize=256)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def _offset(zone: ZoneInfo, moment: datetime) -> timedelta:
    offset = moment.astimezone(zone).utcoffset()
    assert offset is not None
    return offset


def _after(expression: str, wall: datetime) -> Iterator[datetime]:
    """Wall-clock times (naive) that match, from `wall` on, itself included."""
    times = croniter(expression, wall - _SECOND)
    while True:
        yield times.get_next(datetime)


def _next_real(expression: str, zone: ZoneInfo, begin: datetime) -> datetime:
    """From `begin` on, stretch by stretch of constant offset."""
    while True:
        offset = _offset(zone, begin)
        wall = next(_after(expression, (begin + offset).replace(tzinfo=None)))
        candidate = wall.replace(tzinfo=UTC) - offset
        change = _change(zone, begin, candidate, offset)
        if change is None:
            return candidate
        begin = change


def _change(zone: ZoneInfo, begin: datetime, end: datetime, offset: timedelta) -> datetime | None:
    """The first second in (begin, end] whose offset is not `offset`, or None."""
    low = begin
    while low < end:
        high = min(low + _PROBE, end)
        if _offset(zone, high) != offset:
            while high - low > _SECOND:
                middle = low + timedelta(seconds=(high - low) // _SECOND // 2)
                low, high = (low, middle) if _offset(zone, middle) != offset else (middle, high)
            return high
        low = high
    return None


def _next_wall(expression: str, zone: ZoneInfo, begin: datetime) -> datetime:
    """The first matching wall-clock time that exists and whose first pass is not before `begin`."""
    for wall in _after(expression, begin.astimezone(zone).replace(tzinfo=None)):
        moment = wall.replace(tzinfo=zone).astimezone(UTC)  # fold=0: the first pass
        exists = moment.astimezone(zone).replace(tzinfo=None) == wall
        if exists and moment >= begin:
            return moment
    raise AssertionError("croniter ends with an error, not with silence")
