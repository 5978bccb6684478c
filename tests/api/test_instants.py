from datetime import UTC, datetime

import pytest

from firnline.api.instants import parse_datetime
from firnline.errors import DatetimeError


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("2018-02-12T23:20:50Z", at(2018, 2, 12, 23, 20, 50), at(2018, 2, 12, 23, 20, 50)),
        ("1996-12-19T16:39:57-08:00", at(1996, 12, 20, 0, 39, 57), at(1996, 12, 20, 0, 39, 57)),
        ("1985-04-12t23:20:50.520z/..", at(1985, 4, 12, 23, 20, 50, 520_000), None),
        ("1985-04-12T23:20:50.52Z/", at(1985, 4, 12, 23, 20, 50, 520_000), None),
        ("../2018-01-01T00:00:00Z", None, at(2018, 1, 1)),
        ("/2018-01-01T00:00:00Z", None, at(2018, 1, 1)),
        ("2018-01-01T00:00:00Z/2018-01-01T00:00:00Z", at(2018, 1, 1), at(2018, 1, 1)),
        # a leap second is the instant before the next second begins
        ("1990-12-31T23:59:60Z/..", at(1991, 1, 1), None),
        # below a microsecond: a start up, an end down
        (
            "2020-07-23T00:00:00.0000001Z/2020-07-23T00:00:01.0000019Z",
            at(2020, 7, 23, 0, 0, 0, 1),
            at(2020, 7, 23, 0, 0, 1, 1),
        ),
    ],
)
def test_interval(text: str, start: datetime | None, end: datetime | None) -> None:
    assert parse_datetime(text) == (start, end)


def test_an_instant_between_microseconds_overlaps_what_spans_it_only() -> None:
    start, end = parse_datetime("2020-01-01T00:00:00.0000005Z")
    assert (start, end) == (at(2020, 1, 1, 0, 0, 0, 1), at(2020, 1, 1))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "../..",
        "/..",
        "../",
        "..",
        "/1984-04-12T23:20:50.52Z/1985-04-12T23:20:50.52Z",
        "1985-04-12",
        "1937-01-01T12:00:27.87+0100",
        "37-01-01T12:00:27.87Z",
        "1985-12-12T23:20:50.52",
        "21985-12-12T23:20:50.52Z",
        "1985-13-12T23:20:50.52Z",
        "1985-12-01T25:20:50.52Z",
        "1985-12-01T24:00:00Z",
        "1985-12-01T00:60:50.52Z",
        "1985-12-01T00:06:61Z",
        "1985-04-12T23:20:50.Z",
        "1985-04-12T23:20:50,52Z",
        "1986-04-12T23:20:50.52Z/1985-04-12T23:20:50.52Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+10:00",
        "9999-12-31T23:59:60Z",
        "2018-01-01T00:00:00+24:00",
        "２018-01-01T00:00:00Z",
        "2018-01-01 00:00:00Z",
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(DatetimeError, match="datetime"):
        parse_datetime(text)
