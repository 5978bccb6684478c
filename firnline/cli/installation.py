"""The installation that a command works on: its settings and its database."""

from __future__ import annotations

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


def open_database(settings: Settings, *, migrated: bool = True) -> Engine:
    """The database of the settings, unless told otherwise with its schema up to date."""
    from firnline.database import connect, migrate

    engine = connect(settings.database)
    if migrated:
        migrate(engine)
    return engine


def shown_url(url: str) -> str:
    """A database's URL without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return "not a database URL"
