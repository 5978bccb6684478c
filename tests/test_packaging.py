"""What is built from the tracked files: only `firnline`, and it does its job where it lands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
LINKS = ("api", "cache", "indexer", "migrations")

pytestmark = pytest.mark.timeout(1200)


def run(*command: str | Path, cwd: Path, **more: str) -> str:
    """Run a command as a newcomer would: without this project's settings and paths."""
    left_out = ("FIRNLINE_", "PYTHON", "VIRTUAL_ENV", "COVERAGE")
    env = {k: v for k, v in os.environ.items() if not k.startswith(left_out)} | more
    done = subprocess.run(
        command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of the tracked files, and the wheel that was built from the sdist."""
    if not (REPO / ".git").exists():
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("build")
    tracked = run("git", "ls-files", "-z", cwd=REPO).split("\0")
    for name in filter(None, tracked):
        if (REPO / name).exists() or (REPO / name).is_symlink():
            (folder / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPO / name, folder / "src" / name, follow_symlinks=False)
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", cwd=folder / "src")
    return folder / "dist"


def test_links_lead_to_the_folders_on_top() -> None:
    for name in LINKS:
        link = REPO / "firnline" / name
        assert link.is_symlink()
        assert link.readlink() == Path("..", name)


def test_sdist_and_wheel_hold_firnline_alone(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"firnline", "firnline-0.1.0.dist-info"}
    wanted = {f"firnline/{name}/__init__.py" for name in LINKS} | {
        "firnline/py.typed",
        "firnline/migrations/env.py",
        "firnline/migrations/versions/r0001_first_schema.py",
        "firnline-0.1.0.dist-info/licenses/LICENSE",
    }
    assert wanted <= set(names)
    modules = {str(p.relative_to(REPO / "firnline")) for p in (REPO / "firnline").rglob("*.py")}
    for name in LINKS:
        modules |= {str(p.relative_to(REPO)) for p in (REPO / name).rglob("*.py")}
    assert {n.removeprefix("firnline/") for n in names if n.endswith(".py")} == modules
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert not [m.name for m in archive if m.issym() or m.islnk()]


def test_the_wheel_runs_the_demo(built: Path, tmp_path: Path) -> None:
    """Installed with the pins into an environment of its own, far from the repository."""
    (wheel,) = built.glob("*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    pins = REPO / "constraints.txt"
    run(python, "-m", "pip", "install", "--quiet", "-c", pins, wheel, cwd=tmp_path)
    where = run(python, "-c", "import firnline; print(firnline.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path / "venv")
    said = run(tmp_path / "venv" / "bin" / "firnline", "demo", "--dir", "demo", cwd=tmp_path)
    assert "SYNTHETIC" in said
    assert "merged across cubes" in said
    (store,) = (tmp_path / "demo/data/cache/subsets").glob("*/*/pairs.zarr")
    read = (
        "import sys, xarray as xr; ds = xr.open_zarr(sys.argv[1]); "
        "print(ds.sizes['mid_date'], bool(ds.indexes['mid_date'].is_monotonic_increasing))"
    )
    layers, ascending = run(python, "-c", read, store, cwd=tmp_path).split()
    assert ascending == "True"
    # what was kept less what was merged, as the demo said
    words = next(line for line in said.splitlines() if "merged across cubes" in line).split()
    kept, merged = (int(words[words.index(w) - 1]) for w in ("kept,", "merged"))
    assert int(layers) == kept - merged
