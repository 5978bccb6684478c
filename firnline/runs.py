"""The run log of harvests: who began when, what came of it, and what was read.

Each run is a row of ``harvests``, written when it begins and completed in the transaction that
changes the catalog, so that the log never tells of a change that was not made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, insert, select

from firnline.database import reading, writing
from firnline.document import Validators
from firnline.tables import harvests

INTERRUPTED = "it was interrupted; the catalog was left as it was"


def begin(engine: Engine, sources: Sequence[str], started: datetime) -> int:
    """Note that a run began, and close those that never ended; the caller is alone.

    Returns
    -------
    int
        Key of the run's row.
    """
    with writing(engine) as connection:
        connection.execute(
            harvests.update()
            .where(harvests.c.finished.is_(None))
            .values(finished=started, error=INTERRUPTED)
        )
        row = insert(harvests).values(source=" ".join(sources), started=started)
        return int(connection.execute(row.returning(harvests.c.id)).scalar_one())


def finish(
    connection: Connection, run: int, *, report: str | None = None, error: str | None = None
) -> None:
    """Complete the row of a run with its report (JSON), or with why it failed."""
    connection.execute(
        harvests.update()
        .where(harvests.c.id == run)
        .values(finished=datetime.now(UTC), report=report, error=error)
    )


def note_deep_read(engine: Engine, run: int, outcome: Mapping[str, Any]) -> None:
    """Add to the report of a run what its deep read found so far, or why it failed.

    `outcome` has a ``status`` as :func:`recent` tells it.
    """
    with writing(engine) as connection:
        chosen = select(harvests.c.report).where(harvests.c.id == run)
        report = json.loads(connection.scalar(chosen) or "{}")
        changed = harvests.update().where(harvests.c.id == run)
        connection.execute(
            changed.values(report=json.dumps({**report, "deep_read": dict(outcome)}))
        )


@dataclass(frozen=True)
class Reading:
    """When catalogs were last read, and what they had."""

    read: datetime
    validators: Mapping[str, Validators]
    """By source."""


def last_reading(
    engine: Engine, sources: Sequence[str], basis: Mapping[str, Any]
) -> Reading | None:
    """What the last run found that read the same sources on the same basis.

    None when there is none, or when another run has changed the catalog since: what these sources
    say may then no longer be what the database has.
    """
    for report in _reports(engine):
        if report.get("sources") == list(sources) and report.get("basis") == basis:
            return Reading(
                datetime.fromisoformat(report["not_modified_since"] or report["started"]),
                {name: Validators(**known) for name, known in report["validators"].items()},
            )
        if report.get("written", True):
            return None
    return None


def _reports(engine: Engine) -> Iterator[dict[str, Any]]:
    """Reports of the runs that did not fail, the newest first."""
    chosen = select(harvests.c.report).where(harvests.c.report.is_not(None))
    with reading(engine) as connection:
        newest = chosen.order_by(harvests.c.id.desc())
        # closed here: whoever asks may stop at the first, and a cursor on the server stays open
        with connection.execution_options(yield_per=10).scalars(newest) as rows:
            for report in rows:
                yield json.loads(report or "{}")


def recent(engine: Engine, limit: int) -> list[dict[str, Any]]:
    """The last runs, the newest first, as JSON has them.

    Each has ``id``, ``sources``, ``started``, ``finished``, ``status`` (``successful``,
    ``failed``, ``unfinished``: under way, or killed), ``error``, and of a successful one what
    became of the items. ``deep_read`` is what came of the cubes' own metadata, with a status and an
    error of its own. Of what failed the first :data:`FAILURES` are told, with their reasons.
    """
    chosen = select(harvests).order_by(harvests.c.id.desc()).limit(limit)
    with reading(engine) as connection:
        rows = connection.execute(chosen).all()
    return [_run(row) for row in rows]


_TOLD = (
    "seconds", "deep", "not_modified_since", "added", "changed", "unchanged", "retired", "revived",
    "failed", "skipped", "asked", "missing", "repeated", "collections", "failures", "deep_read",
)  # fmt: skip
FAILURES = 20
"""Failures of a run that :func:`recent` tells; the run log has all."""


def _run(row: Any) -> dict[str, Any]:
    status = "unfinished" if row.finished is None else "failed" if row.error else "successful"
    report = json.loads(row.report) if row.report else {}
    return {
        "id": row.id,
        "sources": report.get("sources", row.source.split(" ")),
        "started": row.started.isoformat(),
        "finished": None if row.finished is None else row.finished.isoformat(),
        "status": status,
        "error": row.error,
        **_shortened({name: report[name] for name in _TOLD if name in report}),
    }


def _shortened(report: dict[str, Any]) -> dict[str, Any]:
    """A report with the first of its failures only, and of each what it is and why."""
    if "deep_read" in report:
        report["deep_read"] = _shortened(report["deep_read"])
    if "failures" in report:
        told = [failure for failure in report["failures"] if not failure["skipped"]]
        report["failures"] = [
            {name: failure[name] for name in ("index", "id", "reason")}
            for failure in told[:FAILURES]
        ]
    return report


def deep_read_line(run: Mapping[str, Any]) -> str | None:
    """What came of the deep read of a run, in one line; None if it had none."""
    read = run.get("deep_read")
    if read is None:
        return None
    if read["status"] != "successful":
        return f"deep read {read['status']}" + (f": {read['error']}" if read.get("error") else "")
    return (
        f"deep read: {read['read']} cubes read, {read['unchanged']} unchanged, "
        f"{read['failed']} failed"
    )
