"""``status``: how things are, and what needs doing, in words."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firnline.cli.console import Json, out, print_json
from firnline.cli.installation import load_settings, open_database, shown_url
from firnline.settings import Settings
from firnline.version import __version__

if TYPE_CHECKING:
    from firnline.cache.jobs import Job

_STALE_HARVEST = timedelta(days=30)
_PATIENCE = timedelta(minutes=1)
_RECENTLY = timedelta(days=7)
_NEARLY_FULL = 0.9


def status(
    settings_only: Annotated[
        bool, typer.Option("--settings", help="List every setting with its value.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say how things are, and what needs doing.

    Catalog, jobs, store, and the last harvests. The exit code is 0 also when there is something to
    do; `--json` lists it as `needs`.
    """
    settings = load_settings()
    if settings_only:
        _list_settings(settings, as_json)
        return
    from firnline.cache import jobs
    from firnline.database import overview
    from firnline.runs import recent

    engine = open_database(settings, migrated=False)
    known = overview(engine)
    harvests = recent(engine, 5)
    now = datetime.now(UTC)
    todo = needs(known, harvests, jobs.recent(engine, 1000), settings, now)
    if as_json:
        print_json(
            {
                "version": __version__,
                "database": shown_url(settings.database),
                **known,
                "cache": settings.cache_place,
                "harvests": harvests,
                "needs": todo,
            }
        )
        return
    out.print("To do:" if todo else "All is well.", markup=False)
    for line in todo:
        out.print(f"  - {line}", markup=False)
    out.print()
    for line in (*_figures(known, settings), *(_harvested(run) for run in harvests)):
        out.print(line, markup=False)


def needs(
    known: dict[str, Any],
    harvests: list[dict[str, Any]],
    jobs: list[Job],
    settings: Settings,
    now: datetime,
) -> list[str]:
    """What a person should do, a sentence each; most urgent first.

    Parameters
    ----------
    known
        Of :func:`firnline.database.overview`.
    harvests, jobs
        The newest, newest first.
    """
    return [
        *_unworked(jobs, timedelta(seconds=settings.lease_seconds), now),
        *_failed(jobs, now),
        *_unharvested(known, harvests, now),
        *_full(known, settings),
    ]


def _unworked(jobs: list[Job], lease: timedelta, now: datetime) -> list[str]:
    """Jobs that wait while none is worked at: a worker takes one within seconds."""
    # a worker that lives renews its lease every few seconds
    alive = [job for job in jobs if job.status == "running" and now - job.updated < lease]
    waiting = [job for job in jobs if job.living]
    if not waiting or alive:
        return []
    # one that is put back for its next try has just been touched
    since = min(max(job.created, job.updated) for job in waiting)
    if now - since < max(_PATIENCE, lease):
        return []
    return [
        f"{_count(len(waiting), 'job')} waited for {_ago(now - since)} and no worker takes "
        f"{'it' if len(waiting) == 1 else 'them'}: start `firnline serve` or `firnline worker`."
    ]


def _failed(jobs: list[Job], now: datetime) -> list[str]:
    # the same request may have been tried again since: its newest job counts
    newest: dict[str, Job] = {}
    for job in jobs:
        newest.setdefault(json.dumps(job.request, sort_keys=True), job)
    failed = [
        job for job in newest.values() if job.status == "failed" and now - job.updated < _RECENTLY
    ]
    if not failed:
        return []
    return [
        f"{_count(len(failed), 'request')} failed within a week; the last, job {failed[0].id}, "
        f"said: {failed[0].message.rstrip('.')}. Ask again when that is mended."
    ]


