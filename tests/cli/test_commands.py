"""All commands: help, usage, streams and exit codes of a process, the public face."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import firnline
from firnline.cli import app
from firnline.cli.examples import EXAMPLES
from firnline.settings import Settings

Run = Any  # of conftest.py, which gives an Answer: code, out, err, error, document


@pytest.mark.parametrize("arguments", [["--nonsense"], ["no-such-command"], ["harvest", "--deeep"]])
def test_bad_usage(firn: Run, arguments: list[str]) -> None:
    answer = firn(*arguments)
    assert answer.code == 2
    assert answer.out == ""
    assert arguments[-1] in answer.err


def test_help_and_no_arguments(firn: Run) -> None:
    answer = firn("--help")
    assert answer.code == 0
    commands = {
        "harvest", "materialise", "migrate", "serve", "worker", "status", "demo", "cache", "catalog"
    }  # fmt: skip
    assert commands <= set(re.findall(r"^\s+│?\s*([a-z]+)\s", answer.out, re.MULTILINE))
    for command in sorted(commands):
        assert firn(command, "--help").code == 0
    assert "harvest" in firn().out + firn().err


def test_streams_and_exit_codes_of_a_process(sample: Any, tmp_path: Path) -> None:
    """With real logs: stdout has one JSON document, everything else is on stderr."""
    settings = sample.settings(tmp_path / "data")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("FIRN")},
        "FIRNLINE_DATA_DIR": str(settings.data_dir),
        "FIRNLINE_ALLOWED_SOURCES": ",".join(settings.allowed_sources),
        "FIRNLINE_LOG_LEVEL": "DEBUG",
    }

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "firnline.cli", *map(str, arguments)],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240,
        )  # fmt: skip

    area = ["--bbox", *sample.mirror.aoi, "--crs", "EPSG:3413", "--composite", "none"]
    done = run("materialise", *area, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["status"] == "successful"
    assert done.stdout.count("\n") == 1
    assert "job claimed" in done.stderr
    bad = run("materialise", *area, "--datetime", "yesterday", "--json")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("error: datetime 'yesterday'")
    failed = run("cache", "show", "none")
    assert (failed.returncode, failed.stdout) == (1, "")


def test_the_version_is_said_once() -> None:
    from importlib.metadata import version

    assert version("firnline") == firnline.__version__


def test_python_m_is_the_command() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "firnline", "--version"], capture_output=True, text=True, check=True
    )
    assert said.stdout == f"firnline {firnline.__version__}\n"


def test_the_public_face() -> None:
    assert set(firnline.__all__) == {"__version__", "flowlines", "open", "series", "strain"}
    for name in set(firnline.__all__) - {"__version__"}:
        assert callable(getattr(firnline, name))
    with pytest.raises(AttributeError, match="nothing"):
        _ = firnline.nothing  # type: ignore[attr-defined]


def test_help_loads_nothing_heavy() -> None:
    """What a command needs is imported when it runs: `firnline --help` has to be quick."""
    code = (
        "import sys, firnline.cli; "
        "heavy = {'zarr', 'xarray', 'rasterio', 'sqlalchemy', 'matplotlib', 'fastapi', 'dask', "
        "'pyarrow', 'numpy', 'shapely', 'httpx'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_valid_and_shown(firn: Run, name: str) -> None:
    """As click parses them, in the help of their command."""
    help = firn(*name.split(), "--help").out
    for example in EXAMPLES[name]:
        assert f"  firnline {example}\n" in help
        words = shlex.split(example)
        command: Any = typer.main.get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context(name, words)
    assert example.startswith(name)


def test_every_command_has_examples() -> None:
    listed = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    single = {name for name, each in listed.items() if not hasattr(each, "commands")}
    assert single <= set(EXAMPLES)


def test_errors_say_what_to_do_next(firn: Run, settings: Settings) -> None:
    nowhere = firn("materialise", "--bbox", 0, 0, 1, 1, settings=settings)
    assert nowhere.code == 2
    assert nowhere.err.splitlines()[1].strip().startswith("is the area in the CRS that --crs says")
    unknown = firn("cache", "show", "subset-0000000000000000")
    assert unknown.code == 1
    assert unknown.err.splitlines()[1].strip() == "`firnline cache list` shows the subsets"


def test_completion(firn: Run) -> None:
    """What a shell asks when TAB is pressed."""
    assert "--install-completion" in firn("--help").out
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv = ['firnline']; import firnline.cli; "
         "firnline.cli.main()"],
        env={**os.environ, "_FIRNLINE_COMPLETE": "complete_bash", "COMP_WORDS": "firnline ma",
             "COMP_CWORD": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["materialise"]
