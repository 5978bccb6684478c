"""What is built is what is meant: the wheel of the sdist installs `firnline` alone, and works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
FOLDERS = ("api", "cache", "indexer", "migrations")
READ = {"firnline/py.typed", "firnline/typical_items.ndjson"}  # items are packed with the latter

pytestmark = pytest.mark.timeout(900)


def run(*command: object, cwd: Path) -> str:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("FIRNLINE_") and name not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Files of the repository, as a clone would have them (with what is not committed yet)."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPO, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git clone")
    return [name for name in listed.stdout.splitlines() if os.path.lexists(REPO / name)]


@pytest.fixture(scope="module")
def built(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that is built from it, of a copy of the tracked files."""
    clone = tmp_path_factory.mktemp("clone")
    for name in tracked:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPO / name, clone / name, follow_symlinks=False)
    # a stand-in for the page, which git does not have
    (clone / "api" / "static").mkdir()
    (clone / "api" / "static" / "index.html").write_text("<!doctype html>")
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", out, clone, cwd=out)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


def test_the_wheel_holds_firnline_and_nothing_else(wheel: Path, tracked: list[str]) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        about = archive.read(metadata).decode()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"firnline"}
    expected = {
        name if name.startswith("firnline/") else f"firnline/{name}"
        for name in tracked
        if name.split("/")[0] in ("firnline", *FOLDERS) and (REPO / name).is_file()
    }
    expected.add("firnline/api/static/index.html")
    packed = {name for name in names if name.startswith("firnline/") and not name.endswith("/")}
    assert packed == expected
    assert {*READ, "firnline/migrations/env.py", "firnline/cli/commands.py"} <= packed
    assert any(name.startswith("firnline/migrations/versions/r0001") for name in packed)
    assert not [name for name in packed if "test" in name]
    assert "License-Expression: MIT" in about
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_sdist_holds_each_source_once(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [member.name.split("/", 1)[1] for member in archive if member.isfile()]
    assert "firnline/cli/commands.py" in names
    assert "LICENSE" in names
    assert len(names) == len(set(names))


def test_the_wheel_installs_and_the_demo_runs(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    run(
        python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "-c", REPO / "constraints.txt", wheel, cwd=tmp_path,
    )  # fmt: skip
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = run(python, "-c", "import firnline; print(firnline.__file__)", cwd=elsewhere)
    assert Path(where.strip()).is_relative_to(home)
    for name in FOLDERS:  # they would shadow a user's own
        found = run(
            python, "-c",
            f"import importlib.util; print(importlib.util.find_spec({name!r}))", cwd=elsewhere,
        )  # fmt: skip
        assert found == "None\n"
    told = run(home / "bin" / "firnline", "demo", "--dir", elsewhere / "demo", cwd=elsewhere)
    assert "SYNTHETIC" in told
    (folder,) = (elsewhere / "demo" / "data" / "cache" / "subsets").glob("*/*")
    assert (folder / "pairs.zarr" / "zarr.json").is_file()
    assert str(folder) in told
    pairs = run(
        python, "-c",
        f"import xarray as xr; print(xr.open_zarr({str(folder / 'pairs.zarr')!r}).sizes)",
        cwd=elsewhere,
    )  # fmt: skip
    assert "mid_date" in pairs
    assert [path.name for path in elsewhere.iterdir()] == ["demo"]
    # typed: a user's own mypy finds the types
    assert (Path(where.strip()).parent / "py.typed").exists()
