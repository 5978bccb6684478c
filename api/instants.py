"""The ``datetime`` parameter: RFC 3339 instants and intervals, strictly."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from firnline.errors import DatetimeError

_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d):(\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)
_ACCEPTED = (
    "accepted: an RFC 3339 instant as 2018-02-12T23:20:50Z, or an interval of two with a slash, "
    "open on one side with '..'"
)
_MICROSECOND = timedelta(microseconds=1)
Interval = tuple[datetime | None, datetime | None]


def parse_datetime(text: str) -> Interval:
    """The interval that a ``datetime`` parameter means, both ends included; None where open.

    An instant is an interval of no length (OGC API - Features, 7.15.4: a feature is selected
    when its own interval *intersects* the one given). Digits below a microsecond are kept in
    meaning: a start is rounded up and an end down, which changes nothing for items, whose
    instants are whole microseconds.

    Raises
    ------
    DatetimeError
    """
    first, slash, last = text.partition("/")
    if not slash:
        return _instant(first, text, up=True), _instant(first, text, up=False)
    start = None if first in ("", "..") else _instant(first, text, up=True)
    end = None if last in ("", "..") else _instant(last, text, up=False)
    if start is None and end is None:
        raise DatetimeError(f"datetime {text[:80]!r} is open on both sides; {_ACCEPTED}")
    if start is not None and end is not None and _instant(first, text, up=False) > end:
        raise DatetimeError(f"datetime {text[:80]!r} ends before it starts")
    return start, end


def _instant(text: str, whole: str, *, up: bool) -> datetime:
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise DatetimeError(f"datetime {whole[:80]!r} is not understood; {_ACCEPTED}")
    date, minutes, seconds, digits, offset = match.groups()
    digits = digits or ""
    leap = seconds == "60"  # RFC 3339, 5.6: a leap second; datetime has none, so the next one
    try:
        instant = datetime.fromisoformat(
            f"{date}T{minutes}:{'59' if leap else seconds}.{digits[:6]:0<6}{offset.upper()}"
        ).astimezone(UTC)
        if leap:
            instant += timedelta(seconds=1)
        if up and digits[6:].strip("0"):
            instant += _MICROSECOND
    except (ValueError, OverflowError):
        raise DatetimeError(f"datetime {whole[:80]!r} does not exist; {_ACCEPTED}") from None
    return instant
