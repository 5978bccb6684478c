"""MkDocs: the navigation of the decisions, and the tables that come from the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ByteSize
from pydantic_core import PydanticUndefined


def on_config(config: Any) -> Any:
    """Put every decision, by its title, in place of ``Decisions: decisions``."""
    folder = Path(config.docs_dir) / "decisions"
    pages = [
        {path.read_text().partition("\n")[0].removeprefix("# "): f"decisions/{path.name}"}
        for path in sorted(folder.glob("*.md"))
    ]
    for section in config.nav:
        for entries in section.values():
            for entry in entries if isinstance(entries, list) else []:
                if entry == {"Decisions": "decisions"}:
                    entry["Decisions"] = pages
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the tables: a marker stands where each belongs."""
    from firnline.cache.request import Request, Strain
    from firnline.settings import Settings

    for marker, model, prefix in (
        ("<!-- settings -->", Settings, "FIRNLINE_"),
        ("<!-- request -->", Request, ""),
        ("<!-- strain -->", Strain, ""),
    ):
        if marker in markdown:
            markdown = markdown.replace(marker, table(model, prefix))
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Names in docstrings are marked up for Sphinx, as numpydoc has it: leave the names."""
    return re.sub(r":(?:class|func|data|mod|attr|meth|exc):(?=<code>)", "", html)


def table(model: type[BaseModel], prefix: str = "") -> str:
    """The fields of a model as a Markdown table: name, default, description."""
    rows = ["| name | default | |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        shown = f"{prefix}{name.upper()}" if prefix else name
        described = (field.description or "").replace("|", "\\|")
        rows.append(f"| `{shown}` | {_default(field)} | {described} |")
    return "\n".join(rows)


def _default(field: Any) -> str:
    value = field.default
    if value is PydanticUndefined:
        return ""  # it depends on the machine, or on other fields
    if isinstance(value, ByteSize):
        return f"`{value.human_readable(decimal=True)}`"
    if isinstance(value, tuple):
        return ", ".join(f"`{each}`" for each in value)
    return "" if value in ("", None) else f"`{value}`"
