"""The installation that a command works on: its settings and its database."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from pydantic import ValidationError

from firnline import logs
from firnline.errors import InputError
from firnline.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine


def load_settings() -> Settings:
    """The settings in force, from here on those of the logs; a bad one is an InputError."""
    try:
        settings = Settings()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = "_".join(map(str, first["loc"])).upper()
        raise InputError(f"setting FIRNLINE_{name}: {first['msg']}") from None
    logs.configure(settings)
    return settings


opened = ExitStack()
"""Databases that a command has opened; closed when it ends, however it does."""


def open_database(settings: Settings, *, migrated: bool = True) -> Engine:
    """The database of the settings, unless told otherwise with its schema up to date."""
    from firnline.database import migrate

    engine = open_url(settings.database)
    if migrated:
        migrate(engine)
    return engine


def open_url(url: str) -> Engine:
    """A database as it is."""
    from firnline.database import connect

    engine = connect(url)
    opened.callback(engine.dispose)
    return engine


def shown_url(url: str) -> str:
    """A database's URL without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return "not a database URL"