def _unharvested(known: dict[str, Any], harvests: list[dict[str, Any]], now: datetime) -> list[str]:
    good = next((run for run in harvests if run["status"] == "successful"), None)
    last = harvests[0] if harvests else None
    if last is not None and last["status"] == "failed":
        kept = "The catalog is as it was before. " if known["items"] else ""
        return [f"The last harvest failed: {str(last['error']).rstrip('.')}. {kept}"
                "Try `firnline harvest` again."]  # fmt: skip
    if not any(name != "subsets" for name in known["items"]):
        return ["The catalog is empty: run `firnline harvest`."]
    age = now - datetime.fromisoformat(good["started"]) if good else timedelta()
    if age > _STALE_HARVEST:
        return [f"The last good harvest is {_ago(age)} old: run `firnline harvest`, or set "
                "FIRNLINE_HARVEST_SCHEDULE."]  # fmt: skip
    return []


def _full(known: dict[str, Any], settings: Settings) -> list[str]:
    said = []
    used, quota = known["subsets"]["bytes"], settings.cache_quota
    if quota and used > quota:
        said.append(
            f"The store has {_size(used)}, more than its quota of {_size(quota)}: what is pinned "
            "or in use can't go. Unpin subsets, or raise FIRNLINE_CACHE_QUOTA."
        )
    if settings.cache_in_bucket:
        return said
    place = settings.cache_dir.absolute()
    while not place.exists():
        place = place.parent
    disk = shutil.disk_usage(place)
    if disk.used > _NEARLY_FULL * disk.total and disk.free < max(settings.max_job_bytes, 10**9):
        said.append(
            f"The disk of {settings.cache_dir} has {_size(disk.free)} left: remove subsets by "
            "`firnline cache evict --quota SIZE`, or set FIRNLINE_CACHE_QUOTA."
        )
    return said


def _figures(known: dict[str, Any], settings: Settings) -> list[str]:
    items = ", ".join(f"{count:,} {name}" for name, count in sorted(known["items"].items()))
    retired = f" ({known['retired']:,} retired)" if known["retired"] else ""
    jobs = ", ".join(f"{count:,} {name}" for name, count in sorted(known["jobs"].items()))
    subsets = known["subsets"]
    quota = f" of {_size(settings.cache_quota)}" if settings.cache_quota else ""
    return [
        f"firnline   {__version__}",
        f"database   {shown_url(settings.database)}",
        f"items      {items or 'none'}{retired}",
        f"jobs       {jobs or 'none'}",
        f"store      {_count(subsets['count'], 'subset')}, {_size(subsets['bytes'])}{quota}, in "
        f"{settings.cache_place}",
    ]


def _harvested(run: dict[str, Any]) -> str:
    """What came of a harvest, in one line."""
    from firnline.runs import deep_read_line

    when = f"{run['started'][:16].replace('T', ' ')}  "
    sources = ", ".join(run["sources"])
    if run["status"] != "successful":
        return f"harvest    {when}{run['status']}  {run['error'] or sources}"
    counts = ("added", "changed", "unchanged", "retired", "revived", "failed")
    told = ", ".join(f"{run[name]} {name}" for name in counts if run[name])
    since = run["not_modified_since"]
    told = f"not modified since {since[:19]}" if since else told
    told = "; ".join(filter(None, [told or "nothing there", deep_read_line(run)]))
    return f"harvest    {when}{'deep, ' if run['deep'] else ''}{told}  {sources}"


def _list_settings(settings: Settings, as_json: bool) -> None:
    rows = [
        {
            "name": f"FIRNLINE_{name.upper()}",
            "value": shown_url(settings.database) if name == "database_url" else _plain(value),
            "description": field.description,
        }
        for name, field in Settings.model_fields.items()
        for value in [getattr(settings, name)]
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        out.print(f"{row['name']} = {row['value']}", markup=False)
        out.print(f"    {row['description']}", markup=False)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def _ago(span: timedelta) -> str:
    minutes = int(span.total_seconds() // 60)
    if minutes >= 2 * 24 * 60:
        return f"{minutes // (24 * 60)} days"
    return f"{minutes // 60} hours" if minutes >= 120 else _count(minutes, "minute")


def _size(number: float) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"
