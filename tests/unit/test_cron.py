"""Cron expressions through clock changes, against lists written by hand and against a minute-by-minute oracle."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from faas.cron import check_expression, check_timezone, fires_between, latest_fires, next_fire


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def fires(expression: str, zone: str, after: str, until: str) -> list[str]:
    return [f"{t:%m-%d %H:%M}" for t in fires_between(expression, zone, utc(after), utc(until))]


@pytest.mark.parametrize(
    ("expression", "zone", "after", "until", "expected"),
    [
        # Clocks in Berlin go back from 03:00 to 02:00 at 01:00 UTC on 25 October 2026.
        ("30 2 * * *", "Europe/Berlin", "2026-10-24", "2026-10-27", ["10-24 00:30", "10-25 00:30", "10-26 01:30"]),
        ("*/30 2 * * *", "Europe/Berlin", "2026-10-25", "2026-10-26", ["10-25 00:00", "10-25 00:30"][1:]),
        ("*/30 * * * *", "Europe/Berlin", "2026-10-25", "2026-10-25T02:00",
         ["10-25 00:30", "10-25 01:00", "10-25 01:30", "10-25 02:00"]),
        ("0 */2 * * *", "Europe/Berlin", "2026-10-24T22:00", "2026-10-25T03:00",
         ["10-25 00:00", "10-25 01:00", "10-25 03:00"]),
        # They go forward from 02:00 to 03:00 at 01:00 UTC on 29 March 2026.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28", "2026-03-31", ["03-28 01:30", "03-30 00:30"]),
        ("30 * * * *", "Europe/Berlin", "2026-03-29", "2026-03-29T02:00", ["03-29 00:30", "03-29 01:30"]),
        ("0 2-3 * * *", "America/New_York", "2026-03-08", "2026-03-09", ["03-08 07:00"]),
        ("15 1 * * *", "America/New_York", "2026-11-01", "2026-11-02T12:00", ["11-01 05:15", "11-02 06:15"]),
        # Half an hour on Lord Howe: back from 02:00 to 01:30 at 15:00 UTC on 4 April 2026.
        ("45 1 * * *", "Australia/Lord_Howe", "2026-04-03T16:00", "2026-04-06", ["04-04 14:45", "04-05 15:15"]),
        ("45 * * * *", "Australia/Lord_Howe", "2026-04-04T14:00", "2026-04-04T17:00",
         ["04-04 14:45", "04-04 15:15", "04-04 16:15"]),
        ("0 12 29 2 *", "UTC", "2026-01-01", "2033-01-01", ["02-29 12:00", "02-29 12:00"]),
        ("0 0 13 * fri", "UTC", "2026-11-01", "2026-11-14", ["11-06 00:00", "11-13 00:00"]),  # either, as cron
        ("59 23 31 12 *", "UTC", "2025-12-31T23:59", "2026-12-31T23:59", ["12-31 23:59"]),
    ],
)  # fmt: skip
def test_fire_times_are_exactly_these(expression: str, zone: str, after: str, until: str, expected: list[str]) -> None:
    assert fires(expression, zone, after, until) == expected


def oracle(hours: set[int] | None, minutes: set[int], zone: str, begin: datetime, end: datetime) -> list[datetime]:
    """Minute by minute through real time. `hours` None: every hour; else each wall-clock time once."""
    found, seen = [], set()
    moment = begin
    while moment <= end:
        wall = moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
        if wall.minute in minutes and (hours is None or wall.hour in hours):
            if hours is None or wall not in seen:
                found.append(moment)
            seen.add(wall)
        moment += timedelta(minutes=1)
    return found


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"])
@pytest.mark.parametrize(
    ("expression", "hours", "minutes"),
    [("*/20 * * * *", None, {0, 20, 40}), ("30 1,2 * * *", {1, 2}, {30}), ("0 0 * * *", {0}, {0})],
)
def test_a_year_fires_as_a_minute_by_minute_count_says(
    expression: str, hours: set[int] | None, minutes: set[int], zone: str
) -> None:
    changes = {"Europe/Berlin": ("03-28", "10-24"), "America/New_York": ("03-07", "10-31")}
    for day in changes.get(zone, ("04-04", "10-03")):
        begin = utc(f"2026-{day}")
        end = begin + timedelta(days=3)
        expected = [t for t in oracle(hours, minutes, zone, begin, end) if t > begin]
        assert list(fires_between(expression, zone, begin, end)) == expected
    if expression == "0 0 * * *":
        nightly = list(fires_between(expression, zone, utc("2026-01-01"), utc("2027-01-01")))
        assert nightly == sorted(set(nightly))
        assert len(nightly) == 365


@pytest.mark.parametrize(
    "text",
    ["0 0 * * * *", "0 0 * * * 2026", "* * * * * * *", "61 * * * *", "whenever", "@daily", "", "* * * *", "0 0 30 2 *",
     "0 0 31 4,6 *", "*/0 * * * *", "-1 * * * *", "H * * * *", "R * * * *", "0 0 L * *", "0 0 * * 5#2", "? * * * *",
     "\u0661 * * * *", 5, None],
)  # fmt: skip
def test_an_expression_that_is_not_five_fields_that_can_come_true_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="five cron fields"):
        check_expression(text)


@pytest.mark.parametrize("text", ["* * * * *", "*/5  9-17 * jan-mar mon,fri", "0 0 * * 7", "0 0 29 2 *"])
def test_a_good_expression_is_returned_with_single_spaces(text: str) -> None:
    assert check_expression(text) == " ".join(text.split())


@pytest.mark.parametrize("text", ["", "Mars/Base", "../etc/passwd", "/etc/passwd", 3, "europe"])
def test_an_unknown_zone_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="time zone"):
        check_timezone(text)
    assert check_timezone("Europe/Berlin") == "Europe/Berlin"


def test_the_next_fire_is_after_and_never_at_the_moment() -> None:
    assert next_fire("0 * * * *", "UTC", utc("2026-01-01T10:00")) == utc("2026-01-01T11:00")
    assert next_fire("0 * * * *", "UTC", utc("2026-01-01T09:59:59.5")) == utc("2026-01-01T10:00")


@pytest.mark.parametrize("expression", ["* * * * *", "0 3 * * *", "0 0 1 1 *"])
def test_the_latest_fires_of_a_long_span_are_the_end_of_them_all(expression: str) -> None:
    after, until = utc("2025-06-01T00:30"), utc("2025-06-03T00:30") if expression[0] == "*" else utc("2026-06-01")
    every = list(fires_between(expression, "Europe/Berlin", after, until))
    assert latest_fires(expression, "Europe/Berlin", after, until, 10) == every[-10:]


def test_the_latest_fires_of_ten_years_do_not_cost_ten_years() -> None:
    found = latest_fires("* * * * *", "UTC", utc("2016-01-01"), utc("2026-01-01"), 100)
    assert len(found) == 100
    assert found[-1] == utc("2026-01-01")
