"""The documentation: commands that it shows are accepted, tables are those of the code."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
import yaml

from firnline.cache.request import Request
from firnline.cli import app
from firnline.settings import Settings

REPO = Path(__file__).parents[1]
PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]


def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("hooks", REPO / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands(page: Path) -> list[list[str]]:
    """The words after `firnline` of each command line in code blocks; not those with gaps."""
    text = page.read_text().replace("\\\n", " ")
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks = [block for language, block in fenced if language in ("", "sh", "bash")]
    blocks += re.findall(r"^    (firnline .*)$", text, re.MULTILINE)
    found = []
    for line in "\n".join(blocks).splitlines():
        # variables may stand before; elsewhere, it runs in a container, which has that name too
        told = re.match(r"(?:[A-Z_]+=\S+ )*(?:docker .* firnline )?firnline (.*)$", line.strip())
        if told and not re.search(r"\.\.\. |…|\.\.\.$|&&|\|", told[1]):
            found.append(shlex.split(told[1], comments=True))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_accepted(page: Path) -> None:
    for words in commands(page):
        command: Any = typer.main.get_command(app)
        rest = list(words)
        while hasattr(command, "commands"):
            if rest[0].startswith("-"):
                break
            assert rest[0] in command.commands, f"{page.name}: firnline {' '.join(words)}"
            command = command.commands[rest.pop(0)]
        assert command.make_context("firnline", rest, resilient_parsing=False) is not None


def test_there_are_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 30


def test_every_page_is_in_the_navigation() -> None:
    nav = yaml.safe_load((REPO / "mkdocs.yml").read_text())["nav"]
    listed = {path for section in nav for value in section.values()
              for entry in (value if isinstance(value, list) else [{"": value}])
              for path in entry.values()}  # fmt: skip
    assert listed - {"decisions"} == {page.name for page in PAGES[1:]}


@pytest.mark.parametrize(
    ("page", "model", "prefix"), [("settings.md", Settings, "FIRNLINE_"), ("api.md", Request, "")]
)
def test_tables_have_every_field(page: str, model: Any, prefix: str) -> None:
    """The marker in the page becomes a row a field, with its description."""
    filled = hooks().on_page_markdown((REPO / "docs" / page).read_text())
    assert "<!--" not in filled
    for name, field in model.model_fields.items():
        (row,) = re.findall(rf"^\| `{prefix + (name.upper() if prefix else name)}` \|.*$", filled,
                            re.MULTILINE)  # fmt: skip
        assert field.description
        assert field.description.replace("|", "\\|") in row


def test_the_picture_is_for_light_and_dark() -> None:
    text = (REPO / "docs/images/architecture.svg").read_text()
    root = ElementTree.fromstring(text)
    assert root.find("{http://www.w3.org/2000/svg}title") is not None
    assert "prefers-color-scheme: dark" in text
