"""``cache …``: what is stored, in good order and within its quota."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.table import Column, Table

from firnline.cli.console import Json, err, out, percent, print_json
from firnline.cli.installation import load_settings, open_database
from firnline.cli.interrupt import stop_on_signal
from firnline.errors import InputError

Ids = Annotated[list[str] | None, typer.Argument(help="Subsets; default: all.")]


def list_stored(as_json: Json = False) -> None:
    """List the materialised subsets, last used first."""
    from firnline.cache.opening import list_subsets

    settings = load_settings()
    rows = list_subsets(open_database(settings))
    if as_json:
        print_json(rows)
        return
    # ids are there to be copied, on a narrow terminal too
    table = Table(
        Column("id", no_wrap=True, min_width=23),
        "MB",
        "created",
        "last used",
        "stale",
        "pinned",
        box=None,
    )
    for row in rows:
        table.add_row(
            row["id"],
            f"{row['size'] / 1e6:.1f}",
            row["created"][:16].replace("T", " "),
            row["last_used"][:16].replace("T", " "),
            "yes" if row["stale"] else "no",
            "yes" if row["pinned"] else "no",
        )
    out.print(table)


def show_stored(id: str) -> None:
    """Print the STAC item of a subset and where its files are, as JSON."""
    from firnline.cache.opening import subset_place
    from firnline.database import get_item, reading
    from firnline.errors import NotFoundError

    settings = load_settings()
    engine = open_database(settings)
    folder = subset_place(engine, settings, id)
    with reading(engine) as connection:
        content = get_item(connection, "subsets", id)
    if content is None:
        raise NotFoundError(f"there is no subset {id[:80]!r}")
    print_json({"folder": str(folder), "item": json.loads(content)})


def verify(
    ids: Ids = None,
    mend: Annotated[
        bool, typer.Option("--mend", help="Ask for what is damaged to be made anew.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare every file with its checksum; exit code 1 if there is damage."""
    from firnline.cache import eviction

    settings = load_settings()
    engine = open_database(settings)
    answer = []
    for checked in eviction.verify(engine, settings, ids or ()):
        row = {**vars(checked), "job": None}
        if checked.damage and mend:
            row["job"] = eviction.mend(engine, settings, checked.id).id
        answer.append(row)
        if as_json:
            continue
        state = "damaged" if checked.damage else f"{checked.files} files, good"
        out.print(f"{checked.id}  {state}", markup=False)
        for line in checked.damage[:20]:
            out.print(f"    {line}", markup=False)
        if row["job"] is not None:
            out.print(f"    made anew by job {row['job']}", markup=False)
    if as_json:
        print_json(answer)
    if any(row["damage"] for row in answer):
        if not as_json and not mend:
            err.print("`firnline cache verify --mend` has it made anew", markup=False)
        raise typer.Exit(1)


def evict(
    ids: Annotated[
        list[str] | None,
        typer.Argument(help="Subsets to remove; default: those last used until the quota is met."),
    ] = None,
    quota: Annotated[
        str, typer.Option(help="Disk space for the rest, as 50GB; default: FIRNLINE_CACHE_QUOTA.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Remove subsets, and what dead processes left. Pinned ones and those in use stay."""
    from firnline.cache import eviction

    settings = load_settings()
    if ids and quota:
        raise InputError("give subsets or --quota, not both")
    try:
        limit = TypeAdapter(ByteSize).validate_python(quota) if quota else None
    except ValidationError:
        raise InputError(
            f"--quota {quota[:40]!r} is no size; it takes, for example, 50GB"
        ) from None
    engine = open_database(settings)
    if ids:
        removed = [eviction.remove(engine, settings, id) for id in ids]
    else:
        removed = eviction.evict(engine, settings, quota=limit)
    if as_json:
        print_json([vars(each) for each in removed])
        return
    for each in removed:
        out.print(f"removed {each.id}, {each.size / 1e6:.1f} MB", markup=False)
    if not removed:
        out.print("nothing to remove", markup=False)


def pin(id: str) -> None:
    """Keep a subset from eviction."""
    _pin(id, True)


def unpin(id: str) -> None:
    """Let a subset be evicted again."""
    _pin(id, False)


def _pin(id: str, pinned: bool) -> None:
    from firnline.cache import eviction

    eviction.pin(open_database(load_settings()), id, pinned)
    out.print(f"{id} is {'pinned' if pinned else 'no longer pinned'}", markup=False)


def refresh_stored(
    id: str,
    wait: Annotated[
        bool, typer.Option(help="Do the job here; --no-wait leaves it to a worker.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Make a subset anew if its cubes have changed: only chunks that changed are fetched."""
    from firnline.cache import worker
    from firnline.cache.refresh import refresh

    settings = load_settings()
    engine = open_database(settings)
    job = refresh(engine, settings, id)
    answer = {"item": id, "status": "unchanged", "message": "its cubes are what they were"}
    if job is not None:
        if wait:
            with stop_on_signal() as stop, percent(as_json) as shown:
                job = worker.finish(engine, settings, job, stop=stop, shown=shown)
        answer |= {"job": job.id, "status": job.status, "message": job.message}
    if as_json:
        print_json(answer)
    elif answer["status"] != "failed":
        out.print(f"{id}: {answer['status']}, {answer['message']}", markup=False)
    if job is not None and wait and job.status != "successful":
        if job.status == "failed":
            err.print(f"error: {job.message}", markup=False)
        raise typer.Exit(1)
