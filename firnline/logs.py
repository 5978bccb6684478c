"""Logging: structured, to stderr, as lines for people or as JSON."""

from __future__ import annotations

import logging
import sys

import structlog

from firnline.settings import Settings


def configure(settings: Settings) -> None:
    """Set up structlog for this process; standard logging of libraries goes to stderr as well.

    Tracebacks are plain: structlog's own show every local variable, secrets and arrays included.
    """
    level = logging.getLevelNamesMapping()[settings.log_level]
    as_json = settings.log_format == "json"
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(
                [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
                if as_json
                else [
                    structlog.dev.ConsoleRenderer(
                        colors=sys.stderr.isatty(),
                        exception_formatter=structlog.dev.plain_traceback,
                    )
                ]
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(level, logging.WARNING), stream=sys.stderr)
