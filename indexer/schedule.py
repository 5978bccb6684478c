"""When to harvest: cron expressions as cron reads them, in UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger

from firnline.errors import InputError

_MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * sun",
    "@monthly": "0 0 1 * *",
}
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_DAY = rf"([0-7]|{'|'.join(_DAYS)})"
_DAYS_OF_WEEK = re.compile(rf"(?:\*|{_DAY}(?:-{_DAY})?)(?:/([1-7]))?")


class Schedule:
    """A cron expression: minute, hour, day of month, month, day of week, or ``@daily`` and such.

    As in cron, days of the week are 0 (or 7) for Sunday to 6 for Saturday, and where both kinds
    of day are restricted, either will do: APScheduler (3.11) by itself counts from Monday, and
    wants both.

    Raises
    ------
    InputError
        It is not one, or no date fulfils it.
    """

    def __init__(self, expression: str) -> None:
        self.expression = expression
        text = expression.strip().lower()
        fields = _MACROS.get(text, text).split()
        try:
            if len(fields) != 5:
                raise ValueError(f"it has {len(fields)} fields")
            self._trigger = _trigger(fields)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"FIRNLINE_HARVEST_SCHEDULE {expression[:80]!r} is no cron expression: {error}; "
                "accepted: minute hour day month weekday, as '30 4 * * *', or @daily"
            ) from None
        if self.next(datetime(2000, 1, 1, tzinfo=UTC)) is None:
            raise InputError(f"FIRNLINE_HARVEST_SCHEDULE {expression[:80]!r}: there is no such day")

    def next(self, after: datetime) -> datetime | None:
        """The first time after an instant; None if there is none."""
        # A trigger's times include the instant that it is asked for.
        found: datetime | None = self._trigger.get_next_fire_time(after, after)
        return found


def _trigger(fields: list[str]) -> BaseTrigger:
    minute, hour, day, month, weekday = fields
    times = {"minute": minute, "hour": hour, "month": month, "timezone": UTC}
    if weekday == "*" or day == "*":
        return CronTrigger(**times, day=day, day_of_week=_weekdays(weekday))
    return OrTrigger(
        [
            CronTrigger(**times, day=day),
            CronTrigger(**times, day_of_week=_weekdays(weekday)),
        ]
    )


def _weekdays(field: str) -> str:
    """Cron's days of the week by their names, for ranges may go over the end of the week."""
    if field == "*":
        return "*"
    days: set[int] = set()
    for part in field.split(","):
        match = _DAYS_OF_WEEK.fullmatch(part)
        if match is None:
            raise ValueError(f"{part[:20]!r} is no day of the week")
        first, last, step = match.groups()
        begin = 0 if first is None else _number(first)
        end = 6 if first is None else _number(last) if last else 6 if step else begin
        if end < begin:
            end += 7
        days |= {day % 7 for day in range(begin, end + 1, int(step or 1))}
    return ",".join(_DAYS[day] for day in sorted(days))


def _number(day: str) -> int:
    return int(day) if day.isdecimal() else _DAYS.index(day)
