"""docs/harvesting.md: what it tells people to copy is what the programs accept."""

from __future__ import annotations

import configparser
import re
import shlex
import textwrap
from datetime import UTC, datetime
from pathlib import Path

import typer
import yaml

from firnline.cli import app
from firnline.indexer.schedule import Schedule
from firnline.settings import Settings

TEXT = (Path(__file__).parents[1] / "docs" / "harvesting.md").read_text()


def section(title: str) -> str:
    """The text below a heading."""
    found = re.search(rf"^### {title}\n(.*?)(?=^#|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def blocks(text: str) -> list[str]:
    """Indented code."""
    found = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE)
    return [textwrap.dedent(block).strip() for block in found]


def assert_command(words: list[str]) -> None:
    """`firnline` takes these arguments, which are a deep harvest."""
    harvest = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    assert words[0] == "harvest"
    assert harvest.make_context("harvest", words[1:]).params["deep"] is True


def test_every_setting_that_is_named_exists() -> None:
    named = set(re.findall(r"FIRNLINE_([A-Z_]+)", TEXT))
    assert {"HARVEST_SCHEDULE", "CATALOG_URLS", "ALLOWED_SOURCES"} <= named
    assert {name.lower() for name in named} <= set(Settings.model_fields)


def test_serve() -> None:
    (block,) = blocks(section("In `firnline serve`"))
    (assignment, *words) = shlex.split(block)
    name, _, value = assignment.partition("=")
    assert name == "FIRNLINE_HARVEST_SCHEDULE"
    assert words == ["firnline", "serve"]
    midnight = datetime(2026, 1, 1, tzinfo=UTC)
    assert Schedule(value).next(midnight) == datetime(2026, 1, 1, 4, 30, tzinfo=UTC)


def test_cron() -> None:
    (block,) = blocks(section("cron"))
    line = block.splitlines()[-1].split()
    Schedule(" ".join(line[:5]))
    assert line[5].startswith("FIRNLINE_DATA_DIR=")
    assert_command(line[7:])


def test_systemd() -> None:
    units = []
    for block in blocks(section("systemd")):
        parser = configparser.ConfigParser(interpolation=None)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read_string(block)
        units.append(parser)
    service, timer = units
    assert service["Service"]["Type"] == "oneshot"
    assert_command(shlex.split(service["Service"]["ExecStart"])[1:])
    assert timer["Timer"]["OnCalendar"] == "*-*-* 04:30:00 UTC"
    assert timer["Timer"]["Persistent"] == "true"
    assert timer["Install"]["WantedBy"] == "timers.target"


def test_kubernetes() -> None:
    (block,) = blocks(section("Kubernetes"))
    job = yaml.safe_load(block)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    Schedule(job["spec"]["schedule"])
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert_command(container["args"])
    assert {each["name"] for each in container["env"]} >= {"FIRNLINE_DATABASE_URL"}
