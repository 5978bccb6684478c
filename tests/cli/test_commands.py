"""All commands: help, usage, streams and exit codes of a process, the public face."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import firnline

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
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60,
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
