"""The layout: linked folders, imports that go one way, and nothing at import time."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
LINKED = ("api", "cache", "indexer", "migrations")
MAY_IMPORT = {
    # what a folder may import of the others; the base may import none of them
    "api": {"cache"},
    "cache": set(),
    "indexer": set(),
    "migrations": set(),
}
DOORS = {"cli", "accessor.py", "demo.py", "service.py", "__init__.py"}


@pytest.mark.parametrize("name", LINKED)
def test_subpackages_are_relative_links(name: str) -> None:
    link = REPO / "firnline" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"  # noqa: PTH115  as it is stored
    assert not (REPO / name).is_symlink()
    assert (REPO / name / "__init__.py").is_file()


def test_git_stores_the_links_as_links() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-s", "firnline"], cwd=REPO, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git clone")
    modes = {line.split("\t")[1]: line[:6] for line in listed.stdout.splitlines()}
    assert {name for name, mode in modes.items() if mode == "120000"} == {
        f"firnline/{name}" for name in LINKED
    }


def test_there_are_no_other_links() -> None:
    listed = subprocess.run(["git", "ls-files", "-s"], cwd=REPO, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git clone")
    assert sum(line.startswith("120000") for line in listed.stdout.splitlines()) == len(LINKED)


def test_the_lock_of_the_page_holds_no_addresses_of_packages() -> None:
    """Names, versions and checksums: who installs says from where."""
    text = (REPO / "web" / "package-lock.json").read_text()
    packages = {name: each for name, each in json.loads(text)["packages"].items() if name}
    assert len(packages) > 10
    assert all("integrity" in each for each in packages.values())
    assert not [name for name, each in packages.items() if "resolved" in each]
    assert "registry" not in text


def modules() -> list[Path]:
    folders = [REPO / name for name in LINKED]
    found = [*(REPO / "firnline").glob("*.py"), *(REPO / "firnline" / "cli").glob("*.py")]
    found += [file for folder in folders for file in folder.rglob("*.py")]
    return [file for file in found if "__pycache__" not in file.parts]


def imported(file: Path) -> set[str]:
    """Everything that a module names after `import` or `from`, at its top or in a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def parts(names: set[str]) -> set[str]:
    """Which of the linked subpackages are among some imports."""
    found = {name.split(".")[1] for name in names if name.startswith("firnline.")}
    return found & set(LINKED)


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(REPO)))
def test_imports_go_one_way(file: Path) -> None:
    names = imported(file)
    assert not {name.split(".")[0] for name in names} & set(LINKED), "bare: import firnline.api"
    folder = file.relative_to(REPO).parts[0]
    if folder != "firnline":
        assert parts(names) <= MAY_IMPORT[folder] | {folder}
    elif file.parent.name not in DOORS and file.name not in DOORS:
        assert parts(names) == set(), "the base imports nothing above it"
    assert not any(name.startswith("tests") for name in names)


def test_import_linter_agrees() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    if not tool.exists():
        pytest.skip("import-linter is not installed")
    linted = subprocess.run([tool, "--no-cache"], cwd=REPO, capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout


def test_importing_is_quick_and_reads_nothing(tmp_path: Path) -> None:
    """`import firnline` loads no array library, makes no file, and reads no setting."""
    code = (
        "import sys, firnline; "
        "heavy = {'zarr', 'xarray', 'rasterio', 'sqlalchemy', 'matplotlib', 'fastapi', 'dask'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "FIRNLINE_MEMORY_LIMIT": "nonsense", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert list(tmp_path.iterdir()) == []
