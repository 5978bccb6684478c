"""What commands say, and how: text on stdout, or one JSON document; progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def print_json(document: Any) -> None:
    """Print the one JSON document of a command."""
    sys.stdout.write(json.dumps(document, default=str) + "\n")


def print_pairs(answer: dict[str, Any]) -> None:
    """Print names and values, one pair a line."""
    width = max(map(len, answer))
    for name, value in answer.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        if isinstance(value, dict):
            shown = ", ".join(f"{key} {item}" for key, item in value.items())
        out.print(f"{name:{width}}  {shown}", markup=False)


@contextmanager
def percent(quiet: bool) -> Iterator[Callable[[int, str], None]]:
    """Progress of a job: a bar on a terminal, else a line whenever the message changes."""
    if not err.is_terminal:
        yield _lines(quiet)
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
    )
    with bar:
        task = bar.add_task("starting", total=100)
        yield lambda done, message: bar.update(task, completed=done, description=message)


def _lines(quiet: bool) -> Callable[[int, str], None]:
    last = ""

    def show(done: int, message: str) -> None:
        nonlocal last
        if message != last and not quiet:
            err.print(f"{done:3d} %  {message}", markup=False)
        last = message

    return show


@contextmanager
def phases(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Progress of a harvest, (phase, done, total): a bar a phase, else a line a phase."""
    if not err.is_terminal:
        seen: set[str] = set()

        def line(phase: str, done: int, total: int) -> None:
            if phase not in seen and not quiet:
                err.print(f"{phase} ({total:,})" if total else phase, markup=False)
            seen.add(phase)

        yield line
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
    )
    with bar:
        tasks: dict[str, Any] = {}

        def update(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total or None)
            bar.update(tasks[phase], completed=done, total=total or None)

        yield update
