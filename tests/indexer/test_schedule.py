"""Schedules, against a reading of cron's rules minute by minute."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from firnline.errors import InputError
from firnline.indexer.schedule import Schedule

START = datetime(2024, 1, 31, 23, 59, 30, tzinfo=UTC)  # a Wednesday; 2024 is a leap year


def times(expression: str, count: int, after: datetime = START) -> list[str]:
    schedule = Schedule(expression)
    found = []
    for _ in range(count):
        following = schedule.next(after)
        assert following is not None
        assert following > after
        after = following
        found.append(f"{after:%a %d %b %H:%M}")
    return found


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("30 4 * * *", ["Thu 01 Feb 04:30", "Fri 02 Feb 04:30"]),
        ("*/20 5,6 * * *", ["Thu 01 Feb 05:00", "Thu 01 Feb 05:20", "Thu 01 Feb 05:40"]),
        ("0 0 29 2 *", ["Thu 29 Feb 00:00"]),
        # Sunday is 0 and 7 in cron; APScheduler by itself takes 0 for Monday
        ("0 3 * * 0", ["Sun 04 Feb 03:00", "Sun 11 Feb 03:00"]),
        ("0 3 * * 7", ["Sun 04 Feb 03:00", "Sun 11 Feb 03:00"]),
        ("0 3 * * 1-5", ["Thu 01 Feb 03:00", "Fri 02 Feb 03:00", "Mon 05 Feb 03:00"]),
        ("0 3 * * 6-7", ["Sat 03 Feb 03:00", "Sun 04 Feb 03:00"]),
        ("0 3 * * fri-MON", ["Fri 02 Feb 03:00", "Sat 03 Feb 03:00", "Sun 04 Feb 03:00"]),
        ("0 3 * * */2", ["Thu 01 Feb 03:00", "Sat 03 Feb 03:00", "Sun 04 Feb 03:00"]),
        ("0 3 * * 2,4", ["Thu 01 Feb 03:00", "Tue 06 Feb 03:00"]),
        # where both kinds of day are given, either will do
        ("0 3 5 * sat", ["Sat 03 Feb 03:00", "Mon 05 Feb 03:00", "Sat 10 Feb 03:00"]),
        ("@daily", ["Thu 01 Feb 00:00", "Fri 02 Feb 00:00"]),
        ("@weekly", ["Sun 04 Feb 00:00"]),
        (" @hourly ", ["Thu 01 Feb 00:00", "Thu 01 Feb 01:00"]),
    ],
)
def test_as_cron_reads_it(expression: str, expected: list[str]) -> None:
    assert times(expression, len(expected)) == expected


def test_a_time_is_not_its_own_next() -> None:
    at = datetime(2024, 2, 1, 4, 30, tzinfo=UTC)
    assert Schedule("30 4 * * *").next(at) == at + timedelta(days=1)
    assert Schedule("30 4 * * *").next(at - timedelta(microseconds=1)) == at


@pytest.mark.parametrize(
    "expression",
    [
        "daily", "* * * *", "* * * * * *", "60 0 * * *", "0 24 * * *", "0 0 32 * *", "0 0 0 * *",
        "0 0 * 13 *", "0 0 * * 8", "0 0 * * xyz", "0 0 * * 1-", "0 0 30 2 *", "a b c d e",
        "*/0 * * * *", "@reboot", "x" * 1000,
    ],
)  # fmt: skip
def test_bad_ones_are_one_clear_line(expression: str) -> None:
    with pytest.raises(InputError, match="FIRNLINE_HARVEST_SCHEDULE") as caught:
        Schedule(expression)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
